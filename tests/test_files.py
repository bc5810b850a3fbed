"""Files and folders appear whole or not at all, and nothing temporary is left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from convsv import files
from convsv.errors import OutputError, UsageError
from convsv.files import beginning, beside, put_in_place, replacing, settle

ENDING = [signal.SIGTERM, signal.SIGHUP]

WAITS = """
import os, signal, sys, time
from pathlib import Path
from convsv.files import beginning, beside, replacing
folder = Path(sys.argv[1])
with beside(folder / "shards") as made, replacing(str(folder / "report.json")) as report:
    made.mkdir()
    (made / "part").write_bytes(b"x")
    report.write_text("half")
    print(len(list(folder.iterdir())), flush=True)
    if sys.argv[2] == "fork":
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(tell, b"!")
        while child == 0:
            time.sleep(0.05)
        os.read(told, 1)
        os.kill(child, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(list(folder.iterdir())), flush=True)
    while True:
        time.sleep(0.05)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def waiting(folder: Path, *, fork: bool = False) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WAITS, str(folder), "fork" if fork else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


# --------------------------------------------------------------------------------------------------------- neighbours


def test_a_neighbour_is_hidden_recognisable_and_free(tmp_path: Path) -> None:
    with beside(tmp_path / "model.pt") as one, beside(tmp_path / "model.pt") as two:
        assert one != two
        assert not one.exists()
        assert one.parent == tmp_path
        assert one.name.startswith(".model.pt.")
        assert one.name.endswith(".part")


@pytest.mark.parametrize("name", ["x" * 250, "é" * 120, "名" * 80, "-x"], ids=["long", "accents", "ideographs", "dash"])
def test_a_neighbour_of_any_legal_name_can_be_made(tmp_path: Path, name: str) -> None:
    with replacing(str(tmp_path / name)) as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_a_neighbour_is_removed_whatever_is_raised(tmp_path: Path, error: type[BaseException], kind: str) -> None:
    with pytest.raises(error), beside(tmp_path / "x") as temporary:  # noqa: PT012 - what is made before it is raised
        if kind == "file":
            temporary.write_text("half")
        elif kind == "folder":
            temporary.mkdir()
            (temporary / "part").write_text("half")
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_that_ends_the_process_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "report.json").write_text("old")
    with waiting(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "3\n"
        process.send_signal(number)
        assert process.wait(60) == -number
    assert names(tmp_path) == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


def test_a_forked_process_that_is_ended_removes_nothing_of_its_parent(tmp_path: Path) -> None:
    with waiting(tmp_path, fork=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["2\n", f"{-signal.SIGTERM} 2\n"]
        process.terminate()
        process.wait(60)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", ENDING)
def test_handlers_of_others_are_left_alone(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with beside(tmp_path / "x"):
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", ENDING)
def test_the_default_handler_is_back_when_the_last_neighbour_is_gone(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with beside(tmp_path / "x"):
            with beside(tmp_path / "y"):
                assert callable(signal.getsignal(number))
            assert callable(signal.getsignal(number))
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_thread_can_write_files_too(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(str(tmp_path / "x")) as temporary:
            temporary.write_text("new")

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tmp_path / "x").read_text() == "new"


# ------------------------------------------------------------------------------------------------------ taking a name


def made(folder: Path, *, kind: str, content: str = "new") -> Path:
    path = folder / "temporary"
    if kind == "file":
        path.write_text(content)
    else:
        path.mkdir()
        (path / "part").write_text(content)
    return path


def content(path: Path) -> str:
    return (path / "part" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_finished_takes_a_free_name(tmp_path: Path, kind: str, force: bool) -> None:
    put_in_place(made(tmp_path, kind=kind), tmp_path / "x", force=force)
    assert (names(tmp_path), content(tmp_path / "x")) == (["x"], "new")


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_appeared_meanwhile_is_not_replaced(tmp_path: Path, kind: str, there: str) -> None:
    made(tmp_path, kind=there, content="old").rename(tmp_path / "x")
    with pytest.raises(UsageError, match=r"is already there.*--force"):
        put_in_place(made(tmp_path, kind=kind), tmp_path / "x", force=False)
    assert content(tmp_path / "x") == "old"


def test_a_file_system_without_hard_links_does_not_replace_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refused)
    put_in_place(made(tmp_path, kind="file"), tmp_path / "x", force=False)
    assert names(tmp_path) == ["x"]
    with pytest.raises(UsageError, match="is already there"):
        put_in_place(made(tmp_path, kind="file", content="newer"), tmp_path / "x", force=False)
    assert content(tmp_path / "x") == "new"


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("exchange", [True, False], ids=["names exchanged", "without exchange"])
def test_force_replaces_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    made(tmp_path, kind=kind, content="old").rename(tmp_path / "x")
    with beside(tmp_path / "x") as temporary:
        made(tmp_path, kind=kind).rename(temporary)
        put_in_place(temporary, tmp_path / "x", force=True)
    assert (names(tmp_path), content(tmp_path / "x")) == (["x"], "new")


def test_a_folder_that_cannot_take_the_name_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, kind="folder", content="old").rename(tmp_path / "x")
    fresh = made(tmp_path, kind="folder")
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self == fresh and not target.exists():
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError):
        put_in_place(fresh, tmp_path / "x", force=True)
    assert (names(tmp_path), content(tmp_path / "x")) == (["temporary", "x"], "old")


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux")
def test_two_folders_exchange_their_names_at_once(tmp_path: Path) -> None:
    made(tmp_path, kind="folder", content="old").rename(tmp_path / "x")
    assert files._exchange(made(tmp_path, kind="folder"), tmp_path / "x")
    assert (content(tmp_path / "x"), content(tmp_path / "temporary")) == ("new", "old")


def test_a_mode_that_closes_the_file_to_us_can_be_given(tmp_path: Path) -> None:
    path = made(tmp_path, kind="file")
    settle(path, 0o000)
    assert stat.S_IMODE(path.stat().st_mode) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_is_read_only_is_an_output_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match=r"cannot be written.*Permission denied"), replacing(str(tmp_path / "x")):
            pass
    finally:
        tmp_path.chmod(0o700)


# ------------------------------------------------------------------------------------------------------------- reading


def test_the_beginning_of_a_file_is_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert [beginning(tmp_path / "x", most) for most in (0, 2, 3, 4, 1 << 40)] == [b"", b"ab", b"abc", b"abc", b"abc"]


ODD = {
    "nothing": lambda path: None,
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_refused_at_once_also_where_it_takes_the_place_of_one(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = tmp_path / "x", os.open
    path.write_bytes(b"abc")

    def swapping(name: object, flags: int, *more: object) -> int:
        path.unlink()
        ODD[kind](path)
        return opened(name, flags, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", swapping)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(UsageError, match=r"no such file|not a regular file|cannot be read"):
        beginning(path, 3)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_name_with_a_nul_byte_is_that_of_no_file() -> None:
    with pytest.raises(UsageError, match="no such file"):
        beginning("a\0b", 3)

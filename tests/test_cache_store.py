"""The folder of entries: sound or nothing, bounded, and shared by processes that die whenever they like."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsv.cache import Folder, Memory, _store

LIMIT = 64 << 20


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "deep" / "cache", LIMIT)


@pytest.fixture(autouse=True)
def names_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every entry its name when it is put; tests of names that come together say so."""
    monkeypatch.setattr(_store, "_UNNAMED", -1.0)


@pytest.fixture
def names_come_together(names_come_at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, names come when they must."""
    monkeypatch.setattr(_store, "_UNNAMED", 1e9)


def file_of(folder: Folder, number: int = 0) -> Path:
    return folder.path / key(number)[0] / key(number)


def test_entries_come_back_in_this_and_in_another_process(folder: Folder) -> None:
    assert folder.get(key(0)) is None
    for number in range(5):
        folder.put(key(number), b"x" * number)
    folder.put(key(3), b"new")
    other = Folder(folder.path, LIMIT)
    assert [other.get(key(number)) for number in range(6)] == [b"", b"x", b"xx", b"new", b"xxxx", None]
    assert folder.usage().entries == 5
    assert folder.trouble is None


# ------------------------------------------------------------------------------------------------- names come together


def filled(path: Path, count: int) -> Folder:
    folder = Folder(path, LIMIT)
    for number in range(count):
        folder.put(key(number), b"x" * number)
    return folder


def named(folder: Folder, count: int) -> list[int]:
    return [number for number in range(count) if file_of(folder, number).exists()]


def on_their_way(folder: Folder) -> list[Path]:
    return list(folder.path.glob("part-*"))


@pytest.mark.usefixtures("names_come_together")
def test_what_follows_quickly_is_written_at_once_and_named_together(tmp_path: Path) -> None:
    folder = filled(tmp_path, 5)
    (way,) = on_their_way(folder)
    assert [way.read_bytes().count(key(number).encode()) for number in range(6)] == [1, 1, 1, 1, 1, 0]
    assert [folder.get(key(number)) for number in range(6)] == [b"", b"x", b"xx", b"xxx", b"xxxx", None]
    assert named(folder, 5) == []
    folder.drop(key(3))
    assert folder.get(key(3)) is None
    folder.settle()
    assert named(folder, 5) == [0, 1, 2, 4]
    folder.put(key(3), b"new")
    folder.put(key(1), b"newer")
    folder.close()
    assert len({file_of(folder, number).stat().st_ino for number in range(5)}) == 1
    assert on_their_way(folder) == []
    assert [folder.get(key(number)) for number in range(5)] == [b"", b"newer", b"xx", b"new", b"xxxx"]
    folder.put(key(2), b"in another file")
    folder.close()
    assert Folder(tmp_path, LIMIT).get(key(2)) == b"in another file"


KILLED = """
import hashlib, os, signal, sys
from pathlib import Path
from convsv.cache import Folder, _store
_store._UNNAMED = 1e9
folder = Folder(Path(sys.argv[1]), 64 << 20)
for number in range(20):
    folder.put(hashlib.sha256(str(number).encode()).hexdigest(), b"x" * number)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_lost_with_a_process_that_is_killed_before_it_gave_names(folder: Folder) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder.path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert named(folder, 20) == []
    (way,) = on_their_way(folder)
    half, forged = _store._entry(key(21), b"y" * 99)[:-1], _store._entry(key(0), b"forged")
    way.write_bytes(way.read_bytes() + _store._entry(key(20), b"x" * 20 + forged) + half)
    other = Folder(folder.path, LIMIT)
    assert [other.get(key(number)) for number in range(22)] == [
        *(b"x" * number for number in range(20)),
        20 * b"x" + forged,
        None,
    ]
    os.utime(way, (1, 1))
    other.limit = 0  # everything goes
    other._sweep()
    assert on_their_way(folder) == []


@pytest.mark.usefixtures("names_come_together")
def test_two_processes_do_not_mind_each_others_files(tmp_path: Path) -> None:
    first = filled(tmp_path, 3)
    second = Folder(tmp_path, LIMIT)
    assert second.get(key(2)) == b"xx"  # named by the second, for want of knowing better
    second.put(key(2), b"of the second")
    second.close()
    first.put(key(3), b"xxx")
    first.close()
    assert [first.get(key(number)) for number in range(4)] == [b"", b"x", b"xx", b"xxx"]
    third = filled(tmp_path, 3)
    first.clear()
    third.put(key(4), b"xxxx")
    third.close()
    assert third.trouble is None
    assert named(third, 5) == [4]


@pytest.mark.usefixtures("names_come_together")
def test_an_interrupt_while_names_are_given_costs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, link, links = filled(tmp_path, 5), os.link, []

    def interrupted(path: str, place: str) -> None:
        links.append(place)
        if len(links) == 3:
            raise KeyboardInterrupt
        link(path, place)

    monkeypatch.setattr(os, "link", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.settle()
    folder.close()
    assert named(folder, 5) == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("names_come_together")
def test_where_there_are_no_hard_links_what_waits_becomes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path, 4)

    def refused(path: str, place: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    folder.close()
    assert folder.trouble is None
    assert len({file_of(folder, number).stat().st_ino for number in range(4)}) == 4
    assert on_their_way(folder) == []


# ------------------------------------------------------------------------------------------------------------- damaged


@given(st.data())
def test_a_change_of_any_byte_makes_it_no_entry(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = Folder(tmp_path_factory.mktemp("store"), LIMIT)
    folder.put(key(0), b'{"a": 1}')
    path = file_of(folder)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert folder.get(key(0)) is None
    assert not path.exists()
    folder.put(key(0), b"again")
    assert folder.get(key(0)) == b"again"


def test_every_length_but_its_own_makes_it_no_entry(folder: Folder) -> None:
    folder.put(key(0), b'{"a": 1}')
    path = file_of(folder)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert folder.get(key(0)) is None


def test_what_follows_an_entry_in_its_file_is_another_matter(folder: Folder) -> None:
    """A process that was killed leaves there what it had written of the next."""
    folder.put(key(0), b'{"a": 1}')
    path = file_of(folder)
    content = path.read_bytes()
    for more in (b" ", content[:20], content[:-1], content):
        path.write_bytes(content + more)
        other = Folder(folder.path, LIMIT)
        assert other.get(key(0)) == (b'{"a": 1}' if more != content[:-1] else None)


def test_entries_share_a_file_and_each_is_sound_by_itself(folder: Folder) -> None:
    for number in range(9):
        folder.put(key(number), bytes([number]) * 5000)
    assert len({file_of(folder, number).stat().st_ino for number in range(9)}) == 1
    assert folder.usage().size <= 9 * 5000 + 9 * 200 + 4096
    path = file_of(folder)
    content = bytearray(path.read_bytes())
    content[content.index(bytes([3]) * 5000) + 4999] ^= 1
    path.write_bytes(content)
    assert [number for number in range(9) if folder.get(key(number)) is None] == [3]
    path.write_bytes(content[: len(content) // 2])
    assert [number for number in range(9) if folder.get(key(number)) is None] == [3, 4, 5, 6, 7, 8]


def test_an_entry_within_the_content_of_another_is_none(folder: Folder) -> None:
    # Names in a hostile checkpoint are content, and the names of results can be computed by anybody.
    folder.put(key(0), b"true")
    folder.put(key(1), b"text " + _store._entry(key(0), b"forged") + b" more")
    assert file_of(folder, 0).stat().st_ino == file_of(folder, 1).stat().st_ino
    assert folder.get(key(0)) == b"true"


def test_a_file_of_entries_is_read_once_in_a_row_and_anew_when_it_has_changed(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.put(key(0), b"a")
    folder.put(key(1), b"b")
    read, reads = _store._whole, []
    monkeypatch.setattr(_store, "_whole", lambda *some: reads.append(some) or read(*some))
    assert [folder.get(key(number)) for number in range(3)] == [b"a", b"b", None]
    assert len(reads) == 1
    folder.put(key(2), b"c")
    assert [folder.get(key(number)) for number in range(3)] == [b"a", b"b", b"c"]
    assert len(reads) == 2


def test_a_file_is_not_added_to_once_it_is_large_or_somebody_else_had_a_hand_in_it(folder: Folder) -> None:
    def put(*numbers: int, size: int = 100) -> None:
        for number in numbers:
            folder.put(key(number), b"x" * size)

    def together(one: int, other: int) -> bool:
        return file_of(folder, one).stat().st_ino == file_of(folder, other).stat().st_ino

    put(0, 1, 2)
    assert together(0, 2)
    put(2, 0)  # each has a name already, which leads to the newer entry from now on
    assert together(2, 0)
    with file_of(folder, 0).open("ab") as file:
        file.write(b"half of an entry")
    put(3, 4)
    assert not together(0, 3)
    assert together(3, 4)
    file_of(folder, 4).unlink()
    put(5, 6)
    assert together(5, 6)
    put(7, size=1 << 20)
    put(8)
    assert together(6, 8)
    put(9, size=65_000)
    assert not together(8, 9)
    assert all(folder.get(key(number)) for number in range(10) if number != 4)


@pytest.mark.usefixtures("names_come_together")
def test_what_waits_for_a_name_survives_somebody_elses_hand_in_its_file(folder: Folder) -> None:
    folder.put(key(0), b"a")
    (way,) = on_their_way(folder)
    with way.open("ab") as file:
        file.write(b"half of an entry")
    folder.put(key(1), b"b")
    folder.close()
    assert folder.trouble is None
    assert [folder.get(key(number)) for number in range(2)] == [b"a", b"b"]


def test_an_entry_of_a_name_that_was_let_go_is_the_newer_one(folder: Folder) -> None:
    folder.put(key(0), b"old")
    folder.put(key(1), b"x")
    folder.drop(key(0))
    folder.put(key(0), b"new")
    assert file_of(folder, 0).stat().st_ino == file_of(folder, 1).stat().st_ino
    assert folder.get(key(0)) == b"new"


def test_without_hard_links_each_entry_is_a_file(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str, place: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    for number in range(5):
        folder.put(key(number), b"x" * number)
    assert folder.trouble is None
    assert [folder.get(key(number)) for number in range(5)] == [b"", b"x", b"xx", b"xxx", b"xxxx"]
    assert all(file_of(folder, number).stat().st_nlink == 1 for number in range(5))


def test_an_interrupt_while_an_entry_is_added_costs_that_entry(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put(key(0), b"x" * 100)
    write = os.write

    def interrupted(descriptor: int, content: bytes) -> int:
        write(descriptor, content[:50])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            folder.put(key(1), b"y" * 100)
    folder.put(key(2), b"z" * 100)
    assert [folder.get(key(number)) for number in range(3)] == [b"x" * 100, None, b"z" * 100]


def test_an_entry_under_another_name_is_none(folder: Folder) -> None:
    folder.put(key(0), b"of the first")
    file_of(folder, 1).parent.mkdir(exist_ok=True)
    file_of(folder, 1).write_bytes(file_of(folder, 0).read_bytes())
    assert folder.get(key(1)) is None
    assert folder.get(key(0)) == b"of the first"


def test_links_pipes_folders_and_large_files_are_no_entries(folder: Folder, tmp_path: Path) -> None:
    folder.put(key(0), b"x")
    sound, path = file_of(folder, 0), file_of(folder, 1)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(sound)
    assert folder.get(key(1)) is None
    os.mkfifo(path)
    assert folder.get(key(1)) is None
    path.mkdir()
    assert folder.get(key(1)) is None
    folder.put(key(1), b"y")  # cannot take the place of a folder
    assert folder.trouble
    path.rmdir()
    with path.open("wb") as file:
        file.truncate(LIMIT)
    assert Folder(folder.path, LIMIT).get(key(1)) is None


# ------------------------------------------------------------------------------------------------------------- refused


def test_a_folder_that_others_can_write_to_is_not_used(folder: Folder) -> None:
    folder.put(key(0), b"x")
    folder.path.chmod(0o770)
    other = Folder(folder.path, LIMIT)
    assert (other.get(key(0)), other.trouble) == (None, "others may write to it")
    other.put(key(1), b"x")
    assert other.usage().entries == 1


def test_a_new_folder_is_the_users_alone(folder: Folder) -> None:
    before = os.umask(0)
    try:
        folder.put(key(0), b"x")
    finally:
        os.umask(before)
    assert folder.path.stat().st_mode & 0o077 == 0
    assert file_of(folder).stat().st_mode & 0o077 == 0


def test_of_another_user(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put(key(0), b"x")
    monkeypatch.setattr(os, "geteuid", lambda: folder.path.stat().st_uid + 1)
    assert Folder(folder.path, LIMIT).trouble == "belongs to another user"


def test_a_place_where_nothing_can_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    folder = Folder(tmp_path / "file" / "cache", LIMIT)
    folder.put(key(0), b"x")
    assert folder.trouble
    assert folder.get(key(0)) is None
    assert folder.usage().entries == 0
    assert Folder(tmp_path / "file", LIMIT).trouble == "is not a folder"


def test_a_full_disk_ends_writing_only(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put(key(0), b"x")

    def full(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        folder.put(key(1), b"y")
    assert folder.trouble == "cannot be written: No space left on device"
    assert [path.name for path in folder.path.iterdir() if path.name.startswith("part-")] == []


def test_without_a_bound_nothing_is_kept(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "cache", 0)
    folder.put(key(0), b"x")
    assert not folder.path.exists()


# ----------------------------------------------------------------------------------------------------------- the bound


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    """Those of one file together: here each has its own."""
    folder = Folder(tmp_path, 64 * 4096)
    old, body = time.time() - 7200, b"x" * 3900
    for number in range(56):
        folder.put(key(number), body)
        os.utime(file_of(folder, number), (old + number, old + number))
    folder.get(key(0))
    for number in range(56, 80):
        folder.put(key(number), body)
        assert folder.usage().size <= folder.limit
    assert folder.get(key(0)) == body
    assert folder.get(key(1)) is None
    assert all(folder.get(key(number)) for number in range(56, 80))


@pytest.mark.parametrize("size", [500, 5000, 20_000])
def test_the_bound_holds_whatever_the_size_and_over_many_processes(tmp_path: Path, size: int) -> None:
    limit = 100 * 4096
    for call in range(30):
        folder = Folder(tmp_path, limit)
        for number in range(7):
            folder.put(key(100 * call + number), b"x" * size)
        assert folder.usage().size <= limit
    assert folder.usage().size > limit // 4


def test_an_entry_of_more_than_its_share_is_not_kept(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 1 << 20)
    folder.put(key(0), bytes((1 << 16) + 1))
    folder.put(key(1), bytes(1 << 16))
    assert folder.get(key(0)) is None
    assert folder.get(key(1)) is not None


def test_clearing_deletes_entries_and_nothing_else(folder: Folder) -> None:
    for number in range(40):
        folder.put(key(number), b"x")
    mine = [folder.path / "mine.txt", folder.path / "a" / "mine.txt", folder.path / "mine" / key(0)]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (folder.path / "part-1").write_text("half")
    assert folder.clear().entries == 40
    assert all(path.read_text() == "mine" for path in mine)
    assert not (folder.path / "part-1").exists()
    assert folder.usage().entries == 0
    folder.put(key(1), b"x")
    assert folder.get(key(1)) == b"x"


def test_memory_is_bounded_and_stands_in_front(folder: Folder) -> None:
    memory = Memory(folder, limit=100)
    for number in range(20):
        memory.put(key(number), bytes(10))
    memory.put(key(19), bytes(20))
    assert memory.get(key(19)) == bytes(20)
    assert memory.recalled == 0
    assert memory.get(key(0)) == bytes(10)
    assert memory.recalled == 1
    memory.drop(key(19))
    assert memory.get(key(19)) is None
    assert Memory(None, limit=5).get(key(0)) is None


# ----------------------------------------------------------------------------------------------------------- processes

PROGRAM = """
import hashlib, sys
from pathlib import Path
from convsv.cache import Folder
folder, seed, wrong = Folder(Path(sys.argv[1]), 40 * 4096), int(sys.argv[2]), 0
print("begun", flush=True)
for number in range(int(sys.argv[3])):
    key = hashlib.sha256(str((number * 7 + seed) % 90).encode()).hexdigest()
    body = folder.get(key)
    wrong += body is not None and body != key.encode() * 50
    folder.put(key, key.encode() * 50)
print(wrong, folder.trouble)
"""


def start(folder: Path, seed: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(seed), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_share_a_folder_while_it_is_swept_cleared_and_they_are_killed(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    workers = [start(folder, seed, 4000) for seed in range(3)]
    victims = [start(folder, 10 + seed, 10**9) for seed in range(2)]
    for process in (*workers, *victims):
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
    for _ in range(20):
        Folder(folder, 40 * 4096).clear()
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    for victim in victims:
        victim.communicate()
    answers = [process.communicate()[0].split() for process in workers]
    assert answers == [["0", "None"]] * 3
    survivor = Folder(folder, 40 * 4096)
    found = [survivor.get(key(number)) for number in range(90)]
    assert all(body == key(number).encode() * 50 for number, body in enumerate(found) if body is not None)
    assert sum(body is not None for body in found) > 10
    assert survivor.usage().size <= (40 + 6) * 4096

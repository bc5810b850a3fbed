"""A writer that errs, a disk that is full: what is at the target stays, nothing is left beside it, and it is said."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from convsv import open_checkpoint
from convsv.checkpoints import FORMATS, Checkpoint, _copying
from convsv.checkpoints._place import Place
from convsv.checkpoints._zip import StoredZip
from convsv.checkpoints.writing import Edit
from convsv.cli import app
from edits import names
from oddfiles import FILES

SEVERAL = ("shards",)
"""Checkpoints of several files."""


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def errors(result: Any) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def content(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (sorted(path.iterdir()) if path.is_dir() else [path])}


class Scene:
    """A checkpoint, and something where its clipped copy is to go."""

    def __init__(self, folder: Path, case: str, *, there: bool) -> None:
        (folder / "in").mkdir()
        self.folder, self.path = folder, FILES[case](folder / "in")
        self.out = folder / f"out{self.path.suffix}"
        self.force = ["--force"] * there
        if there and case in SEVERAL:
            self.out.mkdir()
            for file in self.path.iterdir():
                (self.out / file.name).write_text("old")
        elif there:
            self.out.write_text("old")
        self.before, self.old = content(self.path), content(self.out) if there else None

    def clip(self) -> Any:
        return run("clip", "--max-norm", "1", f"--output={self.out}", *self.force, "--", self.path)

    def check_refused(self, result: Any, *words: str) -> None:
        """The code of a result that could not be written, one line, and everything as it was."""
        assert result.exit_code == 5, result.output
        assert len(errors(result)) == 1, result.stderr
        assert "Traceback" not in result.output
        assert all(word in errors(result)[0] for word in words), errors(result)
        assert content(self.path) == self.before
        assert names(self.folder) == (["in"] if self.old is None else ["in", self.out.name])
        assert self.old is None or content(self.out) == self.old


# ------------------------------------------------------------------------------------------------- a writer that errs


def spoil(source: Checkpoint, copy: Path, name: str) -> None:
    """Change the last bit of a weight in the copy, and put right the checksum over it."""
    (tensor,) = (t for t in source.tensors if name in "/".join((*t.container, t.key)))
    if tensor.place is None:
        with h5py.File(copy, "r+") as file:
            dataset = file["/".join((*tensor.container, tensor.key))]
            values = dataset[()]
            values.flat[0] = np.nextafter(values.flat[0], np.float32(9))
            dataset[...] = values
        return
    at = tensor.place.first + (3 if tensor.place.big_endian else 0)
    where = copy / tensor.place.file.path.name if copy.is_dir() else copy
    data = bytearray(where.read_bytes())
    data[at] ^= 1
    archive = StoredZip(source.files[0]) if data.startswith(b"PK") else None
    for entry in archive.entries.values() if archive and archive.has_checksums else ():
        if entry.offset <= at < entry.offset + entry.size:
            checksum = zlib.crc32(data[entry.offset : entry.offset + entry.size]).to_bytes(4, "little")
            for position in entry.crc_offsets:
                data[position : position + 4] = checksum
    where.write_bytes(data)


def break_writer(monkeypatch: pytest.MonkeyPatch, form: str, spoilt: str) -> None:
    writer = type(FORMATS[form])

    class Erring(writer):  # type: ignore[misc, valid-type]
        def patch(self, source: Checkpoint, edits: Sequence[Edit], copy: Path) -> Sequence[Place] | None:
            places: Sequence[Place] | None = super().patch(source, edits, copy)
            spoil(source, copy, spoilt)
            return places

    monkeypatch.setitem(FORMATS._entries, form, Erring())


OFTEN = ("safetensors", "pt", "HDF5", "shards")
WRONG = [
    *((case, "large", False) for case in FILES if case not in ("packed keras", "tied pt")),
    *((case, spoilt, True) for case in (*OFTEN, "packed HDF5") for spoilt in ("small", "head")),
]


@pytest.mark.parametrize(("case", "spoilt", "there"), WRONG)
def test_one_wrong_bit_in_the_finished_copy_keeps_it_from_its_name(
    case: str, spoilt: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the layer that is clipped, in one that is not, or in what is no convolution."""
    scene = Scene(tmp_path, case, there=there)
    break_writer(monkeypatch, open_checkpoint(scene.path).format, spoilt)
    scene.check_refused(scene.clip(), str(scene.out), "the copy is wrong, so it did not take its name")
    monkeypatch.undo()
    assert scene.clip().exit_code == 0


@pytest.mark.parametrize("case", ["pt", "legacy pt", "big-endian pt"])
def test_a_wrong_checksum_in_the_finished_copy_keeps_it_from_its_name(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an archive; the old format has none, and a bit of its pickle is wrong."""
    scene = Scene(tmp_path, case, there=True)
    writer = type(FORMATS["pytorch"])

    class Erring(writer):  # type: ignore[misc, valid-type]
        def patch(self, source: Checkpoint, edits: Sequence[Edit], copy: Path) -> Sequence[Place] | None:
            places: Sequence[Place] | None = super().patch(source, edits, copy)
            data = bytearray(copy.read_bytes())
            data[data.index(b"small.weight")] ^= 1
            copy.write_bytes(data)
            return places

    monkeypatch.setitem(FORMATS._entries, "pytorch", Erring())
    scene.check_refused(scene.clip(), "so it did not take its name")


# ------------------------------------------------------------------------------------------------- a disk that is full


def fill_disk(monkeypatch: pytest.MonkeyPatch, at: int, error: int = errno.ENOSPC) -> list[int]:
    """Let the write of that number, from 0, put down one byte, and those after it none; return what is written."""
    written: list[int] = []
    pwrite = os.pwrite

    def full(descriptor: int, data: Any, position: int) -> int:
        written.append(len(data))
        if len(written) <= at:
            return pwrite(descriptor, data, position)
        if len(written) == at + 1 and len(data) > 1:
            return pwrite(descriptor, bytes(data[:1]), position)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(_copying.os, "copy_file_range", lambda *_: 0, raising=False)
    return written


FULL = (*OFTEN, "legacy pt", "packed HDF5", "stored keras", "packed keras")


@pytest.mark.parametrize("case", FULL)
def test_a_full_disk_at_the_first_second_or_last_write_leaves_the_old(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, case, there=True)
    with monkeypatch.context() as counting:
        written = fill_disk(counting, 10**9)
        assert run("clip", "--max-norm", "1", f"--output={tmp_path / 'other'}", "--", scene.path).exit_code == 0
    for path in (tmp_path / "other").iterdir() if case in SEVERAL else ():
        path.unlink()
    (tmp_path / "other").rmdir() if case in SEVERAL else (tmp_path / "other").unlink()
    writes = len(written)
    assert writes > 1
    for at in sorted({0, min(1, writes - 1), writes - 1}):
        with monkeypatch.context() as filling:
            fill_disk(filling, at)
            scene.check_refused(scene.clip(), f"{scene.out}: cannot be written (found No space left on device)")
    assert scene.clip().exit_code == 0


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
@pytest.mark.parametrize("call", ["copy_file_range", "ftruncate", "fsync", "replace"])
def test_whatever_the_system_refuses_leaves_the_old(
    call: str, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems tell that they are full when a file is flushed, and not before."""
    if not hasattr(os, call):
        pytest.skip(f"this system has no {call}")

    def refused(*_: object, **__: object) -> Any:
        raise OSError(error, os.strerror(error))

    scene = Scene(tmp_path, "pt", there=True)
    with monkeypatch.context() as refusing:
        refusing.setattr(os, call, refused)
        scene.check_refused(scene.clip(), f"{scene.out}: cannot be written (found {os.strerror(error)})")
    assert scene.clip().exit_code == 0


LIMITED = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
sys.dont_write_bytecode = True
from convsv.__main__ import main
main()
"""


def limited(size: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the program where no file may become larger."""
    command = [sys.executable, "-c", LIMITED, str(size), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


RECORDS = ("--output", (".json", ".jsonl", ".csv", ".tsv", ".md"))
WRITTEN = {
    "reports": (("circulant", "--size", "16"), *RECORDS),
    "HDF5": (("circulant", "--size", "16"), "--spectra", (".h5",)),
    "NPZ": (("circulant", "--size", "16"), "--spectra", (".npz",)),
    "figures": (("plot", "--size", "6"), "--output", (".svg", ".png", ".pdf")),
    "page": (("report", "--size", "6"), "--output", (".html",)),
    "geometry": (("layers", "--force"), "--write-geometry", (".toml",)),
}


@pytest.mark.parametrize("size", [100, 3000])
@pytest.mark.parametrize("case", WRITTEN)
def test_a_report_that_does_not_fit_is_said_and_leaves_the_old(case: str, size: int, tmp_path: Path) -> None:
    """libhdf5 crashed where a write failed, and the temporary file of a report stayed."""
    command, option, suffixes = WRITTEN[case]
    if case == "figures":
        pytest.importorskip("matplotlib")
    (tmp_path / "in").mkdir()
    path = FILES["safetensors"](tmp_path / "in")
    outputs = [tmp_path / f"r{suffix}" for suffix in suffixes]
    for output in outputs:
        output.write_text("old")
    ended = limited(size, command[0], path, *command[1:], *(f"{option}={output}" for output in outputs))
    said = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode in (0, 5), ended.stderr
    assert "Traceback" not in ended.stderr
    assert "ignored" not in ended.stderr
    failed = [output for output in outputs if output.read_bytes() == b"old"]
    assert said == [
        f"error: {output}: cannot be written (found File too large); give another place" for output in failed
    ]
    assert ended.returncode == (5 if failed else 0)
    assert size >= 3000 or failed == outputs
    assert names(tmp_path) == ["in", *sorted(output.name for output in outputs)]


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_spectra_that_do_not_fit_are_said_wherever_the_disk_ends(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the library, whose own buffers decide what is written when."""
    (tmp_path / "in").mkdir()
    path, out = FILES["safetensors"](tmp_path / "in"), tmp_path / f"r{suffix}"
    options = ("circulant", path, "--size", "16", "--no-cache", "--quiet", "--format", "tsv", "--spectra", out)
    with monkeypatch.context() as counting:
        written = fill_disk(counting, 10**9)
        assert run(*options).exit_code == 0
    whole = out.read_bytes()
    for at in range(len(written)):
        with monkeypatch.context() as filling:
            fill_disk(filling, at)
            result = run(*options)
        assert result.exit_code == 5
        assert errors(result) == [
            f"error: {out}: cannot be written (found No space left on device); give another place"
        ]
        assert out.read_bytes() == whole
        assert names(tmp_path) == ["in", out.name]
        gc.collect()
    assert capfd.readouterr().err == ""

"""Weights that cannot be read: they fail their layer, in every command; the other layers are reported."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from convsv import analyze, clip_checkpoint, find_layers, open_checkpoint
from convsv.cache import _analyst
from convsv.checkpoints import RegularFile, _hdf5
from convsv.cli import app
from convsv.errors import CheckpointError
from hdf5files import mortal

KERNEL = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)
NAMES = ("first", "bad", "last")
PYTORCH = dict(zip(NAMES, (KERNEL, 2 * KERNEL, 3 * KERNEL), strict=True))


def damaged(path: Path, old: bytes) -> Path:
    """The file with one of these bytes changed."""
    data = path.read_bytes()
    assert data.count(old) == 1
    at = data.index(old) + len(old) // 2
    path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
    return path


def a_wrong_checksum(folder: Path, _: pytest.MonkeyPatch) -> Path:
    path = folder / "m.pt"
    torch.save({f"{name}.weight": torch.from_numpy(value.copy()) for name, value in PYTORCH.items()}, path)
    return damaged(path, PYTORCH["bad"].tobytes())


def packed(folder: Path) -> Path:
    with h5py.File(folder / "m.h5", "w") as file:
        for name, value in PYTORCH.items():
            file.create_dataset(f"{name}/kernel:0", data=value, compression="gzip", fletcher32=True)
    return folder / "m.h5"


def a_damaged_chunk(folder: Path, _: pytest.MonkeyPatch) -> Path:
    path = packed(folder)
    with h5py.File(path) as file:
        chunk = file["bad/kernel:0"].id.read_direct_chunk((0, 0, 0, 0))[1]
    return damaged(path, chunk)


def a_dead_child(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mortal(monkeypatch, folder, {b"bad/kernel:0"}, "os.kill(os.getpid(), signal.SIGKILL)")
    return packed(folder)


def a_child_that_does_not_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mortal(monkeypatch, folder, {b"bad/kernel:0"}, "while True: pass")
    monkeypatch.setattr(_hdf5, "VALUE_SECONDS", 0.5)
    return packed(folder)


def a_bad_block_of_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "m.safetensors"
    save_file({f"{name}.weight": value for name, value in PYTORCH.items()}, path)
    bad, pread = path.read_bytes().index(PYTORCH["bad"].tobytes()), os.pread

    def failing(descriptor: int, count: int, offset: int) -> bytes:
        beginning = not offset and count < path.stat().st_size  # where formats are told apart
        is_it = os.fstat(descriptor).st_ino == path.stat().st_ino
        if is_it and offset <= bad < offset + count and not beginning:
            raise OSError(errno.EIO, "Input/output error")
        return pread(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", failing)
    return path


DAMAGES: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], Path], str]] = {
    "a wrong checksum": (a_wrong_checksum, "wrong checksum of entry 'm/data/1' of the zip archive"),
    "a damaged chunk": (a_damaged_chunk, "libhdf5 cannot read it (found Can't synchronously read data"),
    "a dead child": (a_dead_child, "libhdf5 cannot read it: it ended by signal 9 in a process of its own"),
    "a child that does not end": (a_child_that_does_not_end, "libhdf5 cannot read it: it"),
    "a bad block of the disk": (a_bad_block_of_the_disk, "cannot be read (found Input/output error)"),
}


@pytest.fixture(params=DAMAGES)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A checkpoint of three layers, one of which cannot be read, and the reason."""
    make, reason = DAMAGES[request.param]
    return make(tmp_path, monkeypatch), reason


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def errors(result: Any) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def layers_of(result: Any, number: int = 0) -> dict[str, dict[str, Any]]:
    return {layer["name"]: layer for layer in json.loads(result.stdout)["checkpoints"][number]["layers"]}


COMMANDS: dict[str, tuple[str, ...]] = {
    "analyze": ("norm", "circulant", "bounds", "symbol_min"),
    "circulant": ("circulant",),
    "exact": ("exact",),
    "asymptotic": ("asymptotic",),
    "bounds": ("norm", "bounds"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_layer_is_unavailable_and_the_others_are_computed(checkpoint: tuple[Path, str], command: str) -> None:
    path, reason = checkpoint
    methods = [f"--method={name}" for name in ("circulant", "bounds", "symbol_min")] * (command == "analyze")
    result = run(command, path, "--size", "5", "--format", "json", *methods)
    assert result.exit_code == 3
    layers = layers_of(result)
    bad = layers.pop("bad")
    assert set(bad["unavailable"]) == set(COMMANDS[command])
    assert set(bad["unavailable"].values()) == {bad["unread"]}
    assert reason in bad["unread"]
    assert (bad["norm"], bad["results"], bad["failures"]) == (None, {}, [])
    assert len(layers) == 2
    for layer in layers.values():
        assert not layer["unavailable"]
        assert "unread" not in layer
        assert layer["norm"] or layer["results"]
    assert errors(result) == [f"error: {path}: bad: weights cannot be read: {bad['unread']}"]
    assert not any("bad" in line for line in result.stderr.splitlines() if line not in errors(result))


def test_the_error_is_shown_when_everything_else_is_quiet(checkpoint: tuple[Path, str]) -> None:
    path, reason = checkpoint
    result = run("analyze", path, "--quiet", "--format", "table")
    assert result.exit_code == 3
    assert result.stderr.splitlines() == errors(result)
    assert reason in errors(result)[0]
    assert "bad" in result.stdout


def test_check_is_undecided_about_it(checkpoint: tuple[Path, str]) -> None:
    path, reason = checkpoint
    limits = ("--max-norm", "1e6", "--max-product", "1e9")
    result = run("check", path, *limits, "--format", "json")
    assert result.exit_code == 3
    layers = layers_of(result)
    assert {name: layer["check"]["criteria"]["max_norm"]["verdict"] for name, layer in layers.items()} == {
        "first": "PASS",
        "bad": "UNDECIDED",
        "last": "PASS",
    }
    assert reason in layers["bad"]["check"]["criteria"]["max_norm"]["reason"]
    product = json.loads(result.stdout)["checkpoints"][0]["check"]["criteria"]["max_product"]
    assert (product["verdict"], product["reason"]) == ("UNDECIDED", "there is no norm of bad")
    assert run("check", path, "--max-norm", "1e6", "--exclude", "bad").exit_code == 0


def test_a_layer_that_cannot_be_read_again_is_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of the certificate reads weights again that are too many to stay at hand."""
    path = tmp_path / "m.safetensors"
    save_file({"a.weight": KERNEL}, path)
    norm = analyze(find_layers(open_checkpoint(path)), tol=1e-9)[0].norm
    assert norm is not None
    reads, read = [0], RegularFile.read

    def once(file: RegularFile, offset: int, count: int) -> bytes:
        reads[0] += count == KERNEL.nbytes
        if reads[0] > 1:
            raise CheckpointError("shrank")
        return read(file, offset, count)

    monkeypatch.setattr(RegularFile, "read", once)
    monkeypatch.setattr(_analyst, "_ROOM", 0)
    result = run(
        "check", path, "--max-norm", str(norm.upper * (1 + 1e-7)), "--tol", "0.5", "--no-cache", "--format", "json"
    )
    assert result.exit_code == 3
    assert layers_of(result)["a"]["check"]["criteria"]["max_norm"]["verdict"] == "UNDECIDED"
    assert errors(result) == [f"error: {path}: a: weights cannot be read: shrank"]


@pytest.mark.parametrize("dry", [True, False])
def test_clip_writes_nothing(checkpoint: tuple[Path, str], tmp_path: Path, dry: bool) -> None:
    path, reason = checkpoint
    out = tmp_path / f"out{path.suffix}"
    before = sorted(tmp_path.iterdir())
    result = run("clip", path, "--max-norm", "1", *(("--dry-run",) if dry else ("-o", out)), "--format", "json")
    assert result.exit_code == 3
    assert sorted(tmp_path.iterdir()) == before
    assert len(errors(result)) == 1
    assert f"{path}: bad: cannot be clipped: " in errors(result)[0]
    assert reason in errors(result)[0]
    assert reason in layers_of(result)["bad"]["unavailable"]["clip"]
    assert reason in layers_of(result)["bad"]["unread"]


def test_the_library_writes_nothing_either(checkpoint: tuple[Path, str], tmp_path: Path) -> None:
    path, reason = checkpoint
    out = tmp_path / f"out{path.suffix}"
    with pytest.raises(CheckpointError, match="nothing is written") as caught:
        clip_checkpoint(path, out, 1.0)
    assert reason in str(caught.value)
    assert not out.exists()
    first, bad, last = sorted(analyze(find_layers(open_checkpoint(path))), key=lambda layer: NAMES.index(layer.name))
    assert first.norm
    assert last.norm
    assert bad.norm is None
    assert bad.unread
    assert reason in bad.unread


def test_compare_tells_what_else_changed(checkpoint: tuple[Path, str], tmp_path: Path) -> None:
    path, reason = checkpoint
    whole = tmp_path / "whole.safetensors"
    keras = path.suffix == ".h5"
    arrange = (lambda value: np.ascontiguousarray(value.transpose(3, 2, 0, 1))) if keras else np.array
    save_file({f"{name}.weight": arrange(value) for name, value in PYTORCH.items()}, whole)
    result = run("compare", whole, path, "--format", "json", "--fail-on", "changed")
    assert result.exit_code == 3, result.stderr
    changes = {change["name"]: change for change in json.loads(result.stdout)["comparison"]["steps"][0]["layers"]}
    assert {name: change["status"] for name, change in changes.items()} == {
        "first": "same",
        "bad": "unknown",
        "last": "same",
    }
    assert len(errors(result)) == 1
    assert reason in errors(result)[0]


@pytest.mark.parametrize("kind", ["spectrum", "intervals", "torus"])
def test_figures_show_the_others(checkpoint: tuple[Path, str], tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    path, reason = checkpoint
    chosen = ("--include", "bad") if kind == "torus" else ()
    result = run("plot", path, "--kind", kind, "--size", "5", "-o", tmp_path / "f.svg", *chosen)
    # Without a layer to draw there is no figure, and that is said as well.
    assert result.exit_code == (5 if kind == "torus" else 3)
    assert (tmp_path / "f.svg").exists() == (kind != "torus")
    assert any(reason in line for line in errors(result))
    assert len(errors(result)) == (2 if kind == "torus" else 1)


def test_the_page_says_why(checkpoint: tuple[Path, str], tmp_path: Path) -> None:
    path, reason = checkpoint
    result = run("report", path, "--size", "5", "-o", tmp_path / "page.html")
    assert result.exit_code == 3
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert reason.replace("'", "&#x27;") in text or reason in text


def test_many_layers_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reason, one error; and the good checkpoint of the same call is reported."""
    path, good = tmp_path / "m.safetensors", tmp_path / "good.safetensors"
    save_file({f"l{number}.weight": KERNEL for number in range(6)}, path)
    save_file({"conv.weight": KERNEL[:2]}, good)
    read = RegularFile.read

    def failing(file: RegularFile, offset: int, count: int) -> bytes:
        if count == KERNEL.nbytes:
            raise CheckpointError("cannot be read", found="a\nreason")
        return read(file, offset, count)

    monkeypatch.setattr(RegularFile, "read", failing)
    result = run("analyze", path, good, "--format", "json")
    assert result.exit_code == 3
    assert layers_of(result, 1)["conv"]["norm"]
    assert errors(result) == [
        f"error: {path}: l0, l1, l2 and 3 more: weights cannot be read: cannot be read (found a\\nreason)"
    ]

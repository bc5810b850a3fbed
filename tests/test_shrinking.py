"""Files that shrink while they are read: an error of the layer or of the file, one line, and nothing else fails."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from convsv import find_layers, open_checkpoint
from convsv.checkpoints import Checkpoint, writing
from convsv.cli import app
from convsv.errors import CheckpointError, CorruptCheckpointError
from convsv.layer import ConvLayer
from edits import names
from oddfiles import FILES, KERNELS

BESIDE = "ONNX with weights beside"
ONNX = ("ONNX", BESIDE)
IN_MEMORY = "packed keras"
"""What was unpacked when it was opened does not depend on the file any more."""
CASES = [case for case in FILES if case not in ("a leading dash", "safetensors called .pth", "HDF5 called .keras")]


@pytest.fixture(autouse=True)
def no_file_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read these files as larger ones are: small ones are read once, and do not shrink any more."""
    # By its name: the package has a function of the same one.
    monkeypatch.setattr(sys.modules["convsv.checkpoints._file"], "_SMALL", -1)


def test_a_small_file_is_read_as_it_was_when_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["convsv.checkpoints._file"], "_SMALL", 1 << 22)
    path = made("pt", tmp_path)
    whole = {layer.name: layer.kernel() for layer in find_layers(open_checkpoint(path))}
    layers = find_layers(open_checkpoint(path))
    shrink(path, 1.0)
    assert [failure(layer, whole[layer.name]) for layer in layers] == [None] * len(whole)


def onnx_model(folder: Path, case: str) -> Path:
    """A model of the same convolutions; its weights in it, or in a file beside it."""
    onnx = pytest.importorskip("onnx")
    weights = [onnx.numpy_helper.from_array(kernel, name) for name, kernel in KERNELS.items()]
    nodes = [onnx.helper.make_node("Conv", ["x", name], [f"of {name}"], name=name) for name in KERNELS]
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", *(f"of {n}" for n in KERNELS))]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", values[:1], values[1:], weights))
    beside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0} if case == BESIDE else {}
    onnx.save_model(model, folder / "m.onnx", **beside)
    return folder / "m.onnx"


def made(case: str, folder: Path) -> Path:
    return onnx_model(folder, case) if case in ONNX else FILES[case](folder)


def shrink(path: Path, by: float) -> None:
    """Cut off a part of each file that holds weights."""
    files = sorted(path.parent.iterdir()) if path.suffix else sorted(path.iterdir())
    for file in files:
        if file.suffix != ".json" and not (file.suffix == ".onnx" and len(files) > 1):
            os.truncate(file, int(file.stat().st_size * (1 - by)))


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def errors(result: Any) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("by", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("case", [*CASES, *ONNX])
def test_weights_that_are_gone_are_an_error_of_their_tensor(case: str, by: float, tmp_path: Path) -> None:
    """What is still there reads as it was, or fails too: a checksum over both, a library that sees the whole file."""
    path = made(case, tmp_path)
    whole = {layer.name: layer.kernel() for layer in find_layers(open_checkpoint(path))}
    layers = find_layers(open_checkpoint(path))
    shrink(path, by)
    said = [error for layer in layers if (error := failure(layer, whole[layer.name]))]
    assert all(isinstance(error, CorruptCheckpointError) and str(error).isprintable() for error in said)
    if case == IN_MEMORY:
        assert not said
    elif by >= 0.9:
        assert len(said) == len(layers)


def failure(layer: ConvLayer, whole: NDArray[Any]) -> CheckpointError | None:
    """Why a kernel cannot be read, if it cannot; else it is the whole one."""
    try:
        assert layer.kernel().tobytes() == whole.tobytes()
    except CheckpointError as error:
        return error
    return None


def on_hashing(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None], *, after: bool) -> None:
    """Let something happen once, when a file was hashed, or when it is going to be."""
    sha256, happened = Checkpoint.sha256, []

    def hashed(checkpoint: Checkpoint) -> str:
        known = sha256(checkpoint) if after else ""
        if not happened:
            happened.append(then())
        return known or sha256(checkpoint)

    monkeypatch.setattr(Checkpoint, "sha256", hashed)


@pytest.mark.parametrize(
    "case", ["safetensors", "shards", "pt", "legacy pt", "HDF5", "packed HDF5", "stored keras", *ONNX]
)
@pytest.mark.parametrize("after", [False, True], ids=["before it is hashed", "after it is hashed"])
def test_the_program_says_it_in_a_line_and_goes_on(
    case: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
    path, good = made(case, tmp_path / "bad"), FILES["safetensors"](tmp_path / "good")
    on_hashing(monkeypatch, lambda: shrink(path, 0.9), after=after)
    result = run("analyze", path, good, "--format", "json", "--no-cache", "--jobs", "1")
    assert result.exit_code == 3
    assert result.exception is None or isinstance(result.exception, SystemExit)
    first, second = json.loads(result.stdout)["checkpoints"]
    assert [bool(layer["norm"]) for layer in second["layers"]] == [True, True]
    assert len(errors(result)) >= 1
    assert all(line.startswith(f"error: {path}") for line in errors(result))
    assert not any(layer["norm"] for layer in first["layers"])
    # Either the file failed, or each of its layers says why it did.
    assert len(errors(result)) == (len({layer["unread"] for layer in first["layers"]}) or 1)
    assert first["layers"] or first["problems"]


@pytest.mark.parametrize("after", [False, True], ids=["before it is hashed", "after it is hashed"])
@pytest.mark.parametrize("case", ["safetensors", "pt", "HDF5", "packed HDF5"])
def test_clip_writes_nothing_of_a_file_that_shrinks(
    case: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    path = made(case, tmp_path / "in")
    on_hashing(monkeypatch, lambda: shrink(path, 0.9), after=after)
    result = run("clip", path, "--max-norm", "1", "-o", tmp_path / "out", "--no-cache")
    assert result.exit_code == 3
    assert len(errors(result)) == 1
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize("case", ["safetensors", "pt", "HDF5"])
def test_clip_writes_nothing_of_a_file_that_shrinks_while_it_is_copied(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    path, copy_files = made(case, tmp_path / "in"), writing._copy_files

    def cut(*given: Any) -> None:
        copy_files(*given)
        shrink(path, 0.9)

    monkeypatch.setattr(writing, "_copy_files", cut)
    result = run("clip", path, "--max-norm", "1", "-o", tmp_path / "out")
    assert result.exit_code == 3
    assert len(errors(result)) == 1
    assert names(tmp_path) == ["in"]

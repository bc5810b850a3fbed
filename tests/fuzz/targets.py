"""What is done with mutated bytes: one target a reader. Only our own errors may come out, of one calm line each."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import remote
import seeds
import store
import zygote

from convsv.checkpoints import Checkpoint, RegularFile, _child, _hdf5, onnx, open_checkpoint
from convsv.checkpoints._file import AnonymousFile
from convsv.checkpoints._hdf5 import Hdf5File
from convsv.checkpoints._keras_layouts import Contents
from convsv.checkpoints.discovery import discover
from convsv.checkpoints.sidecar import read_sidecar
from convsv.checkpoints.sources import GeometryOptions
from convsv.comparison import Version, compare_layers
from convsv.describe import describe
from convsv.errors import ConvsvError, CorruptCheckpointError
from convsv.gate import known_of
from convsv.policy import read_policy
from convsv.report_file import read_report
from convsv.reports import Style, format_names, write_report
from convsv.results import CheckpointReport, Report

LONGEST_LINE = 4000
STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of what a terminal, an editor or a line reader may obey."""
READ = 1 << 24
"""Larger tensors are left alone here: that they are refused or fit is tested elsewhere."""
READABLE = 40


@dataclass(frozen=True)
class Target:
    """A reader under attack.

    Attributes:
        seed: returns a valid input.
        attack: takes an input and a folder of its own; raises nothing.
        cases: how many inputs the suite tries.
        samples: globs of sample checkpoints that are such inputs.
    """

    seed: Callable[[], bytes]
    attack: Callable[[bytes, Path], None]
    cases: int
    samples: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------------ judging


def calm(line: str) -> None:
    """Check that a message is one line that steers no terminal."""
    assert line.isprintable(), line
    assert len(line) < LONGEST_LINE, len(line)


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    """Accept our own errors, if they are calm."""
    try:
        yield
    except ConvsvError as error:
        calm(str(error))


def judge(checkpoint: Checkpoint) -> None:
    """Look at everything in a checkpoint: its tensors keep what they promise, its layers can be reported."""
    for problem in checkpoint.problems:
        calm(problem)
    for tensor in checkpoint.tensors[:READABLE]:
        if tensor.problem is not None:
            calm(tensor.problem)
        elif math.prod(tensor.shape) <= READ:
            with only_our_errors():
                values = tensor.read()
                assert (values.shape, values.dtype.name) == (tensor.shape, tensor.dtype)
    found = discover(checkpoint, geometry=GeometryOptions(fold="by-order"))
    for problem in found.problems:
        calm(problem)
    for layer in found.layers[:READABLE]:
        if math.prod(layer.shape) <= READ:
            with only_our_errors():
                assert layer.kernel().size == math.prod(layer.shape)
    layers = tuple(describe(layer) for layer in found.layers[:READABLE])
    problems = (*checkpoint.problems, *found.problems)
    known = CheckpointReport(checkpoint.path, checkpoint.format, problems=problems, layers=layers)
    judge_report(Report("layers", {}, (known,)))


def judge_report(report: Report) -> None:
    """Write a report in every format, and look for what could steer a terminal."""
    texts = {}
    for name in format_names(report.command):
        out = io.StringIO()
        write_report(report, out, name, Style(terminal=True, width=100))
        texts[name] = out.getvalue()
        texts[name].encode()  # no lone surrogate
        for line in texts[name].split("\n"):
            assert not STEERING & {unicodedata.category(letter) for letter in line.replace("\t", "")}, (name, line)
    names = [layer.name for checkpoint in report.checkpoints for layer in checkpoint.layers]
    (checkpoint,) = json.loads(texts["json"])["checkpoints"]
    assert [layer["name"] for layer in checkpoint["layers"]] == names


def judge_file(path: Path) -> None:
    """Open a file that may be anything, and look at everything in it."""
    with only_our_errors():
        judge(open_checkpoint(path))


# ------------------------------------------------------------------------------------------------------------ attacks


def whole(name: str) -> Callable[[bytes, Path], None]:
    """The input is a file of that name."""

    def attack(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        judge_file(path)

    return attack


def forked(name: str) -> Callable[[bytes, Path], None]:
    """The same, where libhdf5 reads it: its child is forked, as its start would take most of the time."""

    def attack(data: bytes, folder: Path) -> None:
        with mock.patch.object(_child.subprocess, "Popen", zygote.Forked):
            whole(name)(data, folder)

    return attack


def part(archive: Callable[[], bytes], ending: str) -> Callable[[bytes, Path], None]:
    """The input is the content of one entry of an archive that is right else."""

    def attack(data: bytes, folder: Path) -> None:
        path = folder / "m.pt"
        path.write_bytes(seeds.with_member(archive(), ending, data))
        judge_file(path)

    return attack


def attack_index(data: bytes, folder: Path) -> None:
    """The input is the index of shards that are there."""
    for name, content in seeds.shard().items():
        (folder / name).write_bytes(content)
    whole("m.safetensors.index.json")(data, folder)


@functools.cache
def _indexed() -> Hdf5File:
    file = AnonymousFile("m.h5", seeds.hdf5())
    return Hdf5File(file)


def attack_config(data: bytes, _: Path) -> None:
    """The input is a Keras configuration over datasets that are right."""
    hdf5 = _indexed()
    with only_our_errors():
        judge(Contents(hdf5, data, hdf5.read).checkpoint(hdf5.file, "keras"))


def attack_answer(data: bytes, folder: Path) -> None:
    """The input is what a child, taken over by its file, says about it."""
    path = folder / "m.h5"
    path.write_bytes(seeds.hdf5())
    with (
        mock.patch.object(_hdf5.Worker, "_ask", return_value=(b"J", bytearray(data))),
        mock.patch.object(_hdf5.Worker, "ask_bytes", lambda _, __, count, *___: bytearray(count)),
    ):
        judge_file(path)


def _onnx_fails(model: bytes) -> RegularFile:
    raise CorruptCheckpointError("onnx cannot infer the shapes of it")


def attack_onnx(data: bytes, folder: Path) -> None:
    """The input is a model; onnx, in its process, does not get through with it."""
    with mock.patch.object(onnx, "prepare", _onnx_fails):
        whole("m.onnx")(data, folder)


def attack_onnx_answer(data: bytes, folder: Path) -> None:
    """The input is what onnx, taken over by the model, answers."""
    with mock.patch.object(onnx, "prepare", return_value=AnonymousFile("model", data)):
        whole("m.onnx")(seeds.onnx(), folder)


def attack_sidecar(data: bytes, folder: Path) -> None:
    """The input is a geometry file."""
    path = folder / "g.toml"
    path.write_bytes(data)
    model = folder / "m.safetensors"
    model.write_bytes(seeds.safetensors())
    with only_our_errors():
        sidecar = read_sidecar(path)
        judge(open_checkpoint(model))
        discover(open_checkpoint(model), geometry=GeometryOptions(sidecar=sidecar))


def attack_report(data: bytes, folder: Path) -> None:
    """The input is an earlier report, to compare with."""
    path = folder / "r.json"
    path.write_bytes(data)
    with only_our_errors():
        report = read_report(path)
        accepted = known_of(report, "m.pt", alone=True)
        for checkpoint in report.checkpoints[:READABLE]:
            judge_report(Report("layers", {}, (replace(checkpoint, layers=checkpoint.layers[:READABLE]),)))
            for layer in checkpoint.layers[:READABLE]:
                accepted(layer.name)
                compare_layers(layer.name, Version(report=layer), Version(report=layer), "circulant")


def attack_limits(data: bytes, folder: Path) -> None:
    """The input is a file of limits."""
    path = folder / "limits.toml"
    path.write_bytes(data)
    with only_our_errors():
        policy = read_policy(path)
        for name in ("a.conv", "b.conv"):
            assert all(0 < limit < math.inf for limit in policy.limits(name).wanted.values())


def served(name: str) -> Callable[[bytes, Path], None]:
    """The input is what a web server answers to somebody who reads that file."""

    def attack(data: bytes, _: Path) -> None:
        with only_our_errors():
            remote.attack(name, data, judge)

    return attack


def stored(name: str) -> Callable[[bytes, Path], None]:
    """The input is what a store that fsspec knows answers to somebody who reads that file."""

    def attack(data: bytes, _: Path) -> None:
        with only_our_errors():
            store.attack(name, data, judge)

    return attack


TARGETS: Mapping[str, Target] = {
    "safetensors": Target(seeds.safetensors, whole("m.safetensors"), 1200, ("*.safetensors",)),
    "safetensors-index": Target(seeds.index, attack_index, 500),
    "torch-zip": Target(seeds.torch_zip, whole("m.pt"), 500, ("*.pt", "*.ckpt")),
    "torch-pickle": Target(
        lambda: seeds.member(seeds.torch_archive(), "/data.pkl"), part(seeds.torch_archive, "/data.pkl"), 800
    ),
    "torch-legacy": Target(seeds.torch_legacy, whole("m.pth"), 800, ("*.pth",)),
    "torchscript-code": Target(
        lambda: seeds.member(seeds.torch_script(), "/conv.py"), part(seeds.torch_script, "/conv.py"), 300
    ),
    "torchscript-pickle": Target(
        lambda: seeds.member(seeds.torch_script(), "/data.pkl"), part(seeds.torch_script, "/data.pkl"), 300
    ),
    "pt2-graph": Target(
        lambda: seeds.member(seeds.torch_export(), "models/model.json"),
        part(seeds.torch_export, "models/model.json"),
        400,
    ),
    "pt2-weights": Target(
        lambda: seeds.member(seeds.torch_export(), "weights_config.json"),
        part(seeds.torch_export, "weights_config.json"),
        300,
    ),
    "hdf5": Target(seeds.hdf5, forked("m.h5"), 200, ("*.h5",)),
    "hdf5-answer": Target(seeds.hdf5_answer, attack_answer, 500),
    "keras": Target(seeds.keras, forked("m.keras"), 200, ("*.keras",)),
    "keras-config": Target(seeds.keras_config, attack_config, 600),
    "onnx": Target(seeds.onnx, attack_onnx, 900),
    "onnx-answer": Target(seeds.onnx, attack_onnx_answer, 500),
    "onnx-child": Target(seeds.onnx, whole("m.onnx"), 15),
    "http": Target(lambda: remote.conversation("m.safetensors"), served("m.safetensors"), 250),
    "http-torch": Target(lambda: remote.conversation("m.pt"), served("m.pt"), 150),
    "http-whole": Target(lambda: remote.conversation("m.safetensors", "whole"), served("m.safetensors"), 100),
    "store": Target(lambda: store.conversation("m.safetensors"), stored("m.safetensors"), 300),
    "sidecar": Target(lambda: seeds.SIDECAR, attack_sidecar, 500),
    "report": Target(seeds.report, attack_report, 400),
    "limits": Target(lambda: seeds.LIMITS, attack_limits, 300),
}

if __name__ == "__main__":
    print(*TARGETS, sep="\n")

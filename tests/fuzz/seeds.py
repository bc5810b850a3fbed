"""Small valid files of every format: what mutation starts from."""

from __future__ import annotations

import functools
import io
import json
import struct
import tempfile
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np


def _torch() -> Any:
    import torch

    torch.manual_seed(0)
    return torch


def _saved(save: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save(path)
        return path.read_bytes()


def unchecked(archive: bytes) -> bytes:
    """The same archive with every checksum 0, as PyTorch can write it: then a changed byte is not noticed."""
    with zipfile.ZipFile(io.BytesIO(archive)) as whole:
        checksums = {info.CRC for info in whole.infolist() if info.CRC}
    for checksum in checksums:
        archive = archive.replace(struct.pack("<L", checksum), bytes(4))
    return archive


def member(archive: bytes, ending: str) -> bytes:
    """The content of the first entry with a name that ends so."""
    with zipfile.ZipFile(io.BytesIO(archive)) as whole:
        return whole.read(next(name for name in whole.namelist() if name.endswith(ending)))


def with_member(archive: bytes, ending: str, content: bytes) -> bytes:
    """The archive with other content under a name that ends so, and right checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as whole, zipfile.ZipFile(out, "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, content if name.endswith(ending) else whole.read(name))
    return out.getvalue()


@functools.cache
def torch_archive() -> bytes:
    """A state dict beside a whole module."""
    torch = _torch()
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, stride=2), torch.nn.BatchNorm2d(2))
    state = {"model": model, "state_dict": model.state_dict(), "half": torch.ones(2, 2, 1, 3).half(), "epoch": 3}
    return _saved(lambda path: torch.save(state, path))


@functools.cache
def torch_zip() -> bytes:
    """The same with every checksum 0."""
    return unchecked(torch_archive())


@functools.cache
def torch_legacy() -> bytes:
    """The format before zip archives."""
    torch = _torch()
    state = {"conv.weight": torch.randn(2, 1, 3, 3), "conv.bias": torch.randn(2)}
    return _saved(lambda path: torch.save(state, path, _use_new_zipfile_serialization=False))


@functools.cache
def torch_script() -> bytes:
    """A scripted module."""
    torch = _torch()
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding="same", padding_mode="circular"), torch.nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return _saved(lambda path: torch.jit.save(torch.jit.script(model), path))


@functools.cache
def torch_export() -> bytes:
    """An exported program."""
    torch = _torch()
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, stride=2, padding=1), torch.nn.BatchNorm2d(2)).eval()
    program = torch.export.export(model, (torch.randn(1, 1, 8, 8),))
    return _saved(lambda path: torch.export.save(program, path))


@functools.cache
def safetensors() -> bytes:
    """A file of several dtypes, with an empty tensor and metadata."""
    from safetensors.numpy import save

    tensors = {
        "layer.0.conv.weight": np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3),
        "é.weight": np.ones((2, 2, 1, 1), np.float16),
        "empty": np.zeros((0, 3), np.int64),
    }
    return bytes(save(tensors, {"format": "pt"}))


SHARDS = {"a.weight": "m-1.safetensors", "b.weight": "m-2.safetensors"}


@functools.cache
def shard() -> dict[str, bytes]:
    """The shards that :data:`SHARDS` names."""
    from safetensors.numpy import save

    return {name: bytes(save({key: np.ones((2, 1, 3, 3), np.float32)})) for key, name in SHARDS.items()}


def index() -> bytes:
    """The index of two shards."""
    return json.dumps({"metadata": {"total_size": 144}, "weight_map": SHARDS}).encode()


KERAS_CONFIG: dict[str, Any] = {
    "class_name": "Functional",
    "config": {
        "name": "f",
        "layers": [
            {
                "class_name": "InputLayer",
                "name": "x",
                "config": {"name": "x", "batch_shape": [None, 8, 8, 1]},
                "inbound_nodes": [],
            },
            {
                "class_name": "Conv2D",
                "name": "conv",
                "config": {
                    "name": "conv",
                    "filters": 2,
                    "kernel_size": [3, 3],
                    "strides": [2, 2],
                    "padding": "same",
                    "dilation_rate": [1, 1],
                    "groups": 1,
                    "data_format": "channels_last",
                },
                "inbound_nodes": [[["x", 0, 0, {}]]],
            },
            {
                "class_name": "BatchNormalization",
                "name": "bn",
                "config": {"name": "bn", "axis": [3], "epsilon": 0.001},
                "inbound_nodes": [[["conv", 0, 0, {}]]],
            },
        ],
        "input_layers": [["x", 0, 0]],
        "output_layers": [["bn", 0, 0]],
    },
}


def keras_config() -> bytes:
    """The configuration of a network of one convolution and one normalisation."""
    return json.dumps(KERAS_CONFIG).encode()


@functools.cache
def hdf5() -> bytes:
    """A Keras 2 file: the configuration, a contiguous dataset and a chunked one."""
    import h5py

    def save(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = keras_config()
            weights = file.create_group("model_weights")
            weights.attrs["layer_names"] = [b"conv", b"bn"]
            conv = weights.create_group("conv")
            conv.attrs["weight_names"] = [b"conv/kernel:0", b"conv/bias:0"]
            conv.create_dataset("conv/kernel:0", data=np.ones((3, 3, 1, 2), np.float32))
            conv.create_dataset("conv/bias:0", data=np.ones(2, np.float32), chunks=(2,), compression="gzip")
            bn = weights.create_group("bn")
            bn.attrs["weight_names"] = [b"bn/gamma:0", b"bn/moving_variance:0"]
            bn.create_dataset("bn/gamma:0", data=np.ones(2, np.float32))
            bn.create_dataset("bn/moving_variance:0", data=np.ones(2, np.float32))

    return _saved(save)


@functools.cache
def keras() -> bytes:
    """A Keras 3 archive around it, with every checksum 0."""
    import h5py

    def save(path: Path) -> None:
        with h5py.File(path, "w") as file:
            variables = file.create_group("layers/conv2d/vars")
            variables.create_dataset("0", data=np.ones((3, 3, 1, 2), np.float32))
            variables.create_dataset("1", data=np.ones(2, np.float32))

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.10.0"}))
        archive.writestr("config.json", keras_config())
        archive.writestr("model.weights.h5", _saved(save))
    return unchecked(out.getvalue())


@functools.cache
def hdf5_answer() -> bytes:
    """What the child that reads HDF5 says about :func:`hdf5`."""
    from convsv.checkpoints import RegularFile
    from convsv.checkpoints._hdf5 import Worker

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.h5"
        path.write_bytes(hdf5())
        file = RegularFile(path)
        worker = Worker(file, 0, file.size)
        try:
            return json.dumps(worker.ask_json({"do": "index"})).encode()
        finally:
            worker.close()


@functools.cache
def onnx() -> bytes:
    """Two convolutions, a Pad, a normalisation, and typed values beside raw ones."""
    from onnx import TensorProto, helper, numpy_helper

    kernel = numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32), "c.weight")
    typed = helper.make_tensor("d.weight", TensorProto.FLOAT, [2, 2, 1, 1], [1.0, 2.0, 3.0, 4.0])
    pads = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")
    vectors = [numpy_helper.from_array(np.ones(2, np.float32), name) for name in ("g", "b", "m", "v")]
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"], mode="wrap"),
        helper.make_node("Conv", ["p", "c.weight"], ["c"], name="/c/Conv", strides=[2, 2], pads=[0, 0, 0, 0]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], epsilon=1e-3),
        helper.make_node("ConvTranspose", ["n", "d.weight"], ["y"], group=1, output_padding=[0, 0]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in _VALUES]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [kernel, typed, pads, *vectors])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


_VALUES = (("x", (1, 1, 8, 8)), ("y", None))

SIDECAR = b"""[defaults]
size = [32, 32]
padding_mode = "zeros"
[layers."*.conv1"]
stride = 2
padding = [[1, 2], 0]
[layers."a b\\n"]
groups = 4
transposed = true
dilation = [1, 2]
max_norm = 1.5
"""


@functools.cache
def report() -> bytes:
    """A report as JSON, with an interval, a spectrum, a verdict and what is unavailable."""
    from convsv.reports import write_report
    from convsv.results import Check, CheckpointReport, Finding, Report
    from reportcases import layer, spectrum

    check = Check("error", (Finding("max_norm", 1.0, "UNDECIDED", layer("a").norm, "for a reason"),))
    layers = (
        layer("a.conv", results={"circulant": spectrum([3.0, 2.0, 1.0])}),
        replace(layer("b.conv"), check=check, unavailable={"exact": "for another"}),
    )
    known = CheckpointReport("m.pt", "pytorch", "0" * 64, ("a problem",), layers, check)
    out = io.StringIO()
    write_report(Report("check", {"tol": 0.001}, (known,)), out, "json")
    return out.getvalue().encode()


LIMITS = b"""[tool.convsv.check]
max_norm = 2.5
severity = "warn"
max_product = 100
[tool.convsv.check.layers."b.*"]
min_norm = 0.01
max_condition = 1e3
severity = "off"
"""

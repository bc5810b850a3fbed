"""ONNX: convolutions as onnx's own reference runs them, every way to store a weight, and no file can do harm."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from convsv.checkpoints import FORMATS, RegularFile, _onnx_prepare, open_checkpoint  # noqa: E402
from convsv.checkpoints._onnx_tensors import varints  # noqa: E402
from convsv.checkpoints.discovery import discover, find_layers  # noqa: E402
from convsv.errors import CheckpointError, CorruptCheckpointError, UnknownFormatError, UnsafeCheckpointError  # noqa: E402
from convsv.layer import ConvLayer  # noqa: E402
from convsv.operator import ConvOperator  # noqa: E402

pytestmark = pytest.mark.timeout(120)

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
SIZE = (7, 9)


# ------------------------------------------------------------------------------------------------------------- building


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """A node, its inputs and outputs named in one string each; ``_`` is an input that is left out."""
    return helper.make_node(op, ["" if n == "_" else n for n in inputs.split()], outputs.split(), **attributes)


def value(name: str, shape: Sequence[Any] | None = None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(
    nodes: Sequence[Any],
    weights: Mapping[str, Any] | None = None,
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    output: str = "y",
) -> Any:
    stored = [
        w if isinstance(w, onnx.TensorProto) else numpy_helper.from_array(w, n) for n, w in (weights or {}).items()
    ]
    given = {"x": (1, 3, *SIZE)} if inputs is None else inputs
    return helper.make_graph(nodes, "g", [value(n, s) for n, s in given.items()], [value(output)], stored)


def model(made: Any, opset: int = 21, **options: Any) -> Any:
    options.setdefault("opset_imports", [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)])
    options.setdefault("ir_version", 10)
    return helper.make_model(made, **options)


def written(folder: Path, made: Any, **options: Any) -> Path:
    whole = made if isinstance(made, onnx.ModelProto) else model(made, **options)
    path = folder / "m.onnx"
    path.write_bytes(whole.SerializeToString())
    return path


def layers_of(folder: Path, made: Any, **options: Any) -> tuple[ConvLayer, ...]:
    return find_layers(open_checkpoint(written(folder, made, **options)))


def only(folder: Path, made: Any, **options: Any) -> ConvLayer:
    (layer,) = layers_of(folder, made, **options)
    return layer


def run_by_onnx(made: Any, x: NDArray[Any], opset: int = 21) -> NDArray[Any]:
    (result,) = ReferenceEvaluator(model(made, opset)).run(None, {"x": x})
    return np.asarray(result)


def run_by_us(layer: ConvLayer, x: NDArray[Any]) -> NDArray[Any]:
    assert set(layer.geometry.origin.values()) - {"stored"} <= {"assumed"}
    return ConvOperator(torch.from_numpy(layer.kernel()), layer.geometry).apply(torch.from_numpy(x)).numpy()


# -------------------------------------------------------------------------------------- against onnx's own reference

AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Forward:
    """A Conv node, by its attributes and the shapes of its input and weight."""

    size: tuple[int, ...]
    shape: tuple[int, ...]
    said: Mapping[str, Any]

    @property
    def id(self) -> str:
        words = (f"{k}{''.join(map(str, v)) if isinstance(v, list) else v}" for k, v in self.said.items())
        return "-".join(["x".join(map(str, self.size)), "x".join(map(str, self.shape)), *words])

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        rng = np.random.default_rng(zlib.crc32(self.id.encode()))
        channels = self.shape[1] * self.said["group"]
        return rng.standard_normal((1, channels, *self.size)), rng.standard_normal(self.shape)


def forward_grid() -> list[Forward]:
    every = itertools.product(
        ((9,), (7, 8), (4, 5, 6)), (1, 2, 3), (1, 2), ((1, 1), (2, 1), (3, 2)), (1, 2, 3), AUTO_PADS
    )
    cases = []
    for size, k, d, (groups, per_group), s, auto in every:
        dims = len(size)
        taps = tuple(k + axis % 2 for axis in range(dims))
        said: dict[str, Any] = {"strides": [s if axis != 1 else max(1, s - 1) for axis in range(dims)]}
        said |= {"dilations": [d, *[1] * (dims - 1)], "group": groups}
        said |= {"auto_pad": auto} if auto != "NOTSET" else {"pads": [(axis + k) % 3 for axis in range(2 * dims)]}
        if all(n > step * t for n, t, step in zip(size, taps, said["dilations"], strict=True)):
            cases.append(Forward(size, (2 * groups, per_group, *taps), said))
    return cases


FORWARD = forward_grid()


@pytest.fixture(scope="module")
def forward_layers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ConvLayer]:
    nodes = [node("Conv", f"x{i} w{i}", f"y{i}", name=case.id, **case.said) for i, case in enumerate(FORWARD)]
    arrays = [case.arrays() for case in FORWARD]
    made = graph(
        nodes,
        {f"w{i}": kernel for i, (_, kernel) in enumerate(arrays)},
        inputs={f"x{i}": x.shape for i, (x, _) in enumerate(arrays)},
    )
    return {layer.name: layer for layer in layers_of(tmp_path_factory.mktemp("forward"), made)}


@pytest.mark.parametrize("case", FORWARD, ids=lambda case: case.id)
def test_a_conv_node_is_what_onnx_runs(forward_layers: dict[str, ConvLayer], case: Forward) -> None:
    layer, (x, kernel) = forward_layers[case.id], case.arrays()
    assert layer.geometry.size == case.size
    found = run_by_us(layer, x)
    expected = run_by_torch(x, kernel, case.said, case.shape[2:])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-12)
    made = graph([node("Conv", "x w", "y", **case.said)], {"w": kernel}, inputs={"x": x.shape})
    np.testing.assert_allclose(found, run_by_onnx(made, x), atol=1e-12)


def run_by_torch(x: NDArray[Any], kernel: NDArray[Any], said: Mapping[str, Any], taps: Sequence[int]) -> NDArray[Any]:
    """A Conv node by its specification: the input padded by hand, then PyTorch's convolution without padding."""
    dims, auto = len(taps), said.get("auto_pad", "NOTSET")
    pads = list(zip(said["pads"][:dims], said["pads"][dims:], strict=True)) if "pads" in said else [(0, 0)] * dims
    for axis in range(dims if auto.startswith("SAME") else 0):
        n, s = x.shape[2 + axis], said["strides"][axis]
        total = max((math.ceil(n / s) - 1) * s + said["dilations"][axis] * (taps[axis] - 1) + 1 - n, 0)
        small, large = total // 2, total - total // 2
        pads[axis] = (small, large) if auto == "SAME_UPPER" else (large, small)
    padded = torch.from_numpy(np.pad(x, [(0, 0), (0, 0), *pads]))
    convolve = getattr(torch.nn.functional, f"conv{dims}d")
    out = convolve(
        padded, torch.from_numpy(kernel), stride=said["strides"], dilation=said["dilations"], groups=said["group"]
    )
    return np.asarray(out.numpy())


TRANSPOSED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "strided": {"strides": [2, 3]},
    "padded unevenly": {"strides": [2, 2], "pads": [1, 0, 0, 2]},
    "dilated": {"dilations": [2, 1], "strides": [1, 2]},
    "output padding": {"strides": [3, 2], "output_padding": [2, 1], "pads": [1, 1, 1, 1]},
    "output shape": {"strides": [2, 2], "output_shape": [9, 7]},
    "output shape and SAME_UPPER": {"strides": [2, 2], "output_shape": [9, 7], "auto_pad": "SAME_UPPER"},
    "SAME_UPPER": {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "SAME_LOWER": {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    "SAME_UPPER at stride 1": {"strides": [1, 1], "auto_pad": "SAME_UPPER"},
    "VALID": {"strides": [2, 1], "auto_pad": "VALID"},
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("case", TRANSPOSED)
def test_a_transposed_conv_node_is_what_onnx_runs(tmp_path: Path, case: str, groups: int) -> None:
    attributes = TRANSPOSED[case]
    kernel, x = RNG.standard_normal((4, 3, 3, 2)), RNG.standard_normal((1, 4, 4, 3))
    made = graph([node("ConvTranspose", "x w", "y", group=groups, **attributes)], {"w": kernel}, inputs={"x": x.shape})
    layer = only(tmp_path, made)
    assert layer.kind == "conv_transpose2d"
    assert (layer.geometry.groups, layer.geometry.size) == (groups, (4, 3))
    found = run_by_us(layer, x)
    assert found.shape[2:] == layer.geometry.output_size(layer.kernel_size)
    np.testing.assert_allclose(found, transposed_by_definition(x, kernel, groups, attributes), atol=1e-12)
    if groups == 1 and "output_shape" not in attributes:  # onnx's reference can neither
        np.testing.assert_allclose(found, run_by_onnx(made, x), atol=1e-12)


def transposed_by_definition(
    x: NDArray[Any], kernel: NDArray[Any], groups: int, said: Mapping[str, Any]
) -> NDArray[Any]:
    """ConvTranspose as its specification says it: everything scattered, then cropped or extended to the output."""
    k, d, s = kernel.shape[2:], said.get("dilations", [1, 1]), said.get("strides", [1, 1])
    extra = said.get("output_padding", [0, 0])
    whole = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(x), torch.from_numpy(kernel), stride=s, dilation=d, groups=groups
    ).numpy()
    auto, shape = said.get("auto_pad", "NOTSET"), said.get("output_shape")
    if auto.startswith("SAME") and shape is None:
        shape = [n * step for n, step in zip(x.shape[2:], s, strict=True)]
    pads = said.get("pads", [0, 0, 0, 0])
    for axis in range(2):
        begin, end = pads[axis], pads[axis + 2]
        if shape is not None:
            total = s[axis] * (x.shape[2 + axis] - 1) + extra[axis] + (k[axis] - 1) * d[axis] + 1 - shape[axis]
            small, large = max(total, 0) // 2, max(total, 0) - max(total, 0) // 2
            begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
            end += min(total, 0)  # as ONNX Runtime has it: what no tap reaches is at the end
        longer = [(0, 0)] * 4
        longer[2 + axis] = (0, extra[axis] + max(-end, 0))
        whole = np.pad(whole, longer)
        length = whole.shape[2 + axis] - begin - max(end, 0)
        whole = np.take(whole, range(begin, begin + length), axis=2 + axis)
    return whole


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_conv_node_is_what_onnx_runs(tmp_path: Path, data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from((1, 2, 4)))
    numbers = [data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(3)]
    taps, strides, dilations = numbers
    pads = [data.draw(st.integers(0, 2)) for _ in range(4)]
    size = tuple(d * (k - 1) + 1 + data.draw(st.integers(0, 4)) for k, d in zip(taps, dilations, strict=True))
    kernel = RNG.standard_normal((4, 4 // groups, *taps))
    x = RNG.standard_normal((1, 4, *size))
    attributes = {"strides": strides, "dilations": dilations, "pads": pads, "group": groups}
    made = graph([node("Conv", "x w", "y", **attributes)], {"w": kernel}, inputs={"x": x.shape})
    np.testing.assert_allclose(run_by_us(only(tmp_path, made), x), run_by_onnx(made, x), atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ Pad nodes

MODES = {"constant": "zeros", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@pytest.mark.parametrize("how", ["input", "axes", "attribute", "computed", "unused constant"])
@pytest.mark.parametrize("mode", MODES)
def test_a_pad_node_is_the_padding_of_the_layer_behind_it(tmp_path: Path, mode: str, how: str) -> None:
    opset = 10 if how == "attribute" else 21
    if mode == "wrap" and opset < 19:
        pytest.skip("wrap came with opset 19")
    weights: dict[str, Any] = {"w": KERNEL.astype(np.float64)}
    nodes = []
    if how == "attribute":
        pad = node("Pad", "x", "p", mode=mode, pads=[0, 0, 1, 2, 0, 0, 2, 1])
    elif how == "axes":
        weights |= {"amounts": np.array([1, 2, 2, 1]), "axes": np.array([2, -1])}
        pad = node("Pad", "x amounts _ axes", "p", mode=mode)
    elif how == "computed":
        # As PyTorch's exporter writes it: reversed pairs, a transposed slice of a reshaped concatenation.
        weights |= {"last": np.array([2, 1, 1, 2]), "four": np.array([4]), "pairs": np.array([-1, 2])}
        weights |= {"one": np.array([-1]), "far": np.array([-(2**62)]), "axis": np.array([0]), "flat": np.array([-1])}
        nodes = [
            node("ConstantOfShape", "four", "zeros", value=numpy_helper.from_array(np.array([0]))),
            node("Concat", "last zeros", "all", axis=0),
            node("Reshape", "all pairs", "by_axis"),
            node("Slice", "by_axis one far axis one", "turned"),
            node("Transpose", "turned", "sides", perm=[1, 0]),
            node("Reshape", "sides flat", "line"),
            node("Cast", "line", "amounts", to=TensorProto.INT64),
        ]
        pad = node("Pad", "x amounts", "p", mode=mode)
    else:
        weights |= {"amounts": np.array([0, 0, 1, 2, 0, 0, 2, 1]), "zero": np.zeros(())}
        pad = node("Pad", "x amounts zero" if how == "unused constant" else "x amounts", "p", mode=mode)
    made = graph([*nodes, pad, node("Conv", "p w", "y", strides=[2, 1])], weights)
    layer = only(tmp_path, made, opset=opset)
    g = layer.geometry
    assert (g.size, g.padding, g.padding_mode) == (SIZE, ((1, 2), (2, 1)), MODES[mode])
    x = RNG.standard_normal((1, 3, *SIZE))
    expected = run_by_onnx(graph([*nodes, pad, node("Conv", "p w", "y", strides=[2, 1])], weights), x, opset)
    np.testing.assert_allclose(run_by_us(layer, x), expected, atol=1e-12)


def test_a_pad_of_zeros_adds_to_the_padding_of_the_layer(tmp_path: Path) -> None:
    made = graph(
        [node("Pad", "x a", "p"), node("Conv", "p w", "y", pads=[1, 1, 0, 0])],
        {"a": np.array([0, 0, 1, 0, 0, 0, 0, 2]), "w": KERNEL},
    )
    g = only(tmp_path, made).geometry
    assert (g.size, g.padding, g.padding_mode) == (SIZE, ((2, 0), (1, 2)), "zeros")


KEPT: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "another node takes its output": ([node("Relu", "p", "z")], {}),
    "it pads channels": ([], {"amounts": np.array([0, 1, 1, 1, 0, 0, 1, 1])}),
    "it crops": ([], {"amounts": np.array([0, 0, -1, 1, 0, 0, 1, 1])}),
    "its constant is not zero": ([], {"constant": np.array(0.5, np.float32)}),
}


@pytest.mark.parametrize("case", KEPT)
def test_a_pad_is_left_alone_where(tmp_path: Path, case: str) -> None:
    nodes, weights = KEPT[case]
    channels = 4 if case == "it pads channels" else 3
    pad = node("Pad", "x amounts constant" if "constant" in weights else "x amounts", "p")
    kernel = RNG.standard_normal((4, channels, 3, 3)).astype(np.float32)
    stored = {"amounts": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": kernel} | weights
    layer = only(tmp_path, graph([pad, *nodes, node("Conv", "p w", "y")], stored))
    rows = SIZE[0] + (0 if case == "it crops" else 2)
    assert (layer.geometry.size, layer.geometry.padding) == ((rows, SIZE[1] + 2), ((0, 0), (0, 0)))


def test_a_reflecting_pad_before_a_layer_that_pads_with_zeros_is_left_alone(tmp_path: Path) -> None:
    made = graph(
        [node("Pad", "x a", "p", mode="reflect"), node("Conv", "p w", "y", pads=[1, 1, 1, 1])],
        {"a": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": KERNEL},
    )
    g = only(tmp_path, made).geometry
    assert (g.size, g.padding, g.padding_mode) == ((9, 11), ((1, 1), (1, 1)), "zeros")


# This exporter, which most files are from, warns that it is old, and of what it does not fold.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Constant folding:UserWarning")
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_what_pytorch_exports_has_the_padding_of_the_module(tmp_path: Path, mode: str) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), torch.nn.Conv2d(4, 2, 3))
    path = tmp_path / "m.onnx"
    try:
        torch.onnx.export(module.eval(), torch.zeros(1, 3, 8, 6), path, dynamo=False, opset_version=17)
    except (ImportError, AttributeError, TypeError) as error:  # another PyTorch exports otherwise
        pytest.skip(str(error))
    first, second = find_layers(open_checkpoint(path))
    assert (first.name, second.name) == ("0", "1")
    assert (first.geometry.size, first.geometry.padding) == ((8, 6), ((1, 1), (1, 1)))
    assert (first.geometry.padding_mode, second.geometry.padding_mode) == (mode, "zeros")
    assert second.geometry.size == (8, 6)
    np.testing.assert_array_equal(first.read(), module[0].weight.detach().numpy())


# -------------------------------------------------------------------------------------------------- where weights stand


def convolved(weights: Mapping[str, Any], *nodes: Any, name: str = "w") -> Any:
    return graph([*nodes, node("Conv", f"x {name}", "y", name="/features/features.0/Conv")], weights)


FLOATS = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8_e4m3fnuz": TensorProto.FLOAT8E4M3FNUZ,
    "float8_e5m2": TensorProto.FLOAT8E5M2,
    "float8_e5m2fnuz": TensorProto.FLOAT8E5M2FNUZ,
}


@pytest.mark.parametrize("how", ["raw", "typed", "external"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_values_are_those_stored(tmp_path: Path, dtype: str, how: str) -> None:
    values = KERNEL.astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    tensor = TensorProto(name="w", data_type=FLOATS[dtype], dims=values.shape)
    if how == "raw":
        tensor.raw_data = values.tobytes()
    elif how == "external":
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "w.bin").write_bytes(b"\0" * 12 + values.tobytes() + b"more")
        beside(tensor, location="weights/w.bin", offset=12, length=values.nbytes)
    elif dtype == "float32":
        tensor.float_data.extend(values.ravel().tolist())
    elif dtype == "float64":
        tensor.double_data.extend(values.ravel().tolist())
    else:
        tensor.int32_data.extend(values.view(f"u{values.itemsize}").ravel().tolist())
    layer = only(tmp_path, convolved({"w": tensor}))
    assert (layer.dtype, layer.shape, layer.weight) == (dtype, KERNEL.shape, "w")
    read = layer.read()
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read.view(np.uint8), values.view(np.uint8))


def beside(tensor: Any, **said: Any) -> Any:
    tensor.data_location = TensorProto.EXTERNAL
    for key, word in said.items():
        tensor.external_data.add(key=key, value=str(word))
    return tensor


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_packed_varints_are_read_all_at_once(numbers: list[int]) -> None:
    packed = TensorProto(uint64_data=numbers).SerializeToString()
    # What is behind the key and the length of the field.
    size = sum(max(1, -(-n.bit_length() // 7)) for n in numbers)
    assert varints(packed[len(packed) - size :]).tolist() == numbers


HWIO = np.ascontiguousarray(KERNEL.transpose(2, 3, 1, 0))
SEEN: dict[str, tuple[dict[str, Any], list[Any], str, NDArray[Any]]] = {
    "Identity": ({"a.weight": KERNEL}, [node("Identity", "a.weight", "w")], "w", KERNEL),
    "Transpose": ({"a": HWIO}, [node("Transpose", "a", "w", perm=[3, 2, 0, 1])], "a", KERNEL),
    "Reshape": ({"a": KERNEL.ravel(), "s": np.array([4, -1, 3, 3])}, [node("Reshape", "a s", "w")], "a", KERNEL),
    "Reshape that keeps an axis": (
        {"a": KERNEL.reshape(4, -1), "s": np.array([0, 3, 3, 3])},
        [node("Reshape", "a s", "w")],
        "a",
        KERNEL,
    ),
    "Unsqueeze": (
        {"a": KERNEL[:, :, 0], "s": np.array([2])},
        [node("Unsqueeze", "a s", "w")],
        "a",
        KERNEL[:, :, :1],
    ),
    "Squeeze": ({"a": KERNEL[None], "s": np.array([0])}, [node("Squeeze", "a s", "w")], "a", KERNEL),
    "Cast": (
        {"a": KERNEL.astype(np.float16)},
        [node("Cast", "a", "w", to=TensorProto.FLOAT)],
        "a",
        KERNEL.astype(np.float16).astype(np.float32),
    ),
    "Constant": ({}, [node("Constant", "", "w", value=numpy_helper.from_array(KERNEL))], "w", KERNEL),
    "all of them": (
        {"a": HWIO.astype(np.float16).reshape(9, -1), "s": np.array([3, 3, 3, 4])},
        [
            node("Identity", "a", "b"),
            node("Cast", "b", "c", to=TensorProto.FLOAT),
            node("Reshape", "c s", "d"),
            node("Identity", "d", "e"),
            node("Transpose", "e", "w", perm=[3, 2, 0, 1]),
        ],
        "b",
        KERNEL.astype(np.float16).astype(np.float32),
    ),
}


@pytest.mark.parametrize("case", SEEN)
def test_a_weight_is_followed_through(tmp_path: Path, case: str) -> None:
    weights, nodes, key, expected = SEEN[case]
    layer = only(tmp_path, convolved(weights, *nodes))
    assert (layer.shape, layer.problem, layer.layout) == (expected.shape, None, "OIK")
    np.testing.assert_array_equal(layer.read(), expected)
    assert layer.weight == key


def quantised(name: str = "q") -> dict[str, Any]:
    return {name: RNG.integers(-9, 9, (4, 3, 3, 3)).astype(np.int8), "s": np.float32(0.1), "z": np.int8(0)}


UNAVAILABLE: dict[str, tuple[dict[str, Any], list[Any], str]] = {
    "DequantizeLinear": (quantised(), [node("DequantizeLinear", "q s z", "w")], "quantised"),
    "ConstantOfShape": ({"s": np.array([4, 3, 3, 3])}, [node("ConstantOfShape", "s", "w")], "ConstantOfShape"),
    "an operator": ({"a": KERNEL}, [node("Mul", "a a", "w")], "computed by Mul"),
    "another runtime's operator": ({"a": KERNEL}, [node("Scale", "a", "w", domain="com.microsoft")], "Scale"),
}


@pytest.mark.parametrize("case", UNAVAILABLE)
def test_a_weight_that_is_not_stored_makes_its_layer_unavailable(tmp_path: Path, case: str) -> None:
    weights, nodes, reason = UNAVAILABLE[case]
    made = convolved(weights, *nodes)
    if case == "another runtime's operator":
        made.value_info.append(value("w", KERNEL.shape))
    layer = only(tmp_path, made)
    assert reason in str(layer.problem)
    assert (layer.shape, layer.geometry.size, layer.name) == (KERNEL.shape, SIZE, "features.0")


def test_a_weight_that_is_an_input_makes_its_layer_unavailable(tmp_path: Path) -> None:
    made = graph([node("Conv", "x w", "y")], inputs={"x": (1, 3, 7, 9), "w": (4, 3, 3, 3)})
    layer = only(tmp_path, made)
    assert layer.shape == (4, 3, 3, 3)
    assert "input of the graph" in str(layer.problem)


@pytest.mark.parametrize("op", ["QLinearConv", "ConvInteger"])
def test_an_operator_with_quantised_weights_is_an_unavailable_layer(tmp_path: Path, op: str) -> None:
    inputs = "x q" if op == "ConvInteger" else "x s z q s z s z"
    made = helper.make_graph(
        [node(op, inputs, "y", strides=[2, 2])],
        "g",
        [value("x", (1, 3, *SIZE), TensorProto.INT8)],
        [value("y", None, TensorProto.INT32)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in quantised().items()],
    )
    layer = only(tmp_path, made)
    assert (layer.dtype, layer.geometry.stride, layer.geometry.size) == ("int8", (2, 2), SIZE)
    assert f"quantised (int8, for {op})" in str(layer.problem)


def test_a_deformable_convolution_is_listed_and_not_analysed(tmp_path: Path) -> None:
    made = graph([node("DeformConv", "x w o", "y")], {"w": KERNEL}, inputs={"x": (1, 3, 5, 5), "o": (1, 18, 3, 3)})
    assert "deformable" in str(only(tmp_path, made).problem)


def test_a_layer_whose_weight_has_no_known_shape_is_named_on_one_line(tmp_path: Path) -> None:
    made = graph([node("Scale", "x", "w", domain="com.microsoft"), node("Conv", "x w", "y", name="odd")])
    checkpoint = open_checkpoint(written(tmp_path, made))
    assert discover(checkpoint).layers == ()
    assert checkpoint.problems == (
        "odd: its weight is computed by Scale: the file does not hold its values; this Conv is not listed",
    )


def test_the_operand_of_another_operator_is_no_kernel(tmp_path: Path) -> None:
    made = graph(
        [node("Conv", "x w", "z"), node("MatMul", "z conv.weight", "y")],
        {"w": KERNEL, "conv.weight": RNG.standard_normal((1, 4, 7, 3)).astype(np.float32)},
    )
    found = discover(open_checkpoint(written(tmp_path, made)))
    assert [layer.weight for layer in found.layers] == ["w"]
    assert [(s.key, s.reason) for s in found.skipped] == [
        ("conv.weight", "an operand of MatMul, which is no convolution")
    ]


# ------------------------------------------------------------------------------------------- names, calls, neighbours


@pytest.mark.parametrize(
    ("key", "node_name", "name"),
    [
        ("layer1.0.conv1.weight", "/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("module.conv.weight", "", "conv"),
        ("onnx::Conv_123", "/layer1/layer1.0/conv1/Conv_2", "layer1.0.conv1"),
        ("onnx::Conv_123", "/0/0.0/0.0.1/Conv", "0.0.1"),
        ("onnx::Conv_123", "Conv_17", "Conv_17"),
        ("245", "", "245"),
        ("scaler.optimizer.weight", "", "scaler.optimizer"),
        ("model/conv2d/Conv2D/ReadVariableOp:0", "model/conv2d/Conv2D", "model/conv2d/Conv2D"),
        ("ключ.\n\x1b[31m.weight", "", "ключ.\n\x1b[31m"),
    ],
)
def test_a_layer_is_called_after_its_module(tmp_path: Path, key: str, node_name: str, name: str) -> None:
    layer = only(tmp_path, renamed(key, node_name))
    assert (layer.name, layer.weight, layer.shape) == (name, key, KERNEL.shape)


def renamed(key: str, node_name: str) -> Any:
    made = graph([helper.make_node("Conv", ["x", key], ["y"], name=node_name)])
    made.initializer.append(numpy_helper.from_array(KERNEL, key))
    return made


def test_a_weight_called_at_two_sizes_is_two_layers(tmp_path: Path) -> None:
    square = RNG.standard_normal((3, 3, 3, 3)).astype(np.float32)
    nodes = [
        node("Conv", "x head.weight", "a", pads=[1, 1, 1, 1]),
        node("Conv", "a head.weight", "b", pads=[1, 1, 1, 1]),
        node("Conv", "b head.weight", "c", strides=[2, 2]),
        node("Conv", "c head.weight", "y"),
    ]
    found = layers_of(tmp_path, graph(nodes, {"head.weight": square}))
    assert [(layer.name, layer.geometry.size, layer.geometry.stride) for layer in found] == [
        ("head@7x9", (7, 9), (1, 1)),
        ("head@7x9#2", (7, 9), (2, 2)),
        ("head@3x4", (3, 4), (1, 1)),
    ]
    assert {layer.weight for layer in found} == {"head.weight"}


def test_layers_that_share_values_through_identity_keep_their_names(tmp_path: Path) -> None:
    square = RNG.standard_normal((3, 3, 3, 3)).astype(np.float32)
    nodes = [
        node("Identity", "first.weight", "second.weight"),
        node("Conv", "x first.weight", "a"),
        node("Conv", "a second.weight", "y"),
    ]
    first, second = layers_of(tmp_path, graph(nodes, {"first.weight": square}))
    assert (first.name, second.name) == ("first", "second")
    assert any("tied" in note for note in second.notes)
    np.testing.assert_array_equal(first.read(), second.read())


def normalised(*after: Any, **attributes: Any) -> Any:
    vector = RNG.random(4).astype(np.float32) + 1
    names = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    nodes = [
        node("Conv", "x conv.weight", "a"),
        node("BatchNormalization", "a " + " ".join(names), "y", name="/bn/BatchNormalization", **attributes),
    ]
    return graph([*nodes, *after], {"conv.weight": KERNEL} | {name: vector * n for n, name in enumerate(names, 1)})


def test_the_norm_behind_a_convolution_is_known(tmp_path: Path) -> None:
    (facts,) = (
        m for m in open_checkpoint(written(tmp_path, normalised(epsilon=0.25))).modules if "Conv" in m.class_name
    )
    assert facts.norm is not None
    assert (facts.norm.name, facts.norm.variance, facts.norm.scale) == ("bn", "bn.running_var", "bn.weight")
    assert facts.norm.epsilon == 0.25


@pytest.mark.parametrize("case", ["another node takes the output", "it is in training", "the graph returns it"])
def test_a_norm_is_not_that_of_the_convolution_where(tmp_path: Path, case: str) -> None:
    if case == "another node takes the output":
        made = normalised(node("Relu", "a", "z"))
    elif case == "it is in training":
        made = normalised(training_mode=1)
    else:
        made = normalised()
        made.output.append(value("a"))
    assert [m.norm for m in open_checkpoint(written(tmp_path, made)).modules] == [None]


def test_convolutions_in_branches_and_loops_are_found_with_their_sizes(tmp_path: Path) -> None:
    inner = RNG.standard_normal((3, 3, 3, 3)).astype(np.float32)
    then = helper.make_graph([node("Conv", "x w", "t", name="yes")], "then", [], [value("t")])
    other = helper.make_graph(
        [node("Conv", "x own", "u", name="no", pads=[1] * 4), node("Relu", "u", "t")],
        "else",
        [],
        [value("t")],
        [numpy_helper.from_array(inner, "own")],
    )
    branch = node("If", "c", "z", name="if", then_branch=then, else_branch=other)
    made = graph([branch, node("Conv", "z last", "y", name="last")], {"w": KERNEL, "last": KERNEL[:, [0, 1, 2, 0]]})
    made.input.append(value("c", (), TensorProto.BOOL))
    found = {layer.name: layer.geometry for layer in layers_of(tmp_path, made)}
    assert {name.rsplit(".", 1)[-1] for name in found} == {"yes", "no", "last"}
    by_node = {name.rsplit(".", 1)[-1]: geometry for name, geometry in found.items()}
    assert (by_node["yes"].size, by_node["no"].size, by_node["no"].padding) == (SIZE, SIZE, ((1, 1), (1, 1)))


def test_convolutions_in_functions_are_found_with_their_sizes(tmp_path: Path) -> None:
    function = helper.make_function(
        "local",
        "Block",
        ["a", "k"],
        ["c"],
        [
            helper.make_node("Conv", ["a", "k"], ["b"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["b"], ["c"]),
        ],
        [helper.make_opsetid("", 21)],
    )
    square = RNG.standard_normal((3, 3, 3, 3)).astype(np.float32)
    made = graph(
        [node("Block", "x one.weight", "m", domain="local"), node("Block", "m two.weight", "y", domain="local")],
        {"one.weight": square, "two.weight": square * 2},
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    one, two = layers_of(tmp_path, model(made, functions=[function], opset_imports=opsets))
    assert (one.name, two.name) == ("one", "two")
    assert one.geometry.size == two.geometry.size == SIZE
    np.testing.assert_array_equal(two.read(), square * 2)


@pytest.mark.parametrize("spatial", [("h", "w"), (7, "w"), None])
def test_a_size_that_the_graph_leaves_open_is_assumed(tmp_path: Path, spatial: Any) -> None:
    shape = None if spatial is None else ("batch", 3, *spatial)
    made = helper.make_graph(
        [node("Conv", "x w", "y", auto_pad="SAME_UPPER")],
        "g",
        [value("x", shape)],
        [value("y")],
        [numpy_helper.from_array(KERNEL, "w")],
    )
    origin = only(tmp_path, made).geometry.origin
    assert (origin["size"], origin["stride"], origin["padding"]) == ("assumed", "stored", "stored")


def test_a_symbolic_batch_leaves_no_size_open(tmp_path: Path) -> None:
    made = graph([node("Conv", "x w", "y")], {"w": KERNEL}, inputs={"x": ("batch", 3, *SIZE)})
    assert only(tmp_path, made).geometry.size == SIZE


def test_initializers_that_are_inputs_too_come_in_the_order_of_the_inputs(tmp_path: Path) -> None:
    made = graph(
        [node("Conv", "x b.weight", "m"), node("Conv", "m a.weight", "y")],
        {"a.weight": KERNEL[:, [0, 1, 2, 0]], "b.weight": KERNEL},
        inputs={"x": (1, 3, *SIZE), "b.weight": (4, 3, 3, 3), "a.weight": (4, 4, 3, 3)},
    )
    assert [layer.name for layer in layers_of(tmp_path, made, opset=9, ir_version=3)] == ["b", "a"]


def test_shapes_that_follow_from_shapes_are_inferred(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s from", "part", axis=0),
        node("Mul", "part two", "twice"),
        node("Concat", "head twice", "sizes", axis=0),
        node("Resize", "x _ _ sizes", "z"),
        node("Conv", "z w", "y"),
    ]
    weights = {"from": np.array([2, 3]), "two": np.array([2]), "head": np.array([1, 3]), "w": KERNEL}
    assert only(tmp_path, graph(nodes, weights)).geometry.size == (14, 18)


# -------------------------------------------------------------------------------------------------------- recognition


def test_it_is_recognised_by_its_content(tmp_path: Path) -> None:
    path = written(tmp_path, convolved({"w": KERNEL}))
    path.rename(tmp_path / "m.pth")
    assert open_checkpoint(tmp_path / "m.pth").format == "onnx"


OTHERS = {
    "text format": b'<\n  ir_version: 8,\n  opset_import: ["" : 18]\n>\nagraph (float[N] x) => (float[N] y) {}',
    "text protobuf": b'ir_version: 8\nproducer_name: "x"\ngraph {\n}\n',
    "SavedModel": b"\x08\x01\x12\x06\x0a\x04abcd",
    "frozen graph": b"\x0a\x06\x0a\x04node",
    "ORT": b"\x20\x00\x00\x00ORTM" + bytes(64),
    "zeros": bytes(100),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_binary_onnx_model_is_not_taken_for_one(tmp_path: Path, case: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(OTHERS[case])
    with pytest.raises(UnknownFormatError) as caught:
        open_checkpoint(path)
    if case in ("text format", "text protobuf"):
        assert "text" in str(caught.value)
        assert "onnx.save" in str(caught.value)
    if case == "ORT":
        assert "ONNX Runtime" in str(caught.value)


def test_without_onnx_the_content_is_recognised_and_the_extra_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, convolved({"w": KERNEL}))
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(_onnx_prepare.importlib.util, "find_spec", lambda name: None)
    assert FORMATS["onnx"].recognises(RegularFile(path))
    with pytest.raises(CheckpointError, match=r"pip install 'convsv\[onnx\]'") as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


def test_opening_a_model_imports_neither_onnx_nor_torch(tmp_path: Path) -> None:
    path = written(tmp_path, convolved({"w": KERNEL}))
    code = (
        "import sys; from convsv.checkpoints import discovery, open_checkpoint\n"
        f"assert len(discovery.find_layers(open_checkpoint({str(path)!r}))) == 1\n"
        "print(sorted({'torch', 'onnx', 'h5py', 'google'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------------- hostile


def refused(folder: Path, made: Any, error: type[CheckpointError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        open_checkpoint(written(folder, made))
    assert str(caught.value).isprintable()


OUTSIDE = ["/etc/passwd", "../secret.bin", "weights/../../secret.bin", "", ".", "a\nb", "C:\\w.bin", "a\x00b", "link"]


@pytest.mark.parametrize("location", OUTSIDE, ids=repr)
def test_a_file_outside_the_folder_of_the_model_is_never_opened(tmp_path: Path, location: str) -> None:
    inside = tmp_path / "inside"
    (inside / "weights").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(KERNEL.tobytes())
    (inside / "link").symlink_to(tmp_path / "secret.bin")
    tensor = beside(TensorProto(name="w", data_type=1, dims=KERNEL.shape), location=location)
    with pytest.raises(CheckpointError):
        open_checkpoint(written(inside, convolved({"w": tensor})))


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(KERNEL.tobytes())
    (tmp_path / "w.bin").symlink_to("blob")
    tensor = beside(TensorProto(name="w", data_type=1, dims=KERNEL.shape), location="w.bin")
    np.testing.assert_array_equal(only(tmp_path, convolved({"w": tensor})).read(), KERNEL)


def test_a_store_by_content_may_link_to_model_and_weights(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1").write_bytes(KERNEL.tobytes())
    tensor = beside(TensorProto(name="w", data_type=1, dims=KERNEL.shape), location="m.onnx_data")
    written(blobs, convolved({"w": tensor})).rename(blobs / "2")
    (snapshot / "m.onnx").symlink_to("../../blobs/2")
    (snapshot / "m.onnx_data").symlink_to("../../blobs/1")
    checkpoint = open_checkpoint(snapshot / "m.onnx")
    np.testing.assert_array_equal(find_layers(checkpoint)[0].read(), KERNEL)
    assert len(checkpoint.files) == 2


def test_external_data_that_is_a_pipe_or_a_folder_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for location in ("pipe", "folder"):
        tensor = beside(TensorProto(name="w", data_type=1, dims=KERNEL.shape), location=location)
        refused(tmp_path, convolved({"w": tensor}), CheckpointError, "not a regular file")


EXTENTS: dict[str, dict[str, Any]] = {
    "offset beyond the end": {"offset": 1 << 40},
    "offset below zero": {"offset": -4},
    "offset that is no number": {"offset": "0x10"},
    "length beyond the end": {"length": 1 << 40},
    "length of another shape": {"length": 8},
    "offset that leaves too little": {"offset": 4},
}


@pytest.mark.parametrize("case", EXTENTS)
def test_an_extent_that_contradicts_the_file_is_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "w.bin").write_bytes(KERNEL.tobytes())
    tensor = beside(TensorProto(name="w", data_type=1, dims=KERNEL.shape), location="w.bin", **EXTENTS[case])
    refused(tmp_path, convolved({"w": tensor}), CorruptCheckpointError, "values|extent")


def test_a_missing_file_of_weights_is_named_with_what_to_do(tmp_path: Path) -> None:
    tensor = beside(TensorProto(name="w", data_type=1, dims=KERNEL.shape), location="w.bin")
    refused(tmp_path, convolved({"w": tensor}), CorruptCheckpointError, "missing.*w.bin.*fetch")


def test_no_file_has_a_name_of_five_thousand_characters(tmp_path: Path) -> None:
    tensor = beside(TensorProto(name="w", data_type=1, dims=KERNEL.shape), location="w" * 5000)
    refused(tmp_path, convolved({"w": tensor}), CorruptCheckpointError, "^.{0,500}missing.{0,500}$")


def test_a_model_cut_anywhere_is_refused_or_unknown(tmp_path: Path) -> None:
    whole = written(tmp_path, normalised()).read_bytes()
    path = tmp_path / "cut.onnx"
    for end in range(0, len(whole) - 1, 23):
        path.write_bytes(whole[:end])
        with pytest.raises((CorruptCheckpointError, UnknownFormatError)):
            open_checkpoint(path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_model_with_changed_bytes_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(written(tmp_path, normalised()).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.onnx"
    path.write_bytes(bytes(whole))
    with suppress(CheckpointError):
        for layer in find_layers(open_checkpoint(path)):
            if not layer.problem:
                layer.read()


def weight(dims: Sequence[int], **fields: Any) -> Any:
    return TensorProto(name="w", dims=dims, **{"data_type": 1} | fields)


CONTRADICTIONS: dict[str, Any] = {
    "huge dimensions and few bytes": weight([1 << 40, 3, 3, 3], raw_data=b"1234"),
    "a product of dimensions that overflows": weight([1 << 62, 1 << 62, 1 << 62, 4], raw_data=b"1234"),
    "a product that is 0 modulo 2^64": weight([1 << 32, 1 << 32, 1, 1], raw_data=b""),
    "negative dimensions": weight([4, -3, 3, 3], raw_data=b"1234"),
    "a hundred dimensions": weight([1] * 100, raw_data=b"1234"),
    "values twice": weight([1, 1, 1, 1], raw_data=b"1234", float_data=[1.0]),
    "more values than dimensions": weight([1, 1, 1, 1], raw_data=bytes(8)),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_tensor_that_contradicts_itself_is_refused(tmp_path: Path, case: str) -> None:
    refused(tmp_path, convolved({"w": CONTRADICTIONS[case]}), CorruptCheckpointError, "values|dimensions")


TYPED: dict[str, Any] = {
    "too few values": weight([1, 1, 1, 2], float_data=[1.0]),
    "too many values": weight([1, 1, 1, 1], float_data=[1.0, 2.0]),
    "values of another type": weight([1, 1, 1, 1], double_data=[1.0]),
    "a bit pattern that is too long": weight([1, 1, 1, 1], data_type=TensorProto.FLOAT16, int32_data=[70000]),
    "a negative bit pattern": weight([1, 1, 1, 1], data_type=TensorProto.FLOAT16, int32_data=[-1]),
}


@pytest.mark.parametrize("case", TYPED)
def test_typed_values_that_contradict_their_tensor_are_refused_when_read(tmp_path: Path, case: str) -> None:
    layer = only(tmp_path, convolved({"w": TYPED[case]}))
    with pytest.raises(CorruptCheckpointError):
        layer.read()


@pytest.mark.parametrize("code", [0, 8, 21, 22, 23, 99])
def test_a_type_that_is_not_read_is_a_problem_of_its_layer(tmp_path: Path, code: int) -> None:
    layer = only(tmp_path, convolved({"w": weight([1, 3, 1, 1], data_type=code, raw_data=bytes(6))}))
    assert "not supported" in str(layer.problem)


@pytest.mark.parametrize("dims", [[0, 1 << 62, 3, 3], [0, (1 << 63) - 1, 1, 1], [1 << 40, 0, 1 << 40, 1]], ids=str)
def test_an_empty_tensor_with_a_shape_that_no_array_has_is_a_problem_of_its_layer(
    tmp_path: Path, dims: list[int]
) -> None:
    for fields in ({"raw_data": b""}, {}):
        layer = only(tmp_path, convolved({"w": weight(dims, **fields)}))
        assert layer.problem == "its shape is too large"
        with pytest.raises(CheckpointError, match="its shape is too large"):
            layer.read()


def test_stripped_weights_are_a_problem_of_their_layer(tmp_path: Path) -> None:
    assert "not in the file" in str(only(tmp_path, convolved({"w": weight([4, 3, 3, 3])})).problem)


def test_a_cycle_of_nodes_ends(tmp_path: Path) -> None:
    nodes = [
        node("Identity", "a", "b"),
        node("Identity", "b", "a"),
        node("Transpose", "a", "a2"),
        node("Relu", "y", "z"),
    ]
    made = graph([*nodes, node("Conv", "z a", "y")])
    checkpoint = open_checkpoint(written(tmp_path, made))
    assert "not listed" in " ".join(checkpoint.problems)


def test_a_hundred_thousand_nodes_are_read(tmp_path: Path) -> None:
    chain = [node("Relu", f"v{n}", f"v{n + 1}") for n in range(100_000)]
    made = graph([*chain, node("Conv", "v100000 w", "y")], {"w": KERNEL}, inputs={"v0": (1, 3, *SIZE)})
    assert only(tmp_path, made).geometry.size == SIZE


def nested(depth: int) -> Any:
    body = helper.make_graph([node("Conv", "x w", "t")], "b", [], [value("t")])
    for _ in range(depth):
        body = helper.make_graph([node("If", "c", "t", then_branch=body)], "b", [], [value("t")])
    return body


def test_graphs_in_graphs_without_end_are_refused(tmp_path: Path) -> None:
    made = graph([node("If", "c", "y", then_branch=nested(25))], {"w": KERNEL})
    refused(tmp_path, made, UnsafeCheckpointError, "nests")


def test_fields_in_fields_without_end_are_refused(tmp_path: Path) -> None:
    message = b""
    for _ in range(3000):
        # A graph in an attribute in a node.
        for number in (6, 5, 1):
            message = bytes([number << 3 | 2]) + _varint(len(message)) + message
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08\x3a" + _varint(len(message)) + message)
    with pytest.raises(UnsafeCheckpointError, match="nests"):
        open_checkpoint(path)


def _varint(size: int) -> bytes:
    out = b""
    while size > 0x7F:
        out += bytes([size & 0x7F | 0x80])
        size >>= 7
    return out + bytes([size])


def test_millions_of_empty_fields_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08" + b"\x3a" + _varint(8_000_000) + b"\x0a\x00" * 4_000_000)
    with pytest.raises(UnsafeCheckpointError, match="too many parts"):
        open_checkpoint(path)


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    raw = model(renamed("NAME.weight", "n")).SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(raw.replace(b"NAME.weight", b"N\xff\xfeE.weight"))
    (layer,) = find_layers(open_checkpoint(path))
    assert layer.name == "N\\xff\\xfeE"
    np.testing.assert_array_equal(layer.read(), KERNEL)


def test_functions_that_call_each_other_more_and_more_end(tmp_path: Path) -> None:
    functions = []
    for depth in range(40):
        inner = "Leaf" if depth == 0 else f"F{depth - 1}"
        body = [
            helper.make_node(inner, ["a"], ["b"], domain="local"),
            helper.make_node(inner, ["b"], ["c"], domain="local"),
        ]
        functions.append(
            helper.make_function("local", f"F{depth}", ["a"], ["c"], body, [helper.make_opsetid("local", 1)])
        )
    made = graph([node("F39", "x", "m", domain="local"), node("Conv", "m w", "y")], {"w": KERNEL})
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    checkpoint = open_checkpoint(written(tmp_path, model(made, functions=functions, opset_imports=opsets)))
    assert [layer.problem for layer in find_layers(checkpoint)] == [None]
    assert any("functions are not listed" in problem for problem in checkpoint.problems)


ANOTHER_KIND = "import os, time; input(); os.write(1, b'J' + bytes(7) + b'\\x02{}'); time.sleep(9)"


@pytest.mark.parametrize(
    "code",
    ["import os; os.abort()", "while True: pass", "x = bytearray(1 << 34)", ANOTHER_KIND],
    ids=["aborts", "loops", "takes memory", "answers in another kind"],
)
def test_layers_are_listed_where_onnx_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    child = tmp_path / "child.py"
    child.write_text(f"import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n{code}\n")
    monkeypatch.setattr(_onnx_prepare, "_CHILD", child)
    monkeypatch.setattr(_onnx_prepare, "SECONDS", 1.0)
    made = graph([node("Conv", "x w", "a"), node("Conv", "a w2", "y")], {"w": KERNEL, "w2": KERNEL[:, [0, 1, 2, 0]]})
    checkpoint = open_checkpoint(written(tmp_path, made))
    layer, second = find_layers(checkpoint)
    assert (layer.geometry.origin["size"], second.geometry.origin["size"]) == ("stored", "assumed")
    np.testing.assert_array_equal(layer.read(), KERNEL)
    (problem,) = checkpoint.problems
    assert problem.startswith("input sizes are known only where the model states them: onnx cannot infer")


def test_what_onnx_says_of_a_model_is_told_as_its_own_words(tmp_path: Path) -> None:
    """A node without an input that it must have: a library that had no part in it is not named."""
    made = graph([node("Conv", "x w", "y"), node("Reshape", "x", "z")], {"w": KERNEL})
    (problem,) = open_checkpoint(written(tmp_path, made)).problems
    assert "onnx cannot infer the shapes of it (found [ShapeInferenceError]" in problem
    assert "hdf5" not in problem


def test_two_initializers_of_one_name_are_refused(tmp_path: Path) -> None:
    made = convolved({"w": KERNEL})
    made.initializer.append(numpy_helper.from_array(KERNEL * 2, "w"))
    refused(tmp_path, made, CorruptCheckpointError, "one name")


# ------------------------------------------------------------------------------------------------------- a real network


def spatial_sizes(network: Any) -> dict[str, tuple[int, ...]]:
    """Input size of each Conv by its weight's name: sizes passed on from node to node, by the formula of Conv alone."""
    size = {"input": (240, 320)}
    found = {}
    for n in network.graph.node:
        if not n.input or n.input[0] not in size:
            continue
        size[n.output[0]] = size[n.input[0]]
        if n.op_type == "Conv":
            said = {a.name: helper.get_attribute_value(a) for a in n.attribute}
            found[n.input[1]] = size[n.input[0]]
            size[n.output[0]] = tuple(
                (m + said["pads"][i] + said["pads"][i + 2] - said["dilations"][i] * (said["kernel_shape"][i] - 1) - 1)
                // said["strides"][i]
                + 1
                for i, m in enumerate(size[n.input[0]])
            )
    return found


def test_a_real_network_has_the_geometry_of_its_nodes(shared_checkpoints: Path) -> None:
    path = shared_checkpoints / "ultraface-rfb320.onnx"
    network = onnx.load(path)
    layers = {layer.weight: layer for layer in find_layers(open_checkpoint(path))}
    nodes = {n.input[1]: n for n in network.graph.node if n.op_type == "Conv"}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in network.graph.initializer}
    sizes = spatial_sizes(network)
    assert len(layers) == 52
    assert layers.keys() == nodes.keys() == sizes.keys()
    for key, n in nodes.items():
        said = {a.name: helper.get_attribute_value(a) for a in n.attribute}
        g = layers[key].geometry
        assert (g.stride, g.dilation, g.groups) == (tuple(said["strides"]), tuple(said["dilations"]), said["group"])
        assert (g.size, g.padding) == (sizes[key], tuple(zip(said["pads"][:2], said["pads"][2:], strict=True)))
        assert set(g.origin.values()) == {"stored"}
        np.testing.assert_array_equal(layers[key].read(), stored[key])
    assert {max(layer.geometry.dilation) for layer in layers.values()} == {1, 2, 3, 5}
    assert {layer.geometry.stride for layer in layers.values()} == {(1, 1), (2, 2)}


def test_a_real_network_names_its_layers_as_its_state_dict_does(shared_checkpoints: Path) -> None:
    twins = [find_layers(open_checkpoint(shared_checkpoints / f"ultraface-rfb320.{end}")) for end in ("onnx", "pth")]
    assert [layer.name for layer in twins[0]] == [layer.name for layer in twins[1]]
    for a, b in zip(*twins, strict=True):
        assert (a.weight, a.shape, a.dtype) == (b.weight, b.shape, b.dtype)
        np.testing.assert_array_equal(a.read(), b.read())


def test_the_norms_of_a_real_network_are_those_of_its_nodes(shared_checkpoints: Path) -> None:
    path = shared_checkpoints / "ultraface-rfb320.onnx"
    modules = {next(iter(m.variables)): m for m in open_checkpoint(path).modules if "Conv" in m.class_name}
    network = onnx.load(path)
    makers = {n.output[0]: n for n in network.graph.node}
    followed = {makers[n.input[0]].input[1]: n.input for n in network.graph.node if n.op_type == "BatchNormalization"}
    assert len(followed) == 35
    assert {key: (m.norm.scale, m.norm.variance) for key, m in modules.items() if m.norm} == {
        key: (names[1], names[4]) for key, names in followed.items()
    }

"""Network bounds of ONNX graphs: below nothing that onnx's own reference measures, and equal to the traced model's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from typer.testing import CliRunner

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import convsv  # noqa: E402
from convsv.checkpoints._onnx_operations import OPERATORS  # noqa: E402
from convsv.cli import app  # noqa: E402
from convsv.errors import CheckpointError, UsageError  # noqa: E402
from convsv.graph import Network  # noqa: E402

pytestmark = pytest.mark.timeout(120)
RNG = np.random.default_rng(0)
STEP = 1e-6
"""Of finite differences. No quotient of distances is above a Lipschitz constant, however large the step."""
SINGLE = 1e-2
"""The step where onnx's reference computes in single precision."""
ROUNDING = 1 + 1e-6
"""What finite differences may be too large by: the rounding of values over the step."""


def weights(*shape: int) -> NDArray[np.float64]:
    return RNG.standard_normal(shape)


def whole(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


@dataclass(frozen=True)
class Case:
    """Nodes ``(operator, inputs, outputs, attributes)`` from x to y."""

    nodes: Sequence[tuple[str, str, str, Mapping[str, Any]]]
    shape: tuple[int, ...] = (1, 2, 4, 5)
    stored: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    opset: int = 20
    near: float = 0.5

    @property
    def step(self) -> float:
        return SINGLE if any(op in ("Erf", "Gelu") for op, *_ in self.nodes) else STEP


def one(op: str, shape: tuple[int, ...] = (1, 2, 4, 5), near: float = 0.5, opset: int = 20, inputs: str = "x",
        stored: Mapping[str, NDArray[Any]] | None = None, **attributes: Any) -> Case:  # fmt: skip
    return Case([(op, inputs, "y", attributes)], shape, stored or {}, opset, near)


POSITIVE = np.abs(weights(2)) + 0.1
CASES: dict[str, Case] = {
    **{op: one(op, (1, 30)) for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Sin", "Cos", "Atan", "Erf")},
    **{op: one(op, (1, 30)) for op in ("Abs", "Neg", "HardSwish", "Mish", "LeakyRelu", "Elu", "Selu", "HardSigmoid")},
    "Celu": one("Celu", (1, 30), alpha=2.0),
    "Gelu": one("Gelu", (1, 30)),
    "Clip": one("Clip", (1, 30), inputs="x _ top", stored={"top": np.array(1.0)}),
    "PRelu": one("PRelu", inputs="x slope", stored={"slope": weights(2, 1, 1) * 3}),
    "Softmax": one("Softmax", (1, 2)),
    "LogSoftmax": one("LogSoftmax", (1, 4)),
    "Gemm": one("Gemm", (1, 6), 0.999, inputs="x w b", stored={"w": weights(4, 6), "b": weights(4)}, transB=1,
                alpha=0.3),
    "MatMul": one("MatMul", (1, 3, 6), 0.999, inputs="x w", stored={"w": weights(6, 2)}),
    "BatchNormalization": one(
        "BatchNormalization", near=0.999, inputs="x s b m v",
        stored={"s": weights(2), "b": weights(2), "m": weights(2), "v": POSITIVE},
    ),
    "InstanceNormalization": one("InstanceNormalization", near=0.3, inputs="x s b", epsilon=0.5,
                                 stored={"s": weights(2), "b": weights(2)}),
    "LayerNormalization": one("LayerNormalization", (1, 5), 0.3, inputs="x s", stored={"s": weights(5)}, epsilon=0.5),
    "Add": Case([("Sin", "x", "a", {}), ("Add", "x a", "y", {})]),
    "Sum": Case([("Sin", "x", "a", {}), ("Sum", "x a x", "y", {})]),
    "Sub": one("Sub", (1, 2), 0.999, inputs="x c", stored={"c": weights(3, 2)}),
    "Mul": one("Mul", near=0.999, inputs="c x", stored={"c": weights(2, 1, 1)}),
    "Div": one("Div", near=0.999, inputs="x c", stored={"c": weights(5)}),
    "SiLU": Case([("Sigmoid", "x", "a", {}), ("Mul", "x a", "y", {})], (1, 30)),
    "GELU": Case([("Div", "x r", "a", {}), ("Erf", "a", "b", {}), ("Add", "b one", "c", {}), ("Mul", "x c", "d", {}),
                  ("Mul", "d half", "y", {})], (1, 30),
                 {"r": np.array(2**0.5), "one": np.array(1.0), "half": np.array(0.5)}),
    "Max": Case([("Neg", "x", "a", {}), ("Max", "x a", "y", {})]),
    "Min": one("Min", inputs="x c", stored={"c": weights(5)}),
    "Concat": Case([("Sin", "x", "a", {}), ("Concat", "x a", "y", {"axis": 1})]),
    "MaxPool": one("MaxPool", (1, 1, 6, 6), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "AveragePool": one("AveragePool", near=0.999, kernel_shape=[2, 3], pads=[0, 1, 0, 1]),
    "AveragePool counted": one("AveragePool", near=0.999, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    "GlobalAveragePool": one("GlobalAveragePool", near=0.999),
    "GlobalMaxPool": one("GlobalMaxPool"),
    "ReduceMean": one("ReduceMean", near=0.999, inputs="x axes", stored={"axes": whole(-1, 2)}),
    "ReduceMean 13": one("ReduceMean", near=0.999, opset=13, axes=[1]),
    "ReduceSum": one("ReduceSum", near=0.999, inputs="x axes", stored={"axes": whole(2)}),
    "ReduceMax": one("ReduceMax", inputs="x axes", stored={"axes": whole(2)}),
    "ReduceMin": one("ReduceMin"),
    "ReduceLogSumExp": one("ReduceLogSumExp", (1, 4)),
    "Flatten": one("Flatten", near=0.999),
    "Reshape": one("Reshape", near=0.999, inputs="x to", stored={"to": whole(1, -1)}),
    "Transpose": one("Transpose", near=0.999, perm=[0, 3, 1, 2]),
    "Squeeze": one("Squeeze", near=0.999),
    "Unsqueeze": one("Unsqueeze", near=0.999, inputs="x axes", stored={"axes": whole(0)}),
    "DepthToSpace": one("DepthToSpace", (1, 4, 2, 3), 0.999, blocksize=2),
    "SpaceToDepth": one("SpaceToDepth", (1, 1, 4, 6), 0.999, blocksize=2),
    "Slice": one("Slice", near=0.999, inputs="x from to", stored={"from": whole(0, 0), "to": whole(1, 1)}),
    "Split": Case([("Split", "x", "a y", {"axis": 1, "num_outputs": 2})], near=0.999),
    "Identity": one("Identity", near=0.999),
    "Cast": one("Cast", near=0.999, to=TensorProto.DOUBLE),
    "Dropout": one("Dropout", near=0.999),
    "Expand": one("Expand", (1, 2), 0.999, inputs="x to", stored={"to": whole(3, 2)}),
    "Tile": one("Tile", (1, 2), 0.999, inputs="x by", stored={"by": whole(1, 3)}),
    "Gather": one("Gather", (1, 5), 0.999, inputs="x at", stored={"at": whole(0, 4, 4, -1)}, axis=1),
    "Pad": one("Pad", near=0.999, inputs="x by", stored={"by": whole(0, 0, 1, 2, 0, 0, 1, 2)}, mode="edge"),
    "Pad zeros": one("Pad", near=0.999, inputs="x by", stored={"by": whole(0, 0, 1, 2, 0, 0, 1, 0)}),
    "Resize": one("Resize", near=0.999, inputs="x _ by", stored={"by": np.array([1, 1, 2, 3], np.float32)},
                  coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "Resize half": one("Resize", near=0.999, inputs="x _ by", stored={"by": np.array([1, 1, 3, 2], np.float32)}),
    "Conv": one("Conv", near=0.95, inputs="x w", stored={"w": weights(3, 2, 3, 3)}, pads=[1, 1, 1, 1]),
    "ConvTranspose": one("ConvTranspose", near=0.95, inputs="x w", stored={"w": weights(2, 3, 2, 2)}, strides=[2, 2]),
    "Conv padded": Case([("Pad", "x by", "a", {"mode": "reflect"}), ("Conv", "a w", "y", {})],
                        stored={"by": whole(0, 0, 1, 1, 0, 0, 1, 1), "w": weights(3, 2, 3, 3)}),
    "Conv folded": Case([("Conv", "x w", "a", {}), ("BatchNormalization", "a s b m v", "y", {})],
                        stored={"w": weights(2, 2, 3, 3), "s": weights(2), "b": weights(2), "m": weights(2),
                                "v": POSITIVE}, near=0.9),
}  # fmt: skip
NO_BOUND = {"LSTM", "GRU", "RNN", "Scan", "Loop", "Attention", "MultiHeadAttention", "LpNormalization", "Upsample"} | {
    "Exp", "Log", "Sqrt", "Reciprocal", "Tan", "Sinh", "Cosh", "GroupNormalization"
}  # fmt: skip
"""Entries that say why there is none, or whose older or newer versions onnx's reference does not run."""


def model(case: Case, kind: int = TensorProto.DOUBLE, shape: Sequence[Any] | None = None) -> Any:
    nodes = [
        helper.make_node(op, ["" if name == "_" else name for name in inputs.split()], outputs.split(), **attributes)
        for op, inputs, outputs, attributes in case.nodes
    ]
    given = helper.make_tensor_value_info("x", kind, case.shape if shape is None else shape)
    made = helper.make_tensor_value_info("y", kind, None)
    stored = [numpy_helper.from_array(array, name) for name, array in case.stored.items()]
    graph = helper.make_graph(nodes, "g", [given], [made], stored)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*pair) for pair in (("", case.opset), ("com.elsewhere", 1))],
        ir_version=9,
    )


def network(folder: Path, made: Any) -> Network:
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    read = convsv.open_checkpoint(path).network
    assert read is not None
    return read()


def steepest(made: Any, shape: tuple[int, ...], size: float = STEP) -> float:
    """Return the largest norm of the Jacobian that finite differences find."""
    run, best = ReferenceEvaluator(made), 0.0
    for scale in (0.1, 1.0, 1.0, 3.0):
        x = RNG.standard_normal(shape) * scale
        columns = []
        for place in range(x.size):
            step = np.zeros(x.size)
            step[place] = size
            ends = [np.asarray(run.run(None, {"x": x + sign * step.reshape(shape)})[0]).ravel() for sign in (1, -1)]
            columns.append((ends[0] - ends[1]) / (2 * size))
        best = max(best, float(np.linalg.norm(np.array(columns), 2)))
    return best


@pytest.mark.parametrize("name", CASES)
def test_no_slope_of_an_operator_is_above_its_bound(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    made = model(case)
    bound = convsv.network_bound(network(tmp_path, made))
    assert bound.upper is not None, bound.unavailable
    measured = steepest(made, case.shape, case.step)
    assert measured <= bound.upper * (ROUNDING if case.step == STEP else 1 + 2.0**-22 / SINGLE) + 1e-8
    assert measured >= bound.upper * case.near * (1 - 1e-6), "the bound is looser than it should be"


def test_every_operator_is_judged() -> None:
    used = {op for case in CASES.values() for op, *_ in case.nodes} - {"Conv", "ConvTranspose"}
    assert used | NO_BOUND == set(OPERATORS)


REFUSED: dict[str, tuple[Case, str]] = {
    "product": (Case([("Tanh", "x", "a", {}), ("Mul", "x a", "y", {})]), "product"),
    "divided": (one("Div", inputs="c x", stored={"c": weights(5)}), "rule"),
    "steep": (one("Exp"), "Exp: its slope"),
    "whole": (one("Cast", to=TensorProto.INT64), "jumps"),
    "round": (one("Round"), "Round: no rule"),
    "statistics": (
        one("BatchNormalization", inputs="x s b m v", training_mode=1,
            stored={"s": weights(2), "b": weights(2), "m": weights(2), "v": POSITIVE}),
        "statistics|unknown|jumps|rule",
    ),
    "places": (one("Resize", inputs="x _ by", stored={"by": np.array([1, 1, 2, 2], np.float32)},
                   coordinate_transformation_mode="align_corners"), "rule"),
    "uneven": (one("Resize", (1, 1, 3, 3), inputs="x _ by", stored={"by": np.array([1, 1, 2.1, 2], np.float32)}),
               "rule"),
    "computed weight": (Case([("Reshape", "x to", "w", {}), ("Conv", "x w", "y", {})],
                             stored={"to": whole(2, 2, 2, 5)}), "computed"),
    "domain": (Case([("Relu", "x", "y", {"domain": "com.elsewhere"})]), "rule"),
    "zero": (one("Div", inputs="x c", stored={"c": np.array([1.0, 0, 1, 1, 1])}), "zero"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bound_is_named_with_the_reason(name: str, tmp_path: Path) -> None:
    case, said = REFUSED[name]
    bound = convsv.network_bound(network(tmp_path, model(case)))
    assert bound.upper is None
    assert bound.unavailable
    assert re.search(said, bound.unavailable), bound.unavailable


def test_what_a_file_says_of_shapes_in_between_is_not_believed(tmp_path: Path) -> None:
    case = one("Expand", (1, 2), inputs="x to", stored={"to": whole(300, 2)})
    made = model(case)
    made.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    made.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 2
    bound = convsv.network_bound(network(tmp_path, made))
    assert bound.upper == pytest.approx(300**0.5)


def test_a_batch_that_is_left_open_is_one(tmp_path: Path) -> None:
    case = Case(
        [("Conv", "x w", "a", {}), ("Add", "a c", "y", {})], stored={"w": weights(3, 2, 3, 3), "c": weights(3, 1, 1)}
    )
    found = network(tmp_path, model(case, shape=("N", 2, 4, 5)))
    assert found.inputs == {"x": (1, 2, 4, 5)}
    assert convsv.network_bound(found).upper == convsv.network_bound(network(tmp_path, model(case))).upper


def test_a_residual_network_has_the_bound_of_the_traced_one(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.inner, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.norm(self.stem(x)))
            h = torch.nn.functional.max_pool2d(torch.relu(h + self.inner(h)), 3, 2, 1)
            out: torch.Tensor = self.last(h.mean((2, 3)))
            return out

    net = Net().eval()
    net.norm.running_var.uniform_(0.5, 2)
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
    pads = {"pads": [1, 1, 1, 1]}
    case = Case(
        [
            ("Conv", "x stem.weight stem.bias", "a", pads),
            ("BatchNormalization", "a norm.weight norm.bias norm.running_mean norm.running_var", "b", {}),
            ("Relu", "b", "c", {}),
            ("Conv", "c inner.weight inner.bias", "d", pads),
            ("Add", "c d", "e", {}),
            ("Relu", "e", "f", {}),
            ("MaxPool", "f", "g", {"kernel_shape": [3, 3], "strides": [2, 2], **pads}),
            ("GlobalAveragePool", "g", "h", {}),
            ("Flatten", "h", "i", {}),
            ("Gemm", "i last.weight last.bias", "y", {"transB": 1}),
        ],
        (1, 2, 8, 8),
        state,
    )
    read = convsv.network_bound(network(tmp_path, model(case, TensorProto.FLOAT)))
    traced = convsv.network_bound(net, (1, 2, 8, 8))
    assert traced.upper == read.upper
    assert sum(row.share or 0 for row in read.operations) == pytest.approx(1)


def test_a_node_before_what_it_takes_is_refused(tmp_path: Path) -> None:
    case = Case([("Relu", "a", "y", {}), ("Relu", "x", "a", {})])
    with pytest.raises(CheckpointError):
        network(tmp_path, model(case))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_model(shared_checkpoints: Path) -> None:
    read = convsv.open_checkpoint(shared_checkpoints / "ultraface-rfb320.onnx").network
    assert read is not None
    found = read()
    assert found.inputs == {"input": (1, 3, 240, 320)}
    bound = convsv.network_bound(found, tol=0.1, output="boxes")
    assert bound.outputs["scores"] is not None
    assert bound.upper is None
    assert "Exp" in (bound.unavailable or ""), "boxes are decoded with exp"


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_has_an_error_or_a_graph_and_does_no_harm(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    case = Case(
        [("Pad", "x by", "a", {}), ("Conv", "a w", "b", {"strides": [2, 2]}), ("AveragePool", "b", "c", {
            "kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}), ("Softmax", "c", "d", {}), ("Reshape", "d to", "e", {}),
         ("Gemm", "e m", "f", {"transB": 1}), ("Expand", "f big", "y", {})],
        stored={"by": whole(0, 0, 1, 1, 0, 0, 1, 1), "w": weights(3, 2, 3, 3), "to": whole(1, -1), "m": weights(2, 27),
                "big": whole(2, 2)},
    )  # fmt: skip
    raw = bytearray(model(case).SerializeToString())
    for place, byte in flips:
        raw[place % len(raw)] = byte
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(raw))
    try:
        read = convsv.open_checkpoint(path).network
        bound = convsv.network_bound(read()) if read is not None else None
    except (CheckpointError, UsageError):
        return
    assert bound is None or bound.upper is None or bound.upper >= 0


def test_the_command_takes_a_model_by_itself(tmp_path: Path) -> None:
    case = CASES["Conv folded"]
    path = tmp_path / "m.onnx"
    path.write_bytes(model(case).SerializeToString())
    done = CliRunner().invoke(app, ["lipschitz", str(path), "--format", "json", "--tol", "0.001"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["checkpoints"][0]["network"]
    assert found["upper"] == convsv.network_bound(network(tmp_path, model(case))).upper
    assert found["inputs"] == {"x": [1, 2, 4, 5]}

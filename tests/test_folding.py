"""Batch normalisation folded into the layer before it: which norm, and the norm of both together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from convsv.analysis import AnalysisOptions, analyze_layer
from convsv.checkpoints import Checkpoint, ModuleFacts, Normalisation, open_checkpoint
from convsv.checkpoints.discovery import Discovery, discover
from convsv.checkpoints.sources import GeometryOptions
from convsv.cli import app
from convsv.errors import UnavailableError
from convsv.geometry import GeometryFacts
from convsv.layer import ConvLayer
from networks import randomised
from statedicts import checkpoint, holding

KNOWN, BY_ORDER = GeometryOptions(fold="known"), GeometryOptions(fold="by-order")


def saved(folder: Path, value: Any) -> Checkpoint:
    torch.save(value, folder / "m.pt")
    return open_checkpoint(folder / "m.pt")


def only(found: Discovery) -> ConvLayer:
    (layer,) = found.layers
    return layer


def jacobian(module: nn.Module, channels: int, size: tuple[int, ...]) -> torch.Tensor:
    """The matrix of an affine map, by definition: its columns are the images of unit vectors, less the offset."""
    module = module.double()
    count = channels * int(np.prod(size))
    units = torch.eye(count, dtype=torch.float64).reshape(count, channels, *size)
    with torch.no_grad():
        offset = module(torch.zeros(1, channels, *size, dtype=torch.float64)).flatten(1)
        return (module(units).flatten(1) - offset).T


LAYERS: list[tuple[str, nn.Module, type[nn.Module], tuple[int, ...]]] = [
    ("1-D", nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d, (7,)),
    ("2-D", nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d, (6, 5)),
    ("grouped", nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d, (5, 5)),
    ("depthwise", nn.Conv2d(4, 8, 3, groups=4, padding=1), nn.BatchNorm2d, (5, 4)),
    ("3-D", nn.Conv3d(2, 3, 2), nn.BatchNorm3d, (3, 4, 3)),
    ("transposed", nn.ConvTranspose2d(4, 3, 3, stride=2), nn.BatchNorm2d, (4, 3)),
    ("transposed, grouped", nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d, (4, 3)),
    ("transposed, depthwise", nn.ConvTranspose1d(4, 4, 3, groups=4), nn.BatchNorm1d, (5,)),
]


@pytest.mark.parametrize(("conv", "norm", "size"), [c[1:] for c in LAYERS], ids=[c[0] for c in LAYERS])
def test_the_norm_is_that_of_both_in_inference(
    conv: Any, norm: type[nn.Module], size: tuple[int, ...], tmp_path: Path
) -> None:
    model = randomised(nn.Sequential(conv, norm(conv.out_channels, eps=0.125)), seed=3)  # type: ignore[call-arg]
    options = GeometryOptions(size=size, fold="known")
    layer = only(discover(saved(tmp_path, model), geometry=options))
    report = analyze_layer(layer, AnalysisOptions(methods=("exact",), values=True))
    dense = jacobian(model, conv.in_channels, size)
    true = float(torch.linalg.matrix_norm(dense, 2))
    assert report.norm_at_size is not None
    assert report.norm_at_size.lower * (1 - 1e-12) <= true <= report.norm_at_size.upper * (1 + 1e-12)
    assert report.norm_at_size.upper <= true * 1.01
    values = report.results["exact"].values  # type: ignore[union-attr]
    expected = torch.linalg.svdvals(dense).numpy()[: len(values)]
    np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-12 * true)
    assert report.folded == "1"
    assert "with 1 folded into it: epsilon 0.125" in report.notes


def test_without_the_option_nothing_is_folded(tmp_path: Path) -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    layer = only(discover(saved(tmp_path, model)))
    assert layer.folded is None
    np.testing.assert_array_equal(layer.kernel()[0], model[0].weight.detach().double().numpy())


def test_the_folded_kernel_is_the_product_in_float64(tmp_path: Path) -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    layer = only(discover(saved(tmp_path, model), geometry=KNOWN))
    norm = model[1].double()
    factors = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
    expected = model[0].weight.detach().double().numpy() * factors[:, None, None, None]
    np.testing.assert_allclose(layer.kernel()[0], expected, rtol=1e-15)
    assert layer.read().dtype == np.float64
    assert layer.dtype == "float32"


def test_a_folded_layer_is_not_written_back(tmp_path: Path) -> None:
    layer = only(discover(saved(tmp_path, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), geometry=KNOWN))
    assert layer.writeback is not None
    with pytest.raises(UnavailableError, match="norm folded into it"):
        layer.writeback.edits(np.zeros((4, 3, 3, 3)))


# --------------------------------------------------------------------------------------------------------- which norm


class Unordered(nn.Module):
    """Holds a convolution and a norm; nothing tells which comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.5)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.ModuleList([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)]),
        Unordered(),
    ],
    ids=["a function between", "before", "another norm", "no moving statistics", "a mere list", "a module of its own"],
)
def test_what_a_pickled_module_does_not_show_is_not_folded(model: nn.Module, tmp_path: Path) -> None:
    found = discover(saved(tmp_path, model), geometry=KNOWN)
    assert only(found).folded is None
    (problem,) = found.problems
    assert problem.startswith("no batch normalisation is known to follow 1 of 1 layers; a trace may tell it")


def test_a_norm_without_a_scale_is_folded_too(tmp_path: Path) -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)))
    layer = only(discover(saved(tmp_path, model), geometry=KNOWN))
    ratio = layer.kernel()[0] / model[0].weight.detach().double().numpy()
    np.testing.assert_allclose(ratio[:, 0, 0, 0], 1 / np.sqrt(model[1].running_var.double().numpy() + 1e-5), rtol=1e-14)


def test_the_files_own_graph_is_believed() -> None:
    rng = np.random.default_rng(0)
    tensors = {"w": rng.normal(size=(4, 3, 3, 3)), "v": rng.uniform(1, 2, 4), "g": rng.normal(size=4)}
    facts = ModuleFacts("", "Conv", variables={"w": "kernel_oik"}, norm=Normalisation("BN_7", "v", "g", 1e-2))
    file = checkpoint(holding(tensors), file_format="onnx", modules=[facts])
    layer = only(discover(file, geometry=KNOWN))
    assert layer.folded is not None
    assert vars(layer.folded) == {"name": "BN_7", "epsilon": 1e-2, "known": True}
    factors = tensors["g"] / np.sqrt(tensors["v"] + 1e-2)
    np.testing.assert_allclose(layer.kernel()[0], tensors["w"] * factors[:, None, None, None], rtol=1e-14)


def test_order_of_keys_only_when_asked(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in Unordered().state_dict().items()}
    file = saved(tmp_path, {"state_dict": state})
    assert only(discover(file, geometry=KNOWN)).folded is None
    layer = only(discover(file, geometry=BY_ORDER))
    assert layer.folded is not None
    assert (layer.folded.known, layer.folded.epsilon) == (False, 1e-5)
    assert layer.notes == (
        "with module.bn folded into it, as the order of the keys suggests: epsilon 1e-05 is assumed",
    )


def norm_arrays(name: str, channels: int) -> dict[str, Any]:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": np.ones(channels) for leaf in leaves}


ORDERS: list[tuple[str, dict[str, Any], dict[str, str | None]]] = [
    (
        "stored order",
        {"z.weight": np.ones((4, 3, 3, 3)), **norm_arrays("a", 4), "y.weight": np.ones((5, 4, 3, 3))},
        {"z": "a", "y": None},
    ),
    (
        "sorted numbers",
        dict(
            sorted(
                {
                    "2.weight": np.ones((4, 3, 3, 3)), **norm_arrays("3", 4), "10.weight": np.ones((4, 4, 3, 3)),
                    **norm_arrays("11", 4),
                }.items()
            )
        ),
        {"2": "3", "10": "11"},
    ),
    (
        "sorted names say nothing",
        dict(sorted({"conv1.weight": np.ones((4, 3, 3, 3)), **norm_arrays("bn1", 4)}.items())),
        {"conv1": None},
    ),
    ("other channels", {"c.weight": np.ones((4, 3, 3, 3)), **norm_arrays("b", 3)}, {"c": None}),
    (
        "something between",
        {"c.weight": np.ones((4, 3, 3, 3)), "ln.weight": np.ones(4), **norm_arrays("b", 4)},
        {"c": None},
    ),
    (
        "weights in parts",
        {
            "c.bias": np.ones(4), "c.parametrizations.weight.original0": np.ones((4, 1, 1, 1)),
            "c.parametrizations.weight.original1": np.ones((4, 3, 3, 3)), **norm_arrays("b", 4),
        },
        {"c": "b"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("arrays", "expected"), [o[1:] for o in ORDERS], ids=[o[0] for o in ORDERS])
def test_the_norm_right_behind_a_layer(arrays: dict[str, Any], expected: dict[str, str | None]) -> None:
    layers = discover(checkpoint(holding(arrays)), geometry=BY_ORDER).layers
    assert {layer.name: layer.folded.name if layer.folded else None for layer in layers} == expected


def test_a_stated_norm_that_does_not_fit_is_said_to_be_left_out() -> None:
    tensors = {"c.weight": np.ones((4, 3, 3, 3)), **norm_arrays("b", 3)}
    facts = ModuleFacts("c", "Conv2d", norm=Normalisation("b", "b.running_var", "b.weight", 1e-5))
    layer = only(discover(checkpoint(holding(tensors), modules=[facts]), geometry=KNOWN))
    assert layer.folded is None
    assert layer.notes == ("its norm is not folded: b.running_var has shape (3,), and the layer 4 outputs",)


@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf")])
def test_a_norm_without_a_finite_scale_makes_its_layer_unavailable(value: float) -> None:
    tensors = {"c.weight": np.ones((4, 3, 3, 3)), **norm_arrays("b", 4)}
    tensors["b.running_var"][2] = value
    tensors["b.weight"][1] = np.inf if value == float("inf") else 1.0
    layer = only(discover(checkpoint(holding(tensors)), geometry=BY_ORDER))
    assert layer.folded is not None
    with pytest.raises(UnavailableError, match="27 of 108 weights are NaN or infinite"):
        layer.kernel()


# ------------------------------------------------------------------------------------------------------------- honesty


def test_an_assumed_epsilon_is_named_by_everything_that_leans_on_it(tmp_path: Path) -> None:
    layer = only(discover(saved(tmp_path, Unordered().state_dict()), geometry=BY_ORDER))
    report = analyze_layer(layer, AnalysisOptions(methods=("circulant", "bounds")))
    assert report.norm is not None
    assert "epsilon" in report.norm.assumes["upper"]
    assert "epsilon" in report.norm.assumes["lower"]
    assert "epsilon" in report.results["circulant"].assumes  # type: ignore[union-attr]
    assert all("epsilon" in bound.assumes for bound in report.results["bounds"].values())  # type: ignore[union-attr]


def test_a_known_epsilon_is_no_assumption(tmp_path: Path) -> None:
    layer = only(discover(saved(tmp_path, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), geometry=KNOWN))
    report = analyze_layer(layer, AnalysisOptions())
    assert report.norm is not None
    assert report.norm.assumes == {"lower": (), "upper": ()}


@pytest.mark.parametrize("option", ["--fold-bn", "--fold-bn-by-order"])
def test_reports_say_what_was_folded(option: str, tmp_path: Path) -> None:
    saved(tmp_path, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)))
    for verb in ("layers", "analyze"):
        result = CliRunner().invoke(app, [verb, str(tmp_path / "m.pt"), option, "--format", "json"])
        assert result.exit_code == 0, result.stderr
        first, second = json.loads(result.stdout)["checkpoints"][0]["layers"]
        assert first["folded"] == "1"
        assert "folded" not in second
        assert "1 layer reported with the batch normalisation behind them folded in" in result.stderr
        assert "no batch normalisation is known to follow 1 of 2 layers" in result.stderr
        header, *_ = CliRunner().invoke(app, [verb, str(tmp_path / "m.pt"), option, "--format", "csv"]).stdout.split()
        assert "folded" in header.split(",")
        assert "folded" not in CliRunner().invoke(app, [verb, str(tmp_path / "m.pt"), "--format", "csv"]).stdout


def test_facts_do_not_need_geometry() -> None:
    assert ModuleFacts("a", "BatchNorm2d").geometry == GeometryFacts()


@pytest.mark.parametrize("where", ["0.weight", "1.weight", "1.running_var"])
@pytest.mark.parametrize(("dtype", "bits"), [("float32", 0x7F800001), ("float64", 0x7FF0000000000001)])
def test_a_signalling_nan_is_a_nan_like_any_other(where: str, dtype: str, bits: int, tmp_path: Path) -> None:
    model = randomised(nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2))).to(getattr(torch, dtype))
    tensor = model.state_dict()[where]
    tensor.view(-1).numpy().view(f"u{tensor.element_size()}")[0] = bits
    layer = only(discover(saved(tmp_path, model), geometry=KNOWN))
    assert layer.folded is not None
    report = analyze_layer(layer, AnalysisOptions())
    assert report.norm is None
    assert "finite" in report.unavailable["norm"] or "NaN" in report.unavailable["norm"], report.unavailable

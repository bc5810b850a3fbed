"""Weights stored in parts against the weights that PyTorch's own modules use in eval mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from convsv.checkpoints._parametrizations import Parametrised, find_parametrised
from convsv.checkpoints._steps import spectral_normalised, weight_normalised
from convsv.checkpoints.discovery import discover
from convsv.errors import UnavailableError
from parametrised import LAYERS, WRAPS, effective, trained
from statedicts import checkpoint, holding, stored


def parts_of(module: nn.Module) -> list[Parametrised]:
    arrays = {f"block.conv.{key}": value.detach().numpy() for key, value in module.state_dict().items()}
    return find_parametrised(checkpoint(holding(arrays)).tensors, {})


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 2e-6), (torch.float64, 1e-13)], ids=["float32", "float64"])
def test_effective_weight_is_the_modules_own(layer: str, wrap: str, dtype: torch.dtype, rel: float) -> None:
    module = trained(layer, wrap, dtype)
    expected = effective(module)
    (found,) = parts_of(module)
    assert (found.owner, found.parameter, found.problem) == ("block.conv", "weight", None)
    weight = found.read()
    assert weight.dtype == np.float64
    assert np.abs(weight - expected).max() <= rel * np.abs(expected).max()


@pytest.mark.parametrize("wrap", WRAPS)
def test_direction_has_the_shape_of_the_weight_and_the_rest_are_parts(wrap: str) -> None:
    module = trained("conv2d", wrap, torch.float32)
    (found,) = parts_of(module)
    assert found.direction.shape == (5, 3, 3, 2)
    left = {f"block.conv.{key}" for key in module.state_dict()} - {"block.conv.bias", found.direction.key}
    assert {part.key for part in found.parts} == left


@pytest.mark.parametrize("wrap", WRAPS)
def test_discovery_reports_a_parametrised_layer_once(wrap: str) -> None:
    module = nn.Sequential(trained("conv2d", wrap, torch.float32), nn.ReLU())
    arrays = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    (layer,) = discover(checkpoint(holding(arrays))).layers
    assert (layer.name, layer.shape, layer.problem) == ("0", (5, 3, 3, 2), None)
    assert np.allclose(layer.kernel()[0], effective(module[0]), rtol=0, atol=1e-6)


def test_sagan_weight_bar_is_divided_by_its_singular_value() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(4, 3, 3, 3))
    u, v = rng.normal(size=4), rng.normal(size=27)
    parts = {"conv.module.weight_bar": weight, "conv.module.weight_u": u, "conv.module.weight_v": v}
    (found,) = find_parametrised(checkpoint(holding(parts)).tensors, {})
    assert found.read() == pytest.approx(weight / (u @ weight.reshape(4, 27) @ v), rel=1e-13)


def test_rows_of_a_known_transposed_layer_run_along_its_second_axis() -> None:
    rng = np.random.default_rng(2)
    weight, u, v = rng.normal(size=(4, 4, 3)), rng.normal(size=4), rng.normal(size=12)
    parts = {"up.weight_orig": weight, "up.weight_u": u, "up.weight_v": v}
    for class_name, axis in (("Conv1d", 0), ("ConvTranspose1d", 1)):
        (found,) = find_parametrised(checkpoint(holding(parts)).tensors, {"up": class_name})
        sigma = u @ np.moveaxis(weight, axis, 0).reshape(4, 12) @ v
        assert found.read() == pytest.approx(weight / sigma, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1.0, 1e160, 1e300])
def test_weight_norm_survives_extreme_scales(scale: float) -> None:
    direction = np.array([[[3.0, 4.0]], [[0.6, -0.8]]])
    expected = np.array([[[1.2, 1.6]], [[1.8, -2.4]]])
    assert weight_normalised(direction * scale, np.array([[[2.0]], [[3.0]]])) == pytest.approx(expected, rel=1e-14)


def test_weight_norm_of_a_zero_direction_is_not_a_number() -> None:
    assert np.isnan(weight_normalised(np.zeros((2, 1, 3)), np.ones((2, 1, 1)))).all()


def test_spectral_norm_refuses_vectors_that_do_not_fit() -> None:
    with pytest.raises(UnavailableError, match="do not fit"):
        spectral_normalised(np.ones((4, 3, 3)), np.ones(5), np.ones(9))


def test_old_spectral_norm_without_v_uses_the_stored_weight() -> None:
    arrays = {"c.weight": np.ones((2, 3, 3)), "c.weight_orig": np.full((2, 3, 3), 7.0), "c.weight_u": np.ones(2)}
    (found,) = find_parametrised(checkpoint(holding(arrays)).tensors, {})
    assert found.direction.key == "c.weight"
    assert np.array_equal(found.read(), np.ones((2, 3, 3)))


def test_stale_plain_weight_beside_weight_norm_is_a_part() -> None:
    shapes = {"c.weight": (2, 3, 3), "c.weight_g": (2, 1, 1), "c.weight_v": (2, 3, 3)}
    found = discover(checkpoint(shapes))
    assert [layer.weight for layer in found.layers] == ["c.weight_v"]
    assert {skipped.rule for skipped in found.skipped} == {"part of a weight"}


CONV = (4, 3, 3, 3)
PROBLEMS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "orthogonal": (
        {"c.parametrizations.weight.original": CONV, "c.parametrizations.weight.0.base": (3, 3)},
        "orthogonal",
    ),
    "no state": ({"c.parametrizations.weight.original": CONV}, "a class without state"),
    "own class": (
        {"c.parametrizations.weight.original": CONV, "c.parametrizations.weight.0.scale": ()},
        "a class with scale",
    ),
    "gap in the stack": (
        {
            "c.parametrizations.weight.original": CONV,
            "c.parametrizations.weight.1._u": (4,),
            "c.parametrizations.weight.1._v": (27,),
        },
        "parametrizations.weight.0 is an unknown parametrisation",
    ),
    "absurd number": (
        {"c.parametrizations.weight.original": CONV, f"c.parametrizations.weight.{'9' * 5000}._u": (4,)},
        "unknown parametrisation",
    ),
    "half a pair": ({"c.parametrizations.weight.original1": CONV}, "unknown parametrisation"),
    "magnitude of another shape": ({"c.weight_g": (5, 1, 1, 1), "c.weight_v": CONV}, "does not fit"),
    "vectors of other lengths": ({"c.weight_orig": CONV, "c.weight_u": (4,), "c.weight_v": (9,)}, "do not fit"),
    "original alone": ({"c.weight_orig": CONV}, "without what the layer computes its weight from"),
    "mask of another shape": ({"c.weight_orig": CONV, "c.weight_mask": (4, 3, 3, 1)}, "has shape"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_weight_that_cannot_be_computed_is_a_problem_in_words(case: str) -> None:
    shapes, words = PROBLEMS[case]
    (found,) = find_parametrised(checkpoint(shapes).tensors, {})
    assert found.problem is not None
    assert words in found.problem
    with pytest.raises(UnavailableError):
        found.read()


def test_class_of_a_step_in_the_file_decides() -> None:
    shapes = {"c.parametrizations.weight.original0": (4, 1, 1, 1), "c.parametrizations.weight.original1": CONV}
    tensors = checkpoint(shapes).tensors
    assert find_parametrised(tensors, {"c.parametrizations.weight.0": "_WeightNorm"})[0].problem is None
    problem = find_parametrised(tensors, {"c.parametrizations.weight.0": "Mixture"})[0].problem
    assert problem is not None
    assert "Mixture" in problem


def test_problem_of_a_part_is_the_weights() -> None:
    tensors = [stored("c.weight_v", CONV), stored("c.weight_g", (4, 1, 1, 1), problem="on the meta device")]
    (found,) = find_parametrised(tensors, {})
    assert found.problem == "c.weight_g: on the meta device"


def test_orthogonal_of_pytorch_is_a_problem() -> None:
    module = parametrizations.orthogonal(nn.Conv2d(3, 4, 3))
    assert parametrize.is_parametrized(module)
    (found,) = parts_of(module)
    assert found.problem is not None
    assert "orthogonal" in found.problem


def test_plain_weights_are_not_parametrised() -> None:
    shapes = {"c.weight": CONV, "rnn.bias_v": (3,), "x_v": (3, 3, 3), "_v": (3, 3, 3), "": (3, 3, 3)}
    assert find_parametrised(checkpoint(shapes).tensors, {}) == []

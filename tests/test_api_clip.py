"""``convsv.clip``: what kernels it takes, what it gives back, and what it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import convsv
from convsv.clipping import METHODS
from convsv.errors import GeometryError, UnavailableError, UsageError
from convsv.geometry import GeometryFacts

KERNEL = np.random.default_rng(0).standard_normal((4, 3, 3, 3))


def norm(kernel: Any, geometry: GeometryFacts | None = None) -> float:
    return convsv.operator_norm(kernel, geometry).upper


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8", ">f4", "bfloat16"])
def test_array_comes_back_as_it_was_given_within_the_norm(dtype: str) -> None:
    given = KERNEL.astype(getattr(ml_dtypes, dtype, dtype))
    found = convsv.clip(given, 1.0)
    assert (found.kernel.shape, found.kernel.dtype) == (given.shape, given.dtype)
    assert norm(found.kernel) == found.after.upper <= 1
    assert found.touched
    exact = given.astype(np.float64)
    distance = np.linalg.norm(found.kernel.astype(np.float64) - exact) / np.linalg.norm(exact)
    assert found.distance == pytest.approx(distance, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_tensor_comes_back_as_it_was_given_within_the_norm(dtype: torch.dtype) -> None:
    given = torch.nn.Parameter(torch.from_numpy(KERNEL).to(dtype))
    found: Any = convsv.clip(given, 1.0)
    assert isinstance(found.kernel, torch.Tensor)
    assert (found.kernel.shape, found.kernel.dtype) == (given.shape, dtype)
    assert norm(found.kernel) == found.after.upper <= 1


def test_kernel_within_the_norm_comes_back_bit_for_bit() -> None:
    found = convsv.clip(KERNEL, 100.0)
    assert np.array_equal(found.kernel, KERNEL)
    assert (found.touched, found.method, found.distance) == (False, "none", 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_method_says_its_name_and_what_it_reached(method: str) -> None:
    found = convsv.clip(KERNEL, 1.0, method=method)
    assert found.method == method
    assert norm(found.kernel) == found.after.upper
    assert (found.after.upper <= 1) == (method != "sedghi")


@pytest.mark.parametrize(
    "facts",
    [
        {"stride": 2},
        {"groups": 2},
        {"dilation": 2},
        {"transposed": True, "stride": 2},
        {"padding_mode": "reflect", "padding": 1},
        {"padding_mode": "circular", "padding": 1, "stride": 2},
    ],
    ids=str,
)
def test_norm_is_that_of_the_geometry(facts: dict[str, Any]) -> None:
    geometry = GeometryFacts(**facts)
    found = convsv.clip(KERNEL, 0.5, geometry)
    assert norm(found.kernel, geometry) == found.after.upper <= 0.5


def test_layer_comes_back_in_its_stored_layout(sample_checkpoints: Path) -> None:
    layer = convsv.find_layers(convsv.open_checkpoint(sample_checkpoints / "digits.keras"))[0]
    found = convsv.clip(layer, 0.5)
    assert found.kernel.shape == layer.shape
    assert found.after.upper <= 0.5


def test_norm_that_is_not_positive_or_method_that_is_unknown_is_refused() -> None:
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(UsageError, match="radius"):
            convsv.clip(KERNEL, wrong)
    with pytest.raises(UsageError, match="method"):
        convsv.clip(KERNEL, 1.0, method="magic")


def test_what_is_no_kernel_is_refused() -> None:
    with pytest.raises(UsageError):
        convsv.clip(KERNEL.astype(np.int64), 1.0)
    with pytest.raises(GeometryError):
        convsv.clip(KERNEL[0, 0], 1.0)
    with pytest.raises(UnavailableError, match="NaN"):
        convsv.clip(np.full((2, 2, 3), np.nan), 1.0)

"""Clipping keeps its promise over the whole geometry grid, and ends near the nearest kernel there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cases import GRID, Case, is_possible
from convsv.analysis import AnalysisOptions, analyze_layer
from convsv.clipping import METHODS, ClipOptions, Clipped, clip_layer
from convsv.clipping._frequencies import blocks, stretches
from convsv.clipping._nearest import excess
from convsv.errors import GeometryError, UnavailableError, UsageError
from convsv.geometry import Geometry
from convsv.layer import ConvLayer, from_canonical
from convsv.results import Interval

Kernel = NDArray[np.float64]
TWO_D = Geometry((8, 8), (1, 1), ((1, 1), (1, 1)))


def with_kernel(layer: ConvLayer, kernel: Kernel) -> ConvLayer:
    return replace(layer, read=lambda: from_canonical(kernel, layer.layout))


def judge(layer: ConvLayer, at_size: bool = False) -> Callable[[Kernel], Interval]:
    def certify(kernel: Kernel) -> Interval:
        report = analyze_layer(with_kernel(layer, kernel), AnalysisOptions())
        found = report.norm_at_size if at_size else report.norm
        assert found is not None, report.unavailable
        return found

    return certify


def clip(layer: ConvLayer, share: float, *, at_size: bool = False, **options: Any) -> Clipped:
    certify = judge(layer, at_size)
    radius = certify(layer.kernel()).upper * share
    return clip_layer(layer, ClipOptions(radius=radius, **options), certify)


def random_layer(shape: tuple[int, ...], geometry: Geometry = TWO_D, seed: int = 0) -> ConvLayer:
    case = Case(shape, geometry)
    return case.layer(np.random.default_rng(seed).standard_normal(shape))


# -------------------------------------------------------------------------------------------------- over the whole grid


@pytest.mark.parametrize("case", [case for case in GRID[::3] if is_possible(case)], ids=lambda case: case.id)
def test_the_layer_as_it_runs_is_within_the_radius(case: Case) -> None:
    layer = case.layer()
    certify = judge(layer)
    before = certify(layer.kernel())
    radius = before.upper / 2
    found = clip_layer(layer, ClipOptions(radius=radius), certify)
    assert found.after.upper <= radius
    stored = from_canonical(found.kernel, layer.layout)
    assert stored.shape == case.shape
    assert np.linalg.norm(case.dense(stored), 2) <= radius * (1 + 1e-12)
    again = clip_layer(with_kernel(layer, found.kernel), ClipOptions(radius=radius), certify)
    assert not again.touched
    np.testing.assert_array_equal(again.kernel, found.kernel)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((3, 2, 5), Geometry((16,), (2,), ((2, 2),))),
        ((4, 3, 3, 3), TWO_D),
        ((6, 1, 3, 3), replace(TWO_D, groups=6)),
        ((3, 4, 3, 3), replace(TWO_D, stride=(2, 2), transposed=True)),
        ((2, 3, 2, 2, 2), Geometry((4, 4, 4), (1, 1, 1), ((0, 0),) * 3, dilation=(1, 2, 1))),
    ],
    ids=["strided 1-d", "2-d", "depthwise", "transposed", "dilated 3-d"],
)
def test_every_method_but_the_published_pass_ends_within_the_radius(
    method: str, shape: tuple[int, ...], geometry: Geometry
) -> None:
    found = clip(random_layer(shape, geometry), 0.4, method=method)
    assert found.method == method
    if method != "sedghi":
        assert found.after.upper <= found.radius


# --------------------------------------------------------------------------------------------------- how near it ends


def dykstra(kernel: Kernel, radius: float, size: int, rounds: int) -> Kernel:
    """Dykstra's alternating projections in their textbook form, by numpy's FFT and SVD."""
    taps = kernel.shape[2:]
    current, correction = kernel, np.zeros((size, size, *kernel.shape[:2]), complex)
    for _ in range(rounds):
        symbols = np.fft.fft2(current, (size, size)).transpose(2, 3, 0, 1) + correction
        left, values, right = np.linalg.svd(symbols, full_matrices=False)
        inside = (left * np.minimum(values, radius)[..., None, :]) @ right
        correction = symbols - inside
        current = np.fft.ifft2(inside.transpose(2, 3, 0, 1)).real[..., : taps[0], : taps[1]]
    return current


@pytest.mark.parametrize("share", [0.7, 0.35])
@pytest.mark.parametrize("shape", [(4, 4, 3, 3), (2, 5, 3, 3), (3, 3, 2, 2)], ids=str)
def test_it_ends_within_a_hundredth_of_a_long_run_of_the_textbook_method(shape: tuple[int, ...], share: float) -> None:
    layer = random_layer(shape)
    certify, kernel = judge(layer), layer.kernel()
    radius = certify(kernel).upper * share
    found = clip_layer(layer, ClipOptions(radius=radius), certify)
    long = dykstra(kernel[0], radius, 32, 1000)
    long = long * min(1.0, radius / certify(long[None]).upper)
    rival = float(np.linalg.norm(long - kernel[0]) / np.linalg.norm(kernel))
    assert found.distance <= 1.01 * rival
    # The dual bound holds for everything within the radius, the rival included.
    assert found.gap is not None
    assert found.distance / (1 + found.gap) <= rival * (1 + 1e-6)
    assert found.gap <= 0.05


def test_one_tap_is_clipped_exactly() -> None:
    layer = random_layer((5, 4, 1, 1))
    matrix = layer.kernel()[0, :, :, 0, 0]
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    radius = float(values[1])
    found = clip_layer(layer, ClipOptions(radius=radius), judge(layer))
    nearest = (left * np.minimum(values, radius)) @ right
    np.testing.assert_allclose(found.kernel[0, :, :, 0, 0], nearest, atol=3e-6 * values[0])
    assert found.gap == pytest.approx(0, abs=1e-4)


def test_a_kernel_as_large_as_a_circular_input_is_clipped_exactly_in_one_pass() -> None:
    geometry = Geometry((4, 4), (1, 1), ((1, 2), (1, 2)), "circular")
    layer = random_layer((3, 3, 4, 4), geometry)
    certify = judge(layer, at_size=True)
    kernel = layer.kernel()
    radius = certify(kernel).upper / 2
    found = clip_layer(layer, ClipOptions(radius=radius, of="circular"), certify)
    np.testing.assert_allclose(found.kernel[0], dykstra(kernel[0], radius, 4, 1), atol=1e-5 * np.abs(kernel).max())


@pytest.mark.parametrize("of", ["circular", "zeros"])
def test_the_norm_at_the_own_size_is_brought_to_the_radius_and_not_far_below(of: str) -> None:
    mode = "zeros" if of == "zeros" else "circular"
    layer = random_layer((3, 4, 3, 3), Geometry((5, 6), (1, 1), ((1, 1), (1, 1)), mode))
    found = clip(layer, 0.5, at_size=True, of=of)
    assert found.radius is not None
    assert 0.99 * found.radius <= found.after.upper <= found.radius
    stored = from_canonical(found.kernel, layer.layout)
    dense = Case(layer.shape, layer.geometry).dense(stored)
    assert np.linalg.norm(dense, 2) <= found.radius * (1 + 1e-12)
    everywhere = clip_layer(layer, ClipOptions(radius=found.radius), judge(layer))
    assert found.distance <= everywhere.distance


# ------------------------------------------------------------------------------------------------- what is published


def test_sedghi_is_the_published_pass_and_says_what_it_left() -> None:
    layer = random_layer((4, 3, 3, 3))
    found = clip(layer, 0.25, method="sedghi", size=(8,))
    assert found.radius is not None
    np.testing.assert_allclose(found.kernel[0], dykstra(layer.kernel()[0], found.radius, 8, 1), atol=1e-12)
    assert found.after.lower > 1.1 * found.radius


def test_scale_divides_by_the_norm() -> None:
    layer = random_layer((4, 3, 3, 3))
    found = clip(layer, 0.25, method="scale")
    ratio = found.kernel / layer.kernel()
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-12)
    assert found.distance == pytest.approx(0.75, abs=1e-4)


def test_nearest_moves_less_than_alternating_and_that_less_than_scaling() -> None:
    layer = random_layer((4, 4, 3, 3))
    moved = [clip(layer, 0.4, method=method).distance for method in ("nearest", "alternating", "scale")]
    assert moved == sorted(moved)
    assert moved[0] < 0.99 * moved[1]


# --------------------------------------------------------------------------------------------------------------- edits


def symbol_values(kernel: Kernel, size: int = 40) -> Kernel:
    symbols = np.fft.fft2(kernel[0], (size, size)).transpose(2, 3, 0, 1)
    return np.linalg.svd(symbols, compute_uv=False)


def near_identity(channels: int, noise: float) -> ConvLayer:
    """A layer whose symbol is invertible at all frequencies; those of random kernels have determinants around 0."""
    layer = random_layer((channels, channels, 3, 3))
    kernel = noise * layer.kernel()
    kernel[0, :, :, 1, 1] += np.eye(channels)
    return with_kernel(layer, kernel)


def test_small_singular_values_of_the_symbol_are_raised() -> None:
    layer = near_identity(3, 0.08)
    least = 0.8
    before, found = symbol_values(layer.kernel()), clip_layer(layer, ClipOptions(min_norm=least), judge(layer))
    assert before.min() < 0.6 * least
    assert symbol_values(found.kernel).min() >= 0.9 * least
    assert found.method == "min_norm"


@pytest.mark.parametrize(
    "edit", [{"min_norm": 0.8}, {"flatten": True}, {"rank": 2}, {"rank": 2, "radius": 0.5}], ids=str
)
def test_an_edit_says_what_it_reached_as_stored(edit: dict[str, Any]) -> None:
    layer = near_identity(4, 0.08)

    def as_stored(kernel: Kernel) -> Kernel:
        return kernel.astype(np.float16).astype(np.float64)

    found = clip_layer(layer, ClipOptions(**edit), judge(layer), as_stored=as_stored)
    after = symbol_values(found.kernel, 24)
    assert found.reached is not None
    assert (found.reached.edit, found.reached.of) == (next(iter(edit)), "symbol")
    assert (found.reached.guarantee, found.reached.grid) == ("estimate", (24, 24))
    assert found.reached.smallest == pytest.approx(after.min(), rel=1e-9)
    assert found.reached.largest == pytest.approx(after.max(), rel=1e-9)
    if "rank" in edit:
        assert found.reached.wanted == 2
        assert found.reached.beyond == pytest.approx(after[..., 2].max() / after.max(), rel=1e-6)
    else:
        assert found.reached.beyond is None


def test_the_level_of_a_flat_spectrum_is_the_mean_or_the_radius() -> None:
    layer = near_identity(3, 0.05)
    mean = symbol_values(layer.kernel(), 12).mean()
    for radius, level in ((None, mean), (2 * mean, mean), (mean / 2, mean / 2)):
        found = clip_layer(layer, ClipOptions(radius=radius, flatten=True), judge(layer))
        assert found.reached is not None
        assert found.reached.wanted == pytest.approx(level, rel=1e-9)


def test_an_edit_is_about_the_groups_there_seem_to_be() -> None:
    # Read as one group of four outputs the symbol is a column, whose one value is far from zero.
    guessed = replace(TWO_D, groups=4, origin={"groups": "inferred"})
    layer = random_layer((4, 1, 3, 3), guessed)
    found = clip_layer(layer, ClipOptions(min_norm=1.0), judge(layer))
    assert found.touched
    assert found.reached is not None
    smallest = min(np.abs(np.fft.fft2(channel[0, 0], (24, 24))).min() for channel in found.kernel)
    assert found.reached.smallest == pytest.approx(smallest, rel=1e-9)
    assert found.reached.assumes == ("groups",)


@pytest.mark.parametrize("edit", [{"min_norm": 1.0}, {"flatten": True}], ids=str)
def test_a_kernel_of_zeros_stays_and_says_so(edit: dict[str, Any]) -> None:
    zero = with_kernel(random_layer((2, 2, 3, 3)), np.zeros((1, 2, 2, 3, 3)))
    found = clip_layer(zero, ClipOptions(**edit), judge(zero))
    assert not found.touched
    assert any("zeros" in note for note in found.notes)


def test_one_tap_is_flattened_to_a_multiple_of_an_orthogonal_matrix() -> None:
    layer = random_layer((4, 4, 1, 1))
    matrix = layer.kernel()[0, :, :, 0, 0]
    found = clip_layer(layer, ClipOptions(flatten=True), judge(layer))
    left, values, right = np.linalg.svd(matrix)
    np.testing.assert_allclose(found.kernel[0, :, :, 0, 0], values.mean() * left @ right, atol=1e-10)


def test_flattening_narrows_the_spectrum_and_keeps_the_radius() -> None:
    layer = near_identity(4, 0.08)
    certify = judge(layer)
    radius = certify(layer.kernel()).upper / 3
    found = clip_layer(layer, ClipOptions(radius=radius, flatten=True), certify)
    assert found.after.upper <= radius
    before, after = symbol_values(layer.kernel()), symbol_values(found.kernel)
    assert before.max() / before.min() > 2
    assert after.max() / after.min() < 1.2


def test_the_rank_of_the_symbol_is_cut() -> None:
    layer = random_layer((4, 4, 3, 3))
    found = clip_layer(layer, ClipOptions(rank=2), judge(layer))
    before, after = symbol_values(layer.kernel()), symbol_values(found.kernel)
    assert after[..., 2:].max() < 0.2 * before[..., 2:].max()


# ------------------------------------------------------------------------------------------------------- stored dtypes


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("method", ["nearest", "scale"])
def test_it_is_certified_as_stored(dtype: str, method: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    layer = random_layer((4, 3, 3, 3))
    certify = judge(layer)
    radius = certify(layer.kernel()).upper / 2

    def as_stored(kernel: Kernel) -> Kernel:
        return kernel.astype(np.float32).astype(kind).astype(np.float32).astype(np.float64)

    found = clip_layer(layer, ClipOptions(radius=radius, method=method), certify, as_stored=as_stored)
    assert found.after.upper <= radius
    np.testing.assert_array_equal(as_stored(found.kernel), found.kernel)
    assert found.after.upper >= 0.8 * radius


def test_weights_that_all_round_to_zero_are_no_secret() -> None:
    layer = random_layer((2, 2, 3, 3))

    def as_stored(kernel: Kernel) -> Kernel:
        return kernel.astype(np.float16).astype(np.float64)

    found = clip_layer(layer, ClipOptions(radius=1e-30), judge(layer), as_stored=as_stored)
    assert found.after.upper == 0
    assert any("every weight is zero" in note for note in found.notes)


def test_taps_outside_a_mask_stay_zero() -> None:
    mask = np.random.default_rng(1).random((1, 4, 3, 3, 3)) < 0.6
    kernel = np.random.default_rng(2).standard_normal(mask.shape) * mask
    layer = with_kernel(random_layer((4, 3, 3, 3)), kernel)
    certify = judge(layer)
    radius = certify(kernel).upper / 3
    found = clip_layer(layer, ClipOptions(radius=radius), certify, mask=mask)
    assert found.after.upper <= radius
    assert not found.kernel[~mask].any()
    assert found.distance < 2 / 3


@pytest.mark.parametrize("exponent", [-140, 0, 140])
def test_the_scale_of_the_weights_does_not_matter(exponent: int) -> None:
    layer = random_layer((3, 3, 3, 3))
    scaled = with_kernel(layer, np.ldexp(layer.kernel(), exponent))
    first, second = clip(layer, 0.5), clip(scaled, 0.5)
    assert second.distance == pytest.approx(first.distance, rel=1e-9)


def test_a_zero_kernel_and_one_within_the_radius_are_left_alone() -> None:
    zero = with_kernel(random_layer((2, 2, 3, 3)), np.zeros((1, 2, 2, 3, 3)))
    assert not clip_layer(zero, ClipOptions(radius=1.0), judge(zero)).touched
    assert not clip(random_layer((2, 2, 3, 3)), 1.0).touched


def test_guessed_groups_are_clipped_for_every_number_of_groups_and_it_says_so() -> None:
    guessed = replace(TWO_D, groups=4, origin={"groups": "inferred"})
    layer = random_layer((4, 1, 3, 3), guessed)
    found = clip(layer, 0.5)
    assert found.after.upper <= found.radius
    assert found.kernel.shape == (4, 1, 1, 3, 3)
    assert any("groups" in note for note in found.notes)


@given(st.data())
def test_random_layers_end_within_random_radii(data: st.DataObject) -> None:
    taps = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple))
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)), *taps)
    stride = tuple(data.draw(st.integers(1, 3)) for _ in taps)
    geometry = Geometry((6,) * len(taps), stride, ((3, 3),) * len(taps))
    layer = random_layer(shape, geometry, data.draw(st.integers(0, 2**16)))
    found = clip(layer, data.draw(st.floats(0.01, 0.999)))
    assert found.after.upper <= found.radius
    assert found.distance <= 1


# --------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("taps", "size"), [((3,), (12,)), ((3, 3), (12, 12)), ((2, 3), (7, 10)), ((3, 1), (12, 1)), ((2, 2, 2), (6, 4, 5))]
)
def test_blocks_cover_the_grid_once_with_safe_steps(taps: tuple[int, ...], size: tuple[int, ...]) -> None:
    grid = blocks(taps, size)
    assert sum(float(block.weights.sum()) for block in grid) == pytest.approx(1)
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(math.prod(taps), 1, 2, 3, generator=generator, dtype=torch.float64)
    whole = sum(block.kernel(block.symbol(kernel)) for block in grid)
    torch.testing.assert_close(whole, kernel)
    for block in grid:
        symbols = block.symbol(kernel)
        energy = float((block.weights[:, :, None, None] * symbols.abs() ** 2).sum())
        assert energy * block.step <= float((kernel**2).sum()) * (1 + 1e-12)
    assert sum(len(block.weights) for block in stretches(taps, size, points=3)) == sum(len(b.weights) for b in grid)


def test_blocks_of_a_multiple_of_the_taps_are_isometries() -> None:
    kernel = torch.randn(9, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for block in blocks((3, 3), (12, 12)):
        again = block.kernel(block.symbol(kernel)) * block.step
        assert float((kernel * again).sum()) <= float((kernel**2).sum()) * (1 + 1e-12)
    first = blocks((3, 3), (12, 12))[0]
    torch.testing.assert_close(first.kernel(first.symbol(kernel)) * first.step, kernel)


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (5, 2), (1, 4), (4, 1)], ids=str)
def test_the_excess_is_what_the_singular_values_stick_out(shape: tuple[int, int]) -> None:
    symbols = torch.randn(7, 2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    over, sums = excess(symbols, 1.2)
    left, values, right = torch.linalg.svd(symbols, full_matrices=False)
    wanted = (left * (values - 1.2).clamp_min(0)[..., None, :].to(left.dtype)) @ right
    torch.testing.assert_close(over, wanted)
    torch.testing.assert_close(sums, (values - 1.2).clamp_min(0).sum(-1))


def test_single_precision_giving_up_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(_: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    symbols = torch.randn(7, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.complex64)
    expected = excess(symbols, 1.2)
    monkeypatch.setattr(torch.linalg, "eigh", give_up)
    for part, wanted in zip(excess(symbols, 1.2), expected, strict=True):
        torch.testing.assert_close(part, wanted)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"radius": 0.0},
        {"radius": -1.0},
        {"radius": math.nan},
        {"radius": math.inf},
        {"radius": 1.0, "method": "newest"},
        {"radius": 1.0, "of": "reflect"},
        {"radius": 1.0, "min_norm": 2.0},
        {"rank": 0},
        {"rank": 1, "flatten": True},
        {"rank": 1, "method": "scale"},
        {"flatten": True, "radius": 1.0, "method": "sedghi"},
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ClipOptions(**options)


def test_a_grid_smaller_than_the_kernel_is_refused() -> None:
    with pytest.raises(GeometryError, match="fewer points"):
        clip(random_layer((2, 2, 3, 3)), 0.5, method="sedghi", size=(2, 2))


def test_weights_that_are_not_finite_are_unavailable() -> None:
    layer = with_kernel(random_layer((2, 2, 3, 3)), np.full((1, 2, 2, 3, 3), np.nan))
    with pytest.raises(UnavailableError, match="NaN"):
        clip_layer(layer, ClipOptions(radius=1.0), judge(random_layer((2, 2, 3, 3))))

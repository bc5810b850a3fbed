"""The judge of all bounds: it walks the registry, and an entry that claims too much fails here."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import cases
import convsv
import oracle
from convsv.bounds import BOUNDS, SCOPES, Problem, bounds_of
from convsv.bounds._norms import norm_lower, norm_upper
from convsv.bounds.delattre2023 import gram_iteration
from convsv.errors import ContradictionError, UnavailableError
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.layer import ConvLayer
from convsv.results import Bound, Interval, Unavailable
from convsv.symbol import normal_form

CPU = Execution(device="cpu", jobs=1)
CASES = cases.GRID[::6] + list(cases.NAMED.values())
PLAIN = Geometry((6, 5), (1, 1), ((1, 1), (1, 1)))


def all_bounds(layer: ConvLayer, names: list[str] | None = None) -> dict[str, Bound | Unavailable]:
    return bounds_of(layer, names, execution=CPU)


def value_of(layer: ConvLayer, name: str) -> float:
    found = all_bounds(layer, [name])[name]
    assert isinstance(found, Bound), found
    return found.value


# ----------------------------------------------------------------------------------------------------- the references


def symbols(kernel: NDArray[Any], frequencies: NDArray[Any], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Any:
    """A strided layer in the Fourier domain: at w it sees all aliases (w + 2 pi m) / s of the stride-1 symbol."""
    taps = np.array(list(np.ndindex(*kernel.shape[2:]))) * dilation
    flat = kernel.reshape(*kernel.shape[:2], -1)
    aliases = itertools.product(*map(range, stride))
    parts = [
        np.einsum("oik,mk->moi", flat, np.exp(1j * ((frequencies + 2 * np.pi * np.array(m)) / stride) @ taps.T))
        for m in aliases
    ]
    return np.concatenate(parts, axis=2) / math.sqrt(math.prod(stride))


def dense_norm(kernel: NDArray[Any], stride: tuple[int, ...], dilation: tuple[int, ...]) -> float:
    """The size-free norm of one group from a fine grid, refined around its best points by ever finer stencils."""
    dims = kernel.ndim - 2
    count = {1: 96, 2: 24, 3: 10}[dims]
    axis = 2 * np.pi * np.arange(count) / count
    points = np.stack(np.meshgrid(*[axis] * dims, indexing="ij"), -1).reshape(-1, dims)

    def norms(where: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.linalg.norm(symbols(kernel, where, stride, dilation), 2, axis=(1, 2)))

    values = norms(points)
    best = float(values.max())
    stencil = np.array(list(itertools.product((-1, -0.5, 0, 0.5, 1), repeat=dims)))
    for start in points[np.argsort(values)[-4:]]:
        here, step = start, 2 * np.pi / count
        for _ in range(25):
            around = here + stencil * step
            seen = norms(around)
            here, step = around[seen.argmax()], step / 2
        best = max(best, float(seen.max()))
    return best


def size_free_norm(case: cases.Case, kernel: NDArray[Any]) -> float:
    geometry = case.geometry
    groups = np.split(kernel, geometry.groups)
    return max(dense_norm(group, geometry.stride, geometry.dilation) for group in groups)


def references(case: cases.Case) -> dict[str, float]:
    """What each scope is about, by definition and without convsv."""
    kernel, geometry = case.kernel(), case.geometry
    free = size_free_norm(case, kernel)
    taps = case.shape[2:]
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, taps, strict=True)]
    same = tuple((n // 2, n - n // 2) for n in reach)
    found = {"any size": free, "any geometry": free, "layer": oracle.singular_values(case.dense())[0]}
    zeros = replace(geometry, padding=same, padding_mode="zeros", output_padding=(0,) * geometry.dims)
    if cases.is_possible(cases.Case(case.shape, zeros)):
        found["same"] = oracle.singular_values(cases.Case(case.shape, zeros).dense(kernel))[0]
    circle = geometry.size
    if geometry.transposed:
        circle = tuple(n * s for n, s in zip(geometry.size, geometry.stride, strict=True))
    if all(n % s == 0 for n, s in zip(circle, geometry.stride, strict=True)):
        # Every position of the circle once, wrapped around; a stride keeps the positions that it divides.
        ones = (1,) * geometry.dims
        whole = oracle.circular(kernel, circle, stride=ones, dilation=geometry.dilation, groups=geometry.groups)
        every = tuple(slice(None, None, s) for s in geometry.stride)
        kept = whole.reshape(case.shape[0], *circle, -1)[(slice(None), *every)]
        found["circular"] = oracle.singular_values(kept.reshape(-1, kept.shape[-1]))[0]
    return found


# ----------------------------------------------------------------------------------------------------------- the judge


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_bound_is_on_its_side_of_the_dense_norm(case: cases.Case) -> None:
    truth = references(case)
    found = all_bounds(case.layer())
    for name, result in found.items():
        entry = BOUNDS[name]
        if isinstance(result, Unavailable):
            assert unavailable_is_right(name, case.geometry, truth), f"{name}: {result.reason}"
            continue
        norm = truth[entry.holds_for]
        if entry.side == "lower":
            # The reference of the size-free norm is itself a maximum over points.
            assert result.value <= norm * (1 + (1e-9 if entry.holds_for.startswith("any") else 1e-13)), name
        elif entry.guarantee == "certified":
            assert result.value >= norm * (1 - 1e-13), name


def unavailable_is_right(name: str, geometry: Geometry, truth: dict[str, float]) -> bool:
    if name == "delattre2023":
        return not geometry.transposed and any(n % s for n, s in zip(geometry.size, geometry.stride, strict=True))
    if name == "ryu2019":
        return max(geometry.stride) > 1 or "same" not in truth
    return BOUNDS[name].holds_for == "same" and "same" not in truth


@given(st.data())
@settings(max_examples=40)
def test_every_bound_holds_for_any_kernel_and_geometry(data: st.DataObject) -> None:
    case = data.draw(cases.cases())
    kernel = data.draw(cases.kernels(case.shape))
    found = all_bounds(case.layer(kernel))
    free, own = size_free_norm(case, kernel), float(oracle.singular_values(case.dense(kernel))[0])
    for name, result in found.items():
        entry = BOUNDS[name]
        if isinstance(result, Unavailable) or entry.holds_for in ("circular", "same"):
            continue
        norm = own if entry.holds_for == "layer" else free
        if entry.side == "lower":
            # A flat or many-peaked symbol may hide its maximum from the reference, by a little.
            assert result.value <= norm * (1 + (1e-6 if entry.holds_for.startswith("any") else 1e-13)), name
        elif entry.guarantee == "certified":
            assert result.value >= norm * (1 - 1e-13), name


@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150, 5e-324, 1e-308], ids="scaled by {}".format)
@pytest.mark.parametrize("temper", ["random", "rank one", "orthogonal", "one huge tap", "nearly equal", "float16"])
def test_certified_bounds_hold_against_multiple_precision_with_no_tolerance(temper: str, scale: float) -> None:
    # Entries that are all positive: the norm is attained at frequency 0, where it is the norm of the sum of the taps.
    # Signs that alternate along an axis move that frequency to pi, and change nothing else.
    rng = np.random.default_rng(sum(map(ord, temper)))
    for dims, size in ((1, 3), (2, 2), (2, 3)):
        kernel = positive_kernel(temper, (size, 2, *[3] * dims), rng) * scale
        kernel = kernel * (-1.0) ** np.indices(kernel.shape)[-1] if dims == 2 else kernel
        if not np.isfinite(kernel).all() or not kernel.any():
            continue
        layer = cases.make_layer(kernel, Geometry((4,) * dims, (1,) * dims, ((1, 1),) * dims))
        truth = precise_norm([[sum(mpmath.mpf(abs(x)) for x in taps.ravel()) for taps in row] for row in kernel])
        for name, result in all_bounds(layer).items():
            entry = BOUNDS[name]
            if isinstance(result, Unavailable):
                assert "range" in result.reason, f"{name}: {result.reason}"
            elif entry.side == "lower":
                assert mpmath.mpf(result.value) <= truth, name
            elif entry.guarantee == "certified" and entry.holds_for != "circular":
                assert mpmath.mpf(result.value) >= truth, name


def positive_kernel(temper: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    if temper == "rank one":
        vectors = [rng.random(n) + 0.1 for n in shape]
        return np.asarray(np.einsum(",".join("abcde"[: len(shape)]), *vectors))
    if temper == "orthogonal":
        kernel = np.zeros(shape)
        for channel in range(min(shape[:2])):
            kernel[(channel, channel, *[1] * (len(shape) - 2))] = 1
        return kernel
    kernel = rng.random(shape)
    if temper == "one huge tap":
        kernel[(0, 0, *[0] * (len(shape) - 2))] = 1e12
    elif temper == "nearly equal":
        kernel = 1 + 1e-15 * kernel
    elif temper == "float16":
        kernel = kernel.astype(np.float16).astype(np.float64)
    return kernel


def precise_norm(matrix: list[list[Any]]) -> Any:
    """The spectral norm in 60 digits, within 1e-55 of the truth."""
    with mpmath.workdps(60):
        exact = mpmath.matrix(matrix)
        largest = max(mpmath.mpf(1), *exact) if max(exact) > 1 else max(exact)
        gram = (exact / largest) * (exact / largest).T
        return mpmath.sqrt(max(mpmath.eigsy(gram, eigvals_only=True))) * largest


@pytest.mark.parametrize("seed", range(4))
def test_bounds_at_a_size_hold_against_multiple_precision_with_no_tolerance(seed: int) -> None:
    kernel = np.random.default_rng(seed).standard_normal((2, 1, 3))
    case = cases.Case(kernel.shape, Geometry((4,), (1,), ((1, 1),)))
    own = precise_norm(case.dense(kernel).tolist())
    circle = precise_norm(oracle.circular(kernel, (4,), stride=(1,), dilation=(1,)).tolist())
    for name, result in all_bounds(case.layer(kernel)).items():
        assert isinstance(result, Bound)
        if BOUNDS[name].holds_for in ("layer", "same"):
            assert mpmath.mpf(result.value) <= own, name
        elif BOUNDS[name].holds_for == "circular":
            assert mpmath.mpf(result.value) >= circle, name


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 5), (4, 9), (200, 210), (230, 193)], ids=str)
def test_matrix_norms_are_enclosed_and_tight(shape: tuple[int, int]) -> None:
    matrices = torch.from_numpy(np.random.default_rng(7).uniform(-1, 1, (3, *shape)))
    lower, upper = norm_lower(matrices), norm_upper(matrices)
    exact = torch.linalg.matrix_norm(matrices, 2)
    assert (lower <= exact * (1 + 1e-14)).all()
    assert (upper >= exact * (1 - 1e-14)).all()
    # A Ritz value of the Lanczos iteration is a little off where the largest values are close.
    assert (upper / lower - 1 < (1e-9 if max(shape) < 192 else 1e-6)).all()


def test_matrix_norms_of_zero_are_zero_but_for_underflow() -> None:
    assert norm_upper(torch.zeros(2, 3, 4, dtype=torch.float64)).max() < 1e-100
    assert norm_lower(torch.zeros(2, 3, 4, dtype=torch.float64)).tolist() == [0, 0]


@pytest.mark.parametrize("rounds", [0, 1, 3, 6])
def test_gram_iteration_bounds_norms(rounds: int) -> None:
    scales = torch.tensor([1.0, 1e-60, 1e60, 0.0], dtype=torch.float64)[:, None, None]
    matrices = torch.randn(4, 5, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(1)) * scales
    exact = torch.linalg.matrix_norm(matrices, 2)
    value = gram_iteration(matrices, rounds)
    assert (value >= exact).all()
    assert (value <= exact * 3 ** (0.5 / 2**rounds) * (1 + 1e-12)).all()


# ---------------------------------------------------------------------------------------- formulas, written down again


@pytest.fixture(scope="module")
def square() -> tuple[NDArray[np.float64], ConvLayer]:
    kernel = np.random.default_rng(3).standard_normal((5, 4, 3, 2))
    return kernel, cases.make_layer(kernel, PLAIN)


@pytest.mark.parametrize(
    ("name", "order", "shape"),
    [
        ("singla2021_r", (0, 2, 1, 3), (5 * 3, 4 * 2)),
        ("singla2021_s", (0, 3, 1, 2), (5 * 2, 4 * 3)),
        ("singla2021_t", (0, 1, 2, 3), (5, 4 * 3 * 2)),
        ("singla2021_u", (1, 0, 2, 3), (4, 5 * 3 * 2)),
    ],
)
def test_the_four_unfoldings_are_those_of_the_paper(
    square: tuple[NDArray[np.float64], ConvLayer], name: str, order: tuple[int, ...], shape: tuple[int, int]
) -> None:
    kernel, layer = square
    expected = math.sqrt(6) * np.linalg.norm(kernel.transpose(order).reshape(shape), 2)
    assert value_of(layer, name) == pytest.approx(expected, rel=1e-10)


def test_singla_is_the_least_of_its_four(square: tuple[NDArray[np.float64], ConvLayer]) -> None:
    four = [value_of(square[1], f"singla2021_{letter}") for letter in "rstu"]
    assert value_of(square[1], "singla2021") == min(four)


def test_yi_is_at_most_each_of_its_parts(square: tuple[NDArray[np.float64], ConvLayer]) -> None:
    parts = ("singla2021_r", "singla2021_s", "yi2020_schur", "tap_sum")
    assert value_of(square[1], "yi2020") == min(value_of(square[1], name) for name in parts)


def test_elementary_bounds_are_their_formulas(square: tuple[NDArray[np.float64], ConvLayer]) -> None:
    kernel, layer = square
    taps = [np.linalg.norm(kernel[:, :, a, b], 2) for a in range(3) for b in range(2)]
    magnitudes = np.abs(kernel).sum((2, 3))
    frequencies = 2 * np.pi * np.stack(np.meshgrid(*[np.arange(64) / 64] * 2), -1).reshape(-1, 2)
    frobenius = np.linalg.norm(symbols(kernel, frequencies, (1, 1), (1, 1)), axis=(1, 2)).max()
    expected = {
        "tap_sum": (sum(taps), 1e-10),
        "one_tap": (max(taps), 1e-10),
        "l1_linf": (math.sqrt(magnitudes.sum(0).max() * magnitudes.sum(1).max()), 1e-10),
        "frobenius": (frobenius, 5e-3),
        "frobenius_lower": (frobenius / 2, 5e-3),
        "miyato2018": (np.linalg.norm(kernel.reshape(5, -1), 2), 1e-10),
    }
    for name, (value, tolerance) in expected.items():
        assert value_of(layer, name) == pytest.approx(value, rel=tolerance), name


def test_lipbound_is_exact_for_one_channel_but_for_its_grid_factor() -> None:
    kernel = np.random.default_rng(5).standard_normal((1, 6, 3, 3))
    layer = cases.make_layer(kernel, PLAIN)
    norm = dense_norm(kernel, (1, 1), (1, 1))
    assert norm <= value_of(layer, "araujo2021") <= norm * 1.003


def test_lipbound_takes_each_row_at_its_own_worst_frequency(square: tuple[NDArray[np.float64], ConvLayer]) -> None:
    kernel, layer = square
    # The smaller side is the inputs: the rows are those of the transpose.
    rows = [dense_norm(kernel[:, i : i + 1], (1, 1), (1, 1)) for i in range(4)]
    assert value_of(layer, "araujo2021") == pytest.approx(math.sqrt(sum(row**2 for row in rows)), rel=3e-3)


def test_pfister_has_the_factor_of_the_paper() -> None:
    kernel = np.zeros((2, 2, 3, 3))
    kernel[0, 0, 1, 2] = kernel[1, 1, 0, 0] = 1
    factor = (1 - 2 / 32) ** -0.5
    assert value_of(cases.make_layer(kernel, PLAIN), "pfister2019") == pytest.approx(factor**2, rel=1e-9)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_gram_iteration_on_the_kernel_is_the_iterated_autocorrelation(length: int) -> None:
    kernel = np.random.default_rng(length).standard_normal((3, 2, length))
    power = np.transpose(kernel, (1, 0, 2))[:, :, ::-1]
    # (A^T A): channels by matrix product, positions by convolution; then squared three times.
    current = compose(power, kernel)
    for _ in range(3):
        current = compose(current, current)
    expected = np.abs(current).sum((1, 2)).max() ** (1 / 16)
    layer = cases.make_layer(kernel, Geometry((5,), (1,), ((1, 1),)))
    assert value_of(layer, "delattre2024") == pytest.approx(expected, rel=1e-9)


def compose(outer: NDArray[np.float64], inner: NDArray[np.float64]) -> NDArray[np.float64]:
    length = outer.shape[2] + inner.shape[2] - 1
    result = np.zeros((outer.shape[0], inner.shape[1], length))
    for o, m, i in itertools.product(range(outer.shape[0]), range(inner.shape[0]), range(inner.shape[1])):
        result[o, i] += np.convolve(outer[o, m], inner[m, i])
    return result


def test_the_tensor_norm_stays_below_every_unfolding() -> None:
    # True of every local maximum; no more than that is claimed of the computed value.
    for seed in range(10):
        layer = cases.make_layer(np.random.default_rng(seed).standard_normal((4, 3, 3, 3)), PLAIN)
        assert value_of(layer, "grishina2024") <= value_of(layer, "singla2021") * (1 + 1e-9)


def test_the_tensor_norm_of_a_rank_one_kernel_is_its_frobenius_norm() -> None:
    kernel = positive_kernel("rank one", (4, 3, 3, 3), np.random.default_rng(0))
    layer = cases.make_layer(kernel, PLAIN)
    assert value_of(layer, "grishina2024") == pytest.approx(3 * np.linalg.norm(kernel), rel=1e-6)


def test_power_iterations_come_near_the_norm_at_size_on_a_small_layer() -> None:
    case = cases.Case((3, 3, 3, 3), PLAIN)
    exact = oracle.singular_values(case.dense())[0]
    found = all_bounds(case.layer(), ["gouk2018", "ryu2019", "boroojeny2024"])
    for name, result in found.items():
        assert isinstance(result, Bound)
        assert result.value == pytest.approx(exact, rel=2e-2), name


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "transposed"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_bloch_wave_nears_the_norm_from_below_as_the_input_grows(
    stride: int, transposed: bool, dilation: int
) -> None:
    kernel = np.random.default_rng(11).standard_normal((3, 4, 3))
    pad = ((dilation, dilation),)
    small, large = (
        value_of(cases.make_layer(kernel, Geometry((n,), (stride,), pad, "zeros", (dilation,), 1, transposed)), "bloch")
        for n in (10, 80)
    )
    norm = dense_norm(kernel, (stride,), (dilation,))
    assert 0.5 * norm < small < large < norm
    assert large > 0.98 * norm


# --------------------------------------------------------------------------------------------------- the door's manners


@pytest.mark.parametrize("name", list(BOUNDS))
def test_every_entry_says_what_it_is(name: str) -> None:
    entry = BOUNDS[name]
    assert entry.name == name
    assert entry.side in ("upper", "lower")
    assert entry.guarantee in ("certified", "probabilistic", "estimate")
    assert entry.holds_for in SCOPES
    assert entry.cost
    assert any(character.isdigit() for character in entry.reference) or "inequality" in entry.reference
    assert entry.compute.__doc__


def test_the_published_bounds_are_all_there() -> None:
    names = "miyato2018 gouk2018 singla2021 yi2020 araujo2021 pfister2019 delattre2023 delattre2024 grishina2024"
    assert set(names.split()) | {"ryu2019", "bloch"} <= set(BOUNDS)


def test_only_the_tensor_norm_is_an_estimate() -> None:
    assert [name for name, entry in BOUNDS.items() if entry.guarantee != "certified"] == ["grishina2024"]


@pytest.mark.parametrize("exponent", [-1000, -300, 300, 900])
def test_values_scale_exactly_with_powers_of_two(exponent: int) -> None:
    case = cases.Case((3, 2, 3, 3), PLAIN)
    plain, scaled = (all_bounds(case.layer(np.ldexp(case.kernel(), e))) for e in (0, exponent))
    for name, result in plain.items():
        other = scaled[name]
        assert isinstance(result, Bound)
        assert isinstance(other, Bound)
        assert math.ldexp(result.value, exponent) == other.value, name


def test_a_zero_kernel_has_bounds_of_zero() -> None:
    found = all_bounds(cases.make_layer(np.zeros((2, 2, 3, 3)), PLAIN))
    assert {result.value for result in found.values() if isinstance(result, Bound)} == {0.0}
    assert len(found) == len(list(BOUNDS))


def test_an_upper_bound_beyond_the_range_is_unavailable() -> None:
    layer = cases.make_layer(np.full((2, 2, 3, 3), 1e308), PLAIN)
    found = all_bounds(layer)
    assert isinstance(found["singla2021"], Unavailable)
    lower = found["one_tap"]
    assert isinstance(lower, Unavailable) or lower.value < math.inf


def test_groups_give_the_largest_value_of_one_group_alone() -> None:
    rng = np.random.default_rng(9)
    small, large = rng.standard_normal((2, 2, 3, 3)), 3 * rng.standard_normal((2, 2, 3, 3))
    both = np.concatenate([small, large])
    grouped = all_bounds(cases.make_layer(both, replace(PLAIN, groups=2)))
    alone = all_bounds(cases.make_layer(large, PLAIN))
    iterations = {"gouk2018", "ryu2019", "farnia2019", "boroojeny2024", "grishina2024", "bloch"}
    for name in set(grouped) - iterations:
        one, other = grouped[name], alone[name]
        assert isinstance(one, Bound)
        assert isinstance(other, Bound)
        assert one.value == pytest.approx(other.value, rel=1e-9), name


def test_a_patchify_layer_has_tight_bounds_through_its_normal_form() -> None:
    kernel = np.random.default_rng(2).standard_normal((6, 2, 4, 4))
    layer = cases.make_layer(kernel, Geometry((8, 8), (4, 4), ((0, 0), (0, 0))))
    exact = np.linalg.norm(kernel.reshape(6, -1), 2)
    for name in ("singla2021", "tap_sum", "pfister2019", "one_tap", "miyato2018", "grishina2024"):
        assert value_of(layer, name) == pytest.approx(exact, rel=1e-8), name


def guessed(geometry: Geometry, *names: str) -> Geometry:
    return replace(geometry, origin=dict.fromkeys(names, "assumed"))


def test_with_guessed_groups_the_tap_matrix_is_one_output_channels_taps() -> None:
    kernel = np.random.default_rng(4).standard_normal((4, 2, 3, 3))
    layer = cases.make_layer(kernel, guessed(PLAIN, "groups"))
    found = all_bounds(layer, ["miyato2018"])["miyato2018"]
    assert isinstance(found, Bound)
    assert found.value == pytest.approx(max(np.linalg.norm(row) for row in kernel), rel=1e-10)
    assert found.assumes == ()


@pytest.mark.parametrize("names", [("groups",), ("stride",), ("groups", "stride", "dilation")], ids="-".join)
def test_lower_bounds_of_what_is_guessed_keep_below_the_norm_of_the_guess(names: tuple[str, ...]) -> None:
    # Alike kernels in all groups: read as one group they have a norm that is the root of their number times as large.
    kernel = np.repeat(np.random.default_rng(9).standard_normal((1, 1, 3, 3)), 16, axis=0)
    geometry = replace(PLAIN, groups=16, stride=(2, 2) if "stride" in names else (1, 1))
    norm = convsv.operator_norm(kernel, geometry)
    found = all_bounds(cases.make_layer(kernel, guessed(geometry, *names)))
    lowers = {name: b.value for name, b in found.items() if isinstance(b, Bound) and b.side == "lower"}
    assert {"frobenius_lower", "one_tap", "miyato2018", "gouk2018"} <= lowers.keys()
    assert all(value <= norm.upper for value in lowers.values()), (lowers, norm)


def test_upper_bounds_of_a_guessed_stride_are_those_of_stride_1() -> None:
    kernel = np.random.default_rng(6).standard_normal((3, 3, 3, 3))
    strided = replace(PLAIN, stride=(2, 2))
    loose = all_bounds(cases.make_layer(kernel, guessed(strided, "stride")), ["singla2021", "one_tap", "gouk2018"])
    one = all_bounds(cases.make_layer(kernel, PLAIN), ["singla2021"])
    first, second = loose["singla2021"], one["singla2021"]
    assert isinstance(first, Bound)
    assert isinstance(second, Bound)
    assert first.value == second.value
    assumed = {name: result.assumes for name, result in loose.items() if isinstance(result, Bound)}
    assert assumed == {"singla2021": (), "one_tap": ("stride",), "gouk2018": ("stride",)}


def test_a_bound_that_does_not_exist_is_a_reason() -> None:
    layer = cases.make_layer(np.ones((2, 2, 3, 3)), Geometry((7, 7), (2, 2), ((1, 1), (1, 1))))
    found = all_bounds(layer, ["delattre2023", "ryu2019", "singla2021"])
    assert found["delattre2023"] == Unavailable("stride 2 does not divide size 7")
    assert isinstance(found["ryu2019"], Unavailable)
    assert isinstance(found["singla2021"], Bound)


def test_a_bound_that_fails_is_a_reason_and_the_others_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(problem: Problem) -> float:
        raise RuntimeError("linalg.eigh: did not converge\nmore lines")

    broken = replace(BOUNDS["l1_linf"], compute=fail)
    monkeypatch.setitem(BOUNDS._entries, "l1_linf", broken)
    found = all_bounds(cases.Case((2, 2, 3, 3), PLAIN).layer(), ["l1_linf", "tap_sum"])
    assert found["l1_linf"] == Unavailable("linalg.eigh: did not converge")
    assert isinstance(found["tap_sum"], Bound)


def test_a_layer_with_a_nan_is_refused() -> None:
    with pytest.raises(UnavailableError):
        all_bounds(cases.make_layer(np.full((2, 2, 3, 3), np.nan), PLAIN))


def test_an_empty_kernel_is_refused() -> None:
    with pytest.raises(UnavailableError):
        all_bounds(cases.make_layer(np.zeros((0, 2, 3, 3)), PLAIN))


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="singla2021"):
        all_bounds(cases.Case((2, 2, 3, 3), PLAIN).layer(), ["singla"])


def test_ratios_are_against_the_certified_norm() -> None:
    layer = cases.Case((3, 3, 3, 3), PLAIN).layer()
    exact = dense_norm(layer.kernel()[0], (1, 1), (1, 1))
    norm = Interval(exact * (1 - 1e-6), exact * (1 + 1e-6))
    own = Interval(exact * 0.5, exact * (1 + 1e-6), of="zeros 6x5")
    found = bounds_of(layer, ["singla2021", "one_tap", "gouk2018"], execution=CPU, norm=norm, norm_at_size=own)
    ends = {"singla2021": norm.upper, "one_tap": norm.lower, "gouk2018": own.lower}
    for name, result in found.items():
        assert isinstance(result, Bound)
        assert result.ratio == result.value / ends[name]
        assert result.seconds is not None
    about = [result.of for result in found.values() if isinstance(result, Bound)]
    assert about == ["any size", "any size", "zeros 6x5"]


@pytest.mark.parametrize("norm", [Interval(1e3, 2e3), Interval(1e-4, 1e-3)], ids=["above all", "below all"])
def test_contradictory_certified_statements_raise(norm: Interval) -> None:
    with pytest.raises(ContradictionError):
        bounds_of(cases.Case((3, 3, 3, 3), PLAIN).layer(), execution=CPU, norm=norm)


def test_a_lower_bound_above_the_norm_at_size_raises() -> None:
    layer = cases.Case((3, 3, 3, 3), replace(PLAIN, padding_mode="reflect")).layer()
    with pytest.raises(ContradictionError):
        bounds_of(layer, ["gouk2018"], execution=CPU, norm_at_size=Interval(1e-4, 1e-3, of="reflect 6x5"))


def test_a_small_memory_budget_costs_rounds_not_correctness() -> None:
    layer = cases.make_layer(np.random.default_rng(8).standard_normal((24, 24, 3, 3)), PLAIN)
    wide, narrow = (
        bounds_of(layer, ["delattre2024"], execution=Execution(device="cpu", memory=memory))["delattre2024"]
        for memory in (1 << 30, 2 << 20)
    )
    assert isinstance(wide, Bound)
    assert isinstance(narrow, Bound)
    assert dense_norm(layer.kernel()[0], (1, 1), (1, 1)) <= wide.value < narrow.value


def test_the_references_agree_with_the_normal_form() -> None:
    for case in CASES[::9]:
        kernel = torch.from_numpy(np.ascontiguousarray(case.layer().kernel()))
        form = normal_form(kernel, case.geometry.stride, case.geometry.dilation)
        polyphase = max(dense_norm(group.numpy(), *[(1,) * case.geometry.dims] * 2) for group in form.kernel)
        assert polyphase == pytest.approx(references(case)["any size"], rel=1e-8), case.id


@pytest.mark.cuda
def test_every_bound_holds_on_a_gpu() -> None:
    case = cases.Case((12, 8, 3, 3), PLAIN)
    here = all_bounds(case.layer())
    there = bounds_of(case.layer(), execution=Execution(device="cuda"))
    norm = size_free_norm(case, case.kernel())
    for name, result in there.items():
        cpu = here[name]
        assert isinstance(result, Bound)
        assert isinstance(cpu, Bound)
        assert result.value == pytest.approx(cpu.value, rel=1e-3), name
        if BOUNDS[name].holds_for == "any size" and result.guarantee == "certified":
            assert result.value >= norm if result.side == "upper" else result.value <= norm, name

"""The summary of a spectrum against its definitions, in plain sums."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsv.errors import ContradictionError
from convsv.spectra import _statistics
from convsv.spectra._statistics import QUANTILES, Collector, statistics

MAGNITUDES = st.floats(0, 1e3, allow_subnormal=False)
VALUES = st.lists(MAGNITUDES, min_size=1, max_size=30).map(lambda v: np.array(sorted(v, reverse=True)))


@given(VALUES)
def test_summary_follows_its_definitions(values: np.ndarray) -> None:
    found = statistics(values)
    assert (found.count, found.max, found.min) == (len(values), values[0], values[-1])
    assert found.frobenius == pytest.approx(math.hypot(*values), rel=1e-12)
    for probability in QUANTILES:
        assert found.quantiles[probability] == pytest.approx(np.quantile(values, float(probability)), rel=1e-9)
    if values[0] > 0:
        assert found.stable_rank == pytest.approx(math.fsum((v / values[0]) ** 2 for v in values))
        shares = [v / math.fsum(values) for v in values if v / math.fsum(values) > 0]
        assert found.effective_rank == pytest.approx(math.exp(-math.fsum(p * math.log(p) for p in shares)))


@pytest.mark.parametrize("count", [1, 2, 10])
def test_equal_values_have_full_rank(count: int) -> None:
    found = statistics(np.full(count, 3.0))
    assert found.effective_rank == pytest.approx(count)
    assert found.stable_rank == pytest.approx(count)
    assert found.condition == 1


def test_zero_operator_has_no_ranks() -> None:
    found = statistics(np.zeros(4))
    assert (found.max, found.frobenius) == (0, 0)
    assert (found.stable_rank, found.effective_rank, found.condition) == (None, None, None)


def test_smallest_value_within_the_error_gives_no_condition() -> None:
    values = np.array([1.0, 1e-14])
    assert statistics(values, error=1e-13).condition is None
    assert statistics(values, error=1e-15).condition == pytest.approx(1e14)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_no_square_overflows_or_vanishes(scale: float) -> None:
    found = statistics(np.array([2.0, 1.0]) * scale)
    assert found.frobenius == pytest.approx(math.sqrt(5) * scale)
    assert found.stable_rank == pytest.approx(1.25)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0], [1.0, -1.0]])
def test_what_is_no_spectrum_is_a_fault(values: list[float]) -> None:
    with pytest.raises(ContradictionError):
        statistics(np.array(values))


# ------------------------------------------------------------------------------------------------------------ in parts

PARTS = st.lists(st.tuples(st.lists(MAGNITUDES, max_size=8).map(np.array), st.integers(1, 3)), min_size=1, max_size=6)


def expanded(parts: list[tuple[np.ndarray, int]]) -> np.ndarray:
    return np.sort(np.concatenate([np.repeat(part, weight) for part, weight in parts]))[::-1]


def collected(parts: list[tuple[np.ndarray, int]], *, hold: bool = True) -> Collector:
    collector = Collector(sum(len(part) for part, _ in parts), hold=hold)
    for part, weight in parts:
        collector.add(part, weight)
    return collector


@given(PARTS.filter(lambda parts: any(len(part) for part, _ in parts)), st.integers(1, 10))
def test_parts_are_summarised_as_the_whole(parts: list[tuple[np.ndarray, int]], buffer: int) -> None:
    whole = expanded(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_statistics, "_BUFFER", buffer)
        collector = collected(parts)
        found, expected = collector.statistics(), statistics(whole)
    assert np.array_equal(collector.values(), whole)
    assert collector.largest == whole[0]
    assert (found.count, found.max, found.min) == (expected.count, expected.max, expected.min)
    assert (found.condition, found.histogram) == (expected.condition, expected.histogram)
    assert found.quantiles == expected.quantiles
    assert found.frobenius == pytest.approx(expected.frobenius, rel=1e-12)
    if whole[0] > 0:
        assert found.stable_rank == pytest.approx(expected.stable_rank, rel=1e-12)
        assert found.effective_rank == pytest.approx(expected.effective_rank, rel=1e-12)


@given(PARTS.filter(lambda parts: any(len(part) for part, _ in parts)), st.integers(2, 6))
def test_quantiles_that_were_not_held_are_within_their_error(parts: list[tuple[np.ndarray, int]], bits: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_statistics, "_FINE", 64 << bits)
        patch.setattr(_statistics, "_BUFFER", 3)
        coarse, exact = collected(parts, hold=False).statistics(), collected(parts).statistics()
    assert exact.quantile_error == 0
    assert coarse.quantile_error <= 2 * exact.max / (64 << bits)
    for probability in QUANTILES:
        assert abs(coarse.quantiles[probability] - exact.quantiles[probability]) <= coarse.quantile_error * (1 + 1e-12)
    assert coarse.histogram == exact.histogram


@given(PARTS.filter(lambda parts: any(len(part) for part, _ in parts)), st.data(), st.booleans(), st.integers(1, 10))
def test_several_collectors_come_to_the_same_bits_as_one(
    parts: list[tuple[np.ndarray, int]], data: st.DataObject, hold: bool, buffer: int
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(parts)), max_size=3)))
    ranges = zip([0, *cuts], [*cuts, len(parts)], strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_statistics, "_BUFFER", buffer)
        several = [collected(parts[start:stop], hold=hold) for start, stop in ranges]
        travelled = [pickle.loads(pickle.dumps(one)) for one in several]
        whole, joined = collected(parts, hold=hold), Collector.joined(travelled)
        assert joined.largest == whole.largest
        assert joined.statistics() == whole.statistics()
        if hold:
            assert np.array_equal(joined.values(), whole.values())


def test_the_order_of_the_parts_changes_no_bit() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.random(50) * 10.0 ** rng.integers(-9, 9), int(rng.integers(1, 3))) for _ in range(20)]
    assert collected(parts).statistics() == collected(parts[::-1]).statistics()


def test_room_that_is_empty_does_not_travel() -> None:
    collector = Collector(1_000_000)
    collector.add(np.ones(10), 1)
    collector.settle()
    assert len(pickle.dumps(collector)) < _statistics._FINE * 8 + 10_000


@given(VALUES)
def test_histogram_counts_every_value_in_its_bin(values: np.ndarray) -> None:
    found = statistics(values).histogram
    edges = np.linspace(0, found.top, len(found.counts) + 1)
    assert list(found.counts) == np.histogram(values, edges)[0].tolist()
    if values[0] > 0:
        assert values[0] < found.top <= 2 * values[0]


@given(st.permutations([1e-300, 3e-5, 0.0, 0.7, 1.0, 900.0]))
def test_histogram_does_not_depend_on_the_order(order: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_statistics, "_BUFFER", 1)
        found = collected([(np.array([value]), 1) for value in order], hold=False).statistics()
    assert found.histogram == statistics(np.array(sorted(order, reverse=True))).histogram


@pytest.mark.parametrize("exponent", [-1060, -3, 5, 1000])
def test_exponent_scales_every_value(exponent: int) -> None:
    values = np.array([8.0, 2.0, 1.0])
    plain, scaled = (collected([(values, 1)]).statistics(0.0, e) for e in (0, exponent))
    for name in ("max", "min"):
        assert getattr(scaled, name) == math.ldexp(getattr(plain, name), exponent)
    assert scaled.histogram.top == math.ldexp(plain.histogram.top, exponent)
    assert (scaled.stable_rank, scaled.effective_rank) == (plain.stable_rank, plain.effective_rank)


def test_values_that_were_not_held_are_a_fault() -> None:
    with pytest.raises(ContradictionError):
        collected([(np.ones(3), 1)], hold=False).values()

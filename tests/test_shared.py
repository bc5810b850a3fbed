"""What several results of one layer need is computed once, and no result depends on what else was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from cases import NAMED, Case
from convsv.analysis import AnalysisOptions, analyze_layer, method_names
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.layer import ConvLayer
from convsv.results import Interval, LayerReport, Spectrum
from convsv.spectra import Shared, SpectrumOptions, _dense, _samples, _shared
from convsv.spectra._samples import sample_symbol

EXACT = import_module("convsv.spectra.exact")
CPU = Execution("cpu", jobs=1)
OPTIONS = AnalysisOptions(execution=CPU, values=True)
LAYER = Case((4, 4, 3, 3), Geometry((9, 9), (1, 1), ((1, 1), (1, 1)))).layer()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of what is shared."""
    counts: Counter[str] = Counter()

    def count(place: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(place, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(place, name, counted)

    count(_shared, "certify_with_peak")
    count(_shared, "certify_at_size")
    count(_samples, "_sampled")
    count(_dense.DenseLayer, "values")
    count(ConvLayer, "kernel")
    return counts


@pytest.fixture
def iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact method takes no layer for small enough for a dense matrix."""
    monkeypatch.setattr(EXACT, "_DENSE_WORK", -1.0)


def report(*methods: str) -> LayerReport:
    return analyze_layer(LAYER, replace(OPTIONS, methods=methods, spectra=SpectrumOptions(top=2)))


# ------------------------------------------------------------------------------------------------------------ counting


@pytest.mark.usefixtures("iterated")
def test_the_norm_is_certified_once_for_all_methods(calls: Counter[str]) -> None:
    found = report("exact", "calibrated", "asymptotic", "enclosure", "circulant")
    assert set(found.results) == {"exact", "calibrated", "asymptotic", "enclosure", "circulant"}
    assert calls["certify_with_peak"] == 1
    assert calls["certify_at_size"] == 1


def test_the_symbol_is_sampled_once_for_both_estimates(calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("convsv.spectra._copies"), "_SIDE", 60)
    report("asymptotic", "calibrated")
    assert calls["_sampled"] == 1


def test_small_layers_are_decomposed_once_for_exact_and_calibrated(calls: Counter[str]) -> None:
    found = report("exact", "calibrated").results
    assert calls["values"] == 1
    exact, calibrated = found["exact"], found["calibrated"]
    assert isinstance(exact, Spectrum)
    assert isinstance(calibrated, Spectrum)
    assert exact.values is not None
    assert calibrated.values is not None
    assert np.array_equal(exact.values, calibrated.values[:2])


def test_spectra_read_the_kernel_once(calls: Counter[str]) -> None:
    analyze_layer(
        LAYER, replace(OPTIONS, norm=False, methods=("exact", "calibrated", "asymptotic", "enclosure", "circulant"))
    )
    assert calls["kernel"] == 1


def test_nothing_is_computed_before_it_is_asked_for(calls: Counter[str]) -> None:
    analyze_layer(LAYER, replace(OPTIONS, norm=False, methods=("circulant",)))
    assert not {"certify_with_peak", "certify_at_size", "_sampled", "values"} & set(calls)


def test_a_function_is_called_once_and_a_failure_is_no_result() -> None:
    shared, tried = Shared(LAYER, CPU), []

    def failing(_shared: Shared) -> int:
        tried.append(1)
        raise MemoryError

    assert shared.once(sample_symbol) is shared.once(sample_symbol)
    for _ in range(2):
        with pytest.raises(MemoryError):
            shared.once(failing)
    assert len(tried) == 2


# -------------------------------------------------------------------------------------------------------- independence


@pytest.mark.parametrize("iterate", [False, True], ids=["dense", "iterated"])
@pytest.mark.parametrize("name", sorted(set(method_names()) - {"bounds", "symbol_min"}))
def test_no_result_depends_on_what_else_was_asked_for(
    name: str, iterate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if iterate:
        monkeypatch.setattr(EXACT, "_DENSE_WORK", -1.0)
    together = report(*sorted(set(method_names()) - {"bounds"})).results[name]
    alone = analyze_layer(LAYER, replace(OPTIONS, norm=False, methods=(name,), spectra=SpectrumOptions(top=2))).results[
        name
    ]
    assert isinstance(together, Spectrum)
    assert isinstance(alone, Spectrum)
    assert np.array_equal(together.values, alone.values)  # type: ignore[arg-type]
    assert (together.upper, together.residuals, together.error) == (alone.upper, alone.residuals, alone.error)


# --------------------------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize("exponent", [-1000, -7, 0, 900])
@pytest.mark.parametrize("name", ["no padding", "strided and dilated"])
def test_intervals_are_those_of_the_layer_in_its_own_units(name: str, exponent: int) -> None:
    case = NAMED[name]
    scaled = Shared(case.layer(np.ldexp(case.kernel(), exponent)), CPU)
    plain = Shared(case.layer(), CPU)
    for of in (lambda shared: shared.norm[0], lambda shared: shared.norm_at_size):
        one, other = (shared.in_its_units(of(shared)) for shared in (scaled, plain))
        expected = tuple(np.ldexp([other.lower, other.upper], exponent))
        assert (one.lower, one.upper) == expected


def test_zero_stays_zero() -> None:
    shared = Shared(NAMED["no padding"].layer(np.zeros((3, 2, 3, 3))), CPU)
    assert shared.in_its_units(shared.norm[0]) == Interval(0.0, 0.0)

"""LAPACK that does not converge: another one takes over, or a bound that needs none; and nothing becomes NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from convsv import certificate
from convsv.analysis import BOUNDS_METHOD, SYMBOL_MIN, AnalysisOptions, analyze_layer
from convsv.api import layer_of
from convsv.bounds import bounds_of
from convsv.certificate import Budget
from convsv.errors import ComputationError
from convsv.geometry import GeometryFacts
from convsv.layer import ConvLayer
from convsv.peaks import leading_vectors
from convsv.results import Bound, LayerReport
from convsv.rounding import eigenvalue_upper, matrix_norm
from convsv.spectra import SPECTRA
from convsv.symbol import normal_form

EIGEN = ("eigh", "eigvalsh")
FEW = Budget(evaluations=500)
RNG = np.random.default_rng(7)


def random(*shape: int) -> Any:
    return RNG.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))


def orthogonal(n: int) -> Any:
    kernel = np.zeros((n, n, 3, 3))
    kernel[:, :, 1, 1] = np.linalg.qr(RNG.standard_normal((n, n)))[0]
    return kernel


KERNELS = {
    "small": random(3, 2, 3, 3),
    "one axis": random(4, 5, 3),
    "sixteen channels": random(16, 16, 3, 3),
    "wide": random(40, 36, 3, 3),
    "pointwise": random(6, 9, 1, 1),
    "orthogonal": orthogonal(12),
    "depthwise": random(8, 1, 3, 3),
    "three axes": random(3, 3, 2, 2, 2),
}


def layer(name: str, **facts: Any) -> ConvLayer:
    groups = 8 if name == "depthwise" else 1
    return layer_of(KERNELS[name], GeometryFacts(groups=groups, stride=1, dilation=1, **facts))


def failing(error: type[Exception]) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error("did not converge")

    return fail


def break_lapack(monkeypatch: pytest.MonkeyPatch, *, numpy_too: bool, names: tuple[str, ...] = EIGEN) -> None:
    for name in names:
        monkeypatch.setattr(torch.linalg, name, failing(torch.linalg.LinAlgError))  # type: ignore[attr-defined]
        if numpy_too:
            monkeypatch.setattr(np.linalg, name.replace("svdvals", "svd"), failing(np.linalg.LinAlgError))


@pytest.mark.parametrize("numpy_too", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_the_certificate_needs_no_eigenvalues(name: str, numpy_too: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    options = AnalysisOptions(tol=1e-3, budget=FEW if numpy_too else Budget())
    known = analyze_layer(layer(name, size=9, padding=1), options)
    break_lapack(monkeypatch, numpy_too=numpy_too)
    found = analyze_layer(layer(name, size=9, padding=1), options)
    assert set(found.failures) <= ({"norm_at_size"} if numpy_too else set()), found.unavailable
    for before, after in ((known.norm, found.norm), (known.norm_at_size, found.norm_at_size)):
        assert before is not None
        if after is None:
            assert found.failures == ("norm_at_size",)
            continue
        assert after.lower <= before.upper
        assert after.upper >= before.lower
        assert after.lower > 0
        # Without another LAPACK the way up may end below the top; what is proved stays proved.
        assert numpy_too or after.width <= 1.01 * max(before.width, 1e-3)
        assert math.isfinite(after.upper)


def values_of(report: LayerReport) -> str:
    from convsv.reports._objects import layer_object

    return json.dumps(layer_object(report, values=True), allow_nan=True)


@pytest.mark.parametrize("name", ["small", "sixteen channels", "depthwise"])
def test_without_any_lapack_results_are_right_or_unavailable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = (*SPECTRA, BOUNDS_METHOD, SYMBOL_MIN)
    options = AnalysisOptions(methods=methods, tol=1e-2, budget=FEW)
    chosen = layer(name, size=6, padding=1, padding_mode="circular")
    known = analyze_layer(chosen, options)
    break_lapack(monkeypatch, numpy_too=True, names=(*EIGEN, "svdvals", "svd", "lstsq"))
    found = analyze_layer(chosen, options)
    assert "NaN" not in values_of(found)
    assert "Infinity" not in values_of(found)
    assert found.norm is not None
    assert found.failures
    assert set(found.failures) <= set(found.unavailable)
    for method in found.results.keys() - {BOUNDS_METHOD}:
        old, new = known.results[method], found.results[method]
        assert new.max == pytest.approx(old.max, rel=1e-2)  # type: ignore[union-attr]
    for bound in found.results.get(BOUNDS_METHOD, {}).values():  # type: ignore[union-attr]
        assert isinstance(bound, Bound)
        if bound.guarantee == "certified" and bound.of == "any size":
            assert bound.value <= known.norm.upper if bound.side == "lower" else bound.value >= known.norm.lower  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["small", "sixteen channels", "three axes"])
def test_bounds_stay_on_their_side(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = layer(name, size=5, padding=1)
    known = bounds_of(chosen)
    break_lapack(monkeypatch, numpy_too=False)
    for bound, value in bounds_of(chosen).items():
        before = known[bound]
        assert isinstance(value, Bound) == isinstance(before, Bound), bound
        if isinstance(value, Bound) and isinstance(before, Bound):
            assert value.value == pytest.approx(before.value, rel=1e-9)


def test_the_largest_eigenvalue_is_bounded_without_lapack(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = torch.from_numpy(RNG.standard_normal((5, 7, 9)))
    grams = matrices @ matrices.mT
    largest = torch.linalg.eigvalsh(grams)[:, -1]
    break_lapack(monkeypatch, numpy_too=True)
    upper = eigenvalue_upper(grams)
    assert (largest <= upper).all()
    assert (upper <= largest * math.sqrt(7) * 1.001).all()
    for matrix, value in zip(matrices, largest.sqrt().tolist(), strict=True):
        lower, above = matrix_norm(matrix)
        assert lower <= value <= above <= 7**0.25 * value * 1.001
        assert lower >= value / 7


def test_a_peak_without_lapack_is_what_the_vector_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = torch.from_numpy(RNG.standard_normal((3, 6, 6)))
    grams, start = matrices @ matrices.mT, torch.from_numpy(RNG.standard_normal((3, 6, 1)))
    break_lapack(monkeypatch, numpy_too=True)
    values, vectors = leading_vectors(grams, start)
    assert torch.linalg.vector_norm(vectors, dim=1).flatten().tolist() == pytest.approx([1.0] * 3)
    assert torch.allclose((vectors.mT @ grams @ vectors).flatten(), values)


def test_cells_that_fail_show_a_peak_without_lapack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last resort of a proof: the matrices themselves are diagonalised."""
    form = normal_form(torch.from_numpy(KERNELS["sixteen channels"])[None], (1, 1), (1, 1))
    asked: list[Any] = []

    class Stop(Exception):  # noqa: N818 - not an error
        pass

    def caught(*given: Any) -> None:
        asked.extend(given)
        raise Stop

    monkeypatch.setattr(certificate, "_prove", caught)
    with pytest.raises(Stop):
        certificate.certify(form, 1e-3)
    work, cells, _ = asked
    known = certificate._leading(work, cells)
    break_lapack(monkeypatch, numpy_too=True)
    found = certificate._leading(work, cells)
    assert 0.5 * known.value <= found.value <= known.value * (1 + 1e-9)
    with pytest.raises(ComputationError):
        certificate.eigenpairs(work.matrices(cells))
    assert replace(found, value=0.0).vector.shape == known.vector.shape

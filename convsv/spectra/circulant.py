"""The spectrum under circular padding: the singular values of the symbol at the grid points.

Sedghi, Gupta, Long (2019), Theorem 6, for stride 1; strides by polyphase components (Senderovich et al. 2022). The
method is about the operator of that name, whatever padding the layer runs with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from convsv.errors import ComputationError, UnavailableError, UsageError
from convsv.execution import Execution, full_precision, one_thread_a_call
from convsv.geometry import Geometry
from convsv.layer import ConvLayer
from convsv.results import Spectrum
from convsv.spectra import DEFAULT, Division, Shared, SpectrumOptions, SpectrumPart, method
from convsv.spectra._routes import Problem, Route, choose_route
from convsv.spectra._statistics import Collector
from convsv.symbol import NormalForm, grid_symbol, half_grid

__all__ = ["SingularVectors", "circulant", "singular_vectors"]


def _part(
    layer: ConvLayer, execution: Execution, options: SpectrumOptions, shared: Shared, share: tuple[int, int]
) -> SpectrumPart:
    """Return what a share of the frequencies makes of the circulant spectrum: see :func:`circulant`.

    The half grid is walked in the chunks in which the execution would walk all of it, and a share is some of these:
    the values are the same to the last bit, however many shares there are.

    Args:
        layer: any layer.
        execution: where to compute.
        options: as for the whole.
        shared: what is known of the layer already.
        share: k and n for the k-th of n, from 0.

    Raises:
        UnavailableError: as for the whole.
    """
    size = _grid(layer.geometry)
    shared.require_entries()
    problem = Problem(shared.form.kernel, _distinct(shared.form, size))
    copies = math.prod(size) // math.prod(problem.grid)
    matrices = problem.kernel.shape[0] * problem.sides[0]
    if options.values and (count := matrices * math.prod(size)) * 8 > execution.memory:
        raise UnavailableError(f"{count} singular values do not fit into the memory budget of {execution.memory} bytes")
    held = options.values or matrices * problem.span * 8 <= execution.memory // 2
    collector = Collector(matrices * problem.span, hold=held)
    with one_thread_a_call(), full_precision():
        route = choose_route(problem, execution, options.accuracy)
        for values, weight in _parts(problem, route, execution, share):
            collector.add(values, weight * copies)
    collector.settle()
    # It grows with the largest value: the largest error of all shares is that of the whole.
    error = math.ldexp(route.error(collector.largest), shared.exponent) + math.ulp(0.0)
    return SpectrumPart(collector, error, shared.exponent)


def _whole(layer: ConvLayer, options: SpectrumOptions, parts: Sequence[SpectrumPart]) -> Spectrum:
    """Return the circulant spectrum of a layer, of which every share has been computed.

    Args:
        layer: the layer; its tensor is not read.
        options: as for the shares.
        parts: all shares; they are used up.

    Raises:
        UnavailableError: the values do not fit into the range of float64.
    """
    collector, exponent = Collector.joined([part.collector for part in parts]), parts[0].exponent
    error = max(part.error for part in parts)
    found = collector.statistics(error, exponent)
    if not math.isfinite(found.max):
        raise UnavailableError("singular values exceed the range of float64")
    return Spectrum(
        method="circulant",
        of=f"circular {'x'.join(map(str, layer.geometry.size))}",
        guarantee="certified",
        error=error,
        assumes=_assumes(layer),
        values=_scaled(collector.values(), exponent) if options.values else None,
        **vars(found),
    )


@method(
    "circulant",
    guarantee="certified",
    reference="Sedghi, Gupta, Long 2019; Senderovich et al. 2022",
    division=Division(_part, _whole),
)
def circulant(
    layer: ConvLayer, execution: Execution, options: SpectrumOptions = DEFAULT, shared: Shared | None = None
) -> Spectrum:
    """Return all singular values of the layer with circular padding at its size, or only their statistics.

    For c_out and c_in channels a group, input size N and stride s there are ``prod(N / s) * min(c_out, c_in prod(s))``
    values a group; a transposed layer of input size N is the adjoint of the convolution whose input has size ``N s``.
    Each value is within ``error`` of the true one: rounding of the symbol, of its decomposition, and of the cast
    to the dtype of the arithmetic.

    What takes less than some 30 ms (in float32, 1 ms) is decomposed by SVD in the dtype of ``execution``: ``error`` is
    then a small multiple of ``eps * max``, times the number of channels. What takes longer is done in float64, on the
    cheaper of two routes that reach the accuracy asked for, 1e-9 of the largest value or for float32 1e-6: float32
    arithmetic guarantees no such accuracy for more than a few channels, and is no faster. ``error`` says what it is.

    Without values, memory does not grow with the size of the input: where half of the budget cannot hold the distinct
    values, the quantiles come from a histogram of 2^18 bins, and ``quantile_error`` is its resolution.

    Args:
        layer: any layer.
        execution: where to compute.
        options: whether to keep the values, and how accurate they must be.
        shared: what is known of the layer already.

    Raises:
        UnavailableError: the stride does not divide the size, a weight is not finite, or the values are to be kept and
            do not fit into the memory budget, or do not fit into the range of float64.
    """
    part = _part(layer, execution, options, shared or Shared(layer, execution), (0, 1))
    return _whole(layer, options, [part])


@dataclass(frozen=True)
class SingularVectors:
    """Singular triplets of the symbol at some frequencies: F v = values * u.

    Attributes:
        frequencies: ``(M, d)`` in radians.
        left: ``(M, G, r, C)`` complex128, r = min(O, I'): unit vectors over the channels that the layer puts out.
        values: ``(M, G, r)`` float64, in descending order.
        right: ``(M, G, r, C')``: the same over the channels that it takes in. On the strided side of a layer, channel
            ``(i, t)`` is input channel i at the positions ``s q + t``, row-major.
    """

    frequencies: NDArray[np.float64]
    left: NDArray[np.complex128]
    values: NDArray[np.float64]
    right: NDArray[np.complex128]


def singular_vectors(layer: ConvLayer, indices: Sequence[Sequence[int]] | NDArray[np.int64]) -> SingularVectors:
    """Return the singular vectors of a layer with circular padding, at named frequencies.

    With w = 2 pi j / n, where n = N / s is the number of outputs on the strided side, the input ``v_(i,t) e^(i w.q)``
    is stretched by the singular value into the output ``u_o e^(i w.q)``, up to the same scale: these plane waves are
    the singular vectors of the whole operator.

    Args:
        layer: any layer.
        indices: ``(M, d)`` integers j, taken modulo n.

    Raises:
        ComputationError: LAPACK did not converge.
        UnavailableError: the stride does not divide the size, or a weight is not finite.
        UsageError: there is not one integer an axis.
    """
    shared, size = Shared(layer, Execution("cpu")), _grid(layer.geometry)
    shared.require_entries()
    chosen = np.asarray(indices)
    if chosen.ndim != 2 or chosen.shape[1] != len(size) or chosen.dtype.kind not in "iu":
        raise UsageError("frequencies are integers, one an axis", found=f"{chosen.dtype} of shape {chosen.shape}")
    chosen = chosen.astype(np.int64) % size
    try:
        left, values, right = torch.linalg.svd(
            grid_symbol(shared.form, size, torch.from_numpy(chosen)), full_matrices=False
        )
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ComputationError("the singular value decomposition failed", found=str(error)) from None
    sides = left.mT.resolve_conj().numpy(), right.conj().resolve_conj().numpy()
    outer, inner = reversed(sides) if layer.geometry.transposed else sides
    return SingularVectors(2 * math.pi * chosen / size, outer, _scaled(values.numpy(), shared.exponent), inner)


def _grid(geometry: Geometry) -> tuple[int, ...]:
    """Return the number of frequencies an axis: the size of the strided side of the layer.

    Raises:
        UnavailableError: the stride does not divide the size.
    """
    if geometry.transposed:
        return geometry.size
    for n, s in zip(geometry.size, geometry.stride, strict=True):
        if n % s:
            raise UnavailableError(f"stride {s} does not divide size {n}")
    return tuple(n // s for n, s in zip(geometry.size, geometry.stride, strict=True))


def _distinct(form: NormalForm, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the grid of distinct symbols: the undilated kernel on it gives them all, equally often.

    With N points on an axis, dilation r and g = gcd(r, N), the phases r j / N mod 1 run through m / (N / g), each g
    times; and where there is one tap, the symbol does not depend on the frequency at all.
    """
    axes = zip(size, form.dilation, form.kernel.shape[3:], strict=True)
    return tuple(1 if taps == 1 else n // math.gcd(n, r) for n, r, taps in axes)


def _parts(
    problem: Problem, route: Route, execution: Execution, share: tuple[int, int]
) -> Iterator[tuple[NDArray[np.float64], int]]:
    """Yield the values of a share of the half grid in parts, and how many points of the grid each stands for."""

    def work(start: int, stop: int, device: torch.device) -> list[tuple[NDArray[np.float64], int]]:
        indices, weights = half_grid(problem.grid, start=start, stop=stop)
        found = []
        for weight in (1, 2):
            chosen = indices[weights == weight]
            if len(chosen):
                found.append((route.values(chosen, device, real=weight == 1).numpy(), weight))
        return found

    for parts in execution.map_chunks(problem.span, route.bytes_each, work, share):
        yield from parts


def _scaled(values: NDArray[np.float64], exponent: int) -> NDArray[np.float64]:
    """Multiply by ``2^exponent`` in place."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(values, exponent, out=values)


def _assumes(layer: ConvLayer) -> tuple[str, ...]:
    """Return the guessed geometry that changes the values: direction only with a stride, dilation only with taps."""
    geometry = layer.geometry
    names = ["size", "stride", "groups"]
    names += ["dilation"] if max(layer.kernel_size) > 1 else []
    names += ["transposed"] if max(geometry.stride) > 1 else []
    return geometry.guessed(*names)

"""The spectrum of the layer as it runs: its own size, padding, stride, dilation and groups.

Which way it takes is decided beforehand, by a count of operations and bytes that depends on shapes only:

1. all values by LAPACK, where the blocks that the layer falls apart into (:mod:`convsv.spectra._blocks`) are small:
   at most about ``_DENSE_WORK`` floating-point operations, within the memory budget;
2. all values from the symbol, where the layer pads circularly by just what its kernel reaches: it is its circulant;
3. else a few leading values by Golub-Kahan-Lanczos, each with the distance to a true singular value, and a certified
   upper bound of the largest; trailing values by inverse iteration (:mod:`convsv.spectra._inverse`) where its factor
   fits into the memory budget, and else by Golub-Kahan-Lanczos too, which does not come far in a dense spectrum: the
   residuals say how far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convsv.errors import ContradictionError, UnavailableError
from convsv.execution import Execution
from convsv.geometry import padding_multiplicity
from convsv.layer import ConvLayer
from convsv.operator import ConvOperator
from convsv.results import Density, Interval, Spectrum
from convsv.rounding import above
from convsv.spectra import DEFAULT, Shared, SpectrumOptions, method
from convsv.spectra._blocks import squared_frobenius
from convsv.spectra._dense import DenseLayer, dense_layer, dense_values, svd_operations
from convsv.spectra._density import density_of_values, estimated_density
from convsv.spectra._leading import Extremes, Problem, extreme_values
from convsv.spectra._statistics import statistics
from convsv.spectra.circulant import circulant

__all__ = ["exact"]

_DENSE_WORK = 4e9
"""Operations up to which all values are computed unasked: a matrix of 1,100 rows and columns, a second or so."""
_TOP = 6
"""Leading values where not all are computed."""

Array = NDArray[np.float64]


@method("exact", guarantee="certified", reference="LAPACK; Golub, Kahan 1965 with Baglama, Reichel 2005")
def exact(
    layer: ConvLayer, execution: Execution, options: SpectrumOptions = DEFAULT, shared: Shared | None = None
) -> Spectrum:
    """Return the singular values of the layer as it runs, with its own padding: all, or where that is too much some.

    A full spectrum has ``min(rows, columns)`` values, multiplicities counted, each within ``error`` of the true one.
    A leading one has the values asked for: the largest, each a certified LOWER bound of the singular value of its
    rank, then ``trailing`` of the smallest, each a certified UPPER bound of the one of its rank from the end. Some
    true singular value lies within ``residuals`` of each. Its ``frobenius`` and ``stable_rank`` are those of the whole
    operator, ``count`` and ``min`` those of the values given.

    Args:
        layer: any layer.
        execution: where to compute; leading values are certified in float64 on the CPU in any case.
        options: ``top``, ``trailing``, ``full`` and ``density`` count.
        shared: what is known of the layer already.

    Raises:
        UnavailableError: a weight is not finite; or what was asked for does not fit into the memory budget or the
            range of float64.
        GeometryError: the layer has no output at this size.
        ContradictionError: certified statements exclude each other, which is a bug.
    """
    shared = shared or Shared(layer, execution)
    shared.require_entries()
    work = _Work(shared, options, shared.once(dense_layer))
    top = _TOP if options.top is None else options.top
    if options.full or top + options.trailing >= work.dense.count or work.is_cheap():
        found = work.all_values()
        is_part = (options.top is not None or options.trailing > 0) and top + options.trailing < work.dense.count
        return work.some_of(found, top) if is_part else found
    return work.extremes(top)


@dataclass(frozen=True)
class _Work:
    """A layer, what is wanted of it, and what it falls apart into."""

    shared: Shared
    options: SpectrumOptions
    dense: DenseLayer

    @property
    def layer(self) -> ConvLayer:
        return self.shared.layer

    @property
    def execution(self) -> Execution:
        return self.shared.execution

    @property
    def of_what(self) -> str:
        geometry = self.layer.geometry
        return f"{geometry.padding_mode} {'x'.join(map(str, geometry.size))}"

    # -------------------------------------------------------------------------------------------------- all values

    def is_cheap(self) -> bool:
        """Tell whether all values take no more than so many operations, and fit into the memory budget."""
        if self._is_circulant() and self._circulant_work() <= _DENSE_WORK:
            return 16 * self.dense.count <= self.execution.memory
        return self.dense.operations <= _DENSE_WORK and self.dense.needed(self.execution) <= self.execution.memory

    def all_values(self) -> Spectrum:
        """Return the full spectrum.

        Raises:
            UnavailableError: it does not fit into the memory budget.
        """
        if self._is_circulant():
            whole = circulant(self.layer, self.execution, replace(self.options, values=True), self.shared)
            note = "all values from the symbol: a layer that pads circularly is its circulant"
            found = replace(whole, method="exact", of=self.of_what, assumes=self._assumes(), notes=(note,))
        else:
            found = self._dense()
        if self.options.density and found.values is not None:
            found = replace(found, density=density_of_values(found.values, found.error or 0.0, found.max))
        return found

    def _dense(self) -> Spectrum:
        needed, memory = self.dense.needed(self.execution), self.execution.memory
        if needed > memory:
            rows, columns = self.dense.sides[-1] if self.dense.blocks else (0, 0)
            raise UnavailableError(
                f"all {self.dense.count} singular values need {_bytes(needed)} (a dense matrix of {rows}x{columns}), "
                f"more than the memory budget of {_bytes(memory)}",
                advice="give a larger --memory, or ask for some with --top",
            )
        scaled, wrong = self.shared.once(dense_values)
        values, error = self.shared.unscaled(scaled), self.shared.unscaled_length(wrong) + math.ulp(0.0)
        sizes = ", ".join(sorted({f"{rows}x{columns}" for rows, columns in self.dense.sides}))
        return Spectrum(
            method="exact",
            of=self.of_what,
            guarantee="certified",
            error=error,
            assumes=self._assumes(),
            values=values,
            notes=(f"all values by LAPACK, from dense matrices of {sizes or 'no entries'}",),
            **vars(statistics(values, error)),
        )

    def _is_circulant(self) -> bool:
        """Tell whether every window is read around the circle, at places that the stride divides evenly."""
        geometry, taps = self.layer.geometry, self.dense.kernel.shape[3:]
        if geometry.padding_mode != "circular" or geometry.transposed:
            return False
        axes = zip(geometry.size, geometry.stride, geometry.dilation, geometry.padding, taps, strict=True)
        return all(n % s == 0 and sum(pair) == d * (k - 1) for n, s, d, pair, k in axes)

    def _circulant_work(self) -> float:
        geometry = self.layer.geometry
        groups, outputs, inputs = self.dense.kernel.shape[:3]
        points = math.prod(n // s for n, s in zip(geometry.size, geometry.stride, strict=True))
        # Half of the points, in complex arithmetic, which takes four times the operations.
        return 2 * groups * points * svd_operations(outputs, inputs * math.prod(geometry.stride))

    # ------------------------------------------------------------------------------------------------- some values

    def some_of(self, full: Spectrum, top: int) -> Spectrum:
        """Return the part of a full spectrum that was asked for."""
        if full.values is None:
            return full
        trailing = self.options.trailing
        values = np.concatenate([full.values[:top], full.values[full.count - trailing :]])
        return replace(
            full,
            kind="leading",
            count=len(values),
            min=float(values[-1]),
            condition=None,
            effective_rank=None,
            quantiles={},
            histogram=None,
            residuals=(full.error or 0.0,) * len(values),
            values=values,
            trailing=trailing,
        )

    def extremes(self, top: int) -> Spectrum:
        """Return leading and trailing values by iteration.

        Raises:
            UnavailableError: the vectors do not fit into the memory budget.
            ContradictionError: certified statements exclude each other.
        """
        dense, at_size = self.dense, self.shared.norm_at_size
        problem = Problem(dense.kernel, dense.geometry, dense.blocks, *self.shared.norm, self._copies(), self.execution)
        leading = extreme_values(problem, top)
        # All other rows and columns hold nothing: where the blocks have no more values, zeros follow.
        pairs = (sorted(leading.pairs, reverse=True) + [(0.0, 0.0)] * top)[:top]
        if pairs[0][0] > at_size.upper:
            found = f"{pairs[0][0]!r} > {at_size.upper!r}"
            raise ContradictionError("a leading value is above the certified norm", found=found)
        notes = [_note("leading values by Golub-Kahan-Lanczos", leading)]
        if self.options.trailing:
            trailing, note = self._trailing(problem, self.options.trailing)
            pairs += trailing
            notes.append(note)
        return self._leading_spectrum(pairs, at_size, notes)

    def _trailing(self, problem: Problem, count: int) -> tuple[list[tuple[float, float]], str]:
        blocks = [self.dense.one(parts) for parts in self.dense.blocks]
        own = len(problem.kernel) * sum(block.copies * min(block.sides) for block in blocks)
        zeros = min(self.dense.count - own, count)
        if zeros == count:
            return [(0.0, 0.0)] * zeros, f"{self.dense.count - own} singular values are zero by the geometry alone"
        found = extreme_values(problem, count - zeros, smallest=True)
        pairs = sorted(found.pairs, reverse=True)[len(found.pairs) - (count - zeros) :]
        lacking = f"; inverse iteration, which finds them all, needs {_bytes(found.lacking)} of --memory"
        how = f"Golub-Kahan-Lanczos{lacking}" if found.lacking else "inverse iteration"
        return pairs + [(0.0, 0.0)] * zeros, _note(f"trailing values by {how}", found)

    def _leading_spectrum(self, pairs: list[tuple[float, float]], at_size: Interval, notes: list[str]) -> Spectrum:
        shared, options = self.shared, self.options
        values = shared.unscaled(np.array([value for value, _ in pairs]))
        frobenius = shared.unscaled_length(math.sqrt(squared_frobenius(self.dense.kernel, self.dense.tables)))
        if not math.isfinite(frobenius):
            raise UnavailableError("the Frobenius norm exceeds the range of float64")
        return Spectrum(
            method="exact",
            of=self.of_what,
            guarantee="certified",
            count=len(values),
            max=float(values[0]),
            min=float(values[-1]),
            frobenius=frobenius,
            stable_rank=(frobenius / float(values[0])) ** 2 if values[0] > 0 else None,
            effective_rank=None,
            condition=None,
            quantiles={},
            kind="leading",
            assumes=self._assumes(),
            residuals=tuple(shared.unscaled_length(residual) + math.ulp(0.0) for _, residual in pairs),
            values=values,
            upper=shared.in_its_units(at_size).upper,
            trailing=options.trailing,
            density=self._estimated_density(at_size.upper) if options.density else None,
            notes=tuple(notes),
        )

    def _estimated_density(self, top: float) -> Density:
        kernel = self.dense.kernel.to(self.execution.torch_device, self.execution.torch_dtype)
        found = estimated_density(ConvOperator(kernel, self.layer.geometry), top, self.execution.memory)
        return replace(found, edges=tuple(map(self.shared.unscaled_length, found.edges)))

    def _copies(self) -> float:
        geometry = self.layer.geometry
        if geometry.padding_mode == "zeros":
            return 1.0
        sizes = geometry.forward_size(tuple(self.dense.kernel.shape[3:]))
        axes = zip(sizes, geometry.padding, strict=True)
        counts = [padding_multiplicity(geometry.padding_mode, n, *pair) for n, pair in axes]
        return above(math.sqrt(math.prod(counts)), 2)

    def _assumes(self) -> tuple[str, ...]:
        """Return the guessed geometry that changes the values: dilation only with more than one tap."""
        names = ["size", "stride", "padding", "padding_mode", "groups", "transposed"]
        names += ["dilation"] if max(self.layer.kernel_size) > 1 else []
        return self.layer.geometry.guessed(*names)


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"


def _note(how: str, found: Extremes) -> str:
    end = "" if found.converged else "; stopped before all residuals were small"
    return f"{how}, {found.products} operator products{end}"

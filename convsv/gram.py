"""The Gram symbol G(w) = F(w)* F(w): a trigonometric polynomial whose coefficients are formed once.

With C_l = sum_k K_k^T K_(k+l) for the lags l, and C_(-l) = C_l^T,

    G(w) = C_0 + sum_(l > 0) cos(l.w) (C_l + C_l^T) + i sin(l.w) (C_l - C_l^T),

over one lag of each pair {l, -l}. A batch of G(w) is then two real matrix products, whatever the number of output
channels. The smaller channel side is taken: F and its transpose have the same singular values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.execution import Execution
from convsv.rounding import DOUBLE, gamma

__all__ = ["Gram", "Phases", "Space", "gram", "storage"]

_WORTH_A_THREAD = 256 * 64**3
"""Work, as points times size cubed, below which handing a part to a thread costs more than it saves."""
_AMORTISED = 4
"""Points for which the coefficients are read together: of large matrices these are most of what is moved."""
_PARTS_AT_ONCE = 8
"""Parts that fit into memory together, of several points each."""
_ONE_PRODUCT = 448
"""Channels times taps up to which one product over all pairs of taps beats one product a lag."""
_MOST_PAIRS = 1 << 24
"""Numbers that such a product may have."""
_TO_COPY = 128 << 20
"""Bytes of a kernel up to which all its taps are copied."""
_TOGETHER = 1 << 22
"""Entries of coefficients that are looked at in one go: a cast of all of them would double the memory."""
_TRIGONOMETRY = 16 * DOUBLE
"""Error of a computed cosine or sine of 2 pi r / D with integers |r| <= D / 2: the angle errs by less than 3 pi u (the
factor by 2 roundings, the product by one, of at most pi), the functions by 1 ulp."""


Phases: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Cosines ``(M, 1 + L)``, the first of them 1, and sines ``(M, L)``."""


class Space:
    """Memory that one thread uses again and again.

    Fresh blocks of many MiB are cleared by the system: with matrices of 1280 channels that was a quarter of all time.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the block of that name, in which anything may stand; a new one where shape or dtype is another."""
        block = self._blocks.get(name)
        if block is None or block.shape != shape or block.dtype != dtype or block.device != like.device:
            # Of two blocks of one name, the old one goes first.
            self._blocks.pop(name, None)
            block = self._blocks[name] = torch.empty(shape, dtype=dtype, device=like.device)
        return block


@dataclass(frozen=True)
class Gram:
    """Coefficients of G(w), one n x n matrix a lag and group.

    Attributes:
        even: ``(1 + L, G, n * n)``: C_0, then C_l + C_l^T.
        odd: ``(L, G, n * n)``: C_l - C_l^T.
        lags: ``(L, d)`` int64, one of each pair of opposite lags.
        error: bound on the spectral norm of computed minus true G(w), in any group, at any rational point.
        size: n, the smaller number of channels.
    """

    even: Tensor
    odd: Tensor
    lags: NDArray[np.int64]
    error: float
    size: int

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.even.shape[1]

    @property
    def bytes_held(self) -> int:
        """Memory of the coefficients."""
        return (self.even.numel() + self.odd.numel()) * self.even.element_size()

    @property
    def bytes_each(self) -> int:
        """Peak memory of the work on one point: the matrix, its shift, its factor in float64, and the phases."""
        gathered = self.size**2 if self.groups > 1 else 2
        return 64 * self.size**2 + 2 * len(self.lags) * (gathered + 2) * self.even.element_size()

    def parts(self, count: int, execution: Execution) -> list[tuple[int, int]]:
        """Cut so many evaluations into parts of which several fit into memory and which are worth a thread each.

        How long they are shows in the rounding: the number of threads has no part in it.
        """
        least = max(1, _WORTH_A_THREAD // self.size**3)
        shared = execution.chunks(count, self.bytes_each)
        most = max(1, execution.memory // (max(_PARTS_AT_ONCE, execution.sharers) * self.bytes_each))
        length = min(max(least, shared[0][1] if shared else 1, _AMORTISED), most)
        return [(first, min(first + length, count)) for first in range(0, count, length)]

    def to(self, dtype: torch.dtype) -> Gram:
        """Return the coefficients in another precision, the error grown accordingly."""
        if dtype == self.even.dtype:
            return self
        unit = float(torch.finfo(dtype).eps) / 2
        # Rounded coefficients are larger by a factor of 1 + u at most.
        mass = self.mass() * (1 + 2 * unit)
        error = self.error + mass * 2 * unit + self._forming(mass, unit)
        return Gram(self.even.to(dtype), self.odd.to(dtype), self.lags, error * (1 + 16 * DOUBLE), self.size)

    @cached_property
    def norms(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds on the Frobenius norms of the even ``(1 + L, G)`` and the odd ``(L, G)`` coefficients."""
        return _frobenius(self.even), _frobenius(self.odd)

    def mass(self) -> float:
        """Return a bound on the Frobenius norm of the sum of the coefficients' magnitudes, in any group."""
        even, odd = self.norms
        # By the triangle inequality.
        return float((even.sum(0) + odd.sum(0)).max(initial=0.0)) * (1 + gamma(2 * len(self.lags) + 8))

    def forming(self) -> float:
        """Return a bound on what the products, sums and rounded phases of :meth:`at` add to the error."""
        return self._forming(self.mass(), float(torch.finfo(self.even.dtype).eps) / 2)

    def _forming(self, mass: float, unit: float) -> float:
        return mass * (math.sqrt(2) * (gamma(len(self.lags) + 4, unit) + _TRIGONOMETRY) + 3 * unit)

    def phases(self, numerators: NDArray[np.int64], denominators: tuple[int, ...]) -> Phases:
        """Return cosines and sines of l.w at frequencies w = 2 pi numerators / denominators.

        Args:
            numerators: ``(M, d)`` integers.
            denominators: one an axis.
        """
        whole = math.lcm(*denominators)
        steps = np.array([whole // n for n in denominators], dtype=np.int64)
        turns = (numerators % np.array(denominators) * steps) @ self.lags.T % whole
        turns -= np.where(2 * turns > whole, whole, 0)
        angles = turns * (2 * math.pi / whole)
        cosines = np.ones((len(numerators), 1 + len(self.lags)))
        np.cos(angles, out=cosines[:, 1:])
        return cosines, np.sin(angles)

    def at(self, phases: Phases, groups: NDArray[np.int64] | None = None) -> Tensor:
        """Return G at points with these phases.

        Args:
            phases: what :meth:`phases` returns for them.
            groups: ``(M,)`` the group of each point; not looked at where there is one group.

        Returns:
            ``(M, n, n)``, Hermitian; real where there are no lags.
        """
        cosines, sines = (torch.from_numpy(part).to(self.even) for part in phases)
        points, n = cosines.shape[0], self.size
        if self.groups == 1:
            real = cosines @ self.even[:, 0]
            imaginary = sines @ self.odd[:, 0] if n > 1 else None
        else:
            chosen = torch.from_numpy(np.zeros(points, dtype=np.int64) if groups is None else groups).to(
                self.even.device
            )
            real = torch.einsum("ml,lmn->mn", cosines, self.even[:, chosen])
            imaginary = torch.einsum("ml,lmn->mn", sines, self.odd[:, chosen]) if n > 1 else None
        if imaginary is None or not len(self.lags):
            return real.view(points, n, n)
        return torch.complex(real, imaginary).view(points, n, n)

    def each(self, phases: Phases, space: Space) -> Iterator[Tensor]:
        """Yield what :meth:`at` returns for a few points of one group, one ``(1, n, n)`` after the other.

        The coefficients are read once for all, and every matrix is overwritten by the next one.

        Args:
            phases: what :meth:`phases` returns for them.
            space: memory of the calling thread.
        """
        cosines, sines = (torch.from_numpy(part).to(self.even) for part in phases)
        shape, dtype = (len(cosines), self.size**2), self.even.dtype
        real, imaginary = (space.empty(name, shape, self.even, dtype) for name in ("real", "imaginary"))
        torch.mm(cosines, self.even[:, 0], out=real)
        torch.mm(sines, self.odd[:, 0], out=imaginary)
        matrix = space.empty("matrix", (1, self.size, self.size), self.even, dtype.to_complex())
        for part, other in zip(real, imaginary, strict=True):
            torch.complex(part, other, out=matrix.view(-1))
            yield matrix


def storage(kernel: Tensor, memory: int) -> torch.dtype | None:
    """Return the precision in which the coefficients of a kernel, and the work on one point, fit into memory.

    Args:
        kernel: ``(G, O, I, *K)``.
        memory: budget in bytes.

    Returns:
        float64 where it fits, else float32 (with a larger error), else None.
    """
    size = min(kernel.shape[1:3])
    lags = math.prod(2 * k - 1 for k in kernel.shape[3:])
    entries, work = lags * kernel.shape[0] * size**2, 48 * size**2
    for dtype, width in ((torch.float64, 8), (torch.float32, 4)):
        if entries * width + work <= memory:
            return dtype
    return None


def gram(kernel: Tensor, dtype: torch.dtype = torch.float64) -> Gram:
    """Form the Gram symbol's coefficients, in float64 products.

    Args:
        kernel: ``(G, O, I, *K)`` float64 in normal form, entries at most about 1 in magnitude.
        dtype: in which the coefficients are stored and points are evaluated.
    """
    kernel = kernel if kernel.shape[2] <= kernel.shape[1] else kernel.transpose(1, 2)
    long, size, extent = kernel.shape[1], kernel.shape[2], tuple(kernel.shape[3:])
    taps = _Taps(kernel)
    lags = _half_lags(extent)
    even, odd = _coefficients(taps, lags, dtype)
    result = Gram(even, odd, _lag_array(extent), 0.0, size)
    magnitude = taps.magnitude()
    product = torch.minimum(magnitude.square().sum((-1, -2)), magnitude.sum(-1).amax(-1) * magnitude.sum(-2).amax(-1))
    count = math.prod(extent)
    # C_l by inner products of length at most long * count; their sum over all lags is at most |K|^T |K|.
    products = 2 * gamma(long * count + 4) * float(product.max()) * (1 + gamma(long * count * size + 8))
    unit = float(torch.finfo(dtype).eps) / 2
    tiny = 8 * size * (1 + len(lags)) * long * count * float(torch.finfo(dtype).tiny)
    error = (products + result.mass() * 2 * unit + result.forming() + tiny) * (1 + 64 * DOUBLE)
    return replace(result, error=error)


class _Taps:
    """The taps of a kernel ``(G, long, n, *K)``, one ``(G, long, n)`` each.

    Copied together, positions first, where that is affordable; a large kernel is a large part of the memory, and its
    taps are gathered when they are needed.
    """

    def __init__(self, kernel: Tensor) -> None:
        self.extent = tuple(kernel.shape[3:])
        self._ready = kernel.numel() * kernel.element_size() <= _TO_COPY
        taps = kernel.permute(0, *range(3, kernel.ndim), 1, 2)
        self.all = taps.contiguous() if self._ready else taps

    def __call__(self, position: tuple[int, ...]) -> Tensor:
        place: tuple[slice | int, ...] = (slice(None), *position)
        return self.all[place] if self._ready else self.all[place].contiguous()

    def magnitude(self) -> Tensor:
        """Return the sum of the magnitudes of all taps, ``(G, long, n)``."""
        if self._ready:
            return self.all.abs().flatten(1, -3).sum(1)
        total = torch.zeros_like(self((0,) * len(self.extent)))
        for position in itertools.product(*map(range, self.extent)):
            total += self(position).abs()
        return total


def _frobenius(coefficients: Tensor) -> NDArray[np.float64]:
    """Return bounds on the Frobenius norms ``(L, G)`` of coefficients ``(L, G, n * n)``, formed in float64."""
    few = max(1, _TOGETHER // max(1, coefficients[:1].numel()))
    norms = [torch.linalg.vector_norm(part, dim=-1, dtype=torch.float64) for part in torch.split(coefficients, few)]
    found = torch.cat(norms).cpu().numpy()
    # A square below the smallest normal number may vanish.
    slack = 1 + gamma(coefficients.shape[-1] + 8)
    return np.asarray(found * slack + math.sqrt(coefficients.shape[-1] * torch.finfo(torch.float64).tiny))


@lru_cache(maxsize=32)
def _lag_array(extent: tuple[int, ...]) -> NDArray[np.int64]:
    lags = _half_lags(extent)
    return np.array(lags, dtype=np.int64).reshape(len(lags), len(extent))


@lru_cache(maxsize=32)
def _half_lags(extent: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return one of each pair of opposite nonzero lags: those whose first nonzero entry is positive."""
    zero = (0,) * len(extent)
    return [lag for lag in itertools.product(*(range(1 - k, k) for k in extent)) if lag > zero]


def _coefficients(taps: _Taps, lags: list[tuple[int, ...]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the even ``(1 + L, G, n * n)`` and odd ``(L, G, n * n)`` coefficients of taps."""
    groups, size = taps.all.shape[0], taps.all.shape[-1]
    even = taps.all.new_empty(1 + len(lags), groups, size * size, dtype=dtype)
    odd = taps.all.new_empty(len(lags), groups, size * size, dtype=dtype)
    width = math.prod(taps.extent) * size
    if width <= _ONE_PRODUCT and groups * width**2 <= _MOST_PAIRS:
        total = _all_correlations(taps.all, len(lags))
        opposite = total[1:].mT
        torch.cat([total[:1], total[1:] + opposite], out=even.view(-1, groups, size, size))
        torch.sub(total[1:], opposite, out=odd.view(-1, groups, size, size))
        return even, odd
    even[0] = _correlation(taps, (0,) * len(taps.extent)).flatten(1)
    for index, lag in enumerate(lags):
        coefficient = _correlation(taps, lag)
        torch.add(coefficient, coefficient.mT, out=even[1 + index].view(groups, size, size))
        torch.sub(coefficient, coefficient.mT, out=odd[index].view(groups, size, size))
    return even, odd


def _all_correlations(taps: Tensor, lags: int) -> Tensor:
    """Return C_0 and C_l ``(1 + L, G, n, n)``: all pairs of taps in one product, then summed by lag."""
    groups, size, count = taps.shape[0], taps.shape[-1], math.prod(taps.shape[1:-2])
    flat = taps.reshape(groups, count, -1, size).transpose(1, 2).reshape(groups, -1, count * size)
    pairs = (flat.mT @ flat).view(groups, count, size, count, size).permute(1, 3, 0, 2, 4)
    wanted = torch.from_numpy(_lag_of_pairs(tuple(taps.shape[1:-2]))).to(taps.device)
    total = taps.new_zeros(lags + 2, groups, size, size)
    total.index_add_(0, wanted, pairs.reshape(-1, groups, size, size))
    return total[:-1]


@lru_cache(maxsize=32)
def _lag_of_pairs(extent: tuple[int, ...]) -> NDArray[np.int64]:
    """Return for each ordered pair of taps the position of its lag: 0 for lag 0, then the half lags, last the rest."""
    position = {lag: index for index, lag in enumerate([(0,) * len(extent), *_half_lags(extent)])}
    taps = list(itertools.product(*(range(k) for k in extent)))
    lags = (tuple(b - a for a, b in zip(one, other, strict=True)) for one in taps for other in taps)
    return np.array([position.get(lag, len(position)) for lag in lags], dtype=np.int64)


def _correlation(taps: _Taps, lag: tuple[int, ...]) -> Tensor:
    """Return sum_k K_k^T K_(k + lag): ``(G, n, n)``."""
    axes = zip(lag, taps.extent, strict=True)
    places = itertools.product(*(range(max(0, -step), min(count, count - step)) for step, count in axes))
    groups, size = taps.all.shape[0], taps.all.shape[-1]
    total = taps.all.new_zeros(groups, size, size)
    for here in places:
        there = tuple(k + step for k, step in zip(here, lag, strict=True))
        total.baddbmm_(taps(here).mT, taps(there))
    return total

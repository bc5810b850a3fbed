"""The symbol of a convolution: F(w) = sum_k K_k exp(i k.w), one small matrix a frequency w.

Everything that is known about a convolution at all sizes at once is known through its symbol: circular padding of
size N samples it at the N^d grid points 2 pi j / N (Sedghi, Gupta, Long 2019, Theorem 6), and the size-free norm is
its largest singular value over all frequencies. Kernels are ``(G, O, I, *K)`` as everywhere.

F(-w) is the complex conjugate of F(w), so half of a grid is enough (:func:`half_grid`). Grid phases are reduced in
integers before any rounding: the accuracy does not depend on the size of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from convsv.layer import normal_taps

__all__ = [
    "NormalForm",
    "from_normal_form",
    "grid_symbol",
    "half_grid",
    "half_grid_span",
    "normal_extent",
    "normal_form",
    "symbol",
    "symbol_error",
    "unit_roundoff",
]

_TOGETHER = 1 << 22
"""Entries of a kernel whose magnitudes are formed at one time."""
_TRIGONOMETRY_ULPS = 4.0
"""Bound on the error of a computed (cos, sin) pair as a complex number, in units of 2^-53.

SLEEF and MKL's vector functions state 1 ulp, CUDA's double precision ones 2 ulp; sqrt(2) * 2 < 4."""


@dataclass(frozen=True)
class NormalForm:
    """A stride-1 convolution with the nonzero singular values of the given one.

    Attributes:
        kernel: ``(G, O, I * prod(stride), *K')``.
        dilation: what is left of the dilation: it acts on frequencies, F(dilation * w).
        stride: the stride that was folded into the channels.
    """

    kernel: Tensor
    dilation: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def degrees(self) -> tuple[int, ...]:
        """Degree of the symbol in each frequency, dilation aside: taps less one."""
        return tuple(k - 1 for k in self.kernel.shape[3:])


def normal_form(kernel: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> NormalForm:
    """Return the normal form of a convolution: its polyphase components as channels (Senderovich et al. 2022).

    Differentiable in ``kernel``; a kernel of stride 1 is returned as it is.

    Args:
        kernel: ``(G, O, I, *K)``, any floating dtype.
        stride: one integer an axis.
        dilation: one integer an axis.
    """
    if max(stride, default=1) == 1:
        return NormalForm(kernel, tuple(dilation), tuple(stride))
    taps, left = _normal_index(tuple(kernel.shape[3:]), tuple(stride), tuple(dilation))
    groups, outputs, inputs = kernel.shape[:3]
    flat = torch.cat([kernel.reshape(groups, outputs, inputs, -1), kernel.new_zeros(groups, outputs, inputs, 1)], -1)
    # A tap of -1 picks the appended zero, by Python's and torch's reading of negative indices alike.
    gathered = flat[..., taps.to(kernel.device)]
    phases = taps.shape[0]
    return NormalForm(gathered.reshape(groups, outputs, inputs * phases, *taps.shape[1:]), left, tuple(stride))


def normal_extent(kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Return the spatial taps ``K'`` of the normal form."""
    return kernel_size if max(stride, default=1) == 1 else _normal_index(kernel_size, stride, dilation)[0].shape[1:]


def from_normal_form(
    slope: Tensor, kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """Return the adjoint of :func:`normal_form`: a gradient in the normal form's kernel as one in the kernel.

    Args:
        slope: ``(G, O, I * prod(stride), *K')``.
        kernel_size: taps of the kernel, an axis.
        stride: one integer an axis.
        dilation: one integer an axis.

    Returns:
        ``(G, O, I, *K)``; every tap of the kernel has one place in the normal form.
    """
    if max(stride, default=1) == 1:
        return slope
    taps = _normal_index(kernel_size, stride, dilation)[0].to(slope.device)
    groups, outputs = slope.shape[:2]
    flat = slope.new_empty(groups, outputs, slope.shape[2] // taps.shape[0], math.prod(kernel_size) + 1)
    flat[..., taps] = slope.reshape(*flat.shape[:3], *taps.shape)
    return flat[..., :-1].reshape(*flat.shape[:3], *kernel_size)


@lru_cache(maxsize=64)
def _normal_index(
    kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Return the index map as a tensor, to be read only."""
    taps, left = normal_taps(kernel_size, stride, dilation)
    return torch.from_numpy(taps), left


def symbol(kernel: Tensor, frequencies: Tensor) -> Tensor:
    """Return F(w) at any frequencies; differentiable in both arguments.

    Args:
        kernel: ``(G, O, I, *K)``, float64 or float32.
        frequencies: ``(M, d)`` in radians; phases are formed in float64 whatever the kernel's dtype.

    Returns:
        ``(M, G, O, I)``, complex, of the kernel's precision. :func:`symbol_error` bounds its error where
        ``|w| <= 2 pi`` on each axis.
    """
    taps = _tap_positions(kernel).to(torch.float64)
    angles = frequencies.to(torch.float64) @ taps.T
    return _transform(kernel, torch.cos(angles), torch.sin(angles))


def grid_symbol(form: NormalForm, size: Sequence[int], indices: Tensor) -> Tensor:
    """Return F(dilation * 2 pi j / N) at points of the grid with N = ``size`` points an axis.

    The grid shifted by half a step is every second point of the doubled one: ``size`` 2N and indices 2j + 1.

    Args:
        form: the normal form.
        size: points of the grid, one integer an axis; they may be fewer than the taps (the kernel wraps).
        indices: ``(M, d)`` int64.

    Returns:
        ``(M, G, O, I')``, complex, within :func:`symbol_error` of the true values.
    """
    turns = _whole_turns(_tap_positions(form.kernel), form.dilation, size, indices.to(form.kernel.device))
    cosines, sines = _unit_circle(*turns)
    return _transform(form.kernel, cosines, sines)


def half_grid_span(size: Sequence[int], shift: Sequence[int] | None = None) -> int:
    """Return the number of positions that :func:`half_grid` walks over; ``start`` and ``stop`` count them."""
    first = size[0] // 2 + 1 if not (shift and shift[0]) else (size[0] + 1) // 2
    return first * math.prod(size[1:])


def half_grid(
    size: Sequence[int], shift: Sequence[int] | None = None, start: int = 0, stop: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return one of each pair of conjugate grid points, and how many points it stands for.

    Args:
        size: points of the grid, one integer an axis.
        shift: 1 on axes where the grid is shifted by half a step, so that j and -j - 1 are conjugate there.
        start: first position of the walk, for work in chunks.
        stop: end of the walk; :func:`half_grid_span` positions in all, of which a few are no representatives.

    Returns:
        Indices ``(M, d)`` and weights ``(M,)``, int64: weight 1 on self-conjugate points, else 2. All weights
        together are the number of grid points.
    """
    sizes = torch.tensor(tuple(size), dtype=torch.int64)
    halves = torch.tensor(tuple(shift or (0,) * len(size)), dtype=torch.int64)
    strides = torch.tensor([math.prod(size[axis + 1 :]) for axis in range(len(size))], dtype=torch.int64)
    flat = torch.arange(start, half_grid_span(size, shift) if stop is None else stop, dtype=torch.int64)
    indices = flat[:, None] // strides % sizes
    mirrored = ((-indices - halves) % sizes * strides).sum(1)
    kept = flat <= mirrored
    return indices[kept], torch.where(flat == mirrored, 1, 2)[kept]


def symbol_error(kernel: Tensor) -> float:
    """Return a bound on the spectral norm of the error of the computed F(w) in any group, for |w| <= 2 pi an axis.

    With P taps, unit roundoff u of the kernel's dtype and gamma_n = n u / (1 - n u), an inner product of length P
    computed in any order errs by at most gamma_P sum_k |K_k| |p_k| (Higham, Accuracy and Stability of Numerical
    Algorithms, 2002, section 3.1), where p_k are the computed phases; these err by delta: the rounding of the
    angle (gamma_d times the largest |k.w|), of cosine and sine, and of the cast to the dtype. Hence entry by entry
    |error| <= (gamma_P (1 + delta) + delta) sum_k |K_k|, and the Frobenius norm of the right side bounds the
    spectral norm of the left. A last term covers products that underflow or are flushed to zero.

    Args:
        kernel: ``(G, O, I, *K)``, float64 or float32: the kernel as the symbol is computed from it.
    """
    dims, taps = kernel.ndim - 3, math.prod(kernel.shape[3:])
    double, working = unit_roundoff(torch.float64), unit_roundoff(kernel.dtype)
    angle = 2 * math.pi * sum(k - 1 for k in kernel.shape[3:])
    # At frequency-free kernels (one tap) every phase is exactly 1.
    delta = 0.0 if taps == 1 else _gamma(dims + 2, double) * angle + _TRIGONOMETRY_ULPS * double
    if kernel.dtype != torch.float64 and taps > 1:
        delta += working
    # Some outputs at a time: the magnitudes of a large kernel would be a copy of it.
    few = max(1, _TOGETHER // max(1, kernel[:, :1].numel()))
    parts = torch.split(kernel.detach(), few, dim=1)
    magnitudes = torch.cat([part.abs().to(torch.float64).flatten(3).sum(-1) for part in parts], 1)
    frobenius = float(torch.linalg.vector_norm(magnitudes, dim=(1, 2)).max()) if magnitudes.numel() else 0.0
    entries = math.prod(kernel.shape[1:3])
    smallest = torch.finfo(kernel.dtype).tiny
    bound = (_gamma(taps, working) * (1 + delta) + delta) * frobenius + 4 * taps * math.sqrt(entries) * smallest
    # The bound itself was computed in float64, from sums of at most this many nonnegative terms.
    return bound * (1 + 2 * _gamma(taps + entries + 16, double))


def unit_roundoff(dtype: torch.dtype) -> float:
    """Return u, half the distance from 1 to the next larger number."""
    return float(torch.finfo(dtype).eps) / 2


def _gamma(count: int, roundoff: float) -> float:
    return count * roundoff / (1 - count * roundoff)


def _tap_positions(kernel: Tensor) -> Tensor:
    """Return the position of every tap, ``(P, d)`` int64, in the order of the flattened kernel: to be read only."""
    return _positions(tuple(kernel.shape[3:]), kernel.device)


@lru_cache(maxsize=64)
def _positions(extent: tuple[int, ...], device: torch.device) -> Tensor:
    axes = [torch.arange(k, device=device) for k in extent]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


def _whole_turns(
    positions: Tensor, dilation: Sequence[int], size: Sequence[int], indices: Tensor
) -> tuple[Tensor, int]:
    """Return integers m ``(M, P)`` and L such that the phase of point and tap is exactly m / L turns."""
    whole = math.lcm(*size)
    turns = torch.zeros(indices.shape[0], positions.shape[0], dtype=torch.int64, device=indices.device)
    for axis, (n, d) in enumerate(zip(size, dilation, strict=True)):
        steps = positions[:, axis] * d % n
        turns += indices[:, axis, None] % n * steps % n * (whole // n)
    return turns % whole, whole


def _unit_circle(turns: Tensor, whole: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of 2 pi turns / whole, float64; the angle is reduced to an eighth in integers."""
    quarter = (8 * turns + whole) // (2 * whole)
    rest = (4 * turns - quarter * whole).to(torch.float64) * (math.pi / 2) / whole
    cosine, sine = torch.cos(rest), torch.sin(rest)
    odd, side = quarter % 2 == 1, quarter % 4
    return (
        torch.where(odd, sine, cosine) * torch.where((side == 1) | (side == 2), -1.0, 1.0),
        torch.where(odd, cosine, sine) * torch.where(side >= 2, -1.0, 1.0),
    )


def _transform(kernel: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    taps = kernel.reshape(math.prod(kernel.shape[:3]), -1).T
    real, imaginary = cosines.to(kernel.dtype) @ taps, sines.to(kernel.dtype) @ taps
    return torch.complex(real, imaginary).reshape(-1, *kernel.shape[:3])

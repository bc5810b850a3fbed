"""The steps by which PyTorch recomputes a weight, each with its way back: from a wanted weight to what is stored.

A step turns one array into another of the same shape (:meth:`Step.apply`). To make its output a wanted one, a writer
first asks it for the input that goes with that (:meth:`Step.ask`), stores this input rounded, and then lets the step
fit its own tensors to the input as stored (:meth:`Step.fit`): so rounding the large tensor spoils no small one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints import StoredTensor
from convsv.errors import UnavailableError

__all__ = [
    "Array",
    "Mask",
    "SpectralNorm",
    "Step",
    "Values",
    "WeightNorm",
    "row_axes",
    "spectral_normalised",
    "weight_normalised",
]

Array: TypeAlias = NDArray[np.float64]
Values: TypeAlias = Callable[[StoredTensor], Array]
"""The values of a stored tensor: as the file has them, or as they are about to be."""

_FAINT = 2.0**-10
"""A right vector that the weight shrinks by more than this, compared with its Frobenius norm, says too little."""
_CLEAR = 0.9
"""Another reading of the vectors must stay this far below the right one, which is 1."""
_ROUNDS = 30


class Step(ABC):
    """One step from the stored weight to the effective one.

    Attributes:
        note: what whoever changes the weight should know.
    """

    note: ClassVar[str | None] = None

    @property
    @abstractmethod
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The step's own tensors."""

    @abstractmethod
    def apply(self, weight: Array, values: Values) -> Array:
        """Return the step's output for an input."""

    @abstractmethod
    def ask(self, wanted: Array, before: Array, values: Values) -> Array:
        """Return the input with which the output can be ``wanted``, near to the input ``before`` of now."""

    def fit(self, given: Array, wanted: Array, before: Array, values: Values) -> list[tuple[StoredTensor, Array]]:
        """Return what the step's own tensors must hold so that the output for the input ``given`` is ``wanted``.

        Raises:
            UnavailableError: no values do that.
        """
        return []

    def support(self, values: Values) -> NDArray[np.bool_] | None:
        """Return where the output can differ from zero; None for everywhere."""
        return None


# -------------------------------------------------------------------------------------------------------- weight_norm


def weight_normalised(direction: Array, magnitude: Array) -> Array:
    """Return ``g v / ||v||``, the norm taken over every axis along which ``g`` has one entry.

    Args:
        direction: ``v``, any shape.
        magnitude: ``g``, with the axes of ``v`` and length 1 where the norm is taken, or a scalar.

    Returns:
        An array like ``v``; NaN where ``||v||`` is zero, as in PyTorch.
    """
    magnitude = _beside(magnitude, direction.ndim)
    with np.errstate(invalid="ignore", divide="ignore"):
        effective: Array = direction * (magnitude / _lengths(direction, magnitude.shape))
    return effective


def _beside(magnitude: Array, ndim: int) -> Array:
    return magnitude if magnitude.ndim == ndim else magnitude.reshape((-1,) + (1,) * (ndim - 1))


def _lengths(direction: Array, shape: tuple[int, ...]) -> Array:
    """Return the norms over every axis along which ``shape`` is 1."""
    axes = tuple(axis for axis, length in enumerate(shape) if length == 1)
    # A power of two out first: squares of tiny or huge weights would leave float64.
    scale = math.ldexp(1.0, math.frexp(float(np.abs(direction).max(initial=0.0)))[1] - 1)
    lengths: Array = np.sqrt(np.sum((direction / scale) ** 2, axis=axes, keepdims=True)) * scale
    return lengths


@dataclass(frozen=True)
class WeightNorm(Step):
    """``g v / ||v||`` (Salimans, Kingma 2016).

    Going back, ``v`` keeps its length and takes the wanted direction, or the opposite one where ``g`` is negative;
    ``g`` is the wanted length. A filter that shall vanish keeps its ``v`` and has ``g = 0``.

    Attributes:
        magnitude: the tensor ``g``.
    """

    magnitude: StoredTensor

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The magnitude."""
        return (self.magnitude,)

    def apply(self, weight: Array, values: Values) -> Array:
        """Return ``g v / ||v||``."""
        return weight_normalised(weight, values(self.magnitude))

    def ask(self, wanted: Array, before: Array, values: Values) -> Array:
        """Return the direction."""
        shape = _beside(values(self.magnitude), wanted.ndim).shape
        axes = tuple(axis for axis, length in enumerate(shape) if length == 1)
        length, kept = _lengths(wanted, shape), _lengths(before, shape)
        kept = np.where(np.isfinite(kept) & (kept > 0), kept, length)
        opposite = np.sum(wanted * before, axis=axes, keepdims=True) < 0
        with np.errstate(invalid="ignore", divide="ignore"):
            turned: Array = wanted * (np.where(opposite, -kept, kept) / length)
        return np.where(length > 0, turned, before)

    def fit(self, given: Array, wanted: Array, before: Array, values: Values) -> list[tuple[StoredTensor, Array]]:
        """Return the magnitude with which the output is nearest to ``wanted``."""
        old = values(self.magnitude)
        shape = _beside(old, given.ndim).shape
        axes = tuple(axis for axis, length in enumerate(shape) if length == 1)
        length = _lengths(given, shape)
        with np.errstate(invalid="ignore", divide="ignore"):
            fitted = np.sum(wanted * (given / length), axis=axes, keepdims=True)
        return [(self.magnitude, fitted.reshape(old.shape))]


# ------------------------------------------------------------------------------------------------------ spectral_norm


def spectral_normalised(weight: Array, u: Array, v: Array, axis: int | None = None) -> Array:
    """Return ``W / (u^T M v)``, with ``M`` the weight as a matrix whose rows run along one axis.

    Args:
        weight: the stored weight, at least two axes.
        u: left vector, as long as that axis.
        v: right vector, as long as the product of the others.
        axis: the axis of the rows: 0 for convolutions, 1 for transposed ones in PyTorch. By default the axis
            that fits the lengths; of several, the one with the largest ``|u^T M v|``: the vectors come from
            power iteration, so the right reading is close to the largest singular value and others are not.

    Raises:
        UnavailableError: the lengths fit no axis.
    """
    sigma = _sigmas(weight, u, v, axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        effective: Array = weight / np.float64(max(sigma.values(), key=abs))
    return effective


def row_axes(shape: tuple[int, ...], u_size: int, v_size: int) -> list[int]:
    """Return the axes that rows can run along, given the lengths of the vectors."""
    return [axis for axis, n in enumerate(shape) if n == u_size and n * v_size == math.prod(shape)]


def _sigmas(weight: Array, u: Array, v: Array, axis: int | None) -> dict[int, float]:
    """Return ``u^T M v`` by the axis of the rows, for those that come into question.

    Raises:
        UnavailableError: the lengths fit no axis.
    """
    axes = row_axes(weight.shape, u.size, v.size)
    axes = [axis] if axis in axes else axes
    if not axes:
        raise UnavailableError("the vectors of spectral_norm do not fit the weight")
    return {a: float(u.ravel() @ _matrix(weight, a) @ v.ravel()) for a in axes}


def _matrix(weight: Array, axis: int) -> Array:
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


@dataclass(frozen=True)
class SpectralNorm(Step):
    """``W / (u^T M v)`` (Miyato et al. 2018), as in eval mode.

    Whatever the weight, ``u^T M v`` of the effective one is 1: with the vectors as they are the norm could not be
    chosen. Going back, the weight becomes the wanted one and ``u`` becomes ``M v / ||M v||^2``, which makes the divisor
    1: half a step of the power iteration, with another length. Each of its terms is positive, so rounding ``u``
    moves it by half a unit in the last place at most.

    Attributes:
        u: the left vector.
        v: the right vector.
        axis: the axis of the rows; None where the class of the layer is not known.
    """

    note = "spectral_norm: the norm holds in eval mode; a training step divides the weight by its own norm again"

    u: StoredTensor
    v: StoredTensor
    axis: int | None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The vectors."""
        return (self.u, self.v)

    def apply(self, weight: Array, values: Values) -> Array:
        """Return ``W / (u^T M v)``."""
        return spectral_normalised(weight, values(self.u), values(self.v), self.axis)

    def ask(self, wanted: Array, before: Array, values: Values) -> Array:
        """Return what is wanted."""
        return wanted

    def fit(self, given: Array, wanted: Array, before: Array, values: Values) -> list[tuple[StoredTensor, Array]]:
        """Return vectors with ``u^T M v = 1``; ``v`` stays where it does not make that badly conditioned.

        Raises:
            UnavailableError: the weight is zero, or would be read along another axis.
        """
        if not given.any():
            raise UnavailableError("a zero kernel cannot be stored through spectral_norm, which would divide 0 by 0")
        u, v = values(self.u), values(self.v)
        now = _sigmas(before, u, v, self.axis)
        axis = max(now, key=lambda a: abs(now[a]))
        rows = _matrix(given, axis)
        for right in _right_vectors(v, rows):
            image = rows @ right
            power = float(image @ image)
            if not math.sqrt(power) > _FAINT * float(np.linalg.norm(rows) * np.linalg.norm(right)):
                continue
            left = image / power
            others = _sigmas(given, left, right, self.axis)
            if all(abs(sigma) < _CLEAR for other, sigma in others.items() if other != axis):
                return [(self.u, left.reshape(u.shape)), (self.v, right.reshape(v.shape))]
        raise UnavailableError("its vectors of spectral_norm could be read along another axis of the new weight")


def _right_vectors(v: Array, rows: Array) -> Iterator[Array]:
    """Yield the vector there is and, only if that is asked for, a better one."""
    yield v.ravel()
    yield _leading(rows)


def _leading(rows: Array) -> Array:
    """Return a unit vector near the leading right singular vector: power iteration from the largest row."""
    right: Array = rows[np.argmax(np.linalg.norm(rows, axis=1))]
    for _ in range(_ROUNDS):
        right = right / np.linalg.norm(right)
        right = rows.T @ (rows @ right)
    unit: Array = right / np.linalg.norm(right)
    return unit


# --------------------------------------------------------------------------------------------------------------- mask


@dataclass(frozen=True)
class Mask(Step):
    """``W * mask`` (torch.nn.utils.prune). Going back, entries that the mask hides stay what they are.

    Attributes:
        mask: the tensor of the mask.
    """

    mask: StoredTensor

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The mask."""
        return (self.mask,)

    def apply(self, weight: Array, values: Values) -> Array:
        """Return ``W * mask``."""
        return weight * values(self.mask)

    def ask(self, wanted: Array, before: Array, values: Values) -> Array:
        """Return the wanted weight where the mask shows it."""
        mask = values(self.mask)
        shown: Array = np.divide(wanted, mask, out=before.copy(), where=mask != 0)
        return shown

    def support(self, values: Values) -> NDArray[np.bool_] | None:
        """Where the mask is not zero."""
        shown: NDArray[np.bool_] = values(self.mask) != 0
        return shown

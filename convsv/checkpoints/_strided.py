"""Strided views of bytes in a file: checked against the bytes before anything is allocated, read on demand."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints._file import RegularFile
from convsv.errors import CheckpointError

__all__ = [
    "DTYPES",
    "MAX_INT",
    "Storage",
    "StridedView",
    "TensorRecord",
    "read_view",
    "shape_problem",
    "split_view",
    "strided_tensor",
    "unreadable",
]

MAX_RANK = 64
MAX_INT = (1 << 63) - 1
_BLOCK = 1 << 26

_NUMPY = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")
_EXTENDED = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
DTYPES: Mapping[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in (*_NUMPY, "bool", "complex64", "complex128")},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _EXTENDED if hasattr(ml_dtypes, name)},
}
"""Dtypes whose values can be read, by torch's names, which are also numpy's and ml_dtypes'."""


@dataclass(frozen=True)
class Storage:
    """The bytes that tensors are views of.

    Attributes:
        key: its name in the file.
        size: number of bytes.
        read: ``(start, count) -> bytes`` within it; raises ``CheckpointError``.
        big_endian: byte order of its elements.
        file: where its bytes stand uncompressed, in one piece; None if nowhere.
        start: absolute position there.
    """

    key: str
    size: int
    read: Callable[[int, int], bytes] = field(repr=False, compare=False)
    big_endian: bool = False
    file: RegularFile | None = field(default=None, repr=False, compare=False)
    start: int = 0


@dataclass(frozen=True)
class StridedView:
    """How a tensor lies in its storage.

    Attributes:
        dtype: of its elements; a key of :data:`DTYPES`.
        offset: of its first element, in elements.
        shape: one integer an axis.
        strides: in elements, one an axis.
        conjugate: whether the values are the complex conjugates of the stored ones.
        negative: whether the values are the stored ones negated.
    """

    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conjugate: bool = False
    negative: bool = False

    @property
    def extent(self) -> int:
        """Elements from the first to the last, both counted."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True)
class TensorRecord:
    """A tensor that was found, before it has a name: the fields of ``StoredTensor`` that its description gives.

    ``storage`` and ``view`` say which bytes it is read from, for a tensor that can be read and has elements.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], NDArray[Any]] = field(repr=False, compare=False)
    identity: object = None
    problem: str | None = None
    storage: Storage | None = None
    view: StridedView | None = None


def unreadable(shape: tuple[int, ...], dtype: str, problem: str) -> TensorRecord:
    """Return the record of a tensor that exists but cannot be read, with the reason."""

    def read() -> NDArray[Any]:
        raise CheckpointError(problem)

    return TensorRecord(shape, dtype or "unknown", read, problem=problem)


def strided_tensor(view: StridedView, find: Callable[[], Storage]) -> TensorRecord:
    """Return the record of a view; one that is not an honest array gets a problem instead of values.

    Refused are views beyond their storage, negative sizes and strides, expanded views (stride 0), and views whose
    elements may overlap: sorted by stride, each axis must step over all that the smaller ones reach.

    Args:
        view: as the file describes it; nothing in it is trusted.
        find: returns the storage; not called for a view without elements. May raise ``CheckpointError``.
    """
    problem = _problem(view)
    if problem is not None:
        return unreadable(() if any(n < 0 for n in view.shape) else view.shape, view.dtype, problem)
    dtype = DTYPES[view.dtype]
    if 0 in view.shape:
        return TensorRecord(view.shape, view.dtype, lambda: np.zeros(view.shape, dtype))
    # The stride of an axis of one element means nothing: without this, equal views would differ.
    view = replace(view, strides=tuple(s if n > 1 else 0 for n, s in zip(view.shape, view.strides, strict=True)))
    storage = find()
    end = (view.offset + view.extent) * dtype.itemsize
    if end > storage.size:
        return unreadable(view.shape, view.dtype, f"reaches beyond its storage: byte {end} of {storage.size}")
    return TensorRecord(
        view.shape, view.dtype, partial(read_view, storage, view), (storage.key, view), None, storage, view
    )


def shape_problem(shape: Sequence[int], dtype: np.dtype[Any]) -> str | None:
    """Return why no array has that shape, if so: numpy counts the bytes as if an axis of no element had one.

    Args:
        shape: lengths that are not negative.
        dtype: of the elements.
    """
    too_large = math.prod(max(n, 1) for n in shape) * dtype.itemsize > MAX_INT
    return "its shape is too large" if too_large else None


def _problem(view: StridedView) -> str | None:
    if not 0 <= view.offset <= MAX_INT:
        return "its offset is out of range"
    if any(n < 0 for n in view.shape):
        return "its shape is negative"
    if len(view.shape) != len(view.strides) or len(view.shape) > MAX_RANK:
        return "its shape and strides do not fit"
    too_large = shape_problem(view.shape, DTYPES[view.dtype])
    return too_large if too_large or 0 in view.shape else _stride_problem(view)


def _stride_problem(view: StridedView) -> str | None:
    axes = sorted((stride, n) for stride, n in zip(view.strides, view.shape, strict=True) if n > 1)
    if axes and axes[0][0] < 0:
        return "its strides are negative"
    if axes and axes[0][0] == 0:
        return "is an expanded view: one stored value stands for many elements"
    reach = 0
    for stride, n in axes:
        if stride <= reach:
            return "is a view whose elements may overlap"
        reach += stride * (n - 1)
    return None


def read_view(storage: Storage, view: StridedView) -> NDArray[Any]:
    """Return the values of a view that was checked against its storage.

    Raises:
        CheckpointError: the storage cannot be read.
    """
    values = _gather(storage, view)
    if view.conjugate and values.dtype.kind == "c":
        values = np.conj(values)
    return np.negative(values) if view.negative and view.dtype != "bool" else values


def _gather(storage: Storage, view: StridedView) -> NDArray[Any]:
    dtype = DTYPES[view.dtype]
    item, extent = dtype.itemsize, view.extent
    blocks = split_view(view)
    if len(blocks) > 1:
        return np.concatenate([_gather(storage, block) for block, _ in blocks], _widest(view))
    data = storage.read(view.offset * item, extent * item)
    if storage.big_endian != (sys.byteorder == "big"):
        data = _swapped(data, dtype)
    # Not as_strided: numpy's array interface has no name for ml_dtypes' dtypes.
    strided: NDArray[Any] = np.ndarray(view.shape, dtype, data, strides=[s * item for s in view.strides])
    return strided if strided.flags.c_contiguous else np.ascontiguousarray(strided)


def split_view(view: StridedView) -> list[tuple[StridedView, tuple[slice, ...]]]:
    """Return parts of a view with what they are of it; one part unless its elements lie far apart.

    Where most of the bytes between the first and the last element belong to others, and these are many, the view is
    cut along its widest axis. A part may itself be one to split.
    """
    item, extent = DTYPES[view.dtype].itemsize, view.extent
    if extent * item <= _BLOCK or extent <= 4 * math.prod(view.shape):
        return [(view, ())]
    axis = _widest(view)
    stride, count = view.strides[axis], view.shape[axis]
    step = max(1, _BLOCK // (stride * item))

    def part(start: int) -> tuple[StridedView, tuple[slice, ...]]:
        length = min(step, count - start)
        shape = (*view.shape[:axis], length, *view.shape[axis + 1 :])
        strides = (*view.strides[:axis], stride if length > 1 else 0, *view.strides[axis + 1 :])
        block = replace(view, offset=view.offset + start * stride, shape=shape, strides=strides)
        return block, (*(slice(None),) * axis, slice(start, start + length))

    return [part(start) for start in range(0, count, step)]


def _widest(view: StridedView) -> int:
    return max(range(len(view.shape)), key=lambda axis: view.strides[axis])


def _swapped(data: bytes, dtype: np.dtype[Any]) -> bytes:
    # As unsigned integers, because extended dtypes have no byte order; a complex number is two parts.
    part = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    return bytes(np.frombuffer(data, f"u{part}").byteswap().tobytes())

"""Where the elements of a tensor stand in a file, and how they are put there."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._strided import DTYPES, StridedView, TensorRecord, split_view
from convsv.files import write_all

__all__ = ["Place"]

_BATCH = 1 << 18


@dataclass(frozen=True)
class Place:
    """The bytes of a tensor: those of a strided view, uncompressed, from some position of a file on.

    Attributes:
        file: the file, as it was opened for reading.
        start: absolute position, in bytes, from which the view counts.
        view: which elements, without two that overlap; it has at least one.
        big_endian: byte order of the elements.
    """

    file: RegularFile
    start: int
    view: StridedView
    big_endian: bool = False

    @classmethod
    def contiguous(
        cls, file: RegularFile, start: int, dtype: str, shape: tuple[int, ...], *, big_endian: bool = False
    ) -> Place:
        """Return the place of an array in C order.

        Args:
            file: the file.
            start: absolute position of its first byte.
            dtype: a key of ``DTYPES``.
            shape: its shape, without a zero.
            big_endian: byte order of its elements.
        """
        strides = tuple(math.prod(shape[axis + 1 :]) if n > 1 else 0 for axis, n in enumerate(shape))
        return cls(file, start, StridedView(dtype, 0, shape, strides), big_endian)

    @classmethod
    def of(cls, record: TensorRecord) -> Place | None:
        """Return where a tensor stands that a description in a file was read of, None if nowhere in one piece."""
        storage, view = record.storage, record.view
        if storage is None or storage.file is None or view is None:
            return None
        return cls(storage.file, storage.start, view, storage.big_endian)

    @property
    def item_size(self) -> int:
        """Bytes an element."""
        return DTYPES[self.view.dtype].itemsize

    @property
    def byte_count(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.view.shape) * self.item_size

    @property
    def first(self) -> int:
        """Absolute position of the first byte."""
        return self.start + self.view.offset * self.item_size

    @property
    def end(self) -> int:
        """Absolute position after the last byte."""
        return self.first + self.view.extent * self.item_size

    @property
    def is_dense(self) -> bool:
        """Whether every byte between the first and the last belongs to it, in whatever order."""
        return self.end - self.first == self.byte_count

    def holds(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which bytes belong to it.

        Args:
            positions: absolute positions.
        """
        rest = positions - self.first
        inside = (rest >= 0) & (rest < self.end - self.first)
        axes = sorted(zip(self.view.strides, self.view.shape, strict=True), reverse=True)
        for stride, n in axes:
            if n > 1:
                step = stride * self.item_size
                rest = rest - np.minimum(rest // step, n - 1) * step
        return inside & (rest < self.item_size)

    def positions(self, each: int) -> Iterator[NDArray[np.int64]]:
        """Yield the absolute positions of bytes, of some thousand elements at a time.

        Args:
            each: how many bytes of each element, the first ones.
        """
        within = np.arange(each, dtype=np.int64)
        count = math.prod(self.view.shape)
        for begin in range(0, count, _BATCH):
            flat = np.arange(begin, min(begin + _BATCH, count))
            element = np.zeros(len(flat), np.int64)
            for index, stride in zip(np.unravel_index(flat, self.view.shape or (1,)), self.view.strides, strict=False):
                element += index * stride
            yield (self.first + element[:, None] * self.item_size + within).ravel()

    def write(self, descriptor: int, values: NDArray[Any]) -> None:
        """Put values where the tensor stands; no other byte changes.

        Args:
            descriptor: of a copy of the file, open for reading and writing.
            values: of the view's shape and dtype, in this machine's byte order.

        Raises:
            OSError: the copy cannot be written.
        """
        if self.view.negative and self.view.dtype != "bool":
            values = np.negative(values)
        if self.view.conjugate and values.dtype.kind == "c":
            values = np.conj(values)
        self._put(descriptor, values)

    def _put(self, descriptor: int, values: NDArray[Any]) -> None:
        blocks = split_view(self.view)
        if len(blocks) == 1:
            self._scatter(descriptor, values)
            return
        for block, part in blocks:
            replace(self, view=block)._put(descriptor, values[part])

    def _scatter(self, descriptor: int, values: NDArray[Any]) -> None:
        size = self.end - self.first
        buffer = bytearray(size) if self.is_dense else bytearray(os.pread(descriptor, size, self.first))
        if len(buffer) != size:
            raise OSError("a copy is shorter than it was written")
        # As unsigned integers, because extended dtypes have no byte order; a complex number is two parts.
        parts = 2 if values.dtype.kind == "c" else 1
        word = np.dtype(f"u{self.item_size // parts}")
        shape, strides = (*self.view.shape, parts), (*(s * self.item_size for s in self.view.strides), word.itemsize)
        words = np.ascontiguousarray(values).reshape(-1).view(word).reshape(shape)
        swap = self.big_endian != (sys.byteorder == "big")
        np.ndarray(shape, word, buffer, strides=strides)[...] = words.byteswap() if swap else words
        write_all(descriptor, buffer, self.first)

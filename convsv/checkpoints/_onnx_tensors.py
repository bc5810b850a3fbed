"""The values of ONNX tensors: in the model's file, raw or in typed fields, or in a file beside it.

Values are read with ``pread`` and turned into arrays here; onnx's own loader would follow whatever path it is given.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints import RegularFile
from convsv.checkpoints._content import printable
from convsv.checkpoints._onnx_strip import TensorRecord
from convsv.checkpoints._protobuf import BYTES
from convsv.checkpoints._strided import shape_problem
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, UsageError

__all__ = ["DTYPES", "Beside", "Values", "dtype_name", "varints"]

DTYPES: Mapping[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    4: np.dtype("<u2"),
    5: np.dtype("<i2"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
    12: np.dtype("<u4"),
    13: np.dtype("<u8"),
    14: np.dtype("<c8"),
    15: np.dtype("<c16"),
    16: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype(ml_dtypes.float8_e4m3fn),
    18: np.dtype(ml_dtypes.float8_e4m3fnuz),
    19: np.dtype(ml_dtypes.float8_e5m2),
    20: np.dtype(ml_dtypes.float8_e5m2fnuz),
}
"""Data types whose values are read, by their numbers."""
_OTHERS: Mapping[int, str] = {
    8: "string",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1fn",
    24: "float8_e8m0fnu",
    25: "uint2",
    26: "int2",
    27: "float6_e2m3fn",
    28: "float6_e3m2fn",
}
_RAW = 9
_FIXED: Mapping[int, str] = {4: "<f4", 10: "<f8"}
"""Typed fields of numbers of one size."""
_FIELDS: Mapping[int, int] = {1: 4, 14: 4, 11: 10, 15: 10, 7: 7, 12: 11, 13: 11}
"""Data type -> its typed field; all others use ``int32_data``."""
_INT32 = 5


def dtype_name(code: int) -> str:
    """Return the name of a data type, numpy's or ml_dtypes' where they have one."""
    return DTYPES[code].name if code in DTYPES else _OTHERS.get(code, f"type {code}")


def varints(raw: bytes) -> NDArray[np.uint64]:
    """Return packed varints, all at once.

    Raises:
        CorruptCheckpointError: one has no end, or more than 64 bits.
    """
    data = np.frombuffer(raw, np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if data.size == 0:
        return np.zeros(0, np.uint64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if not ends.size or ends[-1] != data.size - 1 or (ends - starts).max() > 9:
        raise CorruptCheckpointError("holds damaged numbers")
    place = np.arange(data.size) - np.repeat(starts, ends - starts + 1)
    bits = (data & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(bits, starts)


class Beside:
    """The files beside a model that hold values: plain files inside its folder, each opened once.

    Args:
        file: the model.
    """

    def __init__(self, file: RegularFile) -> None:
        # A store of files by content links to each of them: what lies beside the model's real file is beside it too.
        self._is_local = file.is_local
        self._folder = file.path.parent
        self._inside = {Path(os.path.realpath(file.path.parent)), Path(os.path.realpath(file.path)).parent}
        self._opened: dict[str, RegularFile] = {}

    @property
    def files(self) -> tuple[RegularFile, ...]:
        """Those that were opened."""
        return tuple(self._opened.values())

    def open(self, location: str) -> RegularFile:
        """Return the file that a model names: the one place where a name found in a model is opened.

        Args:
            location: path relative to the model's folder.

        Raises:
            UnsafeCheckpointError: it leads out of the folder.
            CorruptCheckpointError: it is not there.
            CheckpointError: it is not a regular file, or the model lies elsewhere.
        """
        if location not in self._opened:
            self._opened[location] = self._open(location)
        return self._opened[location]

    def _open(self, location: str) -> RegularFile:
        parts = Path(location).parts
        odd = any(c in ":\\" or not c.isprintable() for c in location)
        if not parts or ".." in parts or Path(location).is_absolute() or odd:
            raise UnsafeCheckpointError("names a file outside its folder", found=printable(location))
        if not self._is_local:
            advice = "fetch the model with that file"
            raise CheckpointError("keeps weights in another file", found=printable(location), advice=advice)
        try:
            real = Path(os.path.realpath(self._folder / location))
            if not any(real.is_relative_to(folder) for folder in self._inside):
                raise UnsafeCheckpointError("names a link that leads out of its folder", found=printable(location))
            return RegularFile(real)
        except (UsageError, OSError, ValueError):
            raise CorruptCheckpointError(
                "keeps weights in a file that is missing",
                found=printable(location),
                advice="fetch it into the folder of the model",
            ) from None


class Values:
    """The values of one tensor, where its extent was checked.

    Args:
        tensor: the tensor.
        beside: opens files beside the model.

    Raises:
        CorruptCheckpointError: there are more or fewer than its dimensions say, or they lie beyond the end.
        UnsafeCheckpointError: they lie outside the model's folder.
    """

    def __init__(self, tensor: TensorRecord, beside: Beside) -> None:
        self._tensor = tensor
        dtype = DTYPES.get(tensor.code)
        self.problem = (
            f"dtype {dtype_name(tensor.code)} is not supported" if dtype is None else shape_problem(tensor.dims, dtype)
        )
        self.count = math.prod(tensor.dims)
        self.place: tuple[RegularFile, int] | None = None
        if tensor.external is not None:
            self.place = self._external(tensor.external, beside)
            return
        raw = [segment for segment in tensor.segments if segment.number == _RAW]
        if raw and len(tensor.segments) > 1:
            raise CorruptCheckpointError("stores its values twice")
        if raw:
            self._expect(raw[0].size)
            self.place = tensor.file, raw[0].start
        elif self.count and not tensor.segments and tensor.code in DTYPES:
            self.problem = "its values are not in the file"

    @property
    def identity(self) -> object:
        """Equal for tensors that share their bytes."""
        where = (str(self.place[0].path), self.place[1]) if self.place else id(self._tensor)
        return where, self._tensor.code, self._tensor.dims

    def read(self) -> NDArray[Any]:
        """Return the values, in this machine's byte order.

        Raises:
            CorruptCheckpointError: they are damaged.
            UnsafeCheckpointError: the tensor has a problem.
        """
        if self.problem:
            raise UnsafeCheckpointError(self.problem)
        dtype = DTYPES[self._tensor.code]
        if self.place:
            file, start = self.place
            flat = np.frombuffer(file.read(start, self.count * dtype.itemsize), dtype)
        else:
            flat = self._typed(dtype)
        return flat.reshape(self._tensor.dims).astype(dtype.newbyteorder("="), copy=False)

    def _expect(self, size: int) -> None:
        dtype = DTYPES.get(self._tensor.code)
        if dtype is not None and size != self.count * dtype.itemsize:
            found = f"{size} bytes for {dtype.name} {self._tensor.dims}"
            raise CorruptCheckpointError("stores fewer or more values than its dimensions say", found=found[:200])

    def _external(self, said: Mapping[str, str], beside: Beside) -> tuple[RegularFile, int]:
        file = beside.open(said.get("location", ""))
        try:
            offset, length = (int(said[key][:20]) if key in said else None for key in ("offset", "length"))
        except ValueError:
            raise CorruptCheckpointError("the extent of its values is no number") from None
        start = offset or 0
        dtype = DTYPES.get(self._tensor.code)
        wanted = self.count * dtype.itemsize if dtype else 0
        if length is not None:
            self._expect(length)
        if start < 0 or start + max(wanted, length or 0) > file.size:
            found = f"{wanted} bytes wanted at {start} of {file.size}"
            raise CorruptCheckpointError("its values lie beyond the end of their file", found=found[:200])
        return file, start

    def _typed(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the values of a typed field; half-sized formats are bit patterns there, and complex numbers pairs.

        Raises:
            CorruptCheckpointError: they are not there, or not as many as the dimensions say.
        """
        number = _FIELDS.get(self._tensor.code, _INT32)
        parts = []
        for segment in self._tensor.segments:
            if segment.number != number:
                raise CorruptCheckpointError("stores its values in the field of another type")
            if segment.number in _FIXED:
                item = np.dtype(_FIXED[number])
                whole = segment.size // item.itemsize * item.itemsize
                parts.append(np.frombuffer(self._bytes(segment.start, whole), item))
            elif segment.wire == BYTES:
                parts.append(varints(self._bytes(segment.start, segment.size)))
            else:
                parts.append(np.array([segment.value], np.uint64))
        flat = np.concatenate(parts) if parts else np.zeros(0, dtype)
        if flat.dtype.kind == "u":
            flat = _from_varints(flat, dtype)
        elif dtype.kind == "c":
            flat = np.ascontiguousarray(flat[: flat.size // 2 * 2]).view(dtype)
        if flat.size != self.count:
            raise CorruptCheckpointError(
                "stores fewer or more values than its dimensions say", found=f"{flat.size}, not {self.count}"
            )
        return flat

    def _bytes(self, start: int, size: int) -> bytes:
        return self._tensor.file.read(start, size)


def _from_varints(flat: NDArray[np.uint64], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind in "iu" or dtype.kind == "b":
        return flat.astype(np.int64).astype(dtype) if dtype.kind == "i" else flat.astype(dtype)
    bits = np.dtype(f"u{dtype.itemsize}")
    if flat.size and int(flat.max()) > np.iinfo(bits).max:
        raise CorruptCheckpointError("holds a bit pattern that is too long for its type")
    return flat.astype(bits).view(dtype.newbyteorder("="))

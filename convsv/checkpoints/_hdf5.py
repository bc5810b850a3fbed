"""HDF5 files, without libhdf5 in this process.

libhdf5 crashes and loops on damaged files, so a child process runs it (``_hdf5_child.py``): it can be killed, it has
limits of memory and time, and it can open nothing but the file. It answers with an index. The values of contiguous
datasets, which is how Keras stores them, are then read here with ``pread``; libhdf5 decodes the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints._child import Child, folders_of
from convsv.checkpoints._content import printable
from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._strided import shape_problem
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, error_context

__all__ = ["Dataset", "Hdf5File", "Worker", "find_superblock", "library_folders"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SECONDS = 5.0
"""Processor time the child may use to index a file, and in all; to decode a large file it gets more, in proportion."""
VALUE_SECONDS = 2.0
"""What it may use of that to decode one dataset: one on which it does not end leaves time for the others."""
BYTES_A_SECOND = 10_000_000
"""How fast the child must be at least on top of that."""
_CHILD = Path(__file__).with_name("_hdf5_child.py")
_BIT64 = 1 << 64


DTYPES: Mapping[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "bool": np.dtype("?"),
    **{f"float{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    **{f"{sign}int{bits}": np.dtype(f"{sign or 'i'}{bits // 8}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
"""What is read, by the child's names."""


def find_superblock(file: RegularFile, start: int = 0) -> int | None:
    """Return where the HDF5 superblock stands behind a user block of 0, 512, 1024, 2048 ... bytes; None if nowhere.

    Args:
        file: any file.
        start: where the HDF5 file starts in it.

    Raises:
        CorruptCheckpointError: the file shrank while it was read.
    """
    at = 0
    while start + at + len(SIGNATURE) <= file.reach:
        if file.read(start + at, len(SIGNATURE)) == SIGNATURE:
            return at
        at = max(512, 2 * at)
    return None


@dataclass(frozen=True)
class Dataset:
    """One dataset, not read yet.

    Attributes:
        path: its path from the root, parts separated by ``/``; bytes that are not UTF-8 are escaped.
        raw_path: the same as stored.
        shape: its shape.
        dtype: stored dtype by numpy's or ml_dtypes' name, or what else it is when there is a problem.
        order: ``"<"`` or ``">"``.
        offset: where its bytes stand in the file, when they stand there in one piece and unchanged.
        address: equal for two paths to the same dataset.
        problem: why it is not read, if so.
    """

    path: str
    raw_path: bytes
    shape: tuple[int, ...]
    dtype: str
    order: str
    offset: int | None
    address: int
    problem: str | None = None

    @property
    def itemsize(self) -> int:
        """Bytes an item."""
        return DTYPES[self.dtype].itemsize

    @property
    def byte_size(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.itemsize


@dataclass
class Hdf5File:
    """The index of an HDF5 file, or of one that lies uncompressed inside another file.

    Attributes:
        file: the file.
        start: where the HDF5 file starts in it.
        size: its size.
        datasets: every dataset.
        groups: the string attributes that Keras uses, by group path.
        problems: what was not followed.

    Raises:
        CorruptCheckpointError: libhdf5 cannot read it, crashes or does not end.
        UnsafeCheckpointError: it leads to other files, or needs too much memory.
        CheckpointError: h5py cannot be imported.
    """

    file: RegularFile
    start: int = 0
    size: int = -1
    datasets: tuple[Dataset, ...] = field(init=False)
    groups: Mapping[str, Mapping[str, str | list[str]]] = field(init=False)
    problems: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Index the file in a child of its own, which ends with that.

        Raises:
            CorruptCheckpointError: what the child says makes no sense.
        """
        self.size = self.file.size if self.size < 0 else self.size
        self._worker = Worker(self.file, self.start, self.size)
        self._unreadable: dict[bytes, CheckpointError] = {}
        try:
            answer = self._worker.ask_json({"do": "index"})
        finally:
            self._worker.close()
        try:
            self.datasets = tuple(_dataset(item, self.start, self.start + self.size) for item in answer["datasets"])
            self.groups = {str(path): _attributes(found) for path, found in answer["groups"].items()}
            self.problems = tuple(printable(str(line), 400) for line in answer["problems"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise CorruptCheckpointError("libhdf5 describes it in a way that makes no sense") from None

    def read(self, dataset: Dataset) -> NDArray[Any]:
        """Return the values of a dataset, in this machine's byte order.

        Raises:
            CorruptCheckpointError: the file ends before, or libhdf5 cannot decode it.
            UnsafeCheckpointError: the dataset has a problem.
        """
        with error_context(path=str(self.file.path), tensor=printable(dataset.path)):
            if dataset.problem:
                raise UnsafeCheckpointError(dataset.problem)
            if dataset.offset is not None:
                raw: bytes | bytearray = self.file.read(dataset.offset, dataset.byte_size)
            else:
                raw = self._decoded(dataset)
            dtype = DTYPES[dataset.dtype].newbyteorder(dataset.order)  # type: ignore[arg-type]
            values = np.frombuffer(raw, dtype).reshape(dataset.shape)
            return values.astype(dtype.newbyteorder("="), copy=False)

    def _decoded(self, dataset: Dataset) -> bytearray:
        # What failed once is not asked for again: it would take the time of the others.
        if (known := self._unreadable.get(dataset.raw_path)) is not None:
            raise type(known)(known.what, found=known.found, advice=known.advice)
        request, seconds = {"do": "read", "path": dataset.raw_path.hex()}, VALUE_SECONDS
        try:
            return self._worker.ask_bytes(request, dataset.byte_size, seconds + dataset.byte_size / BYTES_A_SECOND)
        except CheckpointError as error:
            self._unreadable[dataset.raw_path] = error
            raise


def _dataset(item: Mapping[str, Any], start: int, end: int) -> Dataset:
    # The child may have been taken over by the file: nothing it says is trusted further than it can be checked.
    shape, offset, problem = tuple(item["shape"]), item["offset"], item["problem"]
    if not all(type(n) is int and 0 <= n < _BIT64 for n in shape) or item["order"] not in ("<", ">"):
        raise ValueError
    if problem is None:
        # Of what is not read the child says why: another dtype without a problem is the KeyError of one that lies.
        problem = shape_problem(shape, DTYPES[item["dtype"]])
    raw = bytes.fromhex(item["raw"]) if "raw" in item else str(item["path"]).encode()
    dataset = Dataset(
        path=str(item["path"]),
        raw_path=raw,
        shape=shape,
        dtype=str(item["dtype"]),
        order=item["order"],
        offset=None if offset is None else start + int(offset),
        address=int(item["address"]),
        problem=None if problem is None else printable(str(problem), 200),
    )
    if problem is None and dataset.offset is not None and not start <= dataset.offset <= end - dataset.byte_size:
        raise CorruptCheckpointError("the values of a dataset lie beyond the end", tensor=printable(dataset.path))
    return dataset


def _attributes(found: Mapping[str, Any]) -> dict[str, str | list[str]]:
    for value in found.values():
        if not all(isinstance(text, str) for text in (value if isinstance(value, list) else [value])):
            raise ValueError
    return dict(found)


# ------------------------------------------------------------------------------------------------------------- child


class Worker(Child):
    """The child of one HDF5 file.

    Args:
        file: the file.
        start: where the HDF5 file starts in it.
        size: its size.
    """

    library = "libhdf5"
    module = "h5py"
    environment: Mapping[str, str] = {"HDF5_PLUGIN_PRELOAD": "::", "HDF5_USE_FILE_LOCKING": "FALSE"}

    def __init__(self, file: RegularFile, start: int, size: int) -> None:
        super().__init__(SECONDS + size / BYTES_A_SECOND, SECONDS)
        self._file, self._start, self._size = file, start, size

    def command(self) -> tuple[list[str], tuple[int, ...]]:
        """Return the program with its arguments, and the descriptors it inherits."""
        span = [str(self._file.fileno()), str(self._start), str(self._size)]
        return [str(_CHILD), *span, *library_folders()], (self._file.fileno(),)


def library_folders() -> list[str]:
    """Return where h5py and numpy lie."""
    return folders_of("h5py", "numpy")

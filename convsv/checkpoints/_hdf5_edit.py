"""New values in a copy of an HDF5 file.

Values that stand in one piece and unchanged, which is how Keras stores them, are overwritten where they stand: no
other byte changes. Chunked, compressed and compact datasets, and those without values so far, are rewritten by libhdf5
in a child process with the limits of the one that reads. Chunk shapes, filters and their options stay; compressed
chunks may move, because they change size.

Either way the child then compares the copy with the original, object by object, and what differs elsewhere is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from convsv.checkpoints._file import AnonymousFile, RegularFile
from convsv.checkpoints._hdf5 import Dataset, Hdf5File, Worker, library_folders
from convsv.checkpoints._place import Place

__all__ = ["Change", "needs_library", "overwrite", "place_of", "rewrite"]

_CHILD = Path(__file__).with_name("_hdf5_edit_child.py")
_PASSES = 4
"""How often a file is read or written in the course of an edit, at most."""
_AN_OBJECT = 20_000
"""As many bytes as could be read while an object is compared: a processor needs a tenth of that."""


@dataclass(frozen=True, eq=False)
class Change:
    """New values for one dataset.

    Attributes:
        dataset: of the original.
        values: of its shape and dtype, in this machine's byte order.
    """

    dataset: Dataset
    values: NDArray[Any]


def place_of(dataset: Dataset, file: RegularFile, start: int | None = None) -> Place | None:
    """Return where the bytes of a dataset stand, if they stand there as they are.

    Args:
        dataset: a dataset.
        file: the file.
        start: where they start, if not where the dataset's own file has them.
    """
    start = dataset.offset if start is None else start
    if start is None or dataset.problem or 0 in dataset.shape:
        return None
    return Place.contiguous(file, start, dataset.dtype, dataset.shape, big_endian=dataset.order == ">")


def needs_library(changes: Sequence[Change]) -> bool:
    """Tell whether libhdf5 must write some of the values."""
    return any(change.dataset.offset is None for change in changes)


def overwrite(hdf5: Hdf5File, changes: Sequence[Change], descriptor: int) -> None:
    """Put values where they stand in a copy of the whole file that the HDF5 file is in, or is.

    Args:
        hdf5: the original.
        changes: of datasets that stand in one piece.
        descriptor: of the copy, open for reading and writing.

    Raises:
        CheckpointError: the bytes of a dataset are also something else.
        OSError: the copy cannot be written.
    """
    for change in changes:
        if place := place_of(change.dataset, hdf5.file):
            place.write(descriptor, change.values)
    _Editor(hdf5, descriptor, hdf5.start, changes).run([])


def rewrite(hdf5: Hdf5File, changes: Sequence[Change], descriptor: int) -> None:
    """Put values into a copy of the HDF5 file alone, which may become longer or shorter.

    Args:
        hdf5: the original.
        changes: of any datasets that can be read.
        descriptor: of the copy, open for reading and writing.

    Raises:
        CheckpointError: the values cannot be written without changing something else; libhdf5 fails, crashes or does
            not end.
        OSError: the copy cannot be written.
    """
    scattered = [change for change in changes if change.dataset.offset is None]
    for change in changes:
        offset = change.dataset.offset
        place = None if offset is None else place_of(change.dataset, hdf5.file, offset - hdf5.start)
        if place is not None:
            place.write(descriptor, change.values)
    _Editor(hdf5, descriptor, 0, changes).run(scattered)


class _Editor(Worker):
    """The child of one edit."""

    purpose = "edit"
    writes = True

    def __init__(self, hdf5: Hdf5File, descriptor: int, start: int, changes: Sequence[Change]) -> None:
        super().__init__(hdf5.file, hdf5.start, _PASSES * hdf5.size + _AN_OBJECT * len(hdf5.datasets))
        self._hdf5, self._copy, self._copy_start = hdf5, descriptor, start
        self._changes = changes
        self._values = AnonymousFile("values", b"")
        # Filters may lengthen what they cannot compress, and what moves leaves a hole.
        grown = 2 * sum(change.dataset.byte_size for change in changes)
        self._largest = 2 * (start + hdf5.size + grown) + (1 << 20)

    def command(self) -> tuple[list[str], tuple[int, ...]]:
        """Return the program with its arguments, and the descriptors it inherits."""
        descriptors = (self._hdf5.file.fileno(), self._copy, self._values.fileno())
        return [str(_CHILD), str(self._largest), *library_folders()], descriptors

    def run(self, scattered: Sequence[Change]) -> None:
        """Let libhdf5 write these changes, then compare the files."""
        edits, at = [], 0
        for change in scattered:
            if place := place_of(change.dataset, self._values, at):
                place.write(self._values.fileno(), change.values)
            edits.append({"path": change.dataset.raw_path.hex(), "at": at})
            at += change.dataset.byte_size
        source, copied = self._hdf5, os.fstat(self._copy).st_size
        size = source.size if self._copy_start else copied
        request = {
            "source": (source.file.fileno(), source.start, source.size),
            "copy": (self._copy, self._copy_start, size),
            "values": self._values.fileno(),
            "edits": edits,
            "addresses": sorted(_addresses(source, self._changes)),
        }
        try:
            self.ask_bytes(request, 0)
        finally:
            self.close()


def _addresses(hdf5: Hdf5File, changes: Sequence[Change]) -> set[int]:
    """Return the addresses of the changed datasets and of those that share exactly their bytes."""
    addresses = {change.dataset.address for change in changes}
    shared = {_arrangement(change.dataset) for change in changes if change.dataset.offset is not None}
    return addresses | {dataset.address for dataset in hdf5.datasets if _arrangement(dataset) in shared}


def _arrangement(dataset: Dataset) -> tuple[object, ...]:
    return dataset.offset, dataset.dtype, dataset.order, dataset.shape

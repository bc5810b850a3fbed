"""Keras checkpoints of every generation, and any other HDF5 file.

Four layouts share one index of datasets:

- Keras 1 and 2, whole model: ``model_weights/<layer>/<scope>/kernel:0`` and the configuration as an attribute;
- Keras 1 and 2, weights only: ``<layer>/<scope>/kernel:0`` (Keras 1: ``<layer>/<layer>_W``);
- Keras 3, ``.weights.h5``: ``layers/<class>_<n>/vars/<i>``, numbers instead of names and no configuration;
- ``.keras``: a zip archive of the latter and ``config.json``.

Any other HDF5 file is a list of datasets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from convsv.checkpoints import FORMATS, Checkpoint, RegularFile
from convsv.checkpoints._content import printable
from convsv.checkpoints._file import AnonymousFile
from convsv.checkpoints._hdf5 import Dataset, Hdf5File, find_superblock
from convsv.checkpoints._hdf5_edit import Change, needs_library, overwrite, rewrite
from convsv.checkpoints._keras_layouts import Contents
from convsv.checkpoints._place import Place
from convsv.checkpoints._zip import LOCAL_MAGIC, StoredZip
from convsv.checkpoints._zip_edit import replace_entry
from convsv.checkpoints._zip_patch import renew_checksums
from convsv.checkpoints.writing import Edit
from convsv.errors import CheckpointError, CorruptCheckpointError

__all__ = ["Keras"]

WEIGHTS, CONFIG = "model.weights.h5", "config.json"
MAX_CONFIG = 1 << 26
MAX_UNPACKED = 1 << 29
_MEMBERS = (WEIGHTS, CONFIG, "metadata.json")


class Keras:
    """The reader of ``.keras`` archives and of HDF5 files, whoever wrote them."""

    name = "keras"
    suffixes = (".keras", ".h5", ".hdf5")

    def recognises(self, file: RegularFile) -> bool:
        """Tell an HDF5 superblock, or a zip archive with Keras' members.

        Raises:
            CorruptCheckpointError: the file shrank while it was read.
        """
        return find_superblock(file) is not None or _is_archive(file)

    def open(self, file: RegularFile) -> Checkpoint:
        """Index the file.

        Raises:
            CorruptCheckpointError: the archive or the HDF5 file contradicts itself.
            UnsafeCheckpointError: it leads to other files, or needs too much memory.
        """
        if find_superblock(file) is not None:
            hdf5 = Hdf5File(file)
            config = hdf5.groups.get("", {}).get("model_config")
            return Contents(hdf5, config if isinstance(config, str) else None, hdf5.read).checkpoint(file, self.name)
        archive = StoredZip(file, allow_deflate=True)
        if WEIGHTS not in archive.entries:
            raise CorruptCheckpointError(f"the archive has no {WEIGHTS}", advice="save it again as one .keras file")
        config_text = archive.read(CONFIG, limit=MAX_CONFIG) if CONFIG in archive.entries else None
        hdf5, read = _open_member(archive)
        return Contents(hdf5, config_text, read).checkpoint(file, self.name)

    def patch(self, source: Checkpoint, edits: Sequence[Edit], copy: Path) -> Sequence[Place] | None:
        """Put values into a copy, where they stand if they stand there as they are, else by libhdf5's hand.

        Args:
            source: the checkpoint.
            edits: of datasets that can be read.
            copy: an exact copy of its file.

        Returns:
            The checksums of the archive's member; None where datasets are chunked or compressed, or the member is.

        Raises:
            CheckpointError: libhdf5 cannot write the values, or not without changing something else.
            OSError: the copy cannot be written.
        """
        file = source.files[0]
        descriptor = os.open(copy, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        try:
            if find_superblock(file) is not None:
                return _patch_hdf5(Hdf5File(file), edits, descriptor)
            return _patch_archive(StoredZip(file, allow_deflate=True), edits, copy, descriptor)
        finally:
            os.close(descriptor)


FORMATS.add(Keras.name, Keras())


def _is_archive(file: RegularFile) -> bool:
    if file.size < 30 or file.read(0, 4) != LOCAL_MAGIC:
        return False
    head = file.read(0, min(file.size, 30 + 32))
    first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if first in {name.encode() for name in _MEMBERS} or first.startswith(b"assets/"):
        return True
    try:
        return WEIGHTS in StoredZip(file, allow_deflate=True).entries
    except CheckpointError:
        return False


def _open_member(archive: StoredZip) -> tuple[Hdf5File, Callable[[Dataset], NDArray[Any]]]:
    # A stored member is read where it stands in the archive; a packed one from a copy in memory.
    entry = archive.entries[WEIGHTS]
    if entry.method:
        copy = AnonymousFile(archive.file.path, archive.read(WEIGHTS, limit=MAX_UNPACKED))
        hdf5 = Hdf5File(copy)
        return hdf5, hdf5.read
    hdf5 = Hdf5File(archive.file, entry.offset, entry.size)

    def read(dataset: Dataset) -> NDArray[Any]:
        archive.verify(WEIGHTS)
        return hdf5.read(dataset)

    return hdf5, read


# ------------------------------------------------------------------------------------------------------------- editing


def _changes(hdf5: Hdf5File, edits: Sequence[Edit]) -> list[Change]:
    by_path: dict[str, list[Dataset]] = {}
    for dataset in hdf5.datasets:
        by_path.setdefault(dataset.path, []).append(dataset)
    changes = []
    for edit in edits:
        found = by_path.get(path := "/".join((*edit.tensor.container, edit.tensor.key)), [])
        if len(found) != 1:
            raise CheckpointError("cannot be edited: several datasets have this name", tensor=printable(path))
        changes.append(Change(found[0], edit.values))
    return changes


def _patch_hdf5(hdf5: Hdf5File, edits: Sequence[Edit], descriptor: int) -> Sequence[Place] | None:
    changes = _changes(hdf5, edits)
    if needs_library(changes):
        rewrite(hdf5, changes, descriptor)
        return None
    overwrite(hdf5, changes, descriptor)
    return ()


def _patch_archive(archive: StoredZip, edits: Sequence[Edit], copy: Path, descriptor: int) -> Sequence[Place] | None:
    hdf5, _ = _open_member(archive)
    changes = _changes(hdf5, edits)
    if archive.entries[WEIGHTS].method or needs_library(changes):
        member = AnonymousFile(archive.file.path, archive.read(WEIGHTS, limit=MAX_UNPACKED))
        rewrite(hdf5, changes, member.fileno())
        replace_entry(archive, WEIGHTS, _content(member), descriptor)
        return None
    overwrite(hdf5, changes, descriptor)
    return renew_checksums(archive, edits, copy)


def _content(file: AnonymousFile) -> bytes:
    # Also what libhdf5 has appended.
    with os.fdopen(os.dup(file.fileno()), "rb") as stream:
        stream.seek(0)
        return stream.read()

"""Checkpoints of one network, one after the other: a pickle met again names the same tensors, of another file.

What a pickle says about shapes and dtypes is checked once; that the file holds the storages it names, in each.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from convsv.checkpoints import StoredTensor
from convsv.checkpoints._pickle import Pickle
from convsv.checkpoints._place import Place
from convsv.checkpoints._strided import Storage, StridedView, read_view
from convsv.checkpoints._torch_objects import ObjectIndex, index_objects
from convsv.checkpoints._torch_tensors import FindStorage, StorageId
from convsv.checkpoints.alike import changed

__all__ = ["indexed_alike"]


class _Part(NamedTuple):
    """A tensor, and what of it lies in the file: None for what is in the pickle, or cannot be read."""

    tensor: StoredTensor
    storage: StorageId | None
    view: StridedView | None


class _Known(NamedTuple):
    """The index of a pickle, told by the object that it built. No file stays open for it."""

    value: object
    parts: list[_Part]
    found: ObjectIndex


_LAST: deque[_Known] = deque(maxlen=1)


def indexed_alike(pickle: Pickle, find: FindStorage) -> ObjectIndex:
    """Return the index of a pickle: that of :func:`index_objects`, at once if it is the last one again.

    Args:
        pickle: what the interpreter returned.
        find: finds a storage in this file.

    Raises:
        CorruptCheckpointError: a tensor names a storage that the file lacks.
        UnsafeCheckpointError: there are more tensors, or longer names, than any network has.
    """
    for known in tuple(_LAST):
        if known.value is pickle.value:
            tensors = [_bound(part, find) for part in known.parts]
            return ObjectIndex(tensors, list(known.found.modules), list(known.found.problems))
    if not pickle.is_shared:
        return index_objects(pickle.value, find)
    wanted: dict[int, tuple[Storage, StorageId]] = {}

    def remembered(storage_id: StorageId) -> Storage:
        storage = find(storage_id)
        wanted[id(storage)] = storage, storage_id
        return storage

    index = index_objects(pickle.value, remembered)
    parts = []
    for tensor, record in zip(index.tensors, index.records, strict=True):
        if record.storage is None or record.view is None:
            parts.append(_Part(tensor, None, None))
        elif id(record.storage) in wanted:
            bare = replace(tensor, read=_unread, place=None)
            parts.append(_Part(bare, wanted[id(record.storage)][1], record.view))
        elif record.storage.file is None and tensor.place is None and record.storage.key == _IN_PICKLE:
            parts.append(_Part(tensor, None, None))
        else:
            return index  # a part of a storage, as files before PyTorch 0.4 name them
    _LAST.append(_Known(pickle.value, parts, ObjectIndex([], index.modules, index.problems)))
    return index


_IN_PICKLE = "array"


def _bound(part: _Part, find: FindStorage) -> StoredTensor:
    """Return a tensor of this file."""
    tensor, wanted, view = part
    if wanted is None or view is None:
        return tensor
    storage = find(wanted)
    place = None if storage.file is None else Place(storage.file, storage.start, view, storage.big_endian)
    return changed(tensor, read=partial(read_view, storage, view), place=place)


def _unread() -> Any:
    raise AssertionError("a pattern reads nothing")

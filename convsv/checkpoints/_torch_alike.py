"""Checkpoints of one network, one after the other: a pickle met again names the same tensors, of another file.

What a pickle says about shapes and dtypes is checked once; that the file holds the storages it names, in each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from numpy.typing import NDArray

from convsv.checkpoints import ModuleFacts, StoredTensor
from convsv.checkpoints._pickle import Pickle
from convsv.checkpoints._place import Place
from convsv.checkpoints._strided import Storage, StridedView, read_view
from convsv.checkpoints._torch_objects import ObjectIndex, index_objects
from convsv.checkpoints._torch_tensors import FindStorage, StorageId
from convsv.checkpoints._zip_alike import Skeleton
from convsv.checkpoints.alike import Lazily, changed

__all__ = ["Indexed", "indexed_alike", "read_by"]

Reading: TypeAlias = "Callable[[str, Callable[[], NDArray[Any]]], NDArray[Any]]"


class _Part(NamedTuple):
    """A tensor, and what of it lies in the file: None for what is in the pickle, or cannot be read."""

    tensor: StoredTensor
    storage: StorageId | None
    view: StridedView | None


class Indexed(NamedTuple):
    """What is in a file; as in :class:`convsv.checkpoints.Checkpoint`."""

    tensors: Sequence[StoredTensor]
    modules: Sequence[ModuleFacts]
    problems: Sequence[str]
    likeness: object = None


@dataclass(frozen=True, eq=False)
class _Known:
    """The index of a pickle, told by the object that it built, and of the archive. No file stays open for it."""

    value: object
    skeleton: Skeleton | None
    parts: list[_Part]
    modules: list[ModuleFacts]
    problems: list[str]


_LAST: deque[_Known] = deque(maxlen=1)


def indexed_alike(pickle: Pickle, find: FindStorage, skeleton: Skeleton | None, reading: Reading) -> Indexed:
    """Return the index of a pickle: that of :func:`index_objects`, at once if it is the last one again.

    Args:
        pickle: what the interpreter returned.
        find: finds a storage in this file.
        skeleton: that of the archive it lies in: the same archive but for its data has all that was found before.
        reading: ``(key, read) -> values``: how a tensor of this file is read.

    Raises:
        CorruptCheckpointError: a tensor names a storage that the file lacks.
        UnsafeCheckpointError: there are more tensors, or longer names, than any network has.
    """
    for known in tuple(_LAST):
        if known.value is pickle.value:
            tensors = Lazily(len(known.parts), partial(_bound, known.parts, find, reading))
            if skeleton is None or skeleton is not known.skeleton:
                list(tensors)  # each storage has to be there
            return Indexed(tensors, known.modules, known.problems, known)
    if not pickle.is_shared:
        return _plainly(index_objects(pickle.value, find), reading)
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
            return _plainly(index, reading)  # a part of a storage, as files before PyTorch 0.4 name them
    made = _Known(pickle.value, skeleton, parts, index.modules, index.problems)
    _LAST.append(made)
    return _plainly(index, reading, made)


def _plainly(index: ObjectIndex, reading: Reading, likeness: object = None) -> Indexed:
    return Indexed([read_by(reading, tensor) for tensor in index.tensors], index.modules, index.problems, likeness)


def read_by(reading: Reading, tensor: StoredTensor) -> StoredTensor:
    """Return a tensor that is read as the tensors of its file are."""
    return changed(tensor, read=partial(reading, tensor.key, tensor.read))


_IN_PICKLE = "array"


def _bound(parts: Sequence[_Part], find: FindStorage, reading: Reading, number: int) -> StoredTensor:
    """Return a tensor of this file."""
    tensor, wanted, view = parts[number]
    if wanted is None or view is None:
        return read_by(reading, tensor)
    storage = find(wanted)
    place = None if storage.file is None else Place(storage.file, storage.start, view, storage.big_endian)
    return changed(tensor, read=partial(reading, tensor.key, partial(read_view, storage, view)), place=place)


def _unread() -> Any:
    raise AssertionError("a pattern reads nothing")

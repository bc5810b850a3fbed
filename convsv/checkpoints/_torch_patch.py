"""Everything in a pickle that lies over the bytes of an edited tensor, listed in the checkpoint or not.

A pickle holds more than state dicts: hooks, caches, private attributes, parts of sparse tensors, bare storages. Each of
them refers to storages, and a file is only patched where the bytes of an edited tensor have no other owner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from convsv.checkpoints import Checkpoint
from convsv.checkpoints._overlaps import Claim, refuse_overlaps
from convsv.checkpoints._pickle import Call, PersistentId, Pickle, PickledDict
from convsv.checkpoints._place import Place
from convsv.checkpoints._strided import Storage, TensorRecord
from convsv.checkpoints._torch_tensors import FindStorage, describe_tensor, parse_storage_id
from convsv.checkpoints.writing import Edit
from convsv.errors import CheckpointError, CorruptCheckpointError, error_context

__all__ = ["refuse_hidden_views"]

_UNLISTED = "outside every state dict"


def refuse_hidden_views(source: Checkpoint, edits: Sequence[Edit], pickle: Pickle, find: FindStorage) -> None:
    """Refuse edits that would change something else in the file.

    Views that are exactly the edited one are ties, and change with it.

    Args:
        source: the checkpoint.
        edits: what is to change.
        pickle: the file's pickle, interpreted.
        find: finds a storage.

    Raises:
        CheckpointError: a tensor stands inside the pickle, or shares bytes with something else in the file.
    """
    names = {tensor.place: tensor.key for tensor in reversed(source.tensors) if tensor.place}
    edited: dict[Place, Claim] = {}
    for edit in edits:
        place = edit.tensor.place
        if place is None:
            raise CheckpointError(
                "cannot be edited: it is a numpy array inside the pickle, not a tensor with a storage",
                tensor=edit.tensor.key,
                advice="save it as a tensor",
            )
        edited[place] = Claim(edit.tensor.key, place, edited=True)
    others = {place for place in _referred(pickle, find) if place not in edited}
    with error_context(path=source.path):
        refuse_overlaps([*edited.values(), *(Claim(names.get(place, _UNLISTED), place) for place in others)])


def _referred(pickle: Pickle, find: FindStorage) -> Iterator[Place]:
    """Yield the place of every tensor, and whole storages where something else than a plain tensor refers to one."""
    plain: set[int] = set()
    for call in _calls(pickle.value):
        references = _references(call)
        record = _described(call, find) if len(references) == 1 else None
        if record is None or record.problem:
            continue
        plain.add(id(references[0]))
        place = Place.of(record)
        if place is not None:
            yield place
    for persistent in pickle.persistent_ids:
        storage = None if id(persistent) in plain else _storage(persistent, find)
        if storage and storage.file and storage.size:
            yield Place.contiguous(storage.file, storage.start, "uint8", (storage.size,))


# What the file lacks the data of has no bytes that an edit could change.


def _described(call: Call, find: FindStorage) -> TensorRecord | None:
    try:
        return describe_tensor(call, find)
    except CorruptCheckpointError:
        return None


def _storage(persistent: PersistentId, find: FindStorage) -> Storage | None:
    storage_id = parse_storage_id(persistent)
    try:
        return find(storage_id) if storage_id else None
    except CorruptCheckpointError:
        return None


def _references(call: Call) -> list[PersistentId]:
    # Directly among the arguments, or among those that _rebuild_from_type hands on.
    inner = call.args[2] if len(call.args) > 2 and isinstance(call.args[2], tuple) else ()
    return [value for value in (*call.args, *inner) if isinstance(value, PersistentId)]


def _calls(root: object) -> Iterator[Call]:
    """Yield every call that a pickled object holds, each once."""
    pending, seen = [root], {id(root)}
    while pending:
        value = pending.pop()
        if isinstance(value, Call):
            yield value
        for part in _parts(value):
            if isinstance(part, (Call, PickledDict, list, tuple)) and id(part) not in seen:
                seen.add(id(part))
                pending.append(part)


def _parts(value: object) -> Iterator[object]:
    if isinstance(value, Call):
        yield from (value.callee, value.args, value.kwargs, value.state, value.items, value.pairs)
    elif isinstance(value, PickledDict):
        yield from (part for pair in value.pairs for part in pair)
    elif isinstance(value, (list, tuple)):
        yield from value

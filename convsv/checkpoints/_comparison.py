"""The judge of an edited copy: it differs from its source where it was edited, and nowhere else."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints import Checkpoint, StoredTensor
from convsv.checkpoints._content import printable
from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._place import Place
from convsv.errors import CheckpointError, OutputError

__all__ = ["check_copy", "equal_bits", "tie_of"]

_CHUNK = 1 << 20
_NOT_WRITTEN = "the copy is wrong, so it did not take its name"


def tie_of(tensor: StoredTensor) -> Hashable:
    """Return what tensors that share exactly their bytes have in common, and no other."""
    return tensor.identity if tensor.identity is not None else (tensor.container, tensor.key)


def equal_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Tell whether two arrays have the same shape, dtype and bits: NaNs and signs of zeros included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    first, second = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, other))
    return bool(np.array_equal(first, second))


def check_copy(
    source: Checkpoint, copy: Checkpoint, edits: Mapping[Hashable, NDArray[Any]], changed: Sequence[Place] | None
) -> None:
    """Compare a copy with its source.

    Args:
        source: the original.
        copy: the copy, opened.
        edits: what the edited tensors must hold, by :func:`tie_of`.
        changed: where bytes may differ, as places in the files of the source; None compares every tensor instead.

    Raises:
        OutputError: the copy differs where it must not, or cannot be read.
        CheckpointError: the source cannot be read any more.
    """
    _compare_indices(source, copy)
    for before, after in zip(source.tensors, copy.tensors, strict=True):
        wanted = edits.get(tie_of(before))
        if wanted is None and changed is None and before.problem is None:
            wanted = before.read()
        if wanted is not None and not equal_bits(_read(after), wanted):
            raise OutputError(_NOT_WRITTEN, tensor=printable(before.key), found="other values than were written")
    if changed is None:
        return
    for file, counterpart in zip(source.files, copy.files, strict=True):
        position = first_difference(file, counterpart, [place for place in changed if place.file is file])
        if position is not None:
            raise OutputError(_NOT_WRITTEN, found=f"byte {position} of {printable(file.path.name)} changed")


def _read(tensor: StoredTensor) -> NDArray[Any]:
    try:
        return tensor.read()
    except CheckpointError as error:
        raise OutputError(_NOT_WRITTEN, tensor=printable(tensor.key), found=error.what) from error


def _compare_indices(source: Checkpoint, copy: Checkpoint) -> None:
    pairs = (
        ("format", source.format, copy.format),
        ("tensors", _described(source.tensors), _described(copy.tensors)),
        ("ties", _ties(source.tensors), _ties(copy.tensors)),
        ("modules", source.modules, copy.modules),
        ("problems", source.problems, copy.problems),
        ("files", [file.path.name for file in source.files][1:], [file.path.name for file in copy.files][1:]),
    )
    for what, before, after in pairs:
        if before != after:
            raise OutputError(_NOT_WRITTEN, found=f"other {what} than before")


def _described(tensors: Iterable[StoredTensor]) -> list[tuple[object, ...]]:
    return [(t.key, t.container, t.shape, t.dtype, t.problem) for t in tensors]


def _ties(tensors: Iterable[StoredTensor]) -> list[int]:
    # Identities may name the file, so only who shares with whom can be compared.
    first: dict[Hashable, int] = {}
    return [first.setdefault(tie_of(tensor), number) for number, tensor in enumerate(tensors)]


def first_difference(file: RegularFile, copy: RegularFile, allowed: Iterable[Place]) -> int | None:
    """Return the position of the first byte that differs without leave, or None; in bounded memory.

    Args:
        file: one file.
        copy: the other.
        allowed: where they may differ.

    Raises:
        CorruptCheckpointError: a file shrank.
    """
    if file.size != copy.size:
        return min(file.size, copy.size)
    waiting = sorted(allowed, key=lambda place: place.first, reverse=True)
    active: list[Place] = []
    for start, before, after in _chunks(file, copy):
        end = start + len(before)
        active = [place for place in active if place.end > start]
        while waiting and waiting[-1].first < end:
            active.append(waiting.pop())
        if before == after:
            continue
        differs = np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)
        for place in active:
            _excuse(differs, start, place)
        if differs.any():
            return start + int(differs.argmax())
    return None


def _chunks(file: RegularFile, copy: RegularFile) -> Iterator[tuple[int, bytes, bytes]]:
    for start in range(0, file.size, _CHUNK):
        count = min(_CHUNK, file.size - start)
        yield start, file.read(start, count), copy.read(start, count)


def _excuse(differs: NDArray[np.bool_], start: int, place: Place) -> None:
    """Clear what belongs to a place."""
    begin, end = max(place.first - start, 0), min(place.end - start, len(differs))
    part = differs[begin:end]
    if place.is_dense:
        part[:] = False
        return
    positions = np.flatnonzero(part)
    part[positions[place.holds(positions + start + begin)]] = False

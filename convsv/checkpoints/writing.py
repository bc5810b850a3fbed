"""Edited checkpoints: the door. A copy in which some tensors have other values and nothing else differs.

A checkpoint is never rewritten from what was understood of it. It is copied byte for byte to a hidden neighbour of the
target, the format patches the values in the copy, and the copy is then read back through the ordinary reader and
compared with the original before it takes its name. So everything that convsv does not know survives: optimizer
states, classes that cannot be imported, metadata, the order of keys, alignment, attributes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from convsv.checkpoints import FORMATS, Checkpoint, StoredTensor, open_checkpoint
from convsv.checkpoints._comparison import check_copy, equal_bits, tie_of
from convsv.checkpoints._content import printable
from convsv.checkpoints._copying import copy_file, counterpart
from convsv.checkpoints._overlaps import Claim, refuse_overlaps
from convsv.checkpoints._place import Place
from convsv.errors import CheckpointError, OutputError, UsageError, error_context
from convsv.files import beside, output_errors, put_in_place, settle

__all__ = ["Edit", "EditableFormat", "refuse_target", "save_edited", "write_values"]

_ONE_FILE = (".safetensors", ".json")


@dataclass(frozen=True, eq=False)
class Edit:
    """New values for one tensor.

    Attributes:
        tensor: a tensor of the checkpoint.
        values: what it shall hold: of the same shape, and of the dtype of the same name.
    """

    tensor: StoredTensor
    values: NDArray[Any]


@runtime_checkable
class EditableFormat(Protocol):
    """A reader that can also put new values into a copy of a checkpoint."""

    def patch(self, source: Checkpoint, edits: Sequence[Edit], copy: Path) -> Sequence[Place] | None:
        """Put values into a copy; change nothing else.

        Args:
            source: the checkpoint as it was opened; it is only read.
            edits: one or more, of different tensors that can be read; ties are named once.
            copy: an exact copy of the source's file. Of several files: the folder that holds a copy of each under its
                own name; ``counterpart`` finds the one that belongs to a file of the source.

        Returns:
            Where the copy may differ from the source besides the places of the edited tensors, as places in the files
            of the source: checksums. None where bytes cannot be compared because a library rewrote the file; every
            tensor is then read and compared instead, and the rest (attributes, compression) is for the format to
            check.

        Raises:
            CheckpointError: a tensor cannot be written back to where it stands, with the reason.
            OSError: the copy cannot be written.
        """
        ...


def save_edited(
    checkpoint: Checkpoint,
    edits: Sequence[Edit],
    target: str | os.PathLike[str],
    *,
    force: bool = False,
    verify: Callable[[Checkpoint], None] | None = None,
) -> None:
    """Write a copy of a checkpoint in which some tensors have other values.

    Outside the bytes of these tensors, and of the checksums over them, the copy equals the original byte for byte; this
    is checked on the finished copy, as is that each edited tensor reads back bit for bit as given and that everything
    else the reader finds is as before. The copy takes the name ``target`` in one step, after all checks and after it
    reached the disk. Whatever happens before leaves the target as it was. A checkpoint of several files becomes a
    folder of files with the same names.

    Args:
        checkpoint: what to copy; its files are only read.
        edits: the new values. Tensors that share all their bytes (ties) are edited once; two edits of tied tensors must
            agree.
        target: the new file, or the new folder for a checkpoint of several files. A link is followed.
        force: whether a file that is there may be replaced, or a folder that holds nothing but files of the same names.
        verify: looks at the finished copy before it takes its name; what it raises prevents that.

    Raises:
        UsageError: something is at ``target`` and ``force`` is false; a folder there holds other files.
        CheckpointError: the checkpoint changed since it was opened; its format cannot be edited; an edited tensor
            shares some of its bytes with another tensor.
        OutputError: the copy cannot be written, or does not read back as it should.
        ValueError: an edit of a tensor that is not of this checkpoint, of another shape or dtype, or that contradicts
            another.
    """
    wanted = _distinct(checkpoint, edits)
    place = Path(os.path.realpath(target))
    with error_context(path=checkpoint.path):
        editor = _editor(checkpoint)
        _refuse_shared_bytes(checkpoint, wanted)
    with output_errors(str(target)), beside(place) as copy:
        mode = _check_target(checkpoint, place, str(target), force=force)
        with error_context(path=checkpoint.path):
            _copy_files(checkpoint, copy)
            extra = editor.patch(checkpoint, wanted, copy) if wanted else ()
            _refuse_changes(checkpoint)
        written = _read_back(checkpoint, copy, str(target))
        changed = None if extra is None else [*(e.tensor.place for e in wanted if e.tensor.place), *extra]
        with error_context(path=str(target)):
            check_copy(checkpoint, written, {tie_of(e.tensor): e.values for e in wanted}, changed)
        if verify is not None:
            verify(written)
        _refuse_changes(checkpoint)
        _settle(checkpoint, copy, mode)
        put_in_place(copy, place, force=force)


def refuse_target(checkpoint: Checkpoint, target: str | os.PathLike[str], *, force: bool = False) -> None:
    """Refuse a target at once that :func:`save_edited` would refuse after all work is done.

    Args:
        checkpoint: what is to be copied.
        target: as there.
        force: as there.

    Raises:
        UsageError: something is there that is not to be replaced.
        OutputError: there is no such folder, or something that cannot be replaced.
    """
    place = Path(os.path.realpath(target))
    with output_errors(str(target)):
        _check_target(checkpoint, place, str(target), force=force)
        if not place.parent.is_dir():
            raise OutputError("cannot be written", path=str(target), found="no such folder", advice="create it first")


def write_values(edits: Sequence[Edit], copy: Path) -> None:
    """Put values where their tensors stand in a copy of the one file that holds them; no other byte changes.

    Args:
        edits: new values of tensors that have a place.
        copy: the copy of the file.

    Raises:
        ValueError: a tensor has no place.
        OSError: the copy cannot be written.
    """
    descriptor = os.open(copy, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    try:
        for edit in edits:
            if edit.tensor.place is None:
                raise ValueError(f"{edit.tensor.key} has no place in the file")
            edit.tensor.place.write(descriptor, edit.values)
    finally:
        os.close(descriptor)


# -------------------------------------------------------------------------------------------------------------- edits


def _editor(checkpoint: Checkpoint) -> EditableFormat:
    reader = FORMATS[checkpoint.format]
    if not isinstance(reader, EditableFormat):
        raise CheckpointError(
            "cannot be edited", found=f"format {checkpoint.format}", advice="convert it to .safetensors or .pt"
        )
    return reader


def _distinct(checkpoint: Checkpoint, edits: Sequence[Edit]) -> list[Edit]:
    """Return the edits, each tie once, with values in this machine's byte order.

    Raises:
        ValueError: an edit does not fit.
    """
    known = {id(tensor) for tensor in checkpoint.tensors}
    chosen: dict[Hashable, Edit] = {}
    for edit in edits:
        tensor, dtype = edit.tensor, edit.values.dtype
        if id(tensor) not in known:
            raise ValueError(f"{tensor.key}: not a tensor of {checkpoint.path}")
        if (edit.values.shape, dtype.name) != (tensor.shape, tensor.dtype):
            raise ValueError(f"{tensor.key}: {dtype.name} {edit.values.shape} for {tensor.dtype} {tensor.shape}")
        if tensor.problem:
            raise ValueError(f"{tensor.key}: {tensor.problem}")
        native = replace(edit, values=edit.values.astype(dtype.newbyteorder("="), copy=False))
        first = chosen.setdefault(tie_of(tensor), native)
        if not equal_bits(first.values, native.values):
            raise ValueError(f"{first.tensor.key} and {tensor.key} are the same bytes, and the edits differ")
    return [edit for edit in chosen.values() if edit.values.size]


def _refuse_shared_bytes(checkpoint: Checkpoint, edits: Sequence[Edit]) -> None:
    edited = {tie_of(edit.tensor) for edit in edits}
    ties = {tie_of(tensor): tensor for tensor in reversed(checkpoint.tensors)}
    refuse_overlaps([Claim(t.key, t.place, tie in edited) for tie, t in ties.items() if t.place])


# ---------------------------------------------------------------------------------------------------------- the target


def _check_target(checkpoint: Checkpoint, place: Path, named: str, *, force: bool) -> int:
    """Return the permissions that the output is to have, unless it cannot or must not take the place.

    Raises:
        UsageError: something is there that is not to be replaced.
        OutputError: something is there that cannot be replaced.
        OSError: the place cannot be looked at.
    """
    several = len(checkpoint.files) > 1
    if several and place.suffix in _ONE_FILE:
        raise UsageError(
            "a checkpoint of several files is written as a folder", path=named, advice="give the name of a folder"
        )
    try:
        there = place.lstat()
    except FileNotFoundError:
        return _permissions(0o777 if several else os.fstat(checkpoint.files[0].fileno()).st_mode)
    if several != stat.S_ISDIR(there.st_mode):
        found = "a folder" if stat.S_ISDIR(there.st_mode) else "a file"
        raise UsageError(f"is to be {'a folder' if several else 'a file'}", path=named, found=found)
    if several:
        _check_folder(checkpoint, place, named, force=force)
    elif not stat.S_ISREG(there.st_mode):
        raise OutputError("cannot be written", path=named, found="something that is not a regular file")
    elif not force:
        itself = os.path.samestat(there, os.fstat(checkpoint.files[0].fileno()))
        what = "is the checkpoint itself" if itself else "is already there"
        raise UsageError(what, path=named, advice="give another name, or --force")
    return stat.S_IMODE(there.st_mode)


def _check_folder(checkpoint: Checkpoint, place: Path, named: str, *, force: bool) -> None:
    entries = list(os.scandir(place))
    if entries and not force:
        raise UsageError("is already there", path=named, advice="give another name, or --force")
    ours = {file.path.name for file in checkpoint.files}
    others = sorted(entry.name for entry in entries if entry.name not in ours or not entry.is_file())
    if others:
        raise UsageError(
            "holds other files, which would be lost",
            path=named,
            found=", ".join(printable(name, 40) for name in others[:3]) + (", ..." if len(others) > 3 else ""),
            advice="give the name of a new folder",
        )


def _permissions(mode: int) -> int:
    """Return the permissions of a new thing made after the example of another, as ``cp`` would."""
    mask = os.umask(0)
    os.umask(mask)
    return mode & 0o777 & ~mask


# ------------------------------------------------------------------------------------------------------------ the copy


def _copy_files(checkpoint: Checkpoint, copy: Path) -> None:
    _refuse_changes(checkpoint)
    if len(checkpoint.files) > 1:
        copy.mkdir(mode=0o700)
    for file in checkpoint.files:
        copy_file(file, counterpart(file, checkpoint, copy))


def _refuse_changes(checkpoint: Checkpoint) -> None:
    for file in checkpoint.files:
        if not file.is_unchanged():
            raise CheckpointError(
                "changed since it was opened", path=str(file.path), advice="wait until it is complete, then try again"
            )


def _read_back(checkpoint: Checkpoint, copy: Path, named: str) -> Checkpoint:
    try:
        return replace(open_checkpoint(counterpart(checkpoint.files[0], checkpoint, copy)), path=named)
    except (CheckpointError, UsageError) as error:
        raise OutputError(
            "the copy cannot be read back, so it did not take its name", path=named, found=error.what
        ) from error


def _settle(checkpoint: Checkpoint, copy: Path, mode: int) -> None:
    if len(checkpoint.files) > 1:
        for file in checkpoint.files:
            settle(counterpart(file, checkpoint, copy), _permissions(os.fstat(file.fileno()).st_mode))
    settle(copy, mode)

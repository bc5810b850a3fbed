"""Checkpoint files: the door. A format is one file in this folder.

A reader turns a file into a :class:`Checkpoint`: its tensors by key, unread until somebody asks, and whatever the
file says about the modules that own them. Nothing here knows what a convolution is, except ``discovery``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

from numpy.typing import NDArray

from convsv.checkpoints._address import is_address
from convsv.checkpoints._content import describe_content, describe_folder
from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._natural import natural_key
from convsv.checkpoints._place import Place
from convsv.errors import CheckpointError, UnknownFormatError, UnsafeCheckpointError, UsageError, error_context, escaped
from convsv.geometry import GeometryFacts
from convsv.graph import Network
from convsv.registry import Registry

__all__ = [
    "FORMATS",
    "Checkpoint",
    "Format",
    "ModuleFacts",
    "Normalisation",
    "RegularFile",
    "StoredTensor",
    "checkpoints_among",
    "find_checkpoints",
    "open_checkpoint",
]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint, not read yet.

    Attributes:
        key: the key as stored, in the file's own notation (``layer1.0.conv1.weight``, ``conv2d/kernel:0``).
        shape: stored shape.
        dtype: stored dtype by numpy's or ml_dtypes' name: ``float32``, ``bfloat16``, ``float8_e4m3fn``, ``int64`` ...
        read: reads the values; raises ``CheckpointError``.
        container: path of the mapping that holds it inside the file: ``("state_dict",)``, ``("model", "ema")``;
            ``()`` at the top.
        identity: equal for tensors that share exactly the same stored bytes in the same arrangement (ties).
        problem: why it cannot be read, if so (quantised, sparse, meta ...).
        place: where its bytes stand uncompressed in a file, if they do; what an edit overwrites.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], NDArray[Any]] = field(repr=False, compare=False)
    container: tuple[str, ...] = ()
    identity: object = None
    problem: str | None = None
    place: Place | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Normalisation:
    """A batch normalisation in inference: it scales each channel by ``scale / sqrt(variance + epsilon)``.

    Attributes:
        name: what reports call it: its module's path, or its node's name.
        variance: key of the moving variance, as stored.
        scale: key of the learned scale (gamma), None where it has none.
        epsilon: what is added to the variance; None where nothing tells.
    """

    name: str
    variance: str
    scale: str | None = None
    epsilon: float | None = None


@dataclass(frozen=True)
class ModuleFacts:
    """What the file says about the module (layer) that owns some tensors.

    Attributes:
        path: module path inside its container, in the notation of the keys, without a trailing separator.
        class_name: last part of the class's name (``Conv2d``, ``Conv2DTranspose``); ``""`` when unknown.
        geometry: what is known of its geometry, ``None`` fields where silent.
        container: as in :class:`StoredTensor`.
        name: what reports call the module, when that is not its path (``conv2d`` for ``conv2d/conv2d``,
            ``conv2d_30`` for ``layers/conv2d``).
        variables: key of each tensor the module owns -> what it is: ``"kernel"``, ``"depthwise_kernel"``,
            ``"pointwise_kernel"``, ``"bias"``, or ``"kernel_oik"`` where a Keras file stores ``(out, in, *K)``.
            Empty where the keys say it themselves. A module of two convolutions (separable layers) speaks twice,
            each time about one kernel. Where the file's own graph tells what takes a tensor, it is ``"kernel_oik"``
            or ``"operand"``: of an operator, named as ``class_name``, that is no convolution.
        epsilon: what a normalising module adds to the variance, where the file says it.
        norm: the batch normalisation that takes the module's output, where the file's own graph tells that it is
            what follows, and that nothing else takes that output. Its tensors are in the same container.
        calls: where the file's own graph applies the module with several geometries, one entry each in the order of
            the calls; the first is ``geometry``.
        inferred: what is only read off the module's name.
    """

    path: str
    class_name: str
    geometry: GeometryFacts = field(default_factory=GeometryFacts)
    container: tuple[str, ...] = ()
    name: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    epsilon: float | None = None
    norm: Normalisation | None = None
    calls: tuple[GeometryFacts, ...] = ()
    inferred: GeometryFacts = field(default_factory=GeometryFacts)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: an index, whose tensors are read one by one on demand.

    Attributes:
        path: as the user named it.
        format: name of the reader: ``pytorch``, ``safetensors``, ``keras`` ...
        tensors: all tensors, in stored order.
        modules: what the file says about modules; empty when it holds weights only.
        problems: what was dropped or refused while indexing, one line each.
        files: every file it consists of, for hashing.
        network: reads the graph of all operations, where the file holds one; may raise ``CheckpointError``.
        likeness: the same object for checkpoints that differ in the values of tensors alone; None where that is not
            known.
    """

    path: str
    format: str
    tensors: Sequence[StoredTensor]
    modules: tuple[ModuleFacts, ...] = ()
    problems: tuple[str, ...] = ()
    files: tuple[RegularFile, ...] = ()
    network: Callable[[], Network] | None = field(default=None, repr=False, compare=False)
    likeness: object = field(default=None, repr=False, compare=False)

    def sha256(self) -> str:
        """Return the SHA-256 of the file; of several files, that of the lines ``hash  name`` sorted by name."""
        if len(self.files) == 1:
            return self.files[0].sha256()
        lines = "".join(f"{f.sha256()}  {f.path.name}\n" for f in sorted(self.files, key=lambda f: f.path.name))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine; what does not is never hashed, because it is not read whole."""
        return all(file.is_local for file in self.files)

    @property
    def byte_size(self) -> int:
        """Total size of its files."""
        return sum(file.size for file in self.files)

    @property
    def stored_size(self) -> int:
        """Bytes of them that are on a disk: less where they have holes, which cost nobody anything to make."""
        return sum(file.stored for file in self.files)


class Format(Protocol):
    """A reader: one module in this folder registers one."""

    @property
    def name(self) -> str:
        """What ``Checkpoint.format`` says."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Usual endings of file names, with the dot, in lower case."""
        ...

    def recognises(self, file: RegularFile) -> bool:
        """Tell from the content (magic bytes, header) whether this reader is for that file."""
        ...

    def open(self, file: RegularFile) -> Checkpoint:
        """Index the file; raises ``CheckpointError``."""
        ...


FORMATS: Registry[Format] = Registry("format", "convsv.checkpoints")
"""All readers by name."""


_LONGEST_NAME, _LONGEST_NAMES = 1 << 13, 1 << 24
"""Characters in one name and in all: the rules that look for layers take half a second for a million."""
_CHECKED: WeakSet[object] = WeakSet()
"""Likenesses of checkpoints whose names are known to be short enough."""
_NOT_HASHED = "not hashed, because it is not read whole; what the server calls this version: "
INDEX_SUFFIX = ".index.json"
"""How the index of a sharded checkpoint is recognised among the files of a folder, before its content is asked."""


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint: a file of any known format, a safetensors index, or a folder that holds one.

    The content decides the format; the suffix is only mentioned when nothing else tells.

    Args:
        path: the file or folder; as a string also the address of a file (``https://``, ``s3://`` ...).

    Returns:
        The index. No tensor is read.

    Raises:
        UsageError: there is no such file.
        UnknownFormatError: no reader recognises the content; the message says what it looks like.
        CheckpointError: it cannot be read, or is unsafe to read; a folder holds none, or more than one.
    """
    with error_context(path=str(path)):
        file = _file(path)
        reader = _reader(file)
        if reader is None:
            what, advice = describe_content(file)
            raise UnknownFormatError("is not a checkpoint convsv can read", found=what, advice=advice)
        opened = reader.open(file)
        if opened.likeness is None or opened.likeness not in _CHECKED:
            _check_names(opened.tensors)
            if opened.likeness is not None:
                _CHECKED.add(opened.likeness)
        problems = opened.problems if file.is_local else (*opened.problems, _NOT_HASHED + file.version)
        return replace(opened, path=str(path), problems=tuple(map(escaped, problems)))


def _check_names(tensors: Sequence[StoredTensor]) -> None:
    lengths = [len(tensor.key) for tensor in tensors]
    if max(lengths, default=0) > _LONGEST_NAME:
        found = f"{max(lengths)} characters, limit {_LONGEST_NAME}"
        raise UnsafeCheckpointError("the name of a tensor is too long", found=found)
    if sum(lengths) > _LONGEST_NAMES:
        found = f"{sum(lengths)} characters, limit {_LONGEST_NAMES}"
        raise UnsafeCheckpointError("the names of tensors are too long together", found=found)


def _file(path: str | os.PathLike[str]) -> RegularFile:
    if isinstance(path, str) and is_address(path):
        from convsv.checkpoints._remote import RemoteFile

        return RemoteFile(path)
    named = Path(path)
    return RegularFile(_only_checkpoint(named) if named.is_dir() else named)


def find_checkpoints(path: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoints that a path names, each fit for :func:`open_checkpoint`.

    What is not a folder is itself, whatever its content. A folder with the index of a sharded checkpoint is one
    checkpoint: the folder (with several indices: each of them). Any other folder stands for the files in it that have a
    checkpoint's suffix or content, in the order of their names, numbers in which count as numbers; its subfolders and
    hidden files are not searched.

    Args:
        path: a file or a folder.

    Raises:
        CheckpointError: the folder cannot be listed.
        UnknownFormatError: the folder holds no checkpoint.
    """
    named = Path(path)
    if not named.is_dir():
        return [named]
    with error_context(path=str(path)):
        files = _files_in(named)
        found = checkpoints_among(files)
        if not found:
            what, advice = describe_folder([file.name for file in files], _folders_in(named))
            raise UnknownFormatError("is a folder without a checkpoint", found=what, advice=advice)
        return [named] if len(found) == 1 and found[0].name.endswith(INDEX_SUFFIX) else found


def checkpoints_among(files: Sequence[Path]) -> list[Path]:
    """Return which files of one folder are checkpoints: its indices of sharded ones, or else all of them.

    Args:
        files: some files of one folder.
    """
    indices = [file for file in files if file.name.endswith(INDEX_SUFFIX) and _recognised(file)]
    if indices:
        return indices
    suffixes = tuple(suffix for _, reader in FORMATS.items() for suffix in reader.suffixes)
    return [file for file in files if file.name.lower().endswith(suffixes) or _recognised(file)]


def _only_checkpoint(folder: Path) -> Path:
    found = find_checkpoints(folder)
    if found == [folder]:
        found = checkpoints_among(_files_in(folder))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:4]) + (", ..." if len(found) > 4 else "")
        raise CheckpointError("is a folder with several checkpoints", found=names, advice="name one of them")
    return found[0]


def _files_in(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in _entries(folder) if _is_file(entry)]


def _folders_in(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        raise CheckpointError("cannot be listed", found=error.strerror or str(error)) from None
    return [entry for entry in entries if not entry.name.startswith(".")]


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()  # false for a broken link, a FIFO, a device
    except OSError:
        return False  # a link to itself


def _recognised(path: Path) -> bool:
    try:
        return _reader(RegularFile(path)) is not None
    except (CheckpointError, UsageError):
        return False


def _reader(file: RegularFile) -> Format | None:
    return next((reader for _, reader in FORMATS.items() if reader.recognises(file)), None)

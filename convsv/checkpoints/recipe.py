"""How to find a layer again: what another process needs to open the checkpoint and see the same layer in it.

A recipe holds no tensor. It travels with a task, and :func:`convsv.checkpoints.reopening.reopened` follows it.
"""

from __future__ import annotations

from dataclasses import dataclass

from convsv.checkpoints import Checkpoint, RegularFile
from convsv.checkpoints.sources import GeometryOptions

__all__ = ["FileStamp", "Recipe"]


@dataclass(frozen=True)
class FileStamp:
    """What tells whether a file is still the one that was read.

    Attributes:
        name: its path.
        size: its size in bytes.
        version: when it was modified, or what its server calls its state; ``""`` where nothing tells.
        sha256: hash of its content, where it was asked for already.
    """

    name: str
    size: int
    version: str
    sha256: str | None

    @staticmethod
    def of(file: RegularFile) -> FileStamp:
        """Return the stamp of an open file."""
        return FileStamp(str(file.path), file.size, file.version, file.known_sha256)

    def fits(self, file: RegularFile) -> bool:
        """Tell whether a file has the same content: by size and version, else by its hash."""
        if file.size != self.size:
            return False
        return file.version == self.version != "" or (self.sha256 is not None and file.sha256() == self.sha256)


@dataclass(frozen=True)
class Recipe:
    """How the layers of a checkpoint were found: everything that decides which they are, and how they lie.

    Attributes:
        path: the checkpoint, as the user named it.
        files: stamps of its files.
        geometry: what the caller states about geometry; a traced model is in it as what the trace told.
        include: globs on layer names.
        exclude: globs on layer names.
    """

    path: str
    files: tuple[FileStamp, ...]
    geometry: GeometryOptions
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @staticmethod
    def of(
        checkpoint: Checkpoint, geometry: GeometryOptions, include: tuple[str, ...], exclude: tuple[str, ...]
    ) -> Recipe:
        """Return the recipe of an open checkpoint."""
        return Recipe(checkpoint.path, tuple(map(FileStamp.of, checkpoint.files)), geometry, include, exclude)

    def fits(self, checkpoint: Checkpoint) -> bool:
        """Tell whether a checkpoint that was opened anew consists of the same files."""
        pairs = zip(self.files, checkpoint.files, strict=False)
        return len(self.files) == len(checkpoint.files) and all(stamp.fits(file) for stamp, file in pairs)

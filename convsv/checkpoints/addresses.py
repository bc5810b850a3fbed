"""The checkpoints that an address stands for: a file, or in a store a folder or a pattern."""

from __future__ import annotations

from convsv.checkpoints import FORMATS, INDEX_SUFFIX
from convsv.checkpoints._address import WEB, check_address, is_address, scheme_of
from convsv.checkpoints.patterns import is_pattern
from convsv.errors import UnknownFormatError, UsageError, error_context

__all__ = ["checkpoints_at", "is_address"]


def checkpoints_at(address: str, *, pattern: bool = True) -> list[str]:
    """Return the addresses of checkpoints that an address stands for, in the order of a run.

    On the web it is one file, whatever is in its name. In a store it may be a folder or a pattern: the files that have
    a checkpoint's suffix, or the indices of sharded checkpoints among them. Nothing is opened.

    Args:
        address: the address.
        pattern: whether stars and brackets may mean something.

    Raises:
        UsageError: an address that is not read, or nothing matches.
        UnknownFormatError: a folder, or a pattern, without a checkpoint.
        CheckpointError: the store does not answer, refuses, or a package is missing.
    """
    with error_context(path=address):
        check_address(address)
        if scheme_of(address) in WEB:
            return [address]
        from convsv.checkpoints._fsspec import list_folder, list_pattern

        if pattern and is_pattern(address):
            found = list_pattern(address)
            if not found:
                raise UsageError("no file matches this pattern")
            return [address] if found == [address] else _chosen(found, "matches no checkpoint")
        listed = list_folder(address)
        return [address] if listed is None else _chosen(listed, "is a folder without a checkpoint")


def _chosen(files: list[str], otherwise: str) -> list[str]:
    """Return those that are checkpoints by their names.

    Raises:
        UnknownFormatError: none is.
    """
    suffixes = tuple(suffix for _, reader in FORMATS.items() for suffix in reader.suffixes)
    folders_with_index = {file.rpartition("/")[0] for file in files if file.endswith(INDEX_SUFFIX)}
    found = [
        file
        for file in files
        if file.lower().endswith(INDEX_SUFFIX if file.rpartition("/")[0] in folders_with_index else suffixes)
    ]
    if not found:
        raise UnknownFormatError(otherwise, found=f"{len(files)} other {'file' if len(files) == 1 else 'files'}")
    return found

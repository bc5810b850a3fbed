"""Patterns of file names: the checkpoints that ``runs/*/epoch_*.pt`` stands for, in the order of a run."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from convsv.checkpoints import checkpoints_among, find_checkpoints
from convsv.checkpoints._natural import natural_key
from convsv.errors import CheckpointError, UnknownFormatError, UsageError

__all__ = ["checkpoints_in", "is_pattern", "matching_checkpoints"]

_MAGIC = "*?["


def checkpoints_in(folder: str) -> list[str]:
    """Return what :func:`convsv.checkpoints.find_checkpoints` finds in a folder, named as the user names the folder.

    Args:
        folder: the folder.

    Raises:
        CheckpointError: it cannot be listed, or holds no checkpoint.
    """
    found = find_checkpoints(folder)
    # Path would take "./" away.
    return [folder if path == Path(folder) else os.path.join(folder, path.name) for path in found]  # noqa: PTH118


def is_pattern(name: str) -> bool:
    """Tell whether a name holds a character that a pattern gives a meaning."""
    return any(character in name for character in _MAGIC)


def matching_checkpoints(pattern: str, accepts: Callable[[str], bool] = lambda name: False) -> list[str]:
    """Return the checkpoints that a pattern stands for, each once, numbers in their names counting as numbers.

    ``*``, ``?`` and ``[...]`` are those of the shell; ``**`` stands for any number of folders, none included, and
    follows no links. Hidden files and folders match only where the pattern names them with their dot. Of the files that
    match in one folder those are taken that would be taken if they were all the folder holds, and a folder that matches
    stands for its checkpoints, see :func:`convsv.checkpoints.find_checkpoints`.

    Args:
        pattern: the pattern, relative to the working folder or absolute.
        accepts: which other files to take.

    Raises:
        UsageError: nothing matches, or it is no pattern.
        UnknownFormatError: what matches holds no checkpoint.
    """
    folders: list[str] = []
    files: defaultdict[str, list[str]] = defaultdict(list)
    for name in _matches(pattern):
        if Path(name).is_dir():
            folders.append(name)
        elif Path(name).is_file():
            files[os.path.dirname(name)].append(name)  # noqa: PTH120 - as the user wrote it: Path would drop "./"
    if not folders and not files:
        raise UsageError("no file matches this pattern", path=pattern)
    found = {os.path.normpath(name): name for folder in folders for name in _in_folder(folder)}
    whole = {os.path.normpath(folder) for folder in folders}
    for folder, names in files.items():
        if os.path.normpath(folder) not in whole:
            found |= {os.path.normpath(name): name for name in _among(names, accepts)}
    if not found:
        count = sum(map(len, files.values()))
        what = f"{count} other {'file' if count == 1 else 'files'}" if count else "no file"
        raise UnknownFormatError("matches no checkpoint", path=pattern, found=what)
    return sorted(found.values(), key=natural_key)


def _matches(pattern: str) -> Iterator[str]:
    """Yield what matches, as the user would have written it.

    Raises:
        UsageError: it is no pattern.
    """
    parts = pattern.split("/")
    first = next(at for at, part in enumerate(parts) if is_pattern(part))
    base, rest = "/".join(parts[:first]), [part for part in parts[first:] if part not in ("", ".")]
    base = base or ("/" if first else "")
    hidden = any(part.startswith(".") for part in rest)
    start = Path(base or ".")
    try:
        for match in start.glob("/".join(rest)):
            inner = match.relative_to(start)
            if rest[-1] == "**" and match.is_symlink() and match.is_dir():
                continue  # Python 3.13 stops there, earlier ones before
            if hidden or not any(part.startswith(".") for part in inner.parts):
                yield os.path.join(base, inner) if inner.parts else str(start)  # noqa: PTH118 - likewise
    except (ValueError, NotImplementedError, OSError) as error:
        raise UsageError("is not a pattern that can be followed", path=pattern, found=str(error)) from None


def _in_folder(folder: str) -> list[str]:
    try:
        return checkpoints_in(folder)
    except UnknownFormatError:
        return []
    except CheckpointError:
        return [folder]  # it cannot be listed: whoever opens it says so


def _among(names: list[str], accepts: Callable[[str], bool]) -> list[str]:
    chosen = set(checkpoints_among([Path(name) for name in names]))
    return [name for name in names if Path(name) in chosen or accepts(name)]

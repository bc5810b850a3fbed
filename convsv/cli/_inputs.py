"""What the arguments MODEL name: files, folders, patterns and lists, each checkpoint once and in its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from convsv.cli._names import listed_names, standard_input
from convsv.errors import UsageError
from convsv.results import CheckpointReport

__all__ = ["Failed", "Inputs"]

Failed: TypeAlias = "Callable[[CheckpointReport, Exception], CheckpointReport]"
_Item: TypeAlias = "tuple[str | None, CheckpointReport]"

LIST = "-"


class Inputs:
    """The checkpoints that arguments name, in order: a pair of path and blank report each.

    The path is None where it is already known that there is no checkpoint; then the report says why. Arguments are
    resolved at once, the list on standard input while it is read.

    A file that is named by itself comes as often as that; one that a folder, a pattern or the arguments before brought
    already does not come again, see ``docs/inputs.md``.

    Attributes:
        known: what is known now: everything, unless there is a list to read.
        complete: whether that is everything.

    Args:
        models: the arguments.
        failed: says that a checkpoint failed, and returns its report.
        accepts: which files a pattern may stand for beside checkpoints.
    """

    def __init__(
        self, models: Sequence[str], failed: Failed, accepts: Callable[[str], bool] = lambda name: False
    ) -> None:
        self._failed, self._accepts = failed, accepts
        self._brought: set[str] = set()
        self._named: set[str] = set()
        self._written: set[str] = set()
        # None stands for the list, which can be read once; named twice it has nothing more to say.
        self._parts = [None if model == LIST else self._resolved(model) for model in models]

    @property
    def known(self) -> list[_Item]:
        """What is known without reading a list."""
        return [item for part in self._parts if part is not None for item in part]

    @property
    def complete(self) -> bool:
        """Whether there is no list to read."""
        return None not in self._parts

    @property
    def several(self) -> bool:
        """Whether there is, or may be, more than one checkpoint."""
        return not self.complete or len(self.known) > 1

    def protect(self, targets: Iterable[str]) -> None:
        """Refuse to write over what is read, now and while a list is read.

        Args:
            targets: the files to be written.

        Raises:
            UsageError: one of them is an input.
        """
        self._written = {os.path.realpath(target) for target in targets}
        for path, _ in self.known:
            self._refuse_written(path)

    def __iter__(self) -> Iterator[_Item]:
        """Go through the checkpoints, once.

        Raises:
            UsageError: an entry of a list is to be written.
        """
        for part in self._parts:
            yield from self._listed() if part is None else part

    def _listed(self) -> Iterator[_Item]:
        stream = standard_input()
        names = listed_names(stream) if stream else iter(())
        count = 0
        while True:
            try:
                found = list(islice(names, 1))
            except UsageError as error:
                yield None, self._failed(CheckpointReport(LIST, ""), error)
                return
            if not found:
                break
            count += 1
            for item in self._resolved(found[0], pattern=False):
                self._refuse_written(item[0])
                yield item
        if not count:
            nothing = UsageError("standard input names no checkpoint")
            yield None, self._failed(CheckpointReport(LIST, ""), nothing)

    def _resolved(self, model: str, *, pattern: bool = True) -> list[_Item]:
        """Return what one name stands for."""
        try:
            found, alone = self._expanded(model, pattern)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checkpoints are still reported
            return [(None, self._failed(CheckpointReport(model, ""), error))]
        return [(path, CheckpointReport(path, "")) for path in found if self._is_new(path, alone)]

    def _expanded(self, model: str, pattern: bool) -> tuple[list[str], bool]:
        """Return the checkpoints that a name stands for, and whether it is the one itself.

        Raises:
            UsageError: there is no such file, or nothing matches.
            CheckpointError: a folder, or a pattern, holds no checkpoint.
        """
        from convsv.checkpoints.addresses import checkpoints_at, is_address
        from convsv.checkpoints.patterns import checkpoints_in, is_pattern, matching_checkpoints

        if Path(model).is_dir():
            found = checkpoints_in(model)
            return found, found == [model]
        if "\0" not in model and os.path.lexists(model):
            return [model], True
        if is_address(model):
            found = checkpoints_at(model, pattern=pattern)
            return found, found == [model]
        if pattern and is_pattern(model):
            return matching_checkpoints(model, self._accepts), False
        raise UsageError("no such file", path=model)

    def _is_new(self, path: str, alone: bool) -> bool:
        key = os.path.abspath(path)  # noqa: PTH100 - names, not what links lead to: each may mean something
        if key in self._brought or (key in self._named and not alone):
            return False
        (self._named if alone else self._brought).add(key)
        return True

    def _refuse_written(self, path: str | None) -> None:
        if path is not None and self._written and os.path.realpath(path) in self._written:
            raise UsageError("is to be read and written", path=path, advice="give the output another name")

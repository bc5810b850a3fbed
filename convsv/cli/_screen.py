"""Standard error: errors, warnings, notes and progress, one line each, harmless whatever the names in them hold."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from convsv.errors import CheckpointError, ConvsvError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = [
    "EXIT_CODES",
    "PRECEDENCE",
    "Screen",
    "close_standard_output",
    "exit_code",
    "occupy_standard_streams",
    "one_line",
    "worst",
]

EXIT_CODES = {
    130: "interrupted; what was finished is in the report, marked as partial",
    2: "usage: wrong options, or a file that is not there",
    5: "a result could not be computed or written",
    3: "a checkpoint, or a layer's weights, could not be read, or is unsafe to read; the others are still reported",
    1: "a gate says no: `check` found a layer that is certified to fail, `compare --fail-on` a change that was named",
    4: "`check` is undecided: no layer fails, and at least one could not be proved to pass",
    0: "done; of `check`: every layer is certified to pass",
}
"""All exit codes and what they mean; when several apply, the first one here wins."""
PRECEDENCE = tuple(EXIT_CODES)
"""Which exit code wins when several apply, strongest first."""


def worst(*codes: int) -> int:
    """Return the exit code that wins."""
    return min(codes, key=PRECEDENCE.index, default=0)


def exit_code(error: BaseException) -> int:
    """Return the exit code that an error stands for."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, UsageError):
        return 2
    return 3 if isinstance(error, CheckpointError) else 5


def one_line(error: BaseException) -> str:
    """Return what to say about an error, on one line."""
    if isinstance(error, ConvsvError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory; give a smaller --memory or --size"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return f"internal error: {type(error).__name__}: {error}; --verbose shows where, please report it"


def close_standard_output() -> None:
    """Let everything still to be written to standard output vanish: its reader has gone."""
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def occupy_standard_streams() -> None:
    """Put something behind standard streams that were closed before the program began (``>&-``, some daemons).

    Else the first files it opens would take their numbers, and Python has no stream objects for them. What is written
    to the new standard output fails, as results that nobody gets should; what is written to standard error vanishes.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        with suppress(OSError):
            os.fstat(number)
            continue
        found = os.open(os.devnull, mode)
        if found != number:
            os.dup2(found, number)
            os.close(found)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the program runs
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - likewise


class Screen:
    """What the user sees beside the results.

    Args:
        quiet: no progress, notes or warnings; errors are always shown.
        verbose: tracebacks of errors, and notes that are long.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self._progress: Progress | None = None
        self._task: Any = None

    def error(self, error: BaseException, text: str | None = None) -> None:
        """Show an error, in other words than its own if ``text`` says so."""
        if self.verbose:
            self._write("".join(traceback.format_exception(error)).rstrip("\n"), lines=True)
        self._write(f"error: {text or one_line(error)}")

    def verdict(self, text: str) -> None:
        """Show what the exit code says, in words."""
        if not self.quiet:
            self._write(text)

    def warning(self, text: str) -> None:
        """Show what the user should know about the results."""
        if not self.quiet:
            self._write(f"warning: {text}")

    def note(self, text: str) -> None:
        """Show what may interest the user."""
        if not self.quiet:
            self._write(f"note: {text}")

    def start(self) -> None:
        """Show progress, if standard error is a terminal."""
        if self.quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        bar = (BarColumn(), MofNCompleteColumn(), TextColumn("layers"), TimeElapsedColumn())
        self._progress = Progress(*bar, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("layers", total=0)
        self._progress.start()

    def expect(self, layers: int) -> None:
        """Add layers to what there is to do."""
        if self._progress:
            self._progress.update(self._task, total=(self._progress.tasks[0].total or 0) + layers)

    def advance(self) -> None:
        """Count one layer as done."""
        if self._progress:
            self._progress.advance(self._task)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Clear the progress bar away while something else is written."""
        if self._progress:
            self._progress.stop()
        yield
        if self._progress:
            self._progress.start()

    def stop(self) -> None:
        """Clear the progress bar away for good."""
        if self._progress:
            self._progress.stop()
        self._progress = None

    def _write(self, text: str, *, lines: bool = False) -> None:
        from convsv.reports._text import visible

        shown = "\n".join(visible(line) for line in text.split("\n")) if lines else visible(text)
        with suppress(OSError):  # nobody reads standard error: nobody to tell
            print(shown, file=sys.stderr, flush=True)

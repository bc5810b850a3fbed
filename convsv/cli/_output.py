"""Where a verb's results go: standard output, report files and array files, all fed layer by layer."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from convsv.cli._screen import close_standard_output
from convsv.cli.options import Output, Spectra
from convsv.errors import OutputError, UsageError
from convsv.files import replacing
from convsv.reports import WRITERS, Sink, Style, format_names, format_of, open_sink, replay
from convsv.reports._sort import sort_column, sort_report
from convsv.reports.arrays import ArrayFile, suffix_of
from convsv.results import CheckpointReport, LayerReport, Report, Spectrum

__all__ = ["SILENT", "Outputs", "interrupts_watched", "is_colourful", "uninterrupted", "without_values"]


def is_colourful(stream: TextIO) -> bool:
    """Tell whether colours are welcome on a stream: NO_COLOR says no, FORCE_COLOR yes, a terminal yes."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") != "0":
        return True
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


class _Interrupts:
    """Interrupts of the main thread, which wait in the blocks of this context manager.

    Attributes:
        watched: whether the handler is there anyway, so that a block need not exchange it.
    """

    def __init__(self) -> None:
        self.watched = self._came = False
        self._blocks = 0
        self._before: Any = None

    def watch(self) -> None:
        """Put the handler there, unless interrupts are ignored."""
        self._before = signal.getsignal(signal.SIGINT)
        if self._before not in (None, signal.SIG_IGN):
            signal.signal(signal.SIGINT, self._happened)

    def leave(self) -> None:
        """Put back what was there before."""
        if self._before not in (None, signal.SIG_IGN):
            signal.signal(signal.SIGINT, self._before)

    def _happened(self, number: int, frame: FrameType | None) -> None:
        if self._blocks:
            self._came = True
        elif callable(self._before):
            self._before(number, frame)
        else:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        if not self.watched and not self._blocks:
            self.watch()
        self._blocks += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._blocks -= 1
        if self._blocks:
            return
        if not self.watched:
            self.leave()
        came, self._came = self._came, False
        if came and kind is None:
            raise KeyboardInterrupt


_INTERRUPTS = _Interrupts()


def uninterrupted() -> AbstractContextManager[None]:
    """Let an interrupt wait until the block is done, so that what is written stays well formed.

    The block raises KeyboardInterrupt where one came meanwhile.
    """
    return _INTERRUPTS if _is_main_thread() else nullcontext()


@contextmanager
def interrupts_watched() -> Iterator[None]:
    """Make :func:`uninterrupted` cheap in a block: to exchange the handler costs as much as to write a row."""
    if _INTERRUPTS.watched or not _is_main_thread():
        yield
        return
    _INTERRUPTS.watch()
    _INTERRUPTS.watched = True
    try:
        yield
    finally:
        _INTERRUPTS.watched = False
        _INTERRUPTS.leave()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


_STANDARD_OUTPUT = "standard output"
SILENT = "none"
"""The format of verbs that put nothing on standard output: their files are the result."""


class _Guarded:
    """A sink whose trouble ends it alone: a closed pipe in silence, anything else with an OutputError kept here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stack = ExitStack()
        self.sink: Sink | None = None
        self.error: OutputError | None = None

    @property
    def closed(self) -> bool:
        return self.sink is None

    def do(self, write: Callable[[Sink], None]) -> None:
        """Write, if there is still somebody to write to."""
        if self.sink is None:
            return
        try:
            write(self.sink)
        except BrokenPipeError:
            self.abandon()
        except OSError as error:
            self._failed(error)

    def finish(self) -> None:
        """Let the file take its name."""
        try:
            if self.sink is not None:
                self.stack.close()
        except OutputError as error:
            self.error = error
        except OSError as error:
            self._failed(error)
        self.sink = None

    def abandon(self) -> None:
        """Give up: a file never takes its name, and what standard output still holds vanishes."""
        self.sink = None
        if self.name == _STANDARD_OUTPUT:
            close_standard_output()
        gone = OutputError("given up", path=self.name)
        with suppress(OutputError, OSError):
            self.stack.__exit__(OutputError, gone, None)

    def _failed(self, error: OSError) -> None:
        advice = None if self.name == _STANDARD_OUTPUT else "give another place"
        self.error = OutputError("cannot be written", path=self.name, found=error.strerror or str(error), advice=advice)
        self.abandon()


class Outputs:
    """Everything that takes the results of one call.

    Args:
        head: the report's command and settings.
        output: what the user asked for.
        spectra: what the user asked for of whole spectra.
        summary: bounds: a row a bound over all layers.
        named: formats of files whose suffix does not tell it.

    Raises:
        UsageError: an unknown format, suffix or column, or a file named twice.
    """

    def __init__(
        self,
        head: Report,
        output: Output,
        spectra: Spectra,
        *,
        summary: bool = False,
        named: Mapping[str, str] | None = None,
    ) -> None:
        self._head, self._output, self._spectra, self._summary = head, output, spectra, summary
        self._format = output.format
        if self._format == "auto":
            self._format = "table" if sys.stdout.isatty() else "tsv"
        named = dict(named or {})
        self._formats = [named.get(path) or self._format_of(path) for path in output.output]
        if spectra.spectra is not None:
            suffix_of(spectra.spectra)
        self._column = None if output.sort is None else sort_column(head, output.sort)
        if self._column and summary:
            raise UsageError("--sort does not go with --summary", advice="leave one of them away")
        _refuse_twice([*output.output, *([spectra.spectra] if spectra.spectra else [])])
        if self._format not in (SILENT, *format_names(head.command)):
            known = ", ".join(format_names(head.command))
            raise UsageError("--format: no such format", found=repr(self._format), advice=f"use auto or one of {known}")
        self._guarded: list[_Guarded] = []
        self._reports: list[_Guarded] = []

    @property
    def rows_on_terminal(self) -> bool:
        """Whether rows appear on a terminal one by one, which a progress bar would tear apart."""
        return sys.stdout.isatty() and self._format in ("tsv", "csv", "jsonl") and not self._column

    @property
    def unread(self) -> bool:
        """Whether nobody takes results any more: standard output is closed and nothing else was asked for."""
        return all(guarded.closed for guarded in self._guarded)

    @property
    def streams(self) -> bool:
        """Whether nobody needs earlier layers in the end: every report is one of rows, in the order they come."""
        kinds = [*self._formats, *([] if self._format == SILENT else [self._format])]
        known = all(kind in WRITERS and WRITERS[kind].streams for kind in kinds)
        return known and not self._column and not self._summary

    @property
    def errors(self) -> list[OutputError]:
        """What went wrong while writing, at most one error an output."""
        return [guarded.error for guarded in self._guarded if guarded.error]

    @contextmanager
    def opened(self, head: Report) -> Iterator[None]:
        """Open everything; files take their names when the block ends without an error, and vanish otherwise.

        Args:
            head: the report's command and settings.

        Raises:
            OutputError: a file cannot be written.
        """
        try:
            if self._spectra.spectra is not None:
                arrays = self._guard(self._spectra.spectra)
                arrays.sink = ArrayFile(self._spectra.spectra, arrays.stack)
            for path, name in zip(self._output.output, self._formats, strict=True):
                file = self._guard(path)
                file.sink = self._file_sink(file.stack.enter_context(replacing(path)), name, head, file.stack)
                self._reports.append(file)
            if self._format != SILENT:
                page = self._guard(_STANDARD_OUTPUT)
                page.sink = open_sink(_standard_output(self._format), self._format, head, self._style())
                self._reports.append(page)
            yield
        except BaseException:
            for guarded in self._guarded:
                if guarded.name != _STANDARD_OUTPUT:
                    guarded.abandon()
            raise
        for guarded in self._guarded:
            guarded.finish()

    def _format_of(self, path: str) -> str:
        """Return the format of an output file.

        Raises:
            UsageError: its suffix stands for none.
        """
        return format_of(path, self._head.command)

    def _file_sink(self, temporary: Path, name: str, head: Report, stack: ExitStack) -> Sink:
        """Return what writes an output file, under the name that it has until it is complete."""
        style = Style(values=self._spectra.values, summary=self._summary)
        return open_sink(_opened(temporary, stack), name, head, style)

    def _guard(self, name: str) -> _Guarded:
        self._guarded.append(_Guarded(name))
        return self._guarded[-1]

    def _style(self) -> Style:
        terminal = sys.stdout.isatty()
        return Style(
            values=self._spectra.values,
            summary=self._summary,
            terminal=terminal,
            colour=is_colourful(sys.stdout),
            width=_terminal_width() if terminal else None,
        )

    def kept(self, layer: LayerReport) -> LayerReport:
        """Return what of a layer must be kept until the end."""
        return layer if self._spectra.values else without_values(layer)

    def layers(self, checkpoint: CheckpointReport, layers: Sequence[LayerReport]) -> None:
        """Give some layers to everybody who can take them now."""

        def give(sink: Sink) -> None:
            for layer in layers:
                sink.layer(checkpoint, layer)

        for guarded in self._guarded:
            if not (self._column and guarded in self._reports):
                guarded.do(give)
        self._flush()

    def checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Tell everybody that a checkpoint is complete."""
        if not self._column:
            for guarded in self._reports:
                guarded.do(lambda sink: sink.checkpoint(checkpoint))

    def end(self, report: Report) -> None:
        """Give the whole report to everybody."""
        whole = sort_report(report, self._column) if self._column else report
        for guarded in self._guarded:
            if self._column and guarded in self._reports:
                guarded.do(lambda sink: replay(whole, sink))
            else:
                guarded.do(lambda sink: sink.end(whole))
        # Here, where its failure has a name; at exit Python could only complain.
        self._flush()

    def _flush(self) -> None:
        """Let the reader of a pipe have its rows at once, and notice a closed one before more work is done."""
        last = self._guarded[-1]
        if last.name == _STANDARD_OUTPUT:
            last.do(lambda sink: sys.stdout.flush())


def without_values(layer: LayerReport) -> LayerReport:
    """Return a layer's report without whole spectra."""
    if not layer.results:
        return layer
    results = {
        method: result.without_whole_values() if isinstance(result, Spectrum) else result
        for method, result in layer.results.items()
    }
    return replace(layer, results=results)


def _refuse_twice(paths: list[str]) -> None:
    real = [os.path.realpath(path) for path in paths]
    for path, name in zip(paths, real, strict=True):
        if real.count(name) > 1:
            raise UsageError("is to be written twice", path=path, advice="give each output a name of its own")


def _opened(path: Path, stack: ExitStack) -> TextIO:
    # No newline translation: CSV cells may hold carriage returns.
    return stack.enter_context(path.open("w", encoding="utf-8", errors="backslashreplace", newline=""))


def _standard_output(name: str) -> TextIO:
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure:
        # For programs UTF-8 whatever the locale; for a terminal its own encoding, and nothing it cannot show fails.
        encoding = None if name == "table" else "utf-8"
        reconfigure(encoding=encoding, errors="backslashreplace", newline="\n")
    return sys.stdout


def _terminal_width() -> int:
    import shutil

    return shutil.get_terminal_size((100, 24)).columns

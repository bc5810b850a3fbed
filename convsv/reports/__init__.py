"""Reports: the door. A writer is one entry of :data:`WRITERS`, registered by a file in this folder.

A writer turns results into text for one kind of reader. It is given results one by one (:class:`Sink`), so that a
format of rows can be written while later layers are still in work, and a whole one waits for the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Protocol, TextIO, TypeAlias

from convsv.errors import UsageError
from convsv.registry import Registry
from convsv.results import CheckpointReport, LayerReport, Report

__all__ = [
    "WRITERS",
    "MakeSink",
    "Sink",
    "Style",
    "Writer",
    "format_names",
    "format_of",
    "open_sink",
    "replay",
    "write_report",
    "writer",
]


@dataclass(frozen=True)
class Style:
    """How a report is to look, where its format leaves a choice.

    Attributes:
        values: put whole spectra into formats that can hold them.
        summary: for bounds, a row a bound over all layers instead of a row a layer and bound.
        terminal: the text goes straight to a terminal: nothing in it may steer one.
        colour: colours and emphasis are welcome.
        width: columns of the terminal; None where nothing limits a line.
    """

    values: bool = False
    summary: bool = False
    terminal: bool = False
    colour: bool = False
    width: int | None = None


class Sink(Protocol):
    """Where results go, in the order in which they are found."""

    def layer(self, checkpoint: CheckpointReport, layer: LayerReport) -> None:
        """Take one layer of ``checkpoint``, whose own ``layers`` are not complete yet."""
        ...

    def checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Take a checkpoint that is complete, or could not be read."""
        ...

    def end(self, report: Report) -> None:
        """Take the whole report, last."""
        ...


MakeSink: TypeAlias = Callable[[TextIO, Report, Style], Sink]
"""``(out, head, style) -> sink``; ``head`` is the report without any checkpoint: its command and settings."""


@dataclass(frozen=True)
class Writer:
    """One format.

    Attributes:
        make: makes the sink.
        suffixes: file suffixes that stand for it.
        commands: the commands it can write reports of; empty for all.
        streams: its sinks write rows as they come, and look at no layer again when the report ends.
    """

    make: MakeSink
    suffixes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    streams: bool = False

    def writes(self, command: str) -> bool:
        """Tell whether it can write reports of a command."""
        return not self.commands or command in self.commands


WRITERS: Registry[Writer] = Registry("format", "convsv.reports")
"""All writers by the name of their format."""


def writer(
    name: str, *suffixes: str, commands: tuple[str, ...] = (), streams: bool = False
) -> Callable[[MakeSink], MakeSink]:
    """Return a decorator that registers a sink's maker as the writer of a format.

    Args:
        name: the format.
        suffixes: file suffixes that stand for it.
        commands: the commands it can write reports of; empty for all.
        streams: its sinks write rows as they come, and look at no layer again when the report ends.
    """

    def register(make: MakeSink) -> MakeSink:
        WRITERS.add(name, Writer(make, suffixes, commands, streams))
        return make

    return register


def format_names(command: str) -> tuple[str, ...]:
    """Return the formats in which reports of a command can be written."""
    return tuple(sorted(name for name, entry in WRITERS.items() if entry.writes(command)))


def format_of(path: str, command: str = "analyze") -> str:
    """Return the format that the suffix of ``path`` stands for.

    Args:
        path: the file to write.
        command: whose report it is to hold.

    Raises:
        UsageError: it stands for none.
    """
    suffix = PurePath(path).suffix.lower()
    known = {suffix: name for name, entry in WRITERS.items() if entry.writes(command) for suffix in entry.suffixes}
    if suffix not in known:
        found = f"suffix {suffix!r}" if suffix else "no suffix"
        raise UsageError("no report format goes with this name", path=path, found=found, advice=f"use {_listed(known)}")
    return known[suffix]


def _listed(names: dict[str, str]) -> str:
    *most, last = sorted(names)
    return f"{', '.join(most)} or {last}"


def open_sink(out: TextIO, name: str, head: Report, style: Style | None = None) -> Sink:
    """Return a sink of one format.

    Args:
        out: a text stream in UTF-8.
        name: the format.
        head: the report's command and settings; its checkpoints are ignored.
        style: how it is to look.

    Raises:
        UsageError: no such format.
    """
    known = format_names(head.command)
    if name not in known:
        raise UsageError("unknown report format", found=repr(name), advice=f"use one of {', '.join(known)}")
    return WRITERS[name].make(out, replace(head, checkpoints=()), style or Style())


def replay(report: Report, sink: Sink) -> None:
    """Give a finished report to a sink, as if it were found now."""
    for checkpoint in report.checkpoints:
        for layer in checkpoint.layers:
            sink.layer(checkpoint, layer)
        sink.checkpoint(checkpoint)
    sink.end(report)


def write_report(report: Report, out: TextIO, name: str, style: Style | None = None) -> None:
    """Write a finished report in one format.

    Args:
        report: the report.
        out: a text stream in UTF-8.
        name: the format.
        style: how it is to look.

    Raises:
        UsageError: no such format.
    """
    replay(report, open_sink(out, name, report, style))

"""Markdown tables, for pull requests and notes: few digits, like those on a terminal."""

from __future__ import annotations

import re
from typing import TextIO

from convsv.reports import Sink, Style, writer
from convsv.reports._changes import change_tables
from convsv.reports._networks import checkpoint_table
from convsv.reports._tables import Table, summary_table
from convsv.reports._text import code_span, visible
from convsv.reports._words import legend
from convsv.results import CheckpointReport, LayerReport, Report

__all__: list[str] = []

_ACTIVE = re.compile(r"([\\`*_\[\]<>|#~&])")


def _prose(text: str) -> str:
    """Return text as prose without markup or HTML."""
    return _ACTIVE.sub(r"\\\1", visible(text))


def _cell(text: str, *, name: bool) -> str:
    return code_span(text) if name and text else _prose(text)


def _lines(table: Table) -> list[str]:
    name, rest = table.title
    lines = [f"### {code_span(name)} · {_prose(rest)}" if name else f"### {_prose(rest)}", ""]
    if table.rows:
        lines.append(f"| {' | '.join(column.title for column in table.columns)} |")
        lines.append(f"|{'|'.join('---:' if column.right else ':---' for column in table.columns)}|")
    for row in table.rows:
        cells = (_cell(text, name=column.name) for column, text in zip(table.columns, row, strict=True))
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"- \\[{number}\\] {_prose(note)}" for number, note in enumerate(table.footnotes, 1)]
    return [*lines, *(["", *notes] if notes else []), ""]


class _Markdown:
    def __init__(self, out: TextIO, head: Report, style: Style) -> None:
        self._out, self._head, self._style = out, head, style

    def layer(self, checkpoint: CheckpointReport, layer: LayerReport) -> None:
        """Wait for the whole checkpoint."""

    def checkpoint(self, checkpoint: CheckpointReport) -> None:
        if checkpoint.format and (self._style.summary or self._head.command == "compare"):
            return
        if checkpoint.format:
            self._write(_lines(checkpoint_table(self._head, checkpoint)))
        elif not self._style.summary:
            problems = [f"- {_prose(problem)}" for problem in checkpoint.problems]
            self._write([f"### {code_span(checkpoint.path)} · could not be read", "", *problems, ""])

    def end(self, report: Report) -> None:
        if self._style.summary:
            self._write(_lines(summary_table(report)))
        for table in change_tables(report):
            self._write(_lines(table))
        words = legend(report, summary=self._style.summary)
        self._write([f"- **{_prose(term)}**: {_prose(meaning)}" for term, meaning in words])
        self._out.flush()

    def _write(self, lines: list[str]) -> None:
        self._out.write("".join(f"{line}\n" for line in lines))


@writer("markdown", ".md")
def markdown_sink(out: TextIO, head: Report, style: Style) -> Sink:
    """Return a sink for Markdown tables, a heading a checkpoint."""
    return _Markdown(out, head, style)

"""Tables on a terminal, with rich: nothing cut but long names, and those in the middle."""

from __future__ import annotations

import io
import re
from typing import TextIO

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from convsv.reports import Sink, Style, writer
from convsv.reports._changes import change_tables
from convsv.reports._networks import checkpoint_table
from convsv.reports._tables import KEEP, Column, Table, summary_table
from convsv.reports._text import visible
from convsv.reports._words import legend
from convsv.results import CheckpointReport, LayerReport, Report

__all__ = ["fit", "fold_middle"]

_GAP = 2
_COMFORTABLE_NAME = 16
_SHORTEST_NAME = 8
_LEGEND_WIDTH = 100
_GUESS = re.compile(r"(?<=\S)\?(?=\s|$)")
_VERDICTS = {r"^PASS": "green", r"^FAIL": "bold red", r"^UNDECIDED": "yellow", r", (accepted|warning)": "dim"}
_REASON = re.compile(r"— \[\d+\]|\[\d+\]$")


def fold_middle(text: str, width: int) -> str:
    """Return ``text`` cut in the middle to at most ``width`` terminal columns, keeping more of its end.

    Names of layers differ at both ends and are alike in the middle.
    """
    if cell_len(text) <= width:
        return text
    head = max(0, (width - 1) // 3)
    tail = max(0, width - 1 - head)
    return set_cell_size(text, head) + "…" + set_cell_size(text[::-1], tail)[::-1]


def fit(table: Table, width: int | None) -> tuple[Table, tuple[str, ...]]:
    """Return the table with columns dropped and names folded until it fits, and the titles of what was dropped.

    Numbers are never cut: where even the columns that must stay are too wide, lines are longer than ``width``.

    Args:
        table: the table; its names harmless already.
        width: columns of the terminal; None for no limit.
    """
    kept = list(range(len(table.columns)))
    widths = [_needed(table, index) for index in kept]
    if width is None:
        return table, ()
    name = next((index for index in kept if table.columns[index].name), None)
    least = [min(w, _COMFORTABLE_NAME) if index == name else w for index, w in enumerate(widths)]
    droppable = sorted(kept, key=lambda index: table.columns[index].drop)
    while sum(least[index] + _GAP for index in kept) - _GAP > width and table.columns[droppable[-1]].drop != KEEP:
        kept.remove(droppable.pop())
    dropped = tuple(column.title for index, column in enumerate(table.columns) if index not in kept)
    room = max(width - sum(widths[index] + _GAP for index in kept if index != name), _SHORTEST_NAME)
    rows = tuple(tuple(fold_middle(row[i], room) if i == name else row[i] for i in kept) for row in table.rows)
    columns = tuple(table.columns[index] for index in kept)
    return Table(table.title, columns, rows, table.ends, table.footnotes), dropped


def _needed(table: Table, index: int) -> int:
    return max(cell_len(text) for text in (table.columns[index].title, *(row[index] for row in table.rows)))


def _harmless(table: Table) -> Table:
    rows = tuple(tuple(visible(cell) for cell in row) for row in table.rows)
    title = (visible(table.title[0]), table.title[1])
    return Table(title, table.columns, rows, table.ends, tuple(visible(note) for note in table.footnotes))


class _Terminal:
    def __init__(self, out: TextIO, head: Report, style: Style) -> None:
        self._out, self._head, self._style = out, head, style

    def layer(self, checkpoint: CheckpointReport, layer: LayerReport) -> None:
        """Wait: the width of a column is known when its checkpoint is complete."""

    def checkpoint(self, checkpoint: CheckpointReport) -> None:
        if checkpoint.format and not self._style.summary and self._head.command != "compare":
            self._draw(_harmless(checkpoint_table(self._head, checkpoint)))

    def end(self, report: Report) -> None:
        if self._style.summary:
            self._draw(_harmless(summary_table(report)))
        for table in change_tables(report):
            self._draw(_harmless(table))
        words = legend(report, summary=self._style.summary)
        if words:
            grid = RichTable.grid(padding=(0, _GAP, 0, 0))
            grid.add_column(no_wrap=True)
            grid.add_column(ratio=1)
            for term, meaning in words:
                grid.add_row(Text(term, "bold"), Text(meaning, "dim"))
            self._print(grid, width=min(self._style.width or _LEGEND_WIDTH, _LEGEND_WIDTH))
        self._out.flush()

    def _draw(self, table: Table) -> None:
        fitted, dropped = fit(table, self._style.width)
        lines: list[RenderableType] = [_title(table)]
        if fitted.rows:
            lines.append(_rich_table(fitted))
        lines += [Text(f"[{number}] {note}", "dim") for number, note in enumerate(fitted.footnotes, 1)]
        if dropped:
            lines.append(Text(f"hidden for lack of room: {', '.join(dropped)} (--format tsv shows all)", "dim italic"))
        self._print(*lines, Text(""), width=max(_width(fitted), self._style.width or _LEGEND_WIDTH))
        self._out.flush()

    def _print(self, *items: RenderableType, width: int) -> None:
        # Into a string first: rich would end the program on a closed pipe, and look at the terminal on its own.
        page = Console(
            file=io.StringIO(),
            force_terminal=self._style.colour,
            color_system="standard" if self._style.colour else None,
            no_color=not self._style.colour,
            width=width,
            legacy_windows=False,
            highlight=False,
            markup=False,
            emoji=False,
        )
        with page.capture() as captured:
            for item in items:
                page.print(item)
        self._out.write("\n".join(line.rstrip() for line in captured.get().split("\n")))


def _width(table: Table) -> int:
    return sum(_needed(table, index) + _GAP for index in range(len(table.columns))) - _GAP


def _title(table: Table) -> Text:
    name, rest = table.title
    return Text.assemble((name, "bold"), f" · {rest}" if name else rest, no_wrap=True, overflow="fold")


def _rich_table(table: Table) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    for index, column in enumerate(table.columns):
        drawn.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="fold",
            min_width=_needed(table, index),
        )
    for number, row in enumerate(table.rows):
        cells = [_cell(column, text) for column, text in zip(table.columns, row, strict=True)]
        drawn.add_row(*cells, end_section=number in table.ends)
    return drawn


def _cell(column: Column, text: str) -> Text:
    cell = Text(text, "cyan" if column.name else "bold" if column.title == "norm" else "")
    if not column.name:
        cell.highlight_regex(_GUESS, "yellow")
    for words, style in _VERDICTS.items() if column.title == "verdict" else ():
        cell.highlight_regex(words, style)
    cell.highlight_regex(_REASON, "dim")
    return cell


@writer("table")
def terminal_sink(out: TextIO, head: Report, style: Style) -> Sink:
    """Return a sink for tables on a terminal; each is drawn when its checkpoint is complete."""
    return _Terminal(out, head, style)

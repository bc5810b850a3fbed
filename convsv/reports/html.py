"""One HTML page that needs no network: summary, a table to sort and filter, a figure for each layer that is opened.

The page holds the whole report as JSON (schema ``convsv/1``) in its element ``data``; its script draws from that. All
text from checkpoints is escaped here or enters the page as text there, and a Content-Security-Policy lets nothing run
or load but the page's own style and script, which it names by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import PurePath
from statistics import median
from typing import Any, TextIO

from convsv import __version__
from convsv.reports import Sink, Style, writer
from convsv.reports._changes import change_tables
from convsv.reports._networks import checkpoint_table
from convsv.reports._numbers import DOWN, UP, short
from convsv.reports._objects import report_object
from convsv.reports._summary import assumed
from convsv.reports._tables import Column, Table, summary_table
from convsv.reports._text import visible
from convsv.reports._words import legend
from convsv.results import CheckpointReport, LayerReport, Report

__all__ = ["command_line"]

_MARK = re.compile(r"\[(\d+)\]")
_SPARE = 2
"""Columns with at least this rank of those that go first are left out on a phone."""
_NO_COMMAND_LINE = ("check", "clip", "compare", "lipschitz")
"""Verbs that take more than their settings tell."""


def _text(text: object) -> str:
    """Return text of any origin as HTML: one line, no markup, nothing that hides or reorders."""
    return escape(visible(str(text)), quote=True)


# -------------------------------------------------------------------------------------------------------- command line


def command_line(report: Report) -> str:
    """Return the command that makes a report again, as far as its settings tell; empty where they do not."""
    if report.command in _NO_COMMAND_LINE:
        return ""
    words = ["convsv", report.command, *_options(report.settings, report.command)]
    paths = [f"./{c.path}" if c.path.startswith("-") else c.path for c in report.checkpoints]
    output = ["-o", "report.html"] if report.command == "report" else []
    return " ".join(shlex.quote(word) for word in (*words, *paths, *output))


_FLAGS: Mapping[str, str] = {
    "padding_mode": "--padding-mode",
    "geometry": "--geometry",
    "model": "--model",
    "model_args": "--model-args",
    "input_shape": "--input-shape",
    "include": "--include",
    "exclude": "--exclude",
    "device": "--device",
    "dtype": "--dtype",
    "tol": "--tol",
    "memory": "--memory",
    "top": "--top",
    "trailing": "--trailing",
    "full": "--full",
    "density": "--density",
}


def _options(settings: Mapping[str, Any], command: str) -> Iterator[str]:
    if command in ("analyze", "report"):
        for method in settings.get("methods", ()):
            yield from ("--method", str(method))
    if settings.get("size"):
        yield from ("--size", "x".join(map(str, settings["size"])))
    if settings.get("fold_bn"):
        yield "--fold-bn-by-order" if settings["fold_bn"] == "by-order" else "--fold-bn"
    for name, flag in _FLAGS.items():
        value = settings.get(name)
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if item is True:
                yield flag
            elif item not in (None, False, 0, ""):
                yield from (flag, str(item))


# -------------------------------------------------------------------------------------------------------------- tables


def _whole_table(head: Report, report: Report) -> tuple[Table, list[int | None]]:
    """Return one table of all layers of all checkpoints, and for each row the number of its layer."""
    # Bounds stand in a layer's own figure, changes in a table of their own: a row of this one is a layer.
    shown = replace(head, command="analyze") if head.command in ("bounds", "compare") else head
    layers = tuple(layer for checkpoint in report.checkpoints for layer in checkpoint.layers)
    whole = checkpoint_table(shown, CheckpointReport("", "", layers=layers))
    owners: list[int | None] = []
    paths: list[str] = []
    for checkpoint in report.checkpoints:
        for layer in checkpoint.layers:
            lines = len(checkpoint_table(shown, CheckpointReport("", "", layers=(layer,))).rows)
            owners += [owners[-1] + 1 if owners and owners[-1] is not None else 0] * lines
            paths += [checkpoint.path] * lines
    rows, notes = list(whole.rows), list(whole.footnotes)
    for checkpoint in report.checkpoints:
        extra = checkpoint_table(shown, replace(checkpoint, layers=()))
        rows += [tuple(_renumbered(cell, len(notes)) for cell in row) for row in extra.rows]
        owners += [None] * len(extra.rows)
        paths += [checkpoint.path] * len(extra.rows)
        notes += extra.footnotes
    columns = whole.columns
    if len(report.checkpoints) > 1:
        columns = (columns[0], Column("checkpoint", name=True), *columns[1:])
        rows = [(row[0], PurePath(path).name or path, *row[1:]) for row, path in zip(rows, paths, strict=True)]
    return Table(("", ""), columns, tuple(rows), footnotes=tuple(notes)), owners


def _renumbered(cell: str, offset: int) -> str:
    """Return a cell with the numbers of its footnotes moved up."""
    return _MARK.sub(lambda mark: f"[{int(mark[1]) + offset}]", cell)


def _kind(column: Column) -> str:
    """Return the class of a column's cells: numbers, and what a phone has no room for (an opened layer tells it)."""
    names = ["number"] * column.right + ["spare"] * (column.drop >= _SPARE)
    return f' class="{" ".join(names)}"' if names else ""


def _heading(column: Column, *, sortable: bool) -> str:
    kind = _kind(column)
    title = _text(column.title)
    if not sortable:
        return f'<th scope="col"{kind}><span>{title}</span></th>'
    return f'<th scope="col"{kind} aria-sort="none"><button type="button">{title}</button></th>'


def _row(table: Table, cells: Sequence[str], owner: int | None) -> str:
    name = f'<span class="name" title="{_text(cells[0])}">{_text(cells[0]) or "&quot;&quot;"}</span>'
    lead = name if owner is None else f'<button type="button" aria-expanded="false">{name}</button>'
    rest = "".join(
        f"<td{_kind(column)}>{_text(cell)}</td>" for column, cell in zip(table.columns[1:], cells[1:], strict=True)
    )
    number = -1 if owner is None else owner
    return f'<tr class="layer" data-layer="{number}"><th scope="row">{lead}</th>{rest}</tr>\n'


def _layers(head: Report, report: Report) -> Iterator[str]:
    table, owners = _whole_table(head, report)
    if not table.rows:
        yield "<p>No convolutions.</p>\n"
        return
    yield (
        '<div class="bar"><input type="search" id="filter" placeholder="filter: words that a row must hold" '
        'aria-label="Filter the layers" autocomplete="off" spellcheck="false">'
        '<span id="count" class="muted" role="status"></span></div>\n'
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of the layers"><table id="layers"><thead><tr>'
    )
    yield "".join(_heading(column, sortable=True) for column in table.columns)
    yield "</tr></thead>\n<tbody>\n"
    for cells, owner in zip(table.rows, owners, strict=True):
        yield _row(table, cells, owner)
    yield "</tbody></table></div>\n"
    yield _listed((f"[{number}] {note}" for number, note in enumerate(table.footnotes, 1)), "notes")


def _still(heading: str, table: Table) -> str:
    """Return a table that is not sorted, under a heading."""
    heads = "".join(_heading(column, sortable=False) for column in table.columns)
    cells = (zip(table.columns, row, strict=True) for row in table.rows)
    rows = "".join(f"<tr>{''.join(f'<td{_kind(c)}>{_text(cell)}</td>' for c, cell in row)}</tr>\n" for row in cells)
    whole = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    said = _text(" · ".join(filter(None, table.title)))
    notes = _listed((f"[{number}] {note}" for number, note in enumerate(table.footnotes, 1)), "notes")
    return (
        f'<h2>{_text(heading)}</h2>\n<p class="muted">{said}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(heading)}">{whole}</div>\n{notes}'
    )


# -------------------------------------------------------------------------------------------------------------- around


def _listed(items: Iterable[str], kind: str = "plain") -> str:
    lines = "".join(f"<li>{_text(item)}</li>" for item in items)
    return f'<ul class="{kind}">{lines}</ul>\n' if lines else ""


def _defined(pairs: Iterable[tuple[str, str]], kind: str = "") -> str:
    lines = "".join(f"<dt>{_text(term)}</dt><dd>{_text(meaning)}</dd>" for term, meaning in pairs)
    return f"<dl{f' class={kind}' if kind else ''}>{lines}</dl>"


def _card(number: int, checkpoint: CheckpointReport) -> str:
    name = _text(PurePath(checkpoint.path).name or checkpoint.path)
    facts = list(_card_facts(checkpoint))
    problems = _listed(checkpoint.problems)
    if problems:
        problems = f"<details><summary>{len(checkpoint.problems)} remarks on the file</summary>{problems}</details>"
    return (
        f'<li class="card"><h3>{name}</h3><div class="figure" data-overview="{number}"></div>'
        f"{_defined(facts)}{problems}</li>\n"
    )


def _card_facts(checkpoint: CheckpointReport) -> Iterator[tuple[str, str]]:
    if not checkpoint.format:
        yield "", "could not be read"
        return
    yield "layers", str(len(checkpoint.layers))
    norms = [(layer.norm.upper, layer.norm.lower, layer.name) for layer in checkpoint.layers if layer.norm]
    if norms:
        upper, lower, name = max(norms)
        yield "largest norm", f"[{short(lower, DOWN)}, {short(upper, UP)}] {name}"
        yield "median norm", f"≤ {short(median(norm[0] for norm in norms), UP)}"
    missing = sum("norm" in layer.unavailable or bool(layer.failures) for layer in checkpoint.layers)
    if missing:
        yield "incomplete", f"{missing} layers lack a norm or another result"
    yield "format", checkpoint.format
    yield "path", checkpoint.path
    if checkpoint.sha256:
        yield "sha256", checkpoint.sha256


def _assumptions(layers: Sequence[LayerReport]) -> str:
    counts = Counter(name.replace("_", " ") for layer in layers for name in assumed(layer))
    if not counts:
        return "<p>Nothing: the geometry of every layer is known from the checkpoint, the options or a trace.</p>\n"
    items = (f"{name}: of {count} of {len(layers)} layers" for name, count in counts.most_common())
    advice = "state it with --size, --padding-mode or --geometry FILE.toml, or trace the model with --model"
    lead = f"The checkpoint does not tell these; numbers marked ? lean on them. To be sure, {advice}."
    return f"<p>{lead}</p>{_listed(items)}"


def _reproduction(report: Report) -> str:
    line = command_line(report)
    said = f"<pre><code>{_text(line)}</code></pre>\n" if line else ""
    known = {name: value for name, value in report.settings.items() if value not in (None, (), [], "", False)}
    settings = [("convsv", __version__), *((name, _setting(value)) for name, value in known.items())]
    held = "<p>This page holds the whole report as JSON (schema convsv/1) in its element <code>data</code>.</p>\n"
    return f"{said}{_defined(settings)}{held}"


def _setting(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _data(report: Report) -> str:
    """Return the report as JSON that may stand in a script element: pure ASCII, and no ``<`` to end it with."""
    text = json.dumps(report_object(report), allow_nan=False, separators=(",", ":"))
    for char in "<>&\x7f":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _resource(name: str) -> str:
    return files("convsv.reports").joinpath("page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _title(report: Report) -> str:
    names = [PurePath(checkpoint.path).name or checkpoint.path for checkpoint in report.checkpoints]
    return names[0] if len(names) == 1 else f"{len(names)} checkpoints"


def _page(head: Report, report: Report, *, summary: bool) -> Iterator[str]:
    style, script = _resource("report.css"), _resource("report.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    layers = [layer for checkpoint in report.checkpoints for layer in checkpoint.layers]
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="convsv {__version__}">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{_text(_title(report))} · convsv</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header><h1>{_text(_title(report))}</h1><p class="muted">What each convolution does to its input: '
        "certified norms and singular values, by convsv.</p>\n"
    )
    if report.partial:
        yield '<p class="partial">Interrupted: this report holds only the layers that were finished by then.</p>\n'
    yield '<noscript><p class="partial">Without JavaScript the table is whole, but there are no figures.</p></noscript>'
    yield '</header>\n<main>\n<h2>Checkpoints</h2>\n<ul class="cards">\n'
    yield from (_card(number, checkpoint) for number, checkpoint in enumerate(report.checkpoints))
    yield "</ul>\n"
    for table in change_tables(report):
        yield _still("Changes", table)
    yield _still("Bounds over all layers", summary_table(report)) if summary else ""
    yield '<h2>Layers</h2>\n<p class="muted">A heading sorts; a layer opens its figures.</p>\n'
    yield from _layers(head, report)
    yield f"<h2>What the numbers mean</h2>\n{_defined(legend(report), 'words')}\n"
    yield f"<h2>What was assumed</h2>\n{_assumptions(layers)}" if layers else ""
    yield f"<h2>How to make this again</h2>\n{_reproduction(report)}</main>\n<footer></footer>\n"
    yield f'<script type="application/json" id="data">{_data(report)}</script>\n'
    yield f"<script>{script}</script>\n</body>\n</html>\n"


class _Html:
    def __init__(self, out: TextIO, head: Report, style: Style) -> None:
        self._out, self._head, self._style = out, head, style

    def layer(self, checkpoint: CheckpointReport, layer: LayerReport) -> None:
        """Wait: the page is written whole."""

    def checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Wait: the page is written whole."""

    def end(self, report: Report) -> None:
        self._out.writelines(_page(self._head, report, summary=self._style.summary))


@writer("html", ".html", ".htm")
def html_sink(out: TextIO, head: Report, style: Style) -> Sink:
    """Return a sink for one self-contained page: a table to sort and filter, and a figure a layer."""
    return _Html(out, head, style)

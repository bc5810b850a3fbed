r"""JSON, JSON Lines, CSV and TSV: reports for programs, at full precision.

One set of keys serves all four. JSON nests them; CSV and TSV join nested ones with ``_`` (``norm_lower``,
``geometry_stride``, ``results_circulant_max``). In their cells

- a list of integers is joined with ``x`` (``64x64x3x3``), each pair of a padding with ``:`` (``1:1x1:1``),
- a list of words or of floats is joined with ``;``, and ``unavailable`` and ``notes`` with ``; ``,
- histograms are left out,
- nothing (None) is an empty cell, truth is ``true`` or ``false``, numbers have all their digits,
- text is guarded as :mod:`convsv.reports._text` says (spreadsheet formulas, line ends in TSV), reversibly.

Text in JSON is ASCII with ``\u`` escapes, so that every name survives and none can steer a terminal.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from convsv.reports import Sink, Style, writer
from convsv.reports._objects import (
    Tally,
    change_object,
    checkpoint_object,
    layer_object,
    report_object,
    summary_object,
)
from convsv.reports._operations import NETWORK_COLUMNS, flat_operations
from convsv.reports._summary import BoundSummary, summarise
from convsv.reports._text import to_csv, to_tsv, visible
from convsv.results import CheckpointReport, LayerChange, LayerReport, Reached, Report, Step

__all__ = ["BOUND_COLUMNS", "columns", "flat_change", "flat_layers", "flat_summary"]

# ------------------------------------------------------------------------------------------------- JSON, JSON Lines


def _json(value: Any, indent: int = 0) -> str:
    """Return an object as JSON, ``indent`` columns a level; on one line where that is 0."""
    import msgspec  # here, as it costs every report of another format some milliseconds

    try:
        text = msgspec.json.format(msgspec.json.encode(value), indent=indent).decode("ascii")
    except (TypeError, UnicodeError):  # text beyond ASCII, which is to be escaped, or types that only resemble JSON's
        text = json.dumps(value, indent=indent or None, allow_nan=False)
    # DEL is the one control character JSON leaves alone.
    return text.replace("\x7f", "\\u007f") + "\n"


class _Json:
    def __init__(self, out: TextIO, style: Style) -> None:
        self._out, self._style = out, style

    def layer(self, checkpoint: CheckpointReport, layer: LayerReport) -> None:
        """Wait: the object is written whole."""

    def checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Wait: the object is written whole."""

    def end(self, report: Report) -> None:
        whole = report_object(report, values=self._style.values, summary=self._style.summary)
        self._out.write(_json(whole, indent=2))


@writer("json", ".json")
def json_sink(out: TextIO, head: Report, style: Style) -> Sink:
    """Return a sink for one JSON object, which ``report.schema.json`` describes."""
    return _Json(out, style)


class _JsonLines:
    def __init__(self, out: TextIO, style: Style) -> None:
        self._out, self._style = out, style
        self._tally = Tally()

    def layer(self, checkpoint: CheckpointReport, layer: LayerReport) -> None:
        row = {"checkpoint": checkpoint_object(checkpoint), **layer_object(layer, values=self._style.values)}
        self._out.write(_json(row))

    def checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Count it: the last line tells of checkpoints."""
        self._tally.add(checkpoint)

    def end(self, report: Report) -> None:
        self._out.write(_json({"summary": summary_object(report, self._tally, summary=self._style.summary)}))


@writer("jsonl", ".jsonl", streams=True)
def jsonl_sink(out: TextIO, head: Report, style: Style) -> Sink:
    """Return a sink that writes one JSON object a layer as soon as it is known, and a summary as the last."""
    return _JsonLines(out, style)


# --------------------------------------------------------------------------------------------------------- flat rows

Row = dict[str, Any]

_LAYER = ("checkpoint_path", "name", "weight", "kind", "shape", "dtype")
_FACTS = ("size", "stride", "padding", "padding_mode", "dilation", "groups", "transposed", "output_padding")
_GEOMETRY = tuple(f"geometry_{name}" for name in _FACTS)
_ORIGINS = tuple(f"geometry_origin_{name}" for name in _FACTS)
_INTERVAL = ("lower", "upper", "width", "of", "guarantee", "assumes_lower", "assumes_upper", "evaluations")
_NORM = tuple(f"norm_{key}" for key in _INTERVAL)
_NORM_AT_SIZE = tuple(f"norm_at_size_{key}" for key in _INTERVAL)
_SYMBOL_MIN = tuple(f"symbol_min_{key}" for key in _INTERVAL)
_CLIP = (
    "clip_radius",
    "clip_method",
    "clip_touched",
    *(f"clip_norm_{when}_{key}" for when in ("before", "after") for key in _INTERVAL),
    "clip_distance",
    "clip_iterations",
    "clip_gap",
    "clip_notes",
    *(f"clip_reached_{key}" for key in Reached.__dataclass_fields__),
)
_CHANGE = (
    "old_path",
    "new_path",
    "name",
    "status",
    "trend",
    *(f"{when}_norm_{end}" for when in ("old", "new") for end in ("lower", "upper")),
    *(f"ratio_{key}" for key in ("lower", "upper", "assumes_lower")),
    "kernel_distance",
    *(f"spectrum_{key}" for key in ("method", "wasserstein1", "wasserstein2", "error", "old_of", "new_of")),
    "old_shape",
    "new_shape",
    "geometry",
    "unavailable",
)
_FINDING = (
    "verdict",
    "limit",
    *(f"interval_{key}" for key in ("lower", "upper", "width", "of", "guarantee", "assumes_lower", "assumes_upper")),
    "reason",
    "accepted",
)
_CHECK = (
    "check_severity",
    "check_criterion",
    *(f"check_{key}" for key in _FINDING),
    *(f"check_criteria_{name}_{key}" for name in ("max_norm", "min_norm", "max_condition") for key in _FINDING),
)
_SPECTRUM = ("of", "kind", "guarantee", "count", "max", "min", "frobenius")
_RANKS = ("stable_rank", "effective_rank", "condition", "error", "quantile_error", "assumes", "residuals")
BOUND_COLUMNS = ("bound", "value", "side", "of", "guarantee", "ratio", "seconds", "assumes")
_END = ("unavailable", "failures", "notes", "checkpoint_format", "checkpoint_sha256")
_SUMMARY = tuple(BoundSummary.__dataclass_fields__)


def columns(head: Report, *, summary: bool = False) -> tuple[str, ...]:
    """Return the columns of a CSV report that are known before any result.

    Spectra add ``results_<method>_quantiles_<p>``, and ``--method bounds`` adds ``results_bounds_<name>_value`` and
    its like, from the results themselves.

    Args:
        head: the report's command and its setting ``methods``.
        summary: a row a bound over all layers.
    """
    if summary:
        return _SUMMARY
    layer = (*_LAYER, "folded") if head.settings.get("fold_bn") else _LAYER
    if head.command == "layers":
        return (*layer, *_GEOMETRY, *_ORIGINS, *_END)
    if head.command == "clip":
        return (*layer, *_GEOMETRY, *_CLIP, *_ORIGINS, *_END)
    if head.command == "compare":
        return _CHANGE
    if head.command == "lipschitz":
        return NETWORK_COLUMNS
    if head.command == "check":
        return (*layer, *_CHECK, *_NORM, *_SYMBOL_MIN, *_GEOMETRY, *_ORIGINS, *_END)
    if head.command == "bounds":
        return (*layer, *_GEOMETRY, *_NORM, *BOUND_COLUMNS, *_ORIGINS, *_END)
    methods = head.settings.get("methods", ())
    norms = (*_NORM, *_NORM_AT_SIZE) if head.settings.get("norm", True) else ()
    norms += _SYMBOL_MIN if "symbol_min" in methods else ()
    spectra = [
        f"results_{method}_{key}"
        for method in methods
        if method not in ("bounds", "symbol_min")
        for key in (*_SPECTRUM, *_RANKS)
    ]
    return (*layer, *_GEOMETRY, *norms, *spectra, *_ORIGINS, *_END)


def flat_layers(command: str, checkpoint: CheckpointReport, layer: LayerReport) -> Iterator[Row]:
    """Yield the rows of one layer, as column -> value: one, or for the command ``bounds`` one a bound."""
    record = layer_object(layer)
    if command == "check":
        record["results"] = {}  # what a verdict was found from: its numbers are in the verdict
    for result in record["results"].values():
        result.pop("histogram", None)
    bounds = record["results"].pop("bounds", {}) if command == "bounds" else {}
    record["unavailable"] = [f"{what}: {why}" for what, why in layer.unavailable.items()]
    row = _flat({"checkpoint": checkpoint_object(checkpoint), **record})
    if not bounds:
        yield row
    for name, bound in bounds.items():
        yield {**row, "bound": name, **bound}


def flat_change(step: Step, change: LayerChange) -> Row:
    """Return the row of one layer from one checkpoint to the next, as column -> value."""
    row = _flat(change_object(change))
    row["unavailable"] = [f"{what}: {why}" for what, why in change.unavailable.items()]
    return {**row, "old_path": step.old, "new_path": step.new}


def flat_summary(report: Report) -> Iterator[Row]:
    """Yield a row a bound over all layers."""
    for row in summarise(report):
        yield dict(vars(row))


def _flat(record: Row, prefix: str = "") -> Row:
    row: Row = {}
    for key, item in record.items():
        if isinstance(item, dict):
            row |= _flat(item, f"{prefix}{key}_")
        else:
            row[prefix + key] = item
    return row


def _cell(value: Any, guard: Callable[[str], str]) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return guard(_joined(value)) if value else ""
    return str(value)


def _joined(items: Sequence[Any]) -> str:
    """Return items of one kind in one cell: pairs, integers, floats of which some may be missing, or words."""
    first = items[0]
    if isinstance(first, (list, tuple)):
        return "x".join(":".join(map(str, pair)) for pair in items)
    if isinstance(first, int):
        return "x".join(map(str, items))
    if first is None or isinstance(first, float):
        return ";".join("" if item is None else float.__repr__(item) for item in items)
    return ("; " if any(" " in item for item in items) else ";").join(items)


# ---------------------------------------------------------------------------------------------------------- CSV, TSV


@dataclass(frozen=True)
class _Dialect:
    out: TextIO
    write: Callable[[list[str]], object]
    guard: Callable[[str], str]


_MOST_WAITING = 1000
"""Rows that wait for the columns of later ones; what comes later still goes into their notes."""


class _Rows:
    """A header line and rows, written as soon as all columns are known."""

    def __init__(self, dialect: _Dialect, head: Report, style: Style) -> None:
        self._dialect, self._head, self._style = dialect, head, style
        self._columns: tuple[str, ...] = ()
        self._waiting: list[Row] = []
        methods = head.settings.get("methods", ())
        self._awaited = set() if head.command in ("layers", "bounds") else set(methods)
        # Which bounds a layer has depends on the layer: only the end knows all columns.
        self._streams = not style.summary and "bounds" not in self._awaited

    def layer(self, checkpoint: CheckpointReport, layer: LayerReport) -> None:
        if self._style.summary or self._head.command == "compare":
            return
        self._awaited -= set(layer.results)
        self._waiting += flat_layers(self._head.command, checkpoint, layer)
        if (self._streams and not self._awaited) or len(self._waiting) >= _MOST_WAITING:
            self._flush()

    def checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Take the operations of a network; of layers each row tells its checkpoint."""
        if checkpoint.network is not None:
            self._waiting += flat_operations(checkpoint)
            self._flush()

    def end(self, report: Report) -> None:
        if self._style.summary:
            self._waiting = list(flat_summary(report))
        if report.comparison is not None:
            self._waiting = [flat_change(step, change) for step in report.comparison.steps for change in step.layers]
        self._flush()

    def _flush(self) -> None:
        if not self._columns:
            self._columns = _with_found(columns(self._head, summary=self._style.summary), self._waiting)
            self._dialect.write(list(self._columns))
        known = frozenset(self._columns)
        for row in self._waiting:
            late = [f"{name}={value}" for name, value in row.items() if name not in known and _is_found(name)]
            if late:  # a key that no earlier layer had: the header is written, but nothing may be lost
                row["notes"] = [*row.get("notes", ()), *late]
            self._dialect.write([_cell(row.get(name), self._dialect.guard) for name in self._columns])
        self._waiting.clear()


def _is_found(name: str) -> bool:
    """Tell whether a column depends on what was computed; the others are known, or left out on purpose."""
    return name.startswith("results_")


def _with_found(known: tuple[str, ...], rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the columns with those the results brought along (quantiles, named bounds), each after its kin."""
    listed = list(known)
    for row in rows:
        for name in row:
            if _is_found(name) and name not in listed:
                before = f"{name.partition('_quantiles_')[0]}_error"
                listed.insert(listed.index(before if before in listed else _ORIGINS[0]), name)
    return tuple(listed)


@writer("csv", ".csv", streams=True)
def csv_sink(out: TextIO, head: Report, style: Style) -> Sink:
    """Return a sink for RFC 4180 rows under a header line, for spreadsheets and data frames."""

    def write(row: list[str]) -> None:
        # The csv module quotes a carriage return only where it is part of its own line end.
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\r\n").writerow(row)
        out.write(line.getvalue().removesuffix("\r\n") + "\n")

    def guard(text: str) -> str:
        return visible(to_csv(text)) if style.terminal else to_csv(text)

    return _Rows(_Dialect(out, write, guard), head, style)


@writer("tsv", ".tsv", streams=True)
def tsv_sink(out: TextIO, head: Report, style: Style) -> Sink:
    """Return a sink for tab-separated lines under a header line, for ``cut``, ``sort`` and ``awk``."""
    return _Rows(_Dialect(out, lambda row: out.write("\t".join(row) + "\n"), to_tsv), head, style)

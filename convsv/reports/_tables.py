"""Tables for people: which columns a report shows, what its cells say, and the words that explain them.

No drawing here: a terminal and Markdown draw the same :class:`Table`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from convsv.reports import _cells as cells
from convsv.reports._cells import Cells, Footnotes
from convsv.reports._numbers import as_stated, percent, short
from convsv.reports._sparkline import SPARKLINE
from convsv.reports._summary import BoundSummary, bounds_of, summarise
from convsv.results import Check, CheckpointReport, LayerReport, Report

__all__ = ["Column", "Table", "layer_table", "summary_table"]

KEEP = 0


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: heading.
        drop: rank by which columns go when a line is too long: the highest first, :data:`KEEP` never.
        right: whether cells stand at the right, as numbers do.
        name: whether cells are names from the file, which may be folded.
    """

    title: str
    drop: int = KEEP
    right: bool = False
    name: bool = False


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: what it is about: names from the file, and the rest.
        columns: its columns.
        rows: cells, one a column.
        ends: numbers of the rows after which a group ends.
        footnotes: what the marks ``[1]``, ``[2]`` ... in its cells mean.
    """

    title: tuple[str, str]
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    ends: frozenset[int] = frozenset()
    footnotes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part:
    """Columns that come together, and what fills them for a layer."""

    columns: tuple[Column, ...]
    cells: Cells
    keys: tuple[str, ...] = ()


# ----------------------------------------------------------------------------------------------------------- columns

_NAME = _Part((Column("layer", name=True),), lambda layer, _: (layer.name,))
_KIND = _Part((Column("kind", drop=8),), lambda layer, _: (cells.guess(layer, "transposed", layer.kind),))
_SHAPE = _Part((Column("shape", drop=2),), lambda layer, _: (cells.times(layer.shape),))
_DTYPE = _Part((Column("dtype", drop=13),), lambda layer, _: (layer.dtype,))


def _geometry(name: str, drop: int, show: Callable[[LayerReport], str]) -> _Part:
    return _Part(
        (Column(name, drop=drop, right=True),),
        lambda layer, _: (cells.guess(layer, name, show(layer)),),
    )


_STRIDE = _geometry("stride", 3, lambda layer: cells.alike(layer.geometry.stride))
_SIZE = _geometry("size", 5, lambda layer: cells.times(layer.geometry.size))
_DILATION = _geometry("dilation", 7, lambda layer: cells.alike(layer.geometry.dilation))
_GROUPS = _geometry("groups", 6, lambda layer: str(layer.geometry.groups))
_PADDING = _Part((Column("padding", drop=4, right=True),), lambda layer, _: (cells.padding(layer),))
_NORM = _Part((Column("norm", right=True), Column("width", drop=4, right=True)), cells.norm_cells, ("norm",))
_NORM_AT_SIZE = _Part((Column("norm at size", drop=6, right=True),), cells.norm_at_size_cells, ("norm_at_size",))
_SYMBOL_MIN = _Part((Column("symbol min", right=True),), cells.symbol_min_cells, ("symbol_min",))
_CLIP_COLUMNS = (
    Column("norm before", right=True),
    Column("radius", drop=1, right=True),
    Column("norm after", right=True),
    Column("moved", right=True),
    Column("how", drop=4),
)
_CLIP = _Part(_CLIP_COLUMNS, cells.clip_cells, ("clip",))
_REACHED = _Part((Column("symbol wanted", right=True), Column("reached", right=True)), cells.reached_cells)
_BEST = _Part((Column("best bound", right=True), Column("by", drop=1)), cells.best_bound_cells, ("bounds",))


def _spectrum_part(method: str, *, whole: bool) -> _Part:
    if not whole:
        pair = (Column(f"{method} max", right=True), Column("min", right=True))
        return _Part(pair, cells.spectrum_cells(method, whole=False), (method,))
    columns = (
        Column("max", right=True),
        Column("min", right=True),
        Column("condition", drop=9, right=True),
        Column("stable rank", drop=10, right=True),
        Column("effective rank", drop=11, right=True),
        Column("values", drop=12, right=True),
    )
    return _Part(columns, cells.spectrum_cells(method, whole=True), (method,))


def _sparkline_part(method: str) -> _Part:
    return _Part((Column(SPARKLINE, drop=7),), lambda layer, _: (cells.sparkline_of(layer, method),))


def _parts(head: Report, checkpoint: CheckpointReport) -> tuple[_Part, ...]:
    if head.command == "layers":
        return (_NAME, _KIND, _SHAPE, _STRIDE, _PADDING, _DILATION, _GROUPS, _SIZE, _DTYPE)
    if head.command == "clip":
        edits = any(head.settings.get(edit) for edit in ("min_norm", "flatten", "rank"))
        return (_NAME, _KIND, _SHAPE, _STRIDE, _CLIP, *([_REACHED] if edits else []))
    methods: Sequence[str] = head.settings.get("methods", ())
    parts = [_NAME, _KIND, _SHAPE, _STRIDE, _SIZE]
    if head.settings.get("norm", True):
        parts.append(_NORM)
        sized = any(layer.norm_at_size or "norm_at_size" in layer.unavailable for layer in checkpoint.layers)
        parts += [_NORM_AT_SIZE] if sized else []
    alone = len(methods) == 1 and not head.settings.get("norm", True)
    special = {"bounds": _BEST, "symbol_min": _SYMBOL_MIN}
    for method in methods:
        parts.append(special.get(method) or _spectrum_part(method, whole=alone))
        if any(cells.sparkline_of(layer, method) for layer in checkpoint.layers):
            parts.append(_sparkline_part(method))
    return tuple(parts)


# ------------------------------------------------------------------------------------------------------------ tables


def layer_table(head: Report, checkpoint: CheckpointReport) -> Table:
    """Return the table of one checkpoint: a row a layer, or for the command ``bounds`` a row a layer and bound.

    Names are as in the file: whoever draws the table must make them harmless.

    Args:
        head: the report's command and settings.
        checkpoint: the checkpoint, complete.
    """
    if head.command == "bounds":
        return _bounds_table(checkpoint)
    if head.command == "check":
        return _check_table(checkpoint)
    notes = Footnotes()
    parts = _parts(head, checkpoint)
    shown = {key for part in parts for key in part.keys}
    rows = []
    for layer in checkpoint.layers:
        name, *others = (cell for part in parts for cell in part.cells(layer, notes))
        rows.append((_marked(name, layer, shown, notes), *others))
    columns = tuple(column for part in parts for column in part.columns)
    return Table(_title(checkpoint), columns, tuple(rows), footnotes=tuple(notes.texts))


def _marked(name: str, layer: LayerReport, shown: set[str], notes: Footnotes) -> str:
    """Return the name with marks for what is unavailable but has no column of its own."""
    others = [notes.mark(f"no {what}: {why}") for what, why in layer.unavailable.items() if what not in shown]
    return " ".join([name, *others])


def _title(checkpoint: CheckpointReport) -> tuple[str, str]:
    count = len(checkpoint.layers)
    counted = "1 convolution" if count == 1 else f"{count or 'no'} convolutions"
    return checkpoint.path, f"{checkpoint.format} · {counted}"


_BOUND_COLUMNS = (
    Column("layer", name=True),
    Column("norm", drop=2, right=True),
    Column("bound"),
    Column("value", right=True),
    Column("ratio", right=True),
    Column("guarantee", drop=1),
    Column("operator", drop=3),
    Column("time", drop=4, right=True),
)


def _bounds_table(checkpoint: CheckpointReport) -> Table:
    notes = Footnotes()
    rows: list[tuple[str, ...]] = []
    ends: set[int] = set()
    for layer in checkpoint.layers:
        lead = (_marked(layer.name, layer, {"norm", "bounds"}, notes), cells.norm_cells(layer, notes)[0])
        bounds = bounds_of(layer)
        if not bounds:
            rows.append((*lead, cells.missing(layer, "bounds", notes), "", "", "", "", ""))
        for name, bound in bounds.items():
            rows.append((*lead, name, *cells.bound_cells(bound)))
            lead = ("", "")
        ends.add(len(rows) - 1)
    return Table(_title(checkpoint), _BOUND_COLUMNS, tuple(rows), frozenset(ends), tuple(notes.texts))


_CHECK_COLUMNS = (
    Column("layer", name=True),
    Column("kind", drop=3),
    Column("shape", drop=2),
    Column("limit"),
    Column("value", right=True),
    Column("width", drop=1, right=True),
    Column("verdict"),
)
LIMITS = {
    "max_norm": "norm ≤",
    "min_norm": "smallest value ≥",
    "max_condition": "condition ≤",
    "max_product": "product of norms ≤",
}
"""What each criterion of the gate demands, before the number."""


def _check_table(checkpoint: CheckpointReport) -> Table:
    notes = Footnotes()
    rows: list[tuple[str, ...]] = []
    for layer in checkpoint.layers:
        name = _marked(layer.name, layer, {"norm", "smallest", "norm_at_size"}, notes)
        facts = (cells.guess(layer, "transposed", layer.kind), cells.times(layer.shape))
        rows += _check_rows((name, *facts), layer.check, notes)
    rows += _check_rows(("all layers", "", ""), checkpoint.check, notes) if checkpoint.check else []
    return Table(_title(checkpoint), _CHECK_COLUMNS, tuple(rows), footnotes=tuple(notes.texts))


def _check_rows(lead: tuple[str, ...], check: Check | None, notes: Footnotes) -> list[tuple[str, ...]]:
    if check is None or not check.findings:
        return [(*lead, "", "", "", "off" if check and check.severity == "off" else "no limit")]
    rows = []
    for found in check.findings:
        width = percent(found.interval.width) if found.interval else ""
        limit = f"{LIMITS.get(found.criterion, found.criterion)} {as_stated(found.limit)}"
        rows.append(
            (*lead, limit, cells.interval_text(found.interval) or "—", width, cells.verdict(check, found, notes))
        )
        lead = ("",) * len(lead)
    return rows


_SUMMARY_COLUMNS = (
    Column("bound"),
    Column("side"),
    Column("operator", drop=4),
    Column("guarantee", drop=2),
    Column("layers", drop=3, right=True),
    Column("median ratio", right=True),
    Column("worst ratio", right=True),
    Column("tightest", right=True),
    Column("time", drop=1, right=True),
)


def summary_table(report: Report) -> Table:
    """Return the table of a row a bound over all layers of a report."""
    rows = tuple(_summary_cells(row) for row in summarise(report))
    count = sum(len(checkpoint.layers) for checkpoint in report.checkpoints)
    return Table(("", f"{len(rows)} bounds over {count} convolutions"), _SUMMARY_COLUMNS, rows)


def _summary_cells(row: BoundSummary) -> tuple[str, ...]:
    rounding = cells.outward(row.side)
    return (
        row.bound,
        row.side,
        row.of,
        row.guarantee,
        str(row.layers),
        short(row.median_ratio, rounding, 4),
        short(row.worst_ratio, rounding, 4),
        "—" if row.tightest is None else str(row.tightest),
        cells.time_text(row.seconds),
    )

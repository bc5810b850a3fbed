"""Tables of what changed between checkpoints: a row a layer, or for a series of them a column a checkpoint."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath

from convsv.reports._cells import Footnotes, interval_text, missing, times
from convsv.reports._numbers import DOWN, UP, percent, short
from convsv.reports._tables import Column, Table
from convsv.results import Interval, LayerChange, LayerReport, Report, Status, Step

__all__ = ["change_tables"]

_COLUMNS = (
    Column("layer", name=True),
    Column("status"),
    Column("old norm", drop=2, right=True),
    Column("new norm", right=True),
    Column("ratio", drop=1, right=True),
    Column("weights", drop=3, right=True),
    Column("spectrum", drop=4, right=True),
)
_ARROWS = {"increase": "▲ ", "decrease": "▼ "}
_ORDER: tuple[Status, ...] = ("changed", "unknown", "reshaped", "added", "removed", "same")


def change_tables(report: Report) -> tuple[Table, ...]:
    """Return the tables of a comparison: of two checkpoints what became of each layer, of more their norms in order."""
    if report.comparison is None or not report.comparison.steps:
        return ()
    if len(report.comparison.steps) == 1:
        return (_step_table(report, report.comparison.steps[0]),)
    return (_trajectory(report),)


def _step_table(report: Report, step: Step) -> Table:
    notes = Footnotes()
    named: dict[str, list[str]] = {}
    for _, name, condition in report.comparison.happened if report.comparison else ():
        named.setdefault(name, []).append(condition)
    rows = tuple(_cells(change, named.get(change.name, []), notes) for change in step.layers)
    counts = Counter(change.status for change in step.layers)
    told = ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status]) or "no layers"
    return Table((f"{step.old} → {step.new}", told), _COLUMNS, rows, footnotes=tuple(notes.texts))


def _cells(change: LayerChange, named: list[str], notes: Footnotes) -> tuple[str, ...]:
    marks = [notes.mark(f"--fail-on {condition}") for condition in named]
    if change.geometry:
        marks.append(notes.mark(f"another {', '.join(name.replace('_', ' ') for name in change.geometry)}"))
    if change.status == "reshaped" and change.old and change.new:
        marks.append(notes.mark(f"{times(change.old.shape)} → {times(change.new.shape)}"))
    spectrum = change.spectrum
    unknown = [key for key in change.unavailable if key not in ("norm", "kernel_distance")]
    return (
        change.name,
        " ".join([change.status, *marks]),
        _norm(change.old, notes),
        _norm(change.new, notes),
        _ratio(change) or _missing(change, "norm", notes),
        _moved(change.kernel_distance) or _missing(change, "kernel_distance", notes),
        _moved(spectrum.wasserstein1 if spectrum else None) or _missing(change, unknown[0] if unknown else "", notes),
    )


def _norm(layer: LayerReport | None, notes: Footnotes) -> str:
    if layer is None:
        return ""
    return interval_text(layer.norm) or missing(layer, "norm", notes)


def _ratio(change: LayerChange) -> str:
    ratio: Interval | None = change.ratio
    if ratio is None:
        return ""
    if change.status == "same":
        return "1"
    return f"{_ARROWS.get(change.trend or '', '')}[{short(ratio.lower, DOWN, 4)}, {short(ratio.upper, UP, 4)}]"


def _moved(value: float | None) -> str:
    return "" if value is None else percent(value)


def _missing(change: LayerChange, key: str, notes: Footnotes) -> str:
    reason = change.unavailable.get(key)
    return f"— {notes.mark(reason)}" if reason else ""


def _trajectory(report: Report) -> Table:
    """Return the upper ends of the norms, a column a checkpoint, and what happened from the first to the last."""
    readable = [checkpoint for checkpoint in report.checkpoints if checkpoint.format]
    names = [PurePath(checkpoint.path).name for checkpoint in readable]
    titles = names if len(set(names)) == len(names) else [checkpoint.path for checkpoint in readable]
    inner = [Column(title, drop=2 + index, right=True) for index, title in enumerate(titles[1:-1])]
    columns = (
        Column("layer", name=True),
        Column(titles[0], right=True),
        *inner,
        Column(titles[-1], right=True),
        Column("last / first", drop=1, right=True),
    )
    layers = [{layer.name: layer for layer in checkpoint.layers} for checkpoint in readable]
    rows = []
    for name in dict.fromkeys(name for found in layers for name in found):
        versions = [found.get(name) for found in layers]
        rows.append((name, *map(_upper, versions), _overall(versions[0], versions[-1])))
    return Table(("", f"norms of {len(rows)} layers in {len(readable)} checkpoints"), columns, tuple(rows))


def _upper(layer: LayerReport | None) -> str:
    if layer is None or layer.norm is None:
        return "—"
    return f"≤ {short(layer.norm.upper, UP)}{'?' if layer.norm.assumes.get('upper') else ''}"


def _overall(before: LayerReport | None, after: LayerReport | None) -> str:
    if before is None or after is None or before.read_unlike(after):
        return "—"
    first, last = before.norm, after.norm
    if first is None or last is None or first.upper == 0 or first.lower == 0:
        return "—"
    arrow = "▲ " if last.lower > first.upper else "▼ " if last.upper < first.lower else ""
    return f"{arrow}[{short(last.lower / first.upper, DOWN, 4)}, {short(last.upper / first.lower, UP, 4)}]"

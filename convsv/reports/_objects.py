"""Results as plain objects (dicts, lists, strings, numbers): the keys of the JSON report, which CSV shares.

``report.schema.json`` beside this file describes them. Keys may be added; none is renamed within a major version.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from convsv import __version__
from convsv.reports._operations import network_object
from convsv.reports._summary import assumed, summarise
from convsv.results import (
    Bound,
    Check,
    CheckpointReport,
    Clipping,
    Comparison,
    Finding,
    Interval,
    LayerChange,
    LayerReport,
    Reached,
    Report,
    Spectrum,
)

__all__ = [
    "SCHEMA",
    "Tally",
    "change_object",
    "checkpoint_object",
    "head_object",
    "layer_object",
    "report_object",
    "summary_object",
]

SCHEMA = "convsv/1"

Object: TypeAlias = dict[str, Any]


def head_object(report: Report) -> Object:
    """Return what stands at the top of a report: schema, version, command, settings and whether it is partial."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "command": report.command,
        "settings": {name: _plain(value) for name, value in report.settings.items()},
        "partial": report.partial,
    }


def report_object(report: Report, *, values: bool = False, summary: bool = False) -> Object:
    """Return a whole report.

    Args:
        report: the report.
        values: include whole spectra.
        summary: include the summary of the bounds over all layers.
    """
    whole = head_object(report)
    whole["checkpoints"] = [
        {
            **checkpoint_object(checkpoint),
            "problems": list(checkpoint.problems),
            **_gate_object(checkpoint),
            **_network_object(checkpoint),
            "layers": [layer_object(layer, values=values) for layer in checkpoint.layers],
        }
        for checkpoint in report.checkpoints
    ]
    if report.comparison is not None:
        whole["comparison"] = _comparison(report.comparison)
    if summary:
        whole["summary"] = {"bounds": _summary_rows(report)}
    return whole


class Tally:
    """The counts that end a JSON Lines report, taken checkpoint by checkpoint; of layers nothing else is kept."""

    def __init__(self) -> None:
        self.counts: Object = {"checkpoints": [], "layers": 0, "unavailable": 0, "assumed": 0}

    def add(self, checkpoint: CheckpointReport) -> None:
        """Count a checkpoint that is complete, or could not be read."""
        c = checkpoint
        entry = {
            **checkpoint_object(c),
            "problems": list(c.problems),
            **_gate_object(c),
            **_network_object(c),
            "layers": len(c.layers),
        }
        self.counts["checkpoints"].append(entry)
        self.counts["layers"] += len(c.layers)
        self.counts["unavailable"] += sum(len(layer.unavailable) for layer in c.layers)
        self.counts["assumed"] += sum(len(assumed(layer)) for layer in c.layers)


def summary_object(report: Report, tally: Tally, *, summary: bool = False) -> Object:
    """Return the last object of a JSON Lines report: its head, its counts and the problems of its checkpoints.

    Args:
        report: the report; its layers are looked at for the summary of the bounds only.
        tally: the counts.
        summary: include the summary of the bounds over all layers.
    """
    counted = {**head_object(report), **tally.counts}
    if report.comparison is not None:
        counted["comparison"] = _comparison(report.comparison)
    if summary:
        counted["bounds"] = _summary_rows(report)
    return counted


def _summary_rows(report: Report) -> list[Object]:
    return [{name: _plain(value) for name, value in vars(row).items()} for row in summarise(report)]


def checkpoint_object(checkpoint: CheckpointReport) -> Object:
    """Return what identifies a checkpoint: path, format and hash."""
    return {"path": checkpoint.path, "format": checkpoint.format, "sha256": checkpoint.sha256}


_WORDS = frozenset(("name", "weight", "kind", "shape", "dtype", "geometry", "unavailable", "failures"))
"""What of a layer holds no floating-point number."""


def layer_object(layer: LayerReport, *, values: bool = False) -> Object:
    """Return one layer. A number that is not finite becomes None, and a note says which and what it was."""
    results: Object = {}
    for method, result in layer.results.items():
        if isinstance(result, Spectrum):
            results[method] = _spectrum(result, values=values)
        else:
            results[method] = {name: _bound(bound) for name, bound in result.items()}
    record: Object = {
        "name": layer.name,
        "weight": layer.weight,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "dtype": layer.dtype,
        "geometry": _geometry(layer),
        "norm": _interval(layer.norm),
        "norm_at_size": _interval(layer.norm_at_size),
        "results": results,
        "unavailable": dict(layer.unavailable),
        "failures": list(layer.failures),
        **({"unread": layer.unread} if layer.unread else {}),
    }
    if layer.symbol_min is not None:
        record["symbol_min"] = _interval(layer.symbol_min)
    if layer.folded is not None:
        record["folded"] = layer.folded
    if layer.clip is not None:
        record["clip"] = _clipping(layer.clip)
    if layer.check is not None:
        record["check"] = _check(layer.check)
    lost: list[str] = []
    if not _is_finite([value for key, value in record.items() if key not in _WORDS]):
        record = {key: _finite(value, key, lost) for key, value in record.items()}
    record["notes"] = [*layer.notes, *lost]
    return record


def _geometry(layer: LayerReport) -> Object:
    geometry = layer.geometry
    return {
        "size": list(geometry.size),
        "stride": list(geometry.stride),
        "padding": [list(pair) for pair in geometry.padding],
        "padding_mode": geometry.padding_mode,
        "dilation": list(geometry.dilation),
        "groups": geometry.groups,
        "transposed": geometry.transposed,
        "output_padding": list(geometry.output_padding),
        "origin": dict(geometry.origin),
    }


def _interval(interval: Interval | None) -> Object | None:
    if interval is None:
        return None
    return {
        "lower": interval.lower,
        "upper": interval.upper,
        "width": interval.width,
        "of": interval.of,
        "guarantee": interval.guarantee,
        "assumes": {end: list(interval.assumes.get(end, ())) for end in ("lower", "upper")},
        "evaluations": interval.evaluations,
    }


def _clipping(clip: Clipping) -> Object:
    return {
        "radius": clip.radius,
        "method": clip.method,
        "norm_before": _interval(clip.norm_before),
        "norm_after": _interval(clip.norm_after),
        "distance": clip.distance,
        "iterations": clip.iterations,
        "gap": clip.gap,
        "touched": clip.touched,
        "notes": list(clip.notes),
        **({"reached": _reached(clip.reached)} if clip.reached else {}),
    }


def _reached(reached: Reached) -> Object:
    return {**vars(reached), "grid": list(reached.grid), "assumes": list(reached.assumes)}


def _gate_object(checkpoint: CheckpointReport) -> Object:
    """Return what the gate says about all layers together, as ``check``, where it was asked."""
    if checkpoint.check is None:
        return {}
    return {"check": _finite(_check(checkpoint.check), "check", [])}


def _network_object(checkpoint: CheckpointReport) -> Object:
    """Return the bound of the whole network, as ``network``, where it was asked for."""
    return {} if checkpoint.network is None else {"network": network_object(checkpoint.network)}


def _check(check: Check) -> Object:
    """Return the gate's verdict: that of the worst finding, and each of them by its criterion."""
    worst = check.worst
    nothing: Object = {"verdict": None, "limit": None, "interval": None, "reason": "", "accepted": False}
    return {
        "severity": check.severity,
        "criterion": worst.criterion if worst else None,
        **(_finding(worst) if worst else nothing),
        "criteria": {found.criterion: _finding(found) for found in check.findings},
    }


def _finding(found: Finding) -> Object:
    return {
        "verdict": found.verdict,
        "limit": found.limit,
        "interval": _interval(found.interval),
        "reason": found.reason,
        "accepted": found.accepted,
    }


def _comparison(comparison: Comparison) -> Object:
    named = [{"step": step, "name": name, "condition": condition} for step, name, condition in comparison.happened]
    steps = [
        {"old": step.old, "new": step.new, "layers": [change_object(change) for change in step.layers]}
        for step in comparison.steps
    ]
    return {"steps": steps, "happened": named}


def change_object(change: LayerChange) -> Object:
    """Return what became of one layer from one checkpoint to the next."""
    spectrum = change.spectrum
    record: Object = {
        "name": change.name,
        "status": change.status,
        "trend": change.trend,
        "ratio": _interval(change.ratio),
        "kernel_distance": change.kernel_distance,
        "spectrum": None if spectrum is None else {name: _plain(value) for name, value in vars(spectrum).items()},
        "geometry": list(change.geometry),
        "old": _version(change.old),
        "new": _version(change.new),
        "unavailable": dict(change.unavailable),
    }
    return {key: _finite(value, key, []) for key, value in record.items()}


def _version(layer: LayerReport | None) -> Object | None:
    return None if layer is None else {"shape": list(layer.shape), "norm": _interval(layer.norm)}


def _spectrum(spectrum: Spectrum, *, values: bool) -> Object:
    record: Object = {
        "of": spectrum.of,
        "kind": spectrum.kind,
        "guarantee": spectrum.guarantee,
        "count": spectrum.count,
        "max": spectrum.max,
        "min": spectrum.min,
        "frobenius": spectrum.frobenius,
        "stable_rank": spectrum.stable_rank,
        "effective_rank": spectrum.effective_rank,
        "condition": spectrum.condition,
        "quantiles": dict(spectrum.quantiles),
        "error": spectrum.error,
        "assumes": list(spectrum.assumes),
    }
    if spectrum.quantiles:
        record["quantile_error"] = spectrum.quantile_error
    if spectrum.histogram is not None:
        record["histogram"] = {"top": spectrum.histogram.top, "counts": list(spectrum.histogram.counts)}
    if spectrum.residuals is not None:
        record["residuals"] = list(spectrum.residuals)
    if spectrum.kind == "leading":
        record |= {"trailing": spectrum.trailing, "upper": spectrum.upper}
    if spectrum.density is not None:
        record["density"] = {name: _plain(value) for name, value in vars(spectrum.density).items()}
    if spectrum.notes:
        record["notes"] = list(spectrum.notes)
    if (values or spectrum.kind == "leading") and spectrum.values is not None:
        record["values"] = spectrum.values.tolist()
    if values and spectrum.lower_values is not None:
        record["lower_values"] = spectrum.lower_values.tolist()
    return record


def _bound(bound: Bound) -> Object:
    return {
        "value": bound.value,
        "side": bound.side,
        "of": bound.of,
        "guarantee": bound.guarantee,
        "ratio": bound.ratio,
        "seconds": bound.seconds,
        "assumes": list(bound.assumes),
    }


def _is_finite(values: list[Any]) -> bool:
    waiting = [*values]
    for part in waiting:  # which grows meanwhile: one call costs less than one a part
        kind = type(part)
        if kind is str or kind is int:
            continue
        if kind is dict:
            waiting.extend(part.values())
        elif kind is list:
            waiting.extend(part)
        elif isinstance(part, float) and not math.isfinite(part):
            return False
    return True


def _finite(value: Any, where: str, lost: list[str]) -> Any:
    """Return ``value`` with None for what is not finite, adding a note on each to ``lost``."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        lost.append(f"{where} is not finite ({value}): null")
        return None
    if isinstance(value, dict):
        return {key: _finite(item, f"{where}.{key}", lost) for key, item in value.items()}
    if isinstance(value, list):
        if all(type(item) is float and math.isfinite(item) for item in value):
            return value  # a whole spectrum: nothing to name
        return [_finite(item, f"{where}[{index}]", lost) for index, item in enumerate(value)]
    return value


def _plain(value: Any) -> Any:
    """Return a setting as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)

"""The order of layers in a report, by any column of its CSV form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from convsv.errors import UsageError
from convsv.reports._objects import layer_object
from convsv.reports._summary import bounds_of
from convsv.reports.records import BOUND_COLUMNS, columns, flat_change, flat_layers
from convsv.results import CheckpointReport, LayerReport, Report

__all__ = ["sort_column", "sort_report"]

_HEADINGS = {"layer": "name", "norm": "norm_upper", "norm at size": "norm_at_size_upper"}
"""What the tables for people call columns, where it is not the end of their name."""


def sort_column(head: Report, wanted: str) -> str:
    """Return the column that ``wanted`` names: itself, the first that ends in ``_wanted``, or ``wanted_upper``.

    Args:
        head: the report's command and settings.
        wanted: what the user wrote, for instance ``norm_upper``, ``norm``, ``width``, ``size`` or ``max``.

    Raises:
        UsageError: there is no such column.
    """
    known = columns(head)
    candidates = [wanted, _HEADINGS.get(wanted, wanted), *(name for name in known if name.endswith(f"_{wanted}"))]
    for name in (*candidates, f"{wanted}_upper"):
        if name in known:
            return name
    raise UsageError("--sort: no such column", found=repr(wanted), advice=f"use one of {', '.join(known)}")


def sort_report(report: Report, column: str) -> Report:
    """Return the report with the layers of each checkpoint in order of one column; equal ones keep their order.

    Numbers come from the largest, text from A to Z, what has no value last. A column of bounds orders the bounds
    within each layer.

    Args:
        report: the report, complete.
        column: as :func:`sort_column` returned it.
    """
    if report.comparison is not None:
        steps = [
            replace(step, layers=tuple(sorted(step.layers, key=lambda change: _key(flat_change(step, change)[column]))))
            for step in report.comparison.steps
        ]
        return replace(report, comparison=replace(report.comparison, steps=tuple(steps)))
    by_bound = report.command == "bounds" and column in BOUND_COLUMNS
    checkpoints = []
    for checkpoint in report.checkpoints:
        if by_bound:
            layers = [_bounds_sorted(layer, column) for layer in checkpoint.layers]
        else:
            layers = sorted(checkpoint.layers, key=lambda layer: _layer_key(report.command, checkpoint, layer, column))
        checkpoints.append(replace(checkpoint, layers=tuple(layers)))
    return replace(report, checkpoints=tuple(checkpoints))


def _layer_key(command: str, checkpoint: CheckpointReport, layer: LayerReport, column: str) -> tuple[Any, ...]:
    return _key(next(flat_layers(command, checkpoint, layer)).get(column))


def _bounds_sorted(layer: LayerReport, column: str) -> LayerReport:
    shown: Mapping[str, Any] = layer_object(layer)["results"].get("bounds", {})
    order = sorted(shown, key=lambda name: _key({"bound": name, **shown[name]}.get(column)))
    return replace(layer, results={**layer.results, "bounds": {name: bounds_of(layer)[name] for name in order}})


def _key(value: Any) -> tuple[Any, ...]:
    """Return what orders a cell: its rank by type, then its value, numbers falling."""
    if value is None or value == []:
        return (3,)
    if isinstance(value, (int, float)):
        return (0, -value)
    if isinstance(value, list) and all(isinstance(item, int) for item in value):
        return (1, tuple(-item for item in value))
    return (2, str(value))

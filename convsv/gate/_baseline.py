"""What an earlier report knows: limits that a layer broke already, and where its values stood then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

from convsv.gate._norm import Known
from convsv.results import Check, CheckpointReport, Interval, Report

__all__ = ["known_of"]


def known_of(earlier: Report, path: str, *, alone: bool) -> Known:
    """Return what an earlier report knows of the layers of a checkpoint.

    Of a report by ``check`` that is each value that did not pass. Another report has no verdicts: there it is every
    norm, and one that was within the limit cannot have come above it without growing.

    Args:
        earlier: a report by ``check`` or ``analyze``.
        path: the checkpoint: that of the same path there, else the only one of the same file name.
        alone: whether it is the only one now; the only one there is then meant, whatever its name.
    """
    found = _same(earlier, path, alone=alone)
    if found is None:
        return lambda name: {}
    layers: dict[str, Mapping[str, Interval]] = {}
    for layer in found.layers:
        if layer.check is not None:
            layers[layer.name] = _broken(layer.check)
        elif layer.norm is not None:
            layers[layer.name] = {"max_norm": layer.norm}
    together = _broken(found.check) if found.check else {}
    return lambda name: together if not name else layers.get(name, {})


def _broken(check: Check) -> Mapping[str, Interval]:
    return {f.criterion: f.interval for f in check.findings if f.verdict != "PASS" and f.interval is not None}


def _same(earlier: Report, path: str, *, alone: bool) -> CheckpointReport | None:
    for checkpoint in earlier.checkpoints:
        if checkpoint.path == path:
            return checkpoint
    named = [c for c in earlier.checkpoints if PurePath(c.path).name == PurePath(path).name]
    if len(named) == 1:
        return named[0]
    return earlier.checkpoints[0] if alone and len(earlier.checkpoints) == 1 else None

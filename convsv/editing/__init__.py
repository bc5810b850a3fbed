"""Checkpoints whose convolutions keep within a norm: layers are clipped, written back, and judged on the finished file.

The promise is about the file: of every layer that was asked for, the weights as stored have a certified norm within the
layer's radius. Where that cannot be kept for one of them (NaN, quantised weights, a parametrisation that cannot be
written), nothing is written at all, unless the caller leaves that layer out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from convsv.checkpoints import FORMATS, Checkpoint, open_checkpoint
from convsv.checkpoints.discovery import find_layers
from convsv.checkpoints.sources import GeometryOptions
from convsv.checkpoints.writing import EditableFormat, refuse_target, save_edited
from convsv.editing._layers import Outcome, clip_layers, clip_one, digest
from convsv.editing._plan import PUBLISHED, ClipPlan
from convsv.errors import CheckpointError, ComputationError, OutputError, error_context
from convsv.layer import ConvLayer
from convsv.results import LayerReport

__all__ = [
    "PUBLISHED",
    "ClipPlan",
    "Outcome",
    "Selection",
    "bystanders",
    "clip_checkpoint",
    "clip_layers",
    "clip_one",
    "refuse",
    "refuse_format",
    "refuse_target",
    "write_clipped",
]


@dataclass(frozen=True)
class Selection:
    """Which layers of a checkpoint, and what is stated about them.

    Attributes:
        geometry: what the caller states about geometry.
        include: globs on layer names, as in :func:`convsv.checkpoints.discovery.discover`.
        exclude: globs on layer names.
    """

    geometry: GeometryOptions = field(default_factory=GeometryOptions)
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()


def clip_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    plan: float | ClipPlan,
    *,
    selection: Selection | None = None,
    force: bool = False,
) -> list[LayerReport]:
    """Write a checkpoint of the same format whose convolutions keep within a norm. Nothing else in it changes.

    Args:
        path: the checkpoint; it is only read.
        out: the new one.
        plan: the largest norm allowed, or all that is wanted.
        selection: which layers; all by default.
        force: whether a file that is at ``out`` may be replaced.

    Returns:
        A report a layer, with what was done under ``clip``; its ``norm`` is that of the new file.

    Raises:
        UsageError: nothing to do, no such file, or ``out`` is there already.
        CheckpointError: the checkpoint cannot be read, or its format cannot be written.
        ComputationError: a layer cannot be kept within its radius; nothing was written.
        OutputError: the new file cannot be written.

    Guarantee:
        Certified, rounding included, for the weights as stored in the new file: see ``convsv.analysis``. The method
        ``sedghi`` alone promises nothing and reports what it left.
    """
    plan = plan if isinstance(plan, ClipPlan) else ClipPlan(plan)
    chosen = selection or Selection()
    with error_context(path=str(path)):
        checkpoint = open_checkpoint(path)
        refuse_format(checkpoint)
        refuse_target(checkpoint, out, force=force)
        outcomes = list(clip_layers(_layers(checkpoint, chosen), plan))
        refuse(outcomes)
    write_clipped(checkpoint, outcomes, out, chosen, force=force)
    return [outcome.report(written=True) for outcome in outcomes]


def refuse_format(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that could not be written, before anything is computed.

    Raises:
        CheckpointError: its format cannot be edited, or it lies elsewhere.
    """
    if not checkpoint.is_local:
        raise CheckpointError("cannot be edited", path=checkpoint.path, found="an address", advice="fetch it first")
    if not isinstance(FORMATS[checkpoint.format], EditableFormat):
        raise CheckpointError(
            "cannot be edited",
            path=checkpoint.path,
            found=f"format {checkpoint.format}",
            advice="convert it to .safetensors or .pt",
        )


def bystanders(checkpoint: Checkpoint, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Return a line for each tensor that changes because it shares its bytes with that of a clipped layer.

    Args:
        checkpoint: what was clipped.
        outcomes: what became of its layers.
    """
    edited = {edit.tensor.identity: outcome.layer.name for outcome in outcomes for edit in outcome.edits}
    told = {id(edit.tensor) for outcome in outcomes for edit in outcome.edits}
    for outcome in outcomes:
        if outcome.clip and outcome.layer.writeback:
            told |= {id(tensor) for tensor in outcome.layer.writeback.tensors}
    lines = []
    for tensor in checkpoint.tensors:
        if tensor.identity is not None and tensor.identity in edited and id(tensor) not in told:
            key = ".".join((*tensor.container, tensor.key))
            lines.append(f"{key}: shares its bytes with {edited[tensor.identity]}, and changes with it")
    return tuple(lines)


def refuse(outcomes: Sequence[Outcome]) -> None:
    """Refuse to write where the promise cannot be kept for every layer that has a norm.

    Layers that are unavailable because of the file's own data (NaN, quantised) have none: they are reported, and stay
    as they are. One whose weights cannot be read may have any norm.

    Raises:
        ComputationError: it cannot; names the layers, and why.
        CheckpointError: so it is, for the weights of one cannot be read.
    """
    broken = [outcome for outcome in outcomes if outcome.reason and not outcome.unavailable]
    if not broken:
        return
    broken.sort(key=lambda outcome: outcome.unread)  # as among exit codes: the other reasons win
    more = f", and {len(broken) - 1} more layers cannot either" if len(broken) > 1 else ""
    raise (CheckpointError if broken[0].unread else ComputationError)(
        f"cannot be clipped: {broken[0].reason}{more}; nothing is written",
        tensor=broken[0].layer.name,
        advice="leave such layers out with --exclude",
    )


def write_clipped(
    checkpoint: Checkpoint,
    outcomes: Sequence[Outcome],
    out: str | os.PathLike[str],
    selection: Selection,
    *,
    force: bool = False,
) -> str:
    """Write the copy of a checkpoint in which the layers are clipped.

    The finished copy is read again, and must hold exactly the kernels whose norms were certified, before it takes its
    name.

    Args:
        checkpoint: what was clipped.
        outcomes: what became of its layers; none of them refused.
        out: the new file.
        selection: how the layers were found.
        force: whether a file that is there may be replaced.

    Returns:
        The SHA-256 of the new file, as :meth:`convsv.checkpoints.Checkpoint.sha256` gives it.

    Raises:
        UsageError: something is at ``out`` and ``force`` is false.
        CheckpointError: the format cannot be written, or a tensor shares some of its bytes with another.
        OutputError: the new file cannot be written, or does not hold what it should.
    """
    edits = [edit for outcome in outcomes for edit in outcome.edits]
    hashes: list[str] = []

    def verify(copy: Checkpoint) -> None:
        found = {layer.name: layer for layer in _layers(copy, selection)}
        for outcome in outcomes:
            _check(outcome, found.get(outcome.layer.name))
        hashes.append(copy.sha256())

    save_edited(checkpoint, edits, out, force=force, verify=verify)
    return hashes[0]


def _layers(checkpoint: Checkpoint, selection: Selection) -> tuple[ConvLayer, ...]:
    return find_layers(checkpoint, geometry=selection.geometry, include=selection.include, exclude=selection.exclude)


def _check(outcome: Outcome, layer: ConvLayer | None) -> None:
    """Refuse a copy that does not hold the kernel that was certified.

    Raises:
        OutputError: it does not.
    """
    clip = outcome.clip
    if clip is None:
        return
    name = outcome.layer.name
    if layer is None or digest(layer.kernel()) != outcome.digest:
        raise OutputError("the finished file does not hold the kernel that was certified", tensor=name)
    if not (clip.inside or clip.method.endswith(PUBLISHED)):
        raise OutputError("its norm as stored is above the radius", tensor=name, found=repr(clip.norm_after.upper))

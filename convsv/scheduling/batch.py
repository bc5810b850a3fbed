"""What travels to a worker and back: names of a file and of layers in it, never a tensor; and their reports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from convsv.checkpoints.recipe import Recipe
from convsv.checkpoints.reopening import reopened, still_the_same
from convsv.layer import ConvLayer
from convsv.results import LayerReport

if TYPE_CHECKING:
    from convsv.analysis import AnalysisOptions
    from convsv.spectra import SpectrumPart

__all__ = ["Batch", "Outcome", "Piece", "can_travel", "carry_out"]

Outcome: TypeAlias = "LayerReport | SpectrumPart | Exception"


@dataclass(frozen=True)
class Piece:
    """A share of one method's work on a layer.

    Attributes:
        method: whose work is divided.
        share: k and n for the k-th of n shares, from 0.
    """

    method: str
    share: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Some layers of one checkpoint, and what to compute for each.

    Attributes:
        recipe: how the checkpoint was searched.
        layers: the layers as they were found, without what reads them.
        options: what to compute; the execution is that of one worker.
        device: where a worker computes.
        piece: what of it to compute; None for everything.
    """

    recipe: Recipe
    layers: tuple[ConvLayer, ...]
    options: AnalysisOptions
    device: str
    piece: Piece | None = None

    @staticmethod
    def of(layers: Sequence[ConvLayer], options: AnalysisOptions, device: str, piece: Piece | None = None) -> Batch:
        """Return the batch of some layers of one checkpoint."""
        recipe: Recipe = layers[0].recipe
        if "://" not in recipe.path:
            # A worker on another machine has another working folder.
            recipe = replace(recipe, path=os.path.abspath(recipe.path))  # noqa: PTH100 - links stay as they are
        bare = tuple(layer.bare() for layer in layers)
        return Batch(recipe, bare, options, device, piece)


def can_travel(layer: ConvLayer) -> bool:
    """Tell whether another process can find a layer again."""
    return layer.recipe is not None


def carry_out(batch: Batch) -> list[Outcome]:
    """Return a report, or the share of one, for each layer of a batch, or what went wrong; runs in a worker."""
    # Built here: whether there is such a device is a question to this machine.
    options = replace(batch.options, execution=replace(batch.options.execution, device=batch.device))
    return [_outcome(batch.recipe, layer, options, batch.piece) for layer in batch.layers]


def _outcome(recipe: Recipe, layer: ConvLayer, options: AnalysisOptions, piece: Piece | None) -> Outcome:
    from convsv.analysis import analyze_layer  # only a worker needs these
    from convsv.parts import analyze_part

    report: Outcome
    try:
        found = reopened(recipe, layer)
        report = analyze_part(found, options, piece.method, piece.share) if piece else analyze_layer(found, options)
        still_the_same(recipe)
    except Exception as error:  # noqa: BLE001 - it is raised where the reports are asked for
        return error
    return report

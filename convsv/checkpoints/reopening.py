"""Layers found again by their recipe, in a process that has not seen their checkpoint, or not lately.

The checkpoint is opened and searched as it was the first time, and the layer must come out the same: name, weight,
shape, layout, geometry with its origins, notes, problem, norm folded in. What differs is an error, never a row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

from convsv.checkpoints import Checkpoint, open_checkpoint
from convsv.checkpoints.discovery import discover
from convsv.checkpoints.recipe import Recipe
from convsv.errors import CheckpointError, UsageError, error_context
from convsv.layer import ConvLayer

__all__ = ["reopened", "still_the_same"]

_CHANGED = "changed while it was in work"
_AGAIN = "run again once it is complete"
_MOST_OPEN = 4


@dataclass(frozen=True)
class _Open:
    recipe: Recipe
    checkpoint: Checkpoint
    layers: Mapping[str, ConvLayer]


_OPEN: OrderedDict[str, _Open] = OrderedDict()
"""The checkpoints this process has open by path, the last used at the end."""
_LOCK = Lock()


def reopened(recipe: Recipe, layer: ConvLayer) -> ConvLayer:
    """Return a layer that can be read, for one that came from another process.

    Args:
        recipe: how its checkpoint was searched.
        layer: the layer as it was found there; its ``read`` is not called.

    Raises:
        CheckpointError: the checkpoint cannot be read, or changed meanwhile.
    """
    with _LOCK, error_context(path=recipe.path):
        known = _opened(recipe)
        found = known.layers.get(layer.name)
        if found is None or found != layer or found.geometry.origin != layer.geometry.origin:
            raise CheckpointError("its layers are found otherwise than at first", found=layer.name, advice=_AGAIN)
        return found


def still_the_same(recipe: Recipe) -> None:
    """Refuse what was read from files that have been written to since.

    Raises:
        CheckpointError: they have.
    """
    known = _OPEN.get(recipe.path)
    if known and not all(file.is_unchanged() for file in known.checkpoint.files):
        _OPEN.pop(recipe.path, None)
        raise CheckpointError(_CHANGED, path=recipe.path, advice=_AGAIN)


def _opened(recipe: Recipe) -> _Open:
    """Return the checkpoint of a recipe, opened if it is not open.

    Raises:
        CheckpointError: it is not the one that the recipe is about.
    """
    known = _OPEN.pop(recipe.path, None)
    if known is None or known.recipe != recipe:
        try:
            checkpoint = open_checkpoint(recipe.path)
        except UsageError as error:
            raise CheckpointError("cannot be opened where it is computed", found=error.what) from None
        if not recipe.fits(checkpoint):
            raise CheckpointError(_CHANGED, advice=_AGAIN)
        found = discover(checkpoint, geometry=recipe.geometry, include=recipe.include, exclude=recipe.exclude)
        known = _Open(recipe, checkpoint, {layer.name: layer for layer in found.layers})
    _OPEN[recipe.path] = known
    while len(_OPEN) > _MOST_OPEN:
        _OPEN.popitem(last=False)
    return known

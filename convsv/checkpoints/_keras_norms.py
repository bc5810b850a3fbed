"""Which batch normalisation of a Keras model alone takes the output of which convolution, by its configuration.

In a ``Sequential`` that is the next layer, in a functional model the one call that takes the tensor. A convolution
with an activation of its own, or that is called several times, has no such norm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from convsv.checkpoints._keras_graph import read_plan
from convsv.checkpoints._keras_layer import (
    CONVOLUTIONS,
    MAX_DEPTH,
    Config,
    Shape,
    class_name_of,
    config_of,
    is_channels_first,
    layers_of,
)

__all__ = ["norms_behind"]

_MOST_ITEMS = 1 << 21
_NORM = "BatchNormalization"


def norms_behind(model: object) -> dict[int, Config]:
    """Return the entry of the norm behind each convolution, by the identity (``id``) of the convolution's entry.

    Args:
        model: a parsed configuration. The time is linear in its length.
    """
    return dict(_pairs(model, _Silence(), 0))


class _Silence:
    """Nothing is told about shapes here; what is too long to follow ends."""

    def __init__(self) -> None:
        self.left = _MOST_ITEMS

    def stated(self, value: object, layer: Config) -> Shape:
        """Return nothing: shapes do not matter."""
        return None

    def spend(self, items: int) -> None:
        """Count."""
        self.left -= items


def _pairs(model: object, notes: _Silence, depth: int) -> Iterator[tuple[int, Config]]:
    layers = layers_of(model)
    if depth > MAX_DEPTH or notes.left < 0 or not isinstance(model, dict):
        return
    if class_name_of(model) == "Sequential":
        yield from ((id(first), second) for first, second in pairwise(layers) if _fits(first, second))
    else:
        yield from _in_graph(model, notes)
    for layer in layers:
        yield from _pairs(layer, notes, depth + 1)


def _in_graph(model: Config, notes: _Silence) -> Iterator[tuple[int, Config]]:
    plan = read_plan(model, notes)
    taken = Counter(source for sources in plan.sources.values() for source, _, _ in sources)
    taken.update(source for source, _ in plan.outputs)
    for place, sources in plan.sources.items():
        source = sources[0][0] if len(sources) == 1 else None
        if source is None or taken[source] != 1 or {place[0], source[0]} & plan.shared:
            continue
        first, second = plan.layers[source[0]], plan.layers[place[0]]
        if _fits(first, second):
            yield id(first), second


def _fits(first: Config, second: Config) -> bool:
    """Whether a norm acts on the channels of a convolution's output, with nothing between them."""
    kind = CONVOLUTIONS.get(class_name_of(first))
    if kind is None or class_name_of(second) != _NORM:
        return False
    config, axis = config_of(first), config_of(second).get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    channels = (1, -kind.dims - 1) if is_channels_first(config) else (-1, kind.dims + 1)
    return type(axis) is int and axis in channels and config.get("activation") in (None, "linear")

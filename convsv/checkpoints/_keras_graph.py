"""The graph of one Keras model, read from its configuration: which call takes which tensors, in an order to follow.

Two dialects say so: ``[name, node, tensor]`` of Keras 1 and 2, and ``__keras_tensor__`` of Keras 3, which states the
shape as well. A node is a call of a layer, and a layer may be called many times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from convsv.checkpoints._keras_layer import Config, Shape, config_of, layers_of, name_of

__all__ = ["Place", "Plan", "read_plan"]

Place: TypeAlias = tuple[int, int]
"""A call: position of the layer, and the number of its call."""


class _Source(NamedTuple):
    """A tensor: which call it comes from, and which of its outputs it is; what is stated about its shape."""

    layer: str
    node: int
    output: int
    stated: Shape


@dataclass
class Plan:
    """The graph of one model, read once.

    Attributes:
        layers: its layers.
        order: its calls, each after those it depends on.
        sources: for each call the tensors it takes: (call, output, stated shape).
        others: for each call the names of its tensors, and whether it takes arrays of constants.
        inputs: where the model's inputs stand.
        outputs: what the model returns.
        shared: layers with several calls.
        circular: whether calls depend on themselves; they come last in ``order``.
    """

    layers: list[Config]
    order: list[Place] = field(default_factory=list)
    sources: dict[Place, list[tuple[Place | None, int, Shape]]] = field(default_factory=dict)
    others: dict[Place, tuple[tuple[str, ...], bool]] = field(default_factory=dict)
    inputs: list[Place | None] = field(default_factory=list)
    outputs: list[tuple[Place | None, int]] = field(default_factory=list)
    shared: set[int] = field(default_factory=set)
    circular: bool = False


class Notes(Protocol):
    """Who is told what is met on the way."""

    def stated(self, value: object, layer: Config) -> Shape:
        """Return the shape that the configuration states somewhere in a layer."""
        ...

    def spend(self, items: int) -> None:
        """Take note of work done; may raise to end it."""
        ...


def read_plan(model: Config, notes: Notes) -> Plan:
    """Read the graph of a functional model.

    Args:
        model: the model. The time is linear in its length.
        notes: who is told what is met on the way.
    """
    return _Reader(model, notes).read()


class _Reader:
    """Reads the graph of one model."""

    def __init__(self, model: Config, notes: Notes) -> None:
        self.notes = notes
        self.config = config_of(model)
        self.plan = Plan(layers_of(model))
        self.keras3 = False
        self.calls: list[list[object]] = []
        self.by_name: dict[str, int] = {}
        for at, layer in enumerate(self.plan.layers):
            nodes = layer.get("inbound_nodes")
            self.calls.append(nodes if isinstance(nodes, list) else [])
            name = layer.get("name", name_of(layer))
            if isinstance(name, str):
                self.by_name.setdefault(name, at)

    def read(self) -> Plan:
        """Return the graph."""
        plan = self.plan
        written: dict[Place, list[_Source]] = {}
        for at, nodes in enumerate(self.calls):
            for number, node in enumerate(nodes or [None]):
                found, arrays = self._arguments(node)
                plan.others[at, number] = _keys(node), arrays
                written[at, number] = [self._source(mention, plan.layers[at]) for mention in found]
        inputs, outputs = (
            [self._source(mention, {}) for mention in self._arguments(self.config.get(key))[0]]
            for key in ("input_layers", "output_layers")
        )
        taken = [source for sources in written.values() for source in sources]
        both = self._shifted([*taken, *outputs])
        shifted, shifted_outputs = (self._shifted(taken), self._shifted(outputs)) if self.keras3 else (both, both)
        for place, sources in written.items():
            plan.sources[place] = [(self._place(s, shifted), s.output, s.stated) for s in sources]
        plan.shared = {at for at, nodes in enumerate(self.calls) if len(nodes) > 1}
        plan.inputs = [self._place(source, set()) for source in inputs]
        plan.outputs = [(self._place(source, shifted_outputs), source.output) for source in outputs]
        self._sort()
        return plan

    def _arguments(self, node: object) -> tuple[list[Any], bool]:
        """Return the tensors among a node's arguments in Keras' order, and whether it takes arrays of constants too."""
        found, arrays, visited = [], False, _ITEMS_A_CALL
        stack: list[Any] = [node]
        while stack:
            item = stack.pop()
            visited += 1
            if _is_mention(item):
                constant = item[0] == "_CONSTANT_VALUE"
                found += [] if constant else [item]
                stack += item[2:] if constant else item[3:]
            elif _is_array(item):
                arrays = True
            elif isinstance(item, dict) and item.get("class_name") == "__keras_tensor__":
                found.append(item)
            elif isinstance(item, dict):
                stack += [item[key] for key in sorted(item, reverse=True) if key != "mask"]
            elif isinstance(item, list):
                stack += reversed(item)
        self.notes.spend(visited)
        return found, arrays

    def _source(self, found: list[Any] | dict[str, Any], layer: Config) -> _Source:
        stated: Shape = None
        if isinstance(found, dict):
            self.keras3 = True
            config = config_of(found)
            stated = self.notes.stated(config.get("shape"), layer)
            found = config["keras_history"] if _is_mention(config.get("keras_history")) else ["", 0, 0]
        return _Source(found[0], found[1], found[2], stated)

    def _shifted(self, sources: Sequence[_Source]) -> set[str]:
        # A model within another counts as called once before, in Keras 1 and 2; in Keras 3 in the list of outputs only.
        # Every call that is written down is mentioned, so the numbers show which it is.
        models = {s.layer: at for s in sources if (at := self.by_name.get(s.layer)) is not None}
        models = {name: at for name, at in models.items() if layers_of(self.plan.layers[at])}
        return {s.layer for s in sources if s.layer in models and s.node == len(self.calls[models[s.layer]])}

    def _place(self, source: _Source, shifted: set[str]) -> Place | None:
        at = self.by_name.get(source.layer)
        if at is None:
            return None
        number = source.node - (source.layer in shifted)
        return (at, number) if 0 <= number < max(len(self.calls[at]), 1) else None

    def _sort(self) -> None:
        plan = self.plan
        waiting: dict[Place, int] = {}
        followers: dict[Place, list[Place]] = {}
        for place, sources in plan.sources.items():
            before = [source for source, _, _ in sources if source is not None]
            waiting[place] = len(before)
            for source in before:
                followers.setdefault(source, []).append(place)
        ready = deque(place for place, count in waiting.items() if not count)
        while ready:
            place = ready.popleft()
            plan.order.append(place)
            for follower in followers.get(place, ()):
                waiting[follower] -= 1
                if not waiting[follower]:
                    ready.append(follower)
        left = [place for place, count in waiting.items() if count]
        plan.order += left
        plan.circular = bool(left)


# ------------------------------------------------------------------------------------------------- what is written

_ITEMS_A_CALL = 16
"""What a call costs, in items of its arguments."""


def _is_mention(item: object) -> bool:
    return (
        isinstance(item, list)
        and len(item) in (3, 4)
        and isinstance(item[0], str)
        and type(item[1]) is type(item[2]) is int
    )


def _is_array(item: object) -> bool:
    if isinstance(item, dict):
        return item.get("class_name") in ("__numpy__", "__tensor__")
    return isinstance(item, list) and bool(item) and all(type(n) in (int, float) for n in item)


def _keys(node: object) -> tuple[str, ...]:
    """Return the keys of a node whose tensors are given by name."""
    args = node["args"] if isinstance(node, dict) and "args" in node else node
    only = args[0] if isinstance(args, list) and len(args) == 1 else args
    named = isinstance(only, dict) and "class_name" not in only and "args" not in only
    return tuple(sorted(only)) if named and isinstance(only, dict) else ()

"""The graph of an exported program: what its convolutions multiply with, how they lie, and which norm follows.

Nodes name an operator of ATen and hold its arguments as JSON; arguments that have their default are left out. The
tensors that flow between them have sizes, except along axes that were exported as dynamic.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from convsv.checkpoints import ModuleFacts, Normalisation
from convsv.geometry import GeometryFacts

__all__ = ["facts_of_graph"]

Json: TypeAlias = Mapping[str, Any]
Amounts: TypeAlias = "tuple[tuple[int, int], ...]"

_CONVOLUTION = re.compile(r"torch\.ops\.aten\.(conv|conv_transpose|_?convolution)([123]d)?\.\w+")
_PADDING = re.compile(r"torch\.ops\.aten\.(pad|constant_pad_nd)\.\w+")
_NORM = re.compile(r"torch\.ops\.aten\.(batch_norm|_native_batch_norm_legit_no_training)\.\w+")
_MODES = {"constant": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
_LARGEST = 1 << 31
_MOST_ITEMS = 64
"""Sizes, numbers or arguments in one place. Many convolutions may point at it, and each looks at all of them."""
_LONGEST = 1 << 12
"""Characters of a name that is taken apart, for the same reason."""


def facts_of_graph(program: Json, container: tuple[str, ...]) -> list[ModuleFacts]:
    """Return what an exported program says about the weights that it convolves with.

    Args:
        program: ``models/<name>.json``; whatever in it is not as torch writes it is passed over.
        container: of the weights.
    """
    return _Graph(program).facts(container)


class _Graph:
    def __init__(self, program: Json) -> None:
        module = _mapping(program.get("graph_module"))
        graph = _mapping(module.get("graph"))
        self._nodes = [_mapping(node) for node in _list(graph.get("nodes"))]
        self._sizes = _mapping(graph.get("tensor_values"))
        self._keys = dict(_inputs(_mapping(module.get("signature"))))
        self._made: dict[str, Json] = {}
        for node in self._nodes:
            for output in _list(node.get("outputs")):
                self._made.update(dict.fromkeys(_names(output), node))
        taken = [name for node in self._nodes for name in _names(node.get("inputs"))]
        self._taken = Counter([*taken, *_names(graph.get("outputs"))])

    def facts(self, container: tuple[str, ...]) -> list[ModuleFacts]:
        calls: dict[tuple[str, str], list[tuple[Json, GeometryFacts, str]]] = {}
        for node in self._nodes:
            found = self._convolution(node)
            if found is not None:
                key, geometry, kind = found
                calls.setdefault(key, []).append((node, geometry, kind))
        norms = self._norms()
        facts = []
        for (path, leaf), members in calls.items():
            geometries = list(dict.fromkeys(geometry for _, geometry, _ in members))
            following = {norms.get(_output(node)) for node, _, _ in members}
            facts.append(
                ModuleFacts(
                    path,
                    members[0][2],
                    geometries[0],
                    container,
                    name=None if path else leaf or None,
                    # Whatever a parameter is called, the graph shows that it is a kernel.
                    variables={_joined(path, leaf): "weight" if leaf == "weight" else "kernel_oik"} if leaf else {},
                    norm=following.pop() if len(following) == 1 else None,
                    calls=tuple(geometries) if len(geometries) > 1 else (),
                )
            )
        return facts

    def _convolution(self, node: Json) -> tuple[tuple[str, str], GeometryFacts, str] | None:
        match = _CONVOLUTION.fullmatch(_text(node.get("target")))
        arguments = _arguments(node)
        weight, given = _name(arguments.get("weight")), _name(arguments.get("input"))
        shape = self._shape(weight)
        if match is None or shape is None or not 3 <= len(shape) <= 5 or None in shape:
            return None
        taps = tuple(n for n in shape[2:] if n is not None)
        transposed = match[1] == "conv_transpose" or bool(_mapping(arguments.get("transposed")).get("as_bool"))
        geometry = self._geometry(node, taps, given, transposed=transposed)
        key = self._keys.get(weight) or (_module(node), "")
        return key, geometry, f"Conv{'Transpose' if transposed else ''}{len(taps)}d"

    def _geometry(self, node: Json, taps: tuple[int, ...], given: str, *, transposed: bool) -> GeometryFacts:
        arguments, dims = _arguments(node), len(taps)
        dilation = _axes(arguments.get("dilation"), dims, 1)
        padding = _amounts(arguments.get("padding"), taps, dilation)
        shape, mode = self._shape(given), "zeros"
        padded = None if transposed else self._padded(given, node, dims)
        if padded and padding and (padded[2] == "zeros" or not any(map(any, padding))):
            shape, amounts, mode = self._shape(padded[0]), padded[1], padded[2]
            padding = tuple((a + c, b + d) for (a, b), (c, d) in zip(amounts, padding, strict=True))
        size = tuple(n for n in shape[-dims:] if n is not None) if shape and len(shape) > dims else ()
        groups = _mapping(arguments.get("groups")).get("as_int", 1)
        return GeometryFacts(
            # An axis that was exported as dynamic has no length.
            size=size if len(size) == dims else None,
            stride=_axes(arguments.get("stride"), dims, 1),
            padding=padding,
            padding_mode=mode,
            dilation=dilation,
            groups=groups if type(groups) is int and 0 < groups < _LARGEST else None,
            transposed=transposed,
            output_padding=_axes(arguments.get("output_padding"), dims, 0),
        )

    def _padded(self, name: str, node: Json, dims: int) -> tuple[str, Amounts, str] | None:
        """Return (what is padded, amounts, mode) if the module that convolves padded its input by itself."""
        pad = self._made.get(name, {})
        if not _PADDING.fullmatch(_text(pad.get("target"))) or _module(pad) != _module(node):
            return None
        arguments = _arguments(pad)
        flat, before = _integers(arguments.get("pad")), _name(arguments.get("self"))
        mode = _MODES.get(_text(_mapping(arguments.get("mode")).get("as_string", "constant")))
        value = _mapping(arguments.get("value"))
        if flat is None or mode is None or len(flat) % 2 or len(flat) > 2 * dims or min(flat, default=0) < 0:
            return None
        if value.get("as_float") or value.get("as_int"):
            return None
        pairs = tuple(zip(flat[::2], flat[1::2], strict=True))[::-1]  # the last axis comes first
        return before, ((0, 0),) * (dims - len(pairs)) + pairs, mode

    def _norms(self) -> dict[str, Normalisation]:
        """Return the batch normalisation that alone takes an output, by the name of that output."""
        norms = {}
        for node in self._nodes:
            arguments = _arguments(node)
            given = _name(arguments.get("input"))
            training = _mapping(arguments.get("training")).get("as_bool")
            if not _NORM.fullmatch(_text(node.get("target"))) or training or self._taken[given] != 1:
                continue
            variance = self._keys.get(_name(arguments.get("running_var")))
            weight = _name(arguments.get("weight"))
            scale = self._keys.get(weight)
            epsilon = _mapping(arguments.get("eps")).get("as_float")
            if variance and (scale or not weight):
                norms[given] = Normalisation(
                    variance[0], _joined(*variance), _joined(*scale) if scale else None,
                    epsilon if isinstance(epsilon, float) and 0 <= epsilon < 1 else None,
                )  # fmt: skip
        return norms

    def _shape(self, name: str) -> tuple[int | None, ...] | None:
        sizes = _mapping(self._sizes.get(name)).get("sizes")
        if not isinstance(sizes, list) or len(sizes) > _MOST_ITEMS:
            return None
        numbers = [_mapping(size).get("as_int") for size in sizes]
        return tuple(n if type(n) is int and 0 < n < _LARGEST else None for n in numbers)


# ---------------------------------------------------------------------------------------------------- pieces of JSON


def _inputs(signature: Json) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield (name in the graph, (module's path, name in it)) of parameters and buffers."""
    for spec in _list(signature.get("input_specs")):
        for kind in ("parameter", "buffer"):
            said = _mapping(_mapping(spec).get(kind))
            key, name = said.get(f"{kind}_name"), _name(said.get("arg"), wrapped=False)
            if isinstance(key, str) and name:
                path, _, leaf = key.rpartition(".")
                yield name, (path, leaf)


def _joined(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def _module(node: Json) -> str:
    """Return the path of the innermost module that made a node: ``L__self__c,c,torch.nn.modules.conv.Conv2d``."""
    stack = _text(_mapping(node.get("metadata")).get("nn_module_stack"))
    parts = stack.rpartition(";")[2].split(",")
    return parts[1] if len(parts) > 1 else ""


def _arguments(node: Json) -> dict[str, Any]:
    inputs = _list(node.get("inputs"))[:_MOST_ITEMS]
    pairs = ((_mapping(item).get("name"), _mapping(item).get("arg")) for item in inputs)
    return {name: value for name, value in pairs if isinstance(name, str)}


def _output(node: Json) -> str:
    return next(_names(node.get("outputs")), "")


def _names(value: Any) -> Iterator[str]:
    """Yield the names of all tensors in a piece of the graph."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending += item
        for kind, inner in _mapping(item).items():
            if kind in ("as_tensor", "as_tensors"):
                tensors = map(_mapping, inner if isinstance(inner, list) else [inner])
                yield from (tensor["name"] for tensor in tensors if isinstance(tensor.get("name"), str))
            elif kind != "as_graph":
                pending.append(inner)


def _name(argument: Any, *, wrapped: bool = True) -> str:
    """Return the name of the tensor that an argument is, ``""`` if it is none."""
    held = _mapping(argument)
    if wrapped:
        held = _mapping(_mapping(held.get("as_optional_tensor", held)).get("as_tensor"))
    name = held.get("name")
    return name if isinstance(name, str) else ""


def _integers(argument: Any) -> tuple[int, ...] | None:
    held = _mapping(argument)
    values = held.get("as_ints", held.get("as_sym_ints", [held.get("as_int")]))
    given = _list(values)[: _MOST_ITEMS + 1]
    items = [item.get("as_int") if isinstance(item, dict) else item for item in given]
    numbers = tuple(item for item in items if type(item) is int and abs(item) < _LARGEST)
    return numbers if 0 < len(items) == len(numbers) <= _MOST_ITEMS else None


def _axes(argument: Any, dims: int, default: int) -> tuple[int, ...] | None:
    if argument is None:
        return (default,) * dims
    numbers = _integers(argument)
    numbers = numbers * dims if numbers and len(numbers) == 1 else numbers
    fits = numbers is not None and len(numbers) == dims and min(numbers) >= min(default, 1)
    return numbers if fits else None


def _amounts(argument: Any, taps: tuple[int, ...], dilation: tuple[int, ...] | None) -> Amounts | None:
    word = _mapping(argument).get("as_string")
    if word == "same" and dilation is not None:
        reach = [d * (k - 1) for k, d in zip(taps, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in reach)
    numbers = _axes(None if word == "valid" else argument, len(taps), 0)
    return None if numbers is None else tuple((n, n) for n in numbers)


def _mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= _LONGEST else ""


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []

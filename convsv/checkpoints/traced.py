"""What running a model told about its convolutions, and which layers of a checkpoint that is about.

A traced layer and a stored one are the same where path and shape agree. Checkpoints are often saved from inside a
wrapper, or loaded into one: where whole paths do not agree, the one prefix with which most of them do is added on one
side or the other, the same for all tensors of a container.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from convsv.checkpoints import Normalisation
from convsv.geometry import GeometryFacts

__all__ = ["Renaming", "Stored", "Trace", "TracedLayer", "match", "renaming"]


@dataclass(frozen=True)
class TracedLayer:
    """A weight that convolutions of a traced model multiplied with.

    Attributes:
        path: path of its module, parts joined by dots.
        parameter: name of the parameter in that module.
        shape: its shape.
        calls: one entry a distinct geometry, in the order in which they occurred; every field but none is stated.
        norm: the batch normalisation that alone takes the output of every call, by the model's own names.
        computed: whether the model multiplies with something it computes from the parameter.
    """

    path: str
    parameter: str
    shape: tuple[int, ...]
    calls: tuple[GeometryFacts, ...]
    norm: Normalisation | None = None
    computed: bool = False


@dataclass(frozen=True)
class Trace:
    """What one run of a model told.

    Attributes:
        model: what was run, in the user's words.
        layers: its convolutions, in the order of their first call.
        notes: remarks on how it was run.
    """

    model: str
    layers: tuple[TracedLayer, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stored:
    """A kernel of a checkpoint, as far as matching needs it.

    Attributes:
        path: path of its module, parts joined by dots, without the wrappers that checkpoints add.
        parameter: last part of its key.
        shape: its shape in PyTorch's order of axes.
        container: path of the mapping that holds it.
    """

    path: str
    parameter: str
    shape: tuple[int, ...]
    container: tuple[str, ...] = ()


def match(trace: Trace, kernels: Sequence[Stored]) -> tuple[dict[int, TracedLayer], list[str]]:
    """Find the stored kernel of each traced layer.

    Args:
        trace: what a run told.
        kernels: the kernels of one checkpoint.

    Returns:
        Position in ``kernels`` -> its trace, with the keys of a ``norm`` as stored; and a line for each layer that
        only one of the two has, or that has another shape there.
    """
    matches: dict[int, TracedLayer] = {}
    used: set[int] = set()
    other_shape: dict[int, tuple[int, ...]] = {}
    for container in dict.fromkeys(kernel.container for kernel in kernels):
        members = {place: kernel for place, kernel in enumerate(kernels) if kernel.container == container}
        rename = renaming(trace, members.values())
        by_path: dict[str, list[int]] = {}
        for number, layer in enumerate(trace.layers):
            by_path.setdefault(rename.stored(layer.path), []).append(number)
        for place, kernel in members.items():
            candidates = by_path.get(kernel.path, [])
            fitting = [n for n in candidates if trace.layers[n].shape == kernel.shape]
            # A module with several parameters of one shape: the name decides.
            fitting = [n for n in fitting if trace.layers[n].parameter == kernel.parameter] or fitting
            if fitting:
                matches[place] = _renamed(trace.layers[fitting[0]], rename)
                used.add(fitting[0])
            elif candidates:
                other_shape[place] = trace.layers[candidates[0]].shape
                used.update(candidates)
    return matches, _mismatches(trace, kernels, matches, used, other_shape)


def _mismatches(
    trace: Trace,
    kernels: Sequence[Stored],
    matches: Container[int],
    used: Container[int],
    other_shape: Mapping[int, tuple[int, ...]],
) -> list[str]:
    lines = []
    for number, layer in enumerate(trace.layers):
        if number not in used:
            lines.append(f"{trace.model}: traced layer {layer.path!r} of shape {layer.shape} is not in the file")
    for place, kernel in enumerate(kernels):
        if place in other_shape:
            lines.append(
                f"{trace.model}: layer {kernel.path!r} has shape {kernel.shape} in the file and {other_shape[place]} "
                "in the traced model: not applied"
            )
        elif place not in matches:
            lines.append(f"{trace.model}: layer {kernel.path!r} of shape {kernel.shape} was not traced")
    return lines


@dataclass(frozen=True)
class Renaming:
    """How paths of the model become paths of a container: one prefix less, another more."""

    less: str = ""
    more: str = ""

    def stored(self, path: str) -> str:
        """Return the path that a module of the model has in the container."""
        return self.more + path.removeprefix(self.less) if path.startswith(self.less) else path


def renaming(trace: Trace, kernels: Iterable[Stored]) -> Renaming:
    """Return the renaming by which most kernels find a traced layer of their path and shape; none where equal."""
    stored = {(kernel.path, kernel.shape) for kernel in kernels}
    traced = {(layer.path, layer.shape) for layer in trace.layers}
    votes: Counter[Renaming] = Counter({Renaming(): len(stored & traced)})
    votes.update(Renaming("", more) for path, shape in stored for more, end in _endings(path) if (end, shape) in traced)
    votes.update(Renaming(less, "") for path, shape in traced for less, end in _endings(path) if (end, shape) in stored)
    return max(votes, key=lambda renaming: (votes[renaming], renaming == Renaming(), renaming.less, renaming.more))


def _endings(path: str) -> Iterator[tuple[str, str]]:
    """Yield each (beginning with its dot, ending) that a path of several parts can be cut into."""
    at = path.find(".")
    while at >= 0:
        yield path[: at + 1], path[at + 1 :]
        at = path.find(".", at + 1)


def _renamed(layer: TracedLayer, rename: Renaming) -> TracedLayer:
    norm = layer.norm
    if norm is None:
        return layer
    scale = None if norm.scale is None else rename.stored(norm.scale)
    return replace(
        layer, norm=replace(norm, name=rename.stored(norm.name), variance=rename.stored(norm.variance), scale=scale)
    )

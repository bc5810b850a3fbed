"""From a checkpoint to its convolutions: which tensors are kernels, what their layers are called, how they lie.

The steps, each in a module of its own: keys and names (``naming``), weights stored in parts (``_parametrizations``),
what is only shaped like a kernel (``rules``, ``copies``), geometry (``sources``). Here they are put together.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from convsv.checkpoints import Checkpoint
from convsv.checkpoints.alike import Facts, Pattern, facts_of
from convsv.checkpoints.assembly import layers_of
from convsv.checkpoints.candidates import Find, collect
from convsv.checkpoints.copies import drop_moving_averages, note_ties
from convsv.checkpoints.folding import find_folds
from convsv.checkpoints.naming import Names, locate, natural, strip_wrappers
from convsv.checkpoints.recipe import Recipe
from convsv.checkpoints.rules import is_convolution, is_kernel_name
from convsv.checkpoints.sources import Channels, GeometryOptions, depthwise, overruled
from convsv.checkpoints.traced import Stored, Trace, match
from convsv.errors import escaped
from convsv.layer import ConvLayer

__all__ = ["COMPUTED", "Discovery", "Skipped", "discover", "find_layers"]

_BARE = GeometryOptions()
COMPUTED = "the model computes its weight from what is stored: this is about what is stored"
"""The note of a layer whose traced model does not multiply with what the file holds."""
_NOT_LISTED = "is not listed"
"""How a line ends, here and in the readers, about a weight that may be a convolution and has no row."""


@dataclass(frozen=True)
class Skipped:
    """A tensor of three to five axes that is not reported as a layer.

    Attributes:
        key: its key as stored, after the path of its container.
        rule: name of the rule that refused it.
        reason: why, in words.
    """

    key: str
    rule: str
    reason: str


@dataclass(frozen=True)
class Discovery:
    """What was found in a checkpoint.

    Attributes:
        layers: the convolutions, in stored order, with unique names.
        skipped: what is only shaped like a kernel.
        problems: what the caller should be told, one line each.
        unlisted: those of them, and of the checkpoint's own, that are about weights which may be convolutions and
            cannot be listed; each begins with the key of the weight and a colon.
    """

    layers: tuple[ConvLayer, ...]
    skipped: tuple[Skipped, ...] = ()
    problems: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


def find_layers(
    checkpoint: Checkpoint,
    *,
    geometry: GeometryOptions = _BARE,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> tuple[ConvLayer, ...]:
    """Return the convolutions of a checkpoint: the layers of :func:`discover`.

    Args:
        checkpoint: an opened checkpoint; no tensor is read.
        geometry: what the caller states about geometry.
        include: globs on layer names, see :func:`discover`.
        exclude: globs on layer names.

    Raises:
        GeometryError: what the caller states is impossible, or contradicts the weights of a layer.
    """
    return discover(checkpoint, geometry=geometry, include=include, exclude=exclude).layers


def discover(
    checkpoint: Checkpoint,
    *,
    geometry: GeometryOptions = _BARE,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Discovery:
    """Find the convolutions of a checkpoint.

    Args:
        checkpoint: an opened checkpoint; no tensor is read.
        geometry: what the caller states about geometry.
        include: globs on layer names (case counts). Only layers that one of them matches are returned. A glob that
            matches no layer, or has no wildcard, overrules the rules: tensors with such a name or key are taken
            for kernels.
        exclude: globs on layer names; they win over ``include``.

    Returns:
        Layers with complete geometry, what was skipped and why, and what the caller should be told.

    Raises:
        GeometryError: what the caller states is impossible, or contradicts the weights of a layer.
    """
    facts = facts_of(checkpoint, geometry, include, exclude)
    recipe = Recipe.of(checkpoint, geometry, tuple(include), tuple(exclude))
    for known, pattern, found in tuple(_LAST):
        if facts == known:
            return replace(found, layers=pattern.filled(checkpoint, recipe))
    found = _search(checkpoint, geometry, include, exclude)
    made = Pattern.of(checkpoint, found.layers) if facts else None
    if facts and made:
        _LAST.append((facts, made, replace(found, layers=())))
    return replace(found, layers=tuple(replace(layer, recipe=recipe) for layer in found.layers))


_LAST: deque[tuple[Facts, Pattern, Discovery]] = deque(maxlen=1)
"""What was found in the last checkpoint, and by which facts: many are of one network."""


def _search(
    checkpoint: Checkpoint, geometry: GeometryOptions, include: Sequence[str], exclude: Sequence[str]
) -> Discovery:
    finds = collect(checkpoint)
    problems = drop_moving_averages(finds)
    _give_names([find for find in finds if find.refused is None])
    problems += _without_shape(checkpoint)
    problems += _overrule(finds, include)
    kept = [find for find in finds if find.refused is None]
    _infer(finds)
    note_ties(kept)
    problems += _apply_trace(kept, geometry.trace)
    if geometry.fold:
        find_folds(checkpoint, kept, geometry.fold)
    chosen = [
        find
        for find in kept
        if (find.forced or _matches(find.name, include or ("*",))) and not _matches(find.name, exclude)
    ]
    layers = layers_of(chosen, geometry, {find.name for find in kept})
    problems += _without_effect(geometry, [find.name for find in kept], layers)
    problems = [escaped(line) for line in problems]
    skipped = [Skipped(_joined(find), *find.refused) for find in finds if find.refused and not find.matrix]
    unlisted = tuple(line for line in (*checkpoint.problems, *problems) if line.endswith(_NOT_LISTED))
    return Discovery(layers, tuple(skipped), tuple(problems), unlisted)


# ------------------------------------------------------------------------------------------------------------ names


def _give_names(finds: Sequence[Find]) -> None:
    """Name layers by their module; by their container too where several hold layers; by their key where two agree."""
    several = len({find.tensor.container for find in finds}) > 1
    for find in finds:
        own = find.facts.name if find.facts and find.facts.name else find.place.layer
        separable = find.candidate.module.keys() >= {"depthwise_kernel", "pointwise_kernel"}
        part = "/" + find.place.leaf.removesuffix("_kernel")
        if separable and not own.endswith(part):
            own += part
        find.name = _inside(find, own) if several else own
    for longer in (lambda f: _inside(f, f.place.full) if several else f.place.full, _joined):
        counts = Counter(find.name for find in finds)
        for find in finds:
            if counts[find.name] > 1:
                find.name = longer(find)
    taken = Names()
    for find in finds:
        find.name = taken.unused(find.name)


def _overrule(finds: Sequence[Find], include: Sequence[str]) -> list[str]:
    """Take refused tensors for kernels where a glob asks for them; return a line a glob that matches nothing."""
    problems = []
    names = {find.name for find in finds if find.refused is None}
    taken = Names(names)
    for glob in include:
        found = any(fnmatchcase(name, glob) for name in names)
        if found and any(character in glob for character in "*?["):
            continue
        for find in finds:
            if find.refused is None or find.matrix:
                continue
            keys = {_joined(find), find.tensor.key, find.place.full, _inside(find, find.place.layer)}
            if any(fnmatchcase(key, glob) for key in keys):
                found = True
                _force(find, names, taken)
        if not found:
            problems.append(f"include {glob!r} matches no layer")
    return problems


def _force(find: Find, names: set[str], taken: Names) -> None:
    assert find.refused is not None
    rule = find.refused[0]
    find.notes.append(f"included by name, against the rule {rule!r}")
    find.refused, find.forced = None, True
    find.name = taken.unused(find.place.full if find.place.full not in names else _joined(find))
    names.add(find.name)


def _without_shape(checkpoint: Checkpoint) -> list[str]:
    """Return a line for each weight whose shape is unknown: it may be a convolution, and cannot be listed as one."""
    classes = {(facts.container, facts.path): facts.class_name for facts in checkpoint.modules}
    problems = []
    for tensor in checkpoint.tensors:
        place = locate(tensor.key, slashes=checkpoint.format == "keras")
        class_name = classes.get((tensor.container, place.path), "")
        unknown = tensor.problem and not tensor.shape and is_kernel_name(place.leaf)
        if unknown and (not class_name or is_convolution(class_name)):
            what = f"this {class_name}" if class_name else "if it is a convolution, it"
            key = place.separator.join((*tensor.container, tensor.key))
            problems.append(f"{key}: {tensor.problem}; {what} is not listed")
    return problems


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _inside(find: Find, name: str) -> str:
    return find.place.separator.join((*find.tensor.container, name))


def _joined(find: Find) -> str:
    return _inside(find, find.tensor.key)


# --------------------------------------------------------------------------------------------------------- geometry


def _infer(finds: Sequence[Find]) -> None:
    """Read off the shapes which layers are depthwise, and which are transposed."""
    containers: dict[tuple[str, ...], list[Find]] = {}
    for find in finds:
        known_matrix = find.matrix and find.candidate.named_kernel
        if find.refused is None or known_matrix:
            containers.setdefault(find.tensor.container, []).append(find)
    for members in containers.values():
        keys = [find.tensor.key for find in members]
        if keys == sorted(keys):
            # Sorted by a writer, not by the network: at least let layer 2 come before layer 10.
            members.sort(key=lambda find: natural(find.tensor.key))
        for find in members:
            if _bias_says_transposed(find):
                find.inferred = replace(find.inferred, transposed=True)
        channels = [_channels(find) for find in members]
        for find, answer in zip(members, depthwise(channels), strict=True):
            if answer:
                find.inferred = replace(find.inferred, groups=find.tensor.shape[0 if _oik(find) else -1])


def _bias_says_transposed(find: Find) -> bool:
    """Tell whether the bias fits the second channel axis only: that is where transposed layers have their outputs."""
    shape, bias = find.tensor.shape, find.candidate.bias_size
    if find.matrix or find.candidate.layout == "KCM" or bias is None:
        return False
    first, second = (shape[0], shape[1]) if _oik(find) else (shape[-1], shape[-2])
    return bias == second != first


def _channels(find: Find) -> Channels:
    shape = find.tensor.shape
    out, inputs = (shape[0], shape[1]) if _oik(find) or find.matrix else (shape[-1], shape[-2])
    transposed = find.inferred.transposed if find.stored.transposed is None else find.stored.transposed
    if transposed:
        out, inputs = inputs, out
    pointwise = find.matrix or math.prod(find.candidate.kernel_size) == 1
    return Channels(out, inputs, pointwise, find.place.path, kernel=not find.matrix)


def _oik(find: Find) -> bool:
    return find.candidate.layout == "OIK"


def _apply_trace(kept: Sequence[Find], trace: Trace | None) -> list[str]:
    """Tell each kernel what running the model told about it; return a line for each layer that only one of both has."""
    if trace is None:
        return []
    stored = []
    for find in kept:
        # In another order of axes no shape is that of the traced parameter.
        shape = find.tensor.shape if _oik(find) else ()
        stored.append(Stored(".".join(strip_wrappers(find.place.owner)), find.place.leaf, shape, find.tensor.container))
    matches, problems = match(trace, stored)
    for place, traced in matches.items():
        kept[place].traced = traced
        if traced.computed and not kept[place].parametrised:
            kept[place].notes.append(COMPUTED)
            kept[place].locked = kept[place].locked or "the model computes its weight from what is stored"
        problems += _otherwise(kept[place], trace.model)
    return [*trace.notes, *problems]


def _otherwise(find: Find, model: str) -> list[str]:
    """Return a line where the traced calls of a layer are not as the file, which is believed, says they are."""
    calls = find.traced.calls if find.traced else ()
    lines = (", ".join(overruled(find.candidate.kernel_size, find.stored, call)) for call in calls)
    said = "; ".join(dict.fromkeys(filter(None, lines)))
    return [f"{model}: layer {find.name!r} was traced with {said} as in the file: the file is believed"] if said else []


def _without_effect(options: GeometryOptions, names: Sequence[str], layers: Sequence[ConvLayer]) -> list[str]:
    """Return a line for each statement about geometry that reached no layer."""
    problems = []
    if options.sidecar:
        globs = options.sidecar.unmatched(names)
        problems += [f'{options.sidecar.path}: [layers."{glob}"] matches no layer' for glob in globs]
    unfolded = sum(not layer.folded for layer in layers) if options.fold else 0
    if unfolded:
        advice = "" if options.fold == "by-order" else "; a trace may tell it, and the order of the keys may suggest it"
        problems.append(f"no batch normalisation is known to follow {unfolded} of {len(layers)} layers{advice}")
    size = options.size
    if size is not None and len(size) > 1:
        missed = [layer for layer in layers if layer.geometry.origin["size"] == "assumed"]
        if missed:
            asked = "x".join(map(str, size))
            problems.append(
                f"size {asked} has {len(size)} axes: not applied to {len(missed)} layers with another number"
            )
    return problems

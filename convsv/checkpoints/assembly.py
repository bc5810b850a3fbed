"""From a find to its layers: geometry resolved, norms folded in, calls of different geometry told apart by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from convsv.checkpoints._writeback import Locked, Plain
from convsv.checkpoints.candidates import Find
from convsv.checkpoints.folding import Fold
from convsv.checkpoints.naming import Names
from convsv.checkpoints.sources import GeometryOptions, Subject, resolve_geometry
from convsv.geometry import GeometryFacts
from convsv.layer import ConvLayer, Writeback

__all__ = ["layers_of"]


def layers_of(finds: Sequence[Find], options: GeometryOptions, names: set[str]) -> tuple[ConvLayer, ...]:
    """Return a layer a find, or one a geometry with which the model calls it: ``conv@56x56``, ``conv@28x28``.

    Args:
        finds: kernels with names, in the order wanted.
        options: what the caller states about geometry.
        names: the names of all layers of the checkpoint, which no call may take.

    Raises:
        GeometryError: what the caller states is impossible, or contradicts the weights of a layer.
    """
    layers: list[ConvLayer] = []
    taken = Names(names)
    for find in finds:
        distinct = _distinct([_layer(find, options, stored, call) for stored, call in find.calls])
        if len(distinct) == 1:
            layers += distinct
            continue
        for layer in distinct:
            name = taken.unused(f"{find.name}@{'x'.join(map(str, layer.geometry.size))}")
            note = f"one of {len(distinct)} geometries with which the model calls it"
            layers.append(replace(layer, name=name, call=name[len(find.name) :], notes=(*layer.notes, note)))
    return tuple(layers)


def _distinct(layers: Iterable[ConvLayer]) -> list[ConvLayer]:
    """Return the first layer of each geometry; a file may have thousands."""
    first: dict[object, ConvLayer] = {}
    for layer in layers:
        said = {**vars(layer.geometry), "origin": frozenset(layer.geometry.origin.items()), "is_same": None}
        first.setdefault(tuple(said.values()), layer)
    return list(first.values())


def _layer(find: Find, options: GeometryOptions, stored: GeometryFacts, call: GeometryFacts) -> ConvLayer:
    tensor, candidate = find.tensor, find.candidate
    notes = list(find.notes)
    shape, read = tensor.shape, find.parametrised.read if find.parametrised else tensor.read
    if find.modulated:
        notes.append(f"stored as {shape}")
        shape, read = shape[1:], lambda: tensor.read()[0]
    subject = Subject(find.name, shape, candidate.layout, stored, find.inferred, call)
    geometry, contradiction = resolve_geometry(subject, options)
    if contradiction:
        notes.append(f"what the file says about its geometry is left out: {contradiction}")
    if find.parametrised:
        notes.append(f"weight computed from its parts: {find.parametrised.how}")
    layer = ConvLayer(
        name=find.name,
        weight=tensor.key,
        shape=shape,
        dtype=tensor.dtype,
        layout=candidate.layout,
        geometry=geometry,
        read=read,
        notes=tuple(notes),
        problem=_problem(find),
        writeback=_writeback(find),
    )
    return _folded(layer, find.fold) if find.fold else layer


def _folded(layer: ConvLayer, fold: Fold) -> ConvLayer:
    """Return a layer together with the norm behind it, or with a note why not."""
    wrong = fold.misfit(layer.shape, layer.layout, layer.geometry)
    if wrong:
        return layer if fold.by_order else replace(layer, notes=(*layer.notes, f"its norm is not folded: {wrong}"))
    norm = fold.folded
    how = ", as the order of the keys suggests" if fold.by_order else ""
    note = f"with {norm.name} folded into it{how}: epsilon {norm.epsilon:g}{'' if norm.known else ' is assumed'}"
    return replace(
        layer,
        read=lambda: fold.apply(layer.read(), layer.layout, layer.geometry),
        notes=(*layer.notes, note),
        folded=norm,
        writeback=Locked("its kernel is reported with a norm folded into it, which the file stores apart"),
    )


def _writeback(find: Find) -> Writeback:
    """Return how a layer's kernel goes back; where it is a problem to read it, that is asked first."""
    if find.locked:
        return Locked(find.locked)
    return find.parametrised.writeback if find.parametrised else Plain(find.tensor)


def _problem(find: Find) -> str | None:
    tensor = find.tensor
    if find.parametrised and find.parametrised.problem:
        return find.parametrised.problem
    if tensor.problem:
        return tensor.problem
    if not math.prod(tensor.shape):
        return f"has no weights: its shape is {tensor.shape}"
    if find.modulated:
        return "its kernel is scaled anew for every input: what is stored is not what runs"
    if tensor.dtype.startswith("complex"):
        return "its weights are complex numbers, which are not supported"
    if not find.candidate.floating:
        return f"its weights are stored as {tensor.dtype}: quantised, and the scale is not known"
    return None

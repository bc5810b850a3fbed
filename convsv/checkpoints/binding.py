"""A traced network together with the values of a checkpoint: which stored tensor is which constant.

As layers of a trace are matched: a constant and a stored tensor are the same where key and shape agree, up to the one
prefix by which most of them do. The weight of a convolution is that of the layer of its name, so that weight norm and
its like are resolved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from convsv.checkpoints import Checkpoint, StoredTensor
from convsv.checkpoints.discovery import COMPUTED
from convsv.checkpoints.naming import locate
from convsv.checkpoints.traced import Stored, Trace, TracedLayer, renaming
from convsv.graph import Constant, Network, Operation
from convsv.layer import ConvLayer

__all__ = ["bind"]

_MISSING = "the checkpoint has no tensor of that name and shape"


def bind(network: Network, checkpoint: Checkpoint, layers: Sequence[ConvLayer]) -> Network:
    """Return a traced network with the values of a checkpoint.

    Args:
        network: what a model without values did.
        checkpoint: the checkpoint; no tensor is read.
        layers: its convolutions, found with the trace of the same model.
    """
    wanted = dict[str, tuple[int, ...]]()
    for operation in network.operations:
        wanted |= {c.key: c.shape for c in operation.constants.values() if c.key and c.shape is not None}
        if operation.layer is not None and operation.layer.weight:
            wanted.setdefault(operation.layer.weight, operation.layer.shape)
    binding = _Binding(wanted, checkpoint, layers)
    return replace(network, operations=tuple(binding.operation(o) for o in network.operations))


class _Binding:
    def __init__(
        self, wanted: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint, layers: Sequence[ConvLayer]
    ) -> None:
        slashes = checkpoint.format == "keras"
        traced = tuple(TracedLayer(key, "", shape, ()) for key, shape in wanted.items())
        self._layers = {layer.name.removesuffix(layer.call): layer for layer in reversed(layers)}
        self._tensors: dict[str, StoredTensor] = {}
        best = -1
        for container in dict.fromkeys(tensor.container for tensor in checkpoint.tensors):
            members = [tensor for tensor in checkpoint.tensors if tensor.container == container]
            names = [locate(tensor.key, slashes=slashes).full for tensor in members]
            stored = [Stored(name, "", tensor.shape) for name, tensor in zip(names, members, strict=True)]
            rename = renaming(Trace("", traced), stored)
            found = dict(zip(names, members, strict=True))
            count = sum(rename.stored(key) in found for key in wanted)
            if count > best:
                best, self._tensors, self._rename = count, found, rename

    def operation(self, operation: Operation) -> Operation:
        """Return an operation with the values of what it takes."""
        constants = {name: self._constant(constant) for name, constant in operation.constants.items()}
        layer = operation.layer and self._layer(operation.layer, computed=not operation.constants["weight"].key)
        return replace(operation, constants=constants, layer=layer)

    def _constant(self, constant: Constant) -> Constant:
        if not constant.key or constant.read is not None:
            return constant
        tensor = self._stored(constant.key)
        if tensor is None or tensor.shape != constant.shape:
            return replace(constant, problem=_MISSING)
        if tensor.problem:
            return replace(constant, problem=tensor.problem)
        return replace(constant, read=tensor.read)

    def _stored(self, key: str) -> StoredTensor | None:
        return self._tensors.get(self._rename.stored(key)) if self._tensors else None

    def _layer(self, layer: ConvLayer, *, computed: bool) -> ConvLayer:
        """Return a layer with the weight that the checkpoint has for it."""
        if layer.problem is None:
            return layer
        path = self._rename.stored(layer.weight).rpartition(".")[0] if self._tensors else ""
        found = self._layers.get(path)
        if found is not None and found.layout == "OIK" and found.shape == layer.shape:
            if computed and COMPUTED in found.notes:
                return replace(layer, problem=COMPUTED)
            return replace(found, name=layer.name, geometry=layer.geometry, folded=None)
        tensor = None if computed else self._stored(layer.weight)
        if tensor is None or tensor.shape != layer.shape:
            return replace(layer, problem=f"{_MISSING}: {layer.weight or layer.name}")
        return replace(layer, dtype=tensor.dtype, read=tensor.read, problem=tensor.problem)

"""ONNX models: weights, and the stride, padding, dilation, groups and input size of each layer (`convsv[onnx]`).

The file is a protocol buffer. It is walked here without its weights, which stay where they are until they are asked
for; onnx itself, whose C++ is not made for strangers' files, sees the model without weights, in a child process, and
infers the shape of every value. So onnx is needed to open a model, but never imported here.

Every Conv and ConvTranspose node is a convolution, and nothing else is: no shape or name is guessed at.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from convsv.checkpoints import FORMATS, Checkpoint, ModuleFacts, RegularFile, StoredTensor
from convsv.checkpoints._content import printable
from convsv.checkpoints._file import AnonymousFile
from convsv.checkpoints._onnx_convolutions import Call, find_calls
from convsv.checkpoints._onnx_graph import Graph, read_graph
from convsv.checkpoints._onnx_network import read_network
from convsv.checkpoints._onnx_prepare import prepare, require_onnx
from convsv.checkpoints._onnx_strip import MODEL_GRAPH, Stripped, TensorRecord, strip
from convsv.checkpoints._onnx_tensors import Beside, Values, dtype_name
from convsv.checkpoints._onnx_weights import Weight, find_tensor, module_path, read_through
from convsv.checkpoints._protobuf import BYTES, VARINT, Field, Wire
from convsv.checkpoints.naming import locate
from convsv.checkpoints.rules import AXES, is_kernel_name
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, error_context

__all__ = ["Onnx"]

_IR_VERSION, _OPSETS = 1, 8
_MODEL_FIELDS = {1: VARINT, 5: VARINT} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES)
_WORDS = (2, 3, 4)
_LONGEST_WORD = 4096
_LATEST_IR = 255
_LOOKED_AT = 1000


class Onnx:
    """The reader of binary ONNX models."""

    name = "onnx"
    suffixes: tuple[str, ...] = (".onnx",)

    def recognises(self, file: RegularFile) -> bool:
        """Tell the fields of a ``ModelProto``: a version and a graph, and nothing that is not ONNX's.

        Raises:
            CorruptCheckpointError: the file shrank while it was read.
        """
        return file.size > 0 and _is_model(file)

    def open(self, file: RegularFile) -> Checkpoint:
        """Index the model. No weight is read.

        Raises:
            CorruptCheckpointError: it is damaged, or a file with its weights is missing.
            UnsafeCheckpointError: it leads out of its folder, or is enormous even without its weights.
            CheckpointError: onnx is not installed.
        """
        with error_context(path=str(file.path)):
            require_onnx()
            stripped = strip(file)
            model, problems = _prepared(stripped)
            index = _Index(read_graph(model, stripped.tensors), Beside(file))
            tensors, modules = index.tensors(), index.modules
        return Checkpoint(
            str(file.path),
            self.name,
            tensors,
            modules=tuple(modules),
            problems=(*problems, *index.problems),
            files=(file, *index.beside.files),
            network=partial(read_network, file),
        )


FORMATS.add(Onnx.name, Onnx())


def _is_model(file: RegularFile) -> bool:
    wire = Wire(file, ahead=_LONGEST_WORD)  # every file of every format is asked: most end at the first field
    seen: set[int] = set()
    try:
        for found in itertools.islice(wire.fields(0, file.size), _LOOKED_AT):
            if not _is_of_a_model(wire, found):
                return False
            seen.add(found.number)
    except CheckpointError:
        # Truncated: by what came before.
        return _IR_VERSION in seen and (len(seen) > 1 or file.path.suffix.lower() in Onnx.suffixes)
    return MODEL_GRAPH in seen and bool(seen & {_IR_VERSION, _OPSETS})


def _is_of_a_model(wire: Wire, found: Field) -> bool:
    """Tell whether a field may be one of a ``ModelProto``, and not of TensorFlow's messages, which start like it."""
    if _MODEL_FIELDS.get(found.number) != found.wire:
        return False
    if found.number == _IR_VERSION:
        return 0 < found.value <= _LATEST_IR
    if found.number in _WORDS:
        short = found.end - found.payload <= _LONGEST_WORD
        return short and wire.read(found.payload, found.end).decode("utf-8", "backslashreplace").isprintable()
    return True


def _prepared(stripped: Stripped) -> tuple[RegularFile, list[str]]:
    """Return the model with shapes where onnx can infer them, without where it cannot, and what to tell about that."""
    try:
        return prepare(stripped.model), []
    except (CorruptCheckpointError, UnsafeCheckpointError) as error:
        problems = [f"input sizes are known only where the model states them: {error}"]
        if stripped.functions:
            problems.append(f"convolutions in its {stripped.functions} functions are not listed")
        return AnonymousFile("model", stripped.model), problems


# -------------------------------------------------------------------------------------------------------------- index


@dataclass
class _Layer:
    """A weight and the calls of it."""

    weight: Weight
    calls: list[Call] = field(default_factory=list)


class _Index:
    """Tensors and modules of a graph: each weight once, with every geometry that it is called at."""

    def __init__(self, graph: Graph, beside: Beside) -> None:
        self.beside = beside
        self.modules: list[ModuleFacts] = []
        self._stored: dict[tuple[tuple[str, ...], str], StoredTensor] = {}
        self._taken: set[str] = set()
        calls, self.problems = find_calls(graph, beside)
        for scope in graph.inside():
            for tensor in _in_order(scope):
                self._stored[scope.path, tensor.name] = self._tensor(tensor.name, tensor, scope.path)
        layers = _grouped(calls)
        plain = {layer.weight.key for layer in layers if not layer.weight.steps}
        kernels = {self._add(layer, plain) for layer in layers}
        self._name_operands(graph, kernels)

    def tensors(self) -> tuple[StoredTensor, ...]:
        """Return every tensor."""
        return tuple(self._stored.values())

    def _tensor(self, key: str, tensor: TensorRecord, path: tuple[str, ...]) -> StoredTensor:
        with error_context(tensor=printable(key)):
            values = Values(tensor, self.beside)
        return StoredTensor(
            key=key,
            shape=tensor.dims,
            dtype=dtype_name(tensor.code),
            read=partial(read_through, values, (), str(tensor.file.path), key),
            container=path,
            identity=values.identity,
            problem=values.problem,
        )

    def _add(self, layer: _Layer, plain: set[str]) -> tuple[tuple[str, ...], str]:
        """Add the tensor of a layer's weight, where it is not there as it is, and what is known about the layer.

        Args:
            layer: the layer.
            plain: the keys of all weights that are taken as they are stored.
        """
        weight, call = layer.weight, layer.calls[0]
        place = weight.path, weight.key
        if weight.steps and weight.key in plain:
            place = weight.path, weight.value
        if weight.tensor is None or weight.steps or place not in self._stored or weight.problem or call.problem:
            self._stored[place] = self._weight(place[1], weight, call.problem)
        dims = len(weight.shape or ()) - 2
        geometries = tuple(dict.fromkeys(call.facts for call in layer.calls))
        self.modules.append(
            ModuleFacts(
                path=locate(place[1], slashes=False).path,
                class_name=f"{'ConvTranspose' if call.facts.transposed else 'Conv'}{dims}d",
                geometry=geometries[0],
                container=place[0],
                name=self._name(layer),
                variables={place[1]: "kernel_oik"},
                norm=self._norm(layer),
                calls=geometries if len(geometries) > 1 else (),
            )
        )
        return place

    def _weight(self, key: str, weight: Weight, problem: str | None) -> StoredTensor:
        assert weight.shape is not None
        problem = problem or weight.problem
        if weight.tensor is None:
            return StoredTensor(key, weight.shape, weight.dtype, _no_values, weight.path, problem=problem)
        stored = self._tensor(key, weight.tensor, weight.path)
        if not weight.steps:
            return replace(stored, problem=problem or stored.problem)
        values = Values(weight.tensor, self.beside)
        return replace(
            stored,
            shape=weight.shape,
            dtype=weight.dtype,
            read=partial(read_through, values, weight.steps, str(weight.tensor.file.path), key),
            identity=(stored.identity, *(step.name for step in weight.steps)),
            problem=problem or stored.problem,
        )

    def _norm(self, layer: _Layer) -> Any:
        """Return the norm behind a layer, if it is the same behind every call and its tensors are beside the weight."""
        norm, graph = layer.calls[0].norm, layer.calls[0].graph
        if norm is None or any(call.norm != norm for call in layer.calls):
            return None
        for key in filter(None, (norm.variance, norm.scale)):
            found = find_tensor(graph, key)
            if found is None or found[1] != layer.weight.path:
                return None
            self._stored.setdefault((found[1], key), self._tensor(key, *found))
        return norm

    def _name(self, layer: _Layer) -> str | None:
        """Return the module path: what the weight's name says, else the node's, else the weight's name."""
        call = layer.calls[0]
        place = locate(layer.weight.key, slashes=False)
        said = [place.layer] if place.owner and is_kernel_name(place.leaf) else []
        said += [module_path(call.node.name, call.node.op)] if call.node.name else []
        name = next((name for name in (*said, layer.weight.key) if name and name not in self._taken), layer.weight.key)
        self._taken.add(name)
        return name

    def _name_operands(self, graph: Graph, kernels: set[tuple[tuple[str, ...], str]]) -> None:
        """Say of each other tensor that has the shape of a kernel which operator takes it."""
        for scope in graph.inside():
            for name, tensor in scope.tensors.items():
                if len(tensor.dims) not in AXES or (scope.path, name) in kernels:
                    continue
                taker = scope.takers.get(name)
                self.modules.append(
                    ModuleFacts(
                        path=locate(name, slashes=False).path,
                        class_name=printable(taker.op) if taker else "graph",
                        container=scope.path,
                        variables={name: "operand"},
                    )
                )


def _in_order(graph: Graph) -> list[TensorRecord]:
    """Return the initializers in stored order; early versions list them among the inputs, in the network's order."""
    rank = {name: place for place, name in enumerate(graph.inputs)}
    return sorted(graph.tensors.values(), key=lambda tensor: rank.get(tensor.name, len(rank)))


def _grouped(calls: Iterable[Call]) -> list[_Layer]:
    layers: dict[object, _Layer] = {}
    for call in calls:
        weight = call.weight
        steps = tuple(step.name for step in weight.steps)
        key = (weight.path, weight.key, steps, call.facts.transposed, call.problem or weight.problem)
        layers.setdefault(key, _Layer(weight)).calls.append(call)
    return list(layers.values())


def _no_values() -> NDArray[Any]:
    raise UnsafeCheckpointError("its values are not in the file")

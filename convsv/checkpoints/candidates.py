"""From a checkpoint's index to candidates: each tensor beside its module, parts put together, judged by the rules."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from convsv.checkpoints import Checkpoint, ModuleFacts, StoredTensor
from convsv.checkpoints._parametrizations import Parametrised, find_parametrised
from convsv.checkpoints.folding import Fold
from convsv.checkpoints.naming import Place, locate
from convsv.checkpoints.rules import AXES, Candidate, refusal, remark
from convsv.checkpoints.traced import TracedLayer
from convsv.geometry import GeometryFacts
from convsv.layer import Layout

__all__ = ["Find", "collect"]


@dataclass
class Find:
    """A candidate on its way to be a layer.

    Attributes:
        candidate: the tensor and what is around it.
        facts: what the file says about its module.
        parametrised: how its values are computed, if it is stored in parts.
        refused: (rule, reason) if it is no kernel.
        name: the layer's name, once given.
        notes: remarks.
        inferred: geometry read off the shapes around it.
        forced: whether the caller overruled the rules.
        traced: what running the model told about it.
        fold: the batch normalisation to report it with.
        locked: why new values would not be what the network runs with, if so.
    """

    candidate: Candidate
    facts: ModuleFacts | None = None
    parametrised: Parametrised | None = None
    refused: tuple[str, str] | None = None
    name: str = ""
    notes: list[str] = field(default_factory=list)
    inferred: GeometryFacts = field(default_factory=GeometryFacts)
    forced: bool = False
    traced: TracedLayer | None = None
    fold: Fold | None = None
    locked: str | None = None

    @property
    def tensor(self) -> StoredTensor:
        """The tensor."""
        return self.candidate.tensor

    @property
    def place(self) -> Place:
        """Its key, taken apart."""
        return self.candidate.place

    @property
    def path(self) -> tuple[str, ...]:
        """Its container's path, its module's and its own name."""
        return (*self.tensor.container, *self.place.owner, self.place.leaf)

    @property
    def matrix(self) -> bool:
        """Whether it has two axes: no kernel, but a neighbour of kernels."""
        return len(self.tensor.shape) == 2

    @property
    def modulated(self) -> bool:
        """Whether it is a StyleGAN2 kernel (1, out, in, k, k), which the network scales anew for every input."""
        told = "modulation" in self.candidate.children or self.candidate.class_name.startswith("Modulated")
        return told and len(self.tensor.shape) == 5 and self.tensor.shape[0] == 1

    @property
    def stored(self) -> GeometryFacts:
        """What the file says about its geometry."""
        return self.facts.geometry if self.facts else GeometryFacts()

    @property
    def calls(self) -> tuple[tuple[GeometryFacts, GeometryFacts], ...]:
        """What the file and what running the model says about each of its calls, or once about all."""
        if self.traced:
            return tuple((self.stored, call) for call in self.traced.calls)
        return tuple((call, GeometryFacts()) for call in (self.facts and self.facts.calls) or (self.stored,))


def collect(checkpoint: Checkpoint) -> list[Find]:
    """Return the tensors of three to five axes, and the matrices among them, in stored order.

    Args:
        checkpoint: an opened checkpoint; no tensor is read.
    """
    grouped: dict[tuple[str, ...], list[StoredTensor]] = defaultdict(list)
    for tensor in checkpoint.tensors:
        grouped[tensor.container].append(tensor)
    modules: dict[tuple[str, ...], list[ModuleFacts]] = defaultdict(list)
    for facts in checkpoint.modules:
        modules[facts.container].append(facts)
    finds: dict[int, Find] = {}
    for container, tensors in grouped.items():
        for find in _Container(checkpoint.format, tensors, modules[container]).finds():
            finds[id(find.tensor)] = find
    return [finds[id(tensor)] for tensor in checkpoint.tensors if id(tensor) in finds]


_RUNNING_VECTOR = re.compile(r"(vector_u|sn_u)(_\d+)?(:\d+)?")


class _Container:
    """The tensors and modules of one container, indexed."""

    def __init__(self, file_format: str, tensors: Sequence[StoredTensor], modules: Sequence[ModuleFacts]) -> None:
        self.format = file_format
        self.tensors = tensors
        self.facts_by_key = {key: facts for facts in modules for key in facts.variables}
        self.facts_by_path = {facts.path: facts for facts in reversed(modules)}
        roles = {key: role for facts in modules for key, role in facts.variables.items()}
        self.places = {t.key: locate(t.key, slashes=file_format == "keras") for t in tensors}
        for key in self.places.keys() & roles.keys():
            self.places[key] = replace(self.places[key], leaf=roles[key])
        # The graph of an ONNX model tells what becomes of each tensor.
        self.weights = {} if file_format == "onnx" else self._weights_in_parts()
        self.parts = {part.key: weight for weight in self.weights.values() for part in weight.parts}
        self.modules: dict[tuple[str, ...], dict[str, StoredTensor]] = defaultdict(dict)
        for tensor in tensors:
            self.modules[self.places[tensor.key].owner][self.places[tensor.key].leaf] = tensor
        self._name_variables()
        self.normalising = self._normalising() if file_format == "keras" else ()
        self.children: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for owner in self.modules:
            self.children[owner[:-1]].update(owner[-1:])

    def finds(self) -> list[Find]:
        """Return what may be a kernel or stand beside one."""
        return [self._find(tensor) for tensor in self.tensors if len(tensor.shape) in (2, *AXES)]

    def _weights_in_parts(self) -> dict[str, Parametrised]:
        """Return them by the key of their direction, whose place becomes that of the weight it stands for."""
        classes = {path: facts.class_name for path, facts in self.facts_by_path.items()}
        found = [w for w in find_parametrised(self.tensors, classes) if len(w.direction.shape) in AXES]
        for weight in found:
            owner = tuple(weight.owner.split(".")) if weight.owner else ()
            self.places[weight.direction.key] = Place(owner, weight.parameter, ".")
        return {weight.direction.key: weight for weight in found}

    def _name_variables(self) -> None:
        """Say what numbered variables of Keras are where the file does not: a layer's first is its kernel."""
        for owner in [owner for owner in self.modules if self.format == "keras" and owner[-1:] == ("vars",)]:
            module = self.modules[owner]
            roles = _roles(module)
            for number in [number for number in roles if number in module]:
                tensor = module.pop(number)
                module[roles[number]] = tensor
                self.places[tensor.key] = replace(self.places[tensor.key], leaf=roles[number])

    def _normalising(self) -> tuple[str, ...]:
        """Return the paths of Keras' spectral normalisations, each of which wraps what lies in it."""
        named = [path for path, facts in self.facts_by_path.items() if facts.class_name == "SpectralNormalization"]
        owning = [place.path for place in self.places.values() if _RUNNING_VECTOR.fullmatch(place.leaf)]
        return tuple(f"{path.removesuffix('/vars')}/" for path in (*named, *owning) if path)

    def _find(self, tensor: StoredTensor) -> Find:
        place = self.places[tensor.key]
        module = self.modules[place.owner]
        facts = self.facts_by_key.get(tensor.key) or self.facts_by_path.get(place.path)
        candidate = Candidate(
            tensor,
            place,
            facts.class_name if facts else "",
            _layout(tensor.shape, place, module, torch=self.format == "pytorch"),
            module,
            frozenset(self.children.get(place.owner, ())),
        )
        find = Find(candidate, facts, self.weights.get(tensor.key))
        find.inferred = facts.inferred if facts else find.inferred
        if tensor.key.startswith(self.normalising):
            find.locked = (
                "Keras' SpectralNormalization divides this kernel by its own norm again as soon as it is trained"
            )
        if tensor.key in self.parts:
            owner = self.parts[tensor.key].owner or self.parts[tensor.key].parameter
            find.refused = ("part of a weight", f"the weight of {owner!r} is computed from it")
        elif find.matrix:
            find.refused = ("matrix", "two axes")
        else:
            find.refused = refusal(candidate)
        note = None if find.refused else remark(candidate)
        find.notes += [note] if note else []
        return find


def _roles(module: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Return what the numbered variables of a Keras layer of unknown class are, told by their shapes."""
    first, second = (module[n].shape if n in module else () for n in ("0", "1"))
    separable = len(first) == len(second) >= 3 and second[:-2] == (1,) * len(second[:-2])
    if separable and second[-2] == first[-2] * first[-1]:
        return {"0": "depthwise_kernel", "1": "pointwise_kernel", "2": "bias"}
    return {"0": "kernel", "1": "bias"} if len(second) < 3 else {"0": "kernel"}


def _layout(shape: tuple[int, ...], place: Place, module: Mapping[str, StoredTensor], *, torch: bool) -> Layout:
    """Return what the axes mean: PyTorch's ``weight`` is (out, in, *K), the ``kernel`` of Keras and Flax (*K, in, out).

    A Keras kernel (*K, C, M) whose bias has C M entries is depthwise.
    """
    if place.leaf == "depthwise_kernel":
        return "KCM"
    keras_like = place.separator == "/" or place.leaf in ("kernel", "pointwise_kernel", "recurrent_kernel")
    if torch or place.leaf == "kernel_oik" or not keras_like:
        return "OIK"
    bias = module.get("bias")
    per_channel = len(shape) > 2 and bias is not None and bias.shape == (shape[-2] * shape[-1],) != shape[-1:]
    return "KCM" if per_channel else "KIO"

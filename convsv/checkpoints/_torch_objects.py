"""The way from a pickled object graph to named tensors and modules.

The graph is walked iteratively, each object once (a shared or cyclic object keeps the first path that leads to it; a
tensor is named once for every mapping, list or module that holds it). A path is split into ``container`` and ``key``:

- inside a pickled module the key is what its state dict would say, and the container is the path to the module;
- elsewhere a level belongs to the container when it, or a level below it, looks like a state dict or a wrapper of
  one: its name is in :data:`WRAPPERS`, one of its own keys holds a dot, it is a list or tuple, or its key is no text.
  What remains joins the key, by dots: ``{"conv1": {"weight": T}}`` has the key ``conv1.weight``;
- the last level is always key. A tensor that is the whole file has the key ``tensor``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from convsv.checkpoints import ModuleFacts, StoredTensor
from convsv.checkpoints._pickle import Call, PersistentId, PickledDict, Symbol
from convsv.checkpoints._place import Place
from convsv.checkpoints._strided import MAX_INT, TensorRecord
from convsv.checkpoints._torch_tensors import FindStorage, describe_tensor
from convsv.errors import UnsafeCheckpointError
from convsv.geometry import PADDINGS, GeometryFacts

__all__ = ["WRAPPERS", "FindConstants", "ObjectIndex", "geometry_of", "index_objects"]

# fmt: off
WRAPPERS = frozenset((
    "state_dict", "state_dicts", "model_state_dict", "model_state", "model", "model_dict", "models", "net", "nets",
    "network", "module", "modules", "weights", "params", "params_ema", "ema", "ema_state_dict", "ema_model",
    "model_ema", "state_dict_ema", "ema_params", "shadow_params", "shadow", "average_model", "teacher", "student",
    "generator", "discriminator", "g_ema", "netG", "netD", "G", "D", "checkpoint", "ckpt", "trainer", "extra_state",
    "optimizer", "optimizers", "optimizer_state_dict", "optimizer_states", "optim", "optim_state_dict", "state",
    "param_groups", "lr_scheduler", "lr_schedulers", "scheduler", "scaler", "callbacks", "loops", "hyper_parameters",
))
# fmt: on
"""Names under which training programs keep whole state dicts."""

FindConstants: TypeAlias = "Callable[[str, str], dict[str, object]]"
"""Finds the constants of a class: (where it is, its name) -> attributes."""

MAX_DEPTH = 128
MAX_OBJECTS = 1_000_000
MAX_TENSORS = 1 << 18
MAX_MODULES = 1 << 17
MAX_NAME_CHARACTERS = 1 << 26

_MAPPINGS = frozenset(
    {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict", "__builtin__.dict"}
)
_RECONSTRUCTORS = frozenset(
    f"{module}.{name}" for module in ("copyreg", "copy_reg") for name in ("_reconstructor", "__newobj__")
)
_SAME_PADDED = frozenset({"Conv2dSame", "StdConv2dSame", "ScaledStdConv2dSame", "Conv2dDynamicSamePadding"})
"""Classes of timm and EfficientNet-PyTorch that pad like TensorFlow, whatever their attribute ``padding`` says."""


@dataclass
class ObjectIndex:
    """What a pickled object holds.

    Attributes:
        tensors: all tensors, in stored order.
        modules: one entry a pickled module.
        problems: what was not searched, one line each.
        records: of each tensor, what its description says.
    """

    tensors: list[StoredTensor] = field(default_factory=list)
    modules: list[ModuleFacts] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    records: list[TensorRecord] = field(default_factory=list)


class _Place:
    """A path, linked from its end: ``split`` of its labels are container, the others key."""

    __slots__ = ("depth", "in_module", "label", "names", "parent", "split")

    def __init__(self, parent: _Place | None, label: str) -> None:
        self.parent = parent
        self.label = label
        self.depth: int = parent.depth + 1 if parent else 0
        self.split: int = parent.split if parent else 0
        self.in_module: bool = parent.in_module if parent else False
        self.names: tuple[tuple[str, ...], str] | None = None

    def labels(self) -> list[str]:
        labels: list[str] = []
        place: _Place | None = self
        while place is not None and place.parent is not None:
            labels.append(place.label)
            place = place.parent
        return labels[::-1]


class _Child(NamedTuple):
    label: str
    value: object
    is_text: bool = True


def index_objects(root: object, find: FindStorage, constants: FindConstants | None = None) -> ObjectIndex:
    """Name every tensor and module that a pickled object holds; nothing is read or run.

    Args:
        root: what the interpreter returned.
        find: finds a storage.
        constants: finds what is stated of a module's class outside the pickle, by where the class is and its name.

    Raises:
        CorruptCheckpointError: a tensor names a storage that the file lacks.
        UnsafeCheckpointError: there are more tensors, or longer names, than any network has.
    """
    return _Walk(find, constants).run(root)


class _Walk:
    def __init__(self, find: FindStorage, constants: FindConstants | None) -> None:
        self.find = find
        self.constants = constants
        self.index = ObjectIndex()
        self.characters = 0
        self.seen: set[int] = set()
        self.records: dict[int, TensorRecord | None] = {}

    def run(self, root: object) -> ObjectIndex:
        top = _Place(None, "")
        record = self.describe(root)
        if record is not None:
            self.emit(top, "tensor", record)
            return self.index
        pending = [(top, self.enter(top, root, is_text=True))]
        while pending:
            place, children = pending[-1]
            child = next(children, None)
            if child is None:
                pending.pop()
                continue
            record = self.describe(child.value)
            if record is not None:
                self.emit(place, child.label, record)
            elif self.is_new(child.value):
                inner = _Place(place, child.label)
                pending.append((inner, self.enter(inner, child.value, is_text=child.is_text)))
        return self.index

    def describe(self, value: object) -> TensorRecord | None:
        if not isinstance(value, Call):
            return None
        if id(value) not in self.records:
            self.records[id(value)] = describe_tensor(value, self.find)
        return self.records[id(value)]

    def is_new(self, value: object) -> bool:
        if id(value) in self.seen:
            return False
        self.seen.add(id(value))
        if len(self.seen) > MAX_OBJECTS:
            raise UnsafeCheckpointError("holds more objects than any network", found=f"more than {MAX_OBJECTS}")
        return True

    def emit(self, place: _Place, label: str, record: TensorRecord) -> None:
        container, prefix = self.names(place)
        self.charge(len(prefix) + len(label))
        if len(self.index.tensors) >= MAX_TENSORS:
            raise UnsafeCheckpointError("holds more tensors than any network", found=f"more than {MAX_TENSORS}")
        key = f"{prefix}.{label}" if prefix else label
        tied, problem, where = record.identity, record.problem, Place.of(record)
        self.index.tensors.append(
            StoredTensor(key, record.shape, record.dtype, record.read, container, tied, problem, where)
        )
        self.index.records.append(record)

    def names(self, place: _Place) -> tuple[tuple[str, ...], str]:
        # Container, and what of the key is known so far.
        if place.names is None:
            labels = place.labels()
            self.charge(sum(len(label) for label in labels))
            place.names = tuple(labels[: place.split]), ".".join(labels[place.split :])
        return place.names

    def charge(self, characters: int) -> None:
        # One long label may be shared by many paths: without a limit, a small file could ask for endless names.
        self.characters += characters
        if self.characters > MAX_NAME_CHARACTERS:
            raise UnsafeCheckpointError("names its tensors and modules at too great a length")

    def enter(self, place: _Place, value: object, *, is_text: bool) -> Iterator[_Child]:
        if place.depth > MAX_DEPTH:
            message = f"what is nested deeper than {MAX_DEPTH} levels was not searched"
            if message not in self.index.problems:
                self.index.problems.append(message)
            return iter(())
        attributes = _module_attributes(value)
        if attributes is not None and isinstance(value, Call):
            return self.enter_module(place, value, attributes)
        children = _children(value)
        if not place.in_module and (not is_text or place.label in WRAPPERS or _is_container(value, children)):
            place.split = place.depth
        return iter(children)

    def enter_module(self, place: _Place, module: Call, attributes: dict[str, object]) -> Iterator[_Child]:
        if not place.in_module:
            place.in_module, place.split = True, place.depth
        container, path = self.names(place)
        if len(self.index.modules) >= MAX_MODULES:
            raise UnsafeCheckpointError("holds more modules than any network", found=f"more than {MAX_MODULES}")
        symbol = _class_of(module)
        class_name = symbol.name.rsplit(".", 1)[-1] if symbol else ""
        if symbol and self.constants:
            attributes = {**self.constants(symbol.module, class_name), **attributes}
        geometry, epsilon = geometry_of(attributes, class_name), attributes.get("eps")
        epsilon = epsilon if isinstance(epsilon, float) and 0 <= epsilon < 1 else None
        self.index.modules.append(ModuleFacts(path, class_name, geometry, container, epsilon=epsilon))
        if symbol and symbol.module.split(".", 1)[0] == "__torch__":
            return iter(_text_children(attributes))
        registered = [
            child for name in ("_parameters", "_buffers", "_modules") for child in _children(attributes.get(name))
        ]
        # Modules may also hide in plain attributes. A plain attribute that is a tensor is no part of the state dict
        # (the stale weight that spectral_norm leaves behind), and private ones are hooks and caches.
        hidden = [child for child in _text_children(attributes) if not child.label.startswith("_")]
        return iter(registered + [child for child in hidden if self.describe(child.value) is None])


# ---------------------------------------------------------------------------------------------- children of anything


def _children(value: object) -> list[_Child]:
    """Return what a container or object holds, in stored order, without plain values."""
    if isinstance(value, (list, tuple)):
        return [_Child(str(i), item, is_text=False) for i, item in enumerate(value) if _may_hold(item)]
    if isinstance(value, PickledDict):
        return _pair_children(value.pairs)
    if not isinstance(value, Call):
        return []
    if _is_mapping(value):
        return _pair_children(_mapping_pairs(value))
    children = _pair_children(value.pairs)
    for part in (value.state, value.kwargs):
        # The state of an object with slots is (attributes, slots).
        for mapping in part if isinstance(part, tuple) else (part,):
            children += _pair_children(mapping.pairs) if isinstance(mapping, PickledDict) else []
    for items in (value.items, value.args, value.state if isinstance(value.state, list) else ()):
        children += _children(items)
    return children


def _may_hold(value: object) -> bool:
    # Cheap, because a hostile file is made of millions of these.
    if isinstance(value, (list, tuple)):
        return len(value) > 0
    return isinstance(value, Call) or (isinstance(value, PickledDict) and len(value.pairs) > 0)


def _pair_children(pairs: Iterable[tuple[object, object]]) -> list[_Child]:
    named: dict[object, _Child] = {}  # a later value of the same text key replaces the earlier one
    for position, (key, item) in enumerate(pairs):
        if not _may_hold(item):
            named.pop(key if isinstance(key, str) else None, None)
        elif isinstance(key, str):
            named[key] = _Child(key, item)
        elif isinstance(key, bytes):
            named[position] = _Child(key.decode("latin-1"), item)
        else:
            label = str(key) if type(key) is int and abs(key) <= MAX_INT else f"#{position}"
            named[position] = _Child(label, item, is_text=False)
    return list(named.values())


def _text_children(attributes: dict[str, object]) -> list[_Child]:
    return _pair_children(attributes.items())


def _is_mapping(call: Call) -> bool:
    return isinstance(call.callee, Symbol) and call.callee.path in _MAPPINGS


def _mapping_pairs(call: Call) -> list[tuple[object, object]]:
    """Return the pairs of a pickled dict subclass: given to its constructor as a dict or as pairs, or set later."""
    pairs: list[tuple[object, object]] = []
    for arg in call.args:
        if isinstance(arg, PickledDict):
            pairs += arg.pairs
        elif isinstance(arg, (list, tuple)):
            pairs += [(pair[0], pair[1]) for pair in arg if isinstance(pair, (list, tuple)) and len(pair) == 2]
    return [*pairs, *call.pairs]


def _is_container(value: object, children: list[_Child]) -> bool:
    if isinstance(value, (list, tuple)):
        return True
    if isinstance(value, Call) and not value.pairs and not _is_mapping(value):
        return False  # the attributes of an object
    return any(child.is_text and "." in child.label for child in children)


# ------------------------------------------------------------------------------------------------------------ modules


def _attributes(call: Call) -> dict[str, object]:
    mapping = call.state[0] if isinstance(call.state, tuple) and call.state else call.state
    pairs = mapping.pairs if isinstance(mapping, PickledDict) else ()
    return {key: value for key, value in pairs if isinstance(key, str)}


def _module_attributes(value: object) -> dict[str, object] | None:
    """Return the attributes of a pickled module, of whatever class, or None if this is none."""
    if not isinstance(value, Call) or value.state is None:
        return None
    symbol = _class_of(value)
    attributes = _attributes(value)
    is_script = symbol is not None and symbol.module.split(".", 1)[0] == "__torch__"
    return attributes if is_script or "_parameters" in attributes or "_modules" in attributes else None


def _class_of(call: Call) -> Symbol | None:
    callee: object = call.callee
    if isinstance(callee, Symbol) and callee.path in _RECONSTRUCTORS and call.args:
        callee = call.args[0]
    if isinstance(callee, PersistentId) and isinstance(callee.value, tuple) and len(callee.value) > 1:
        # ("module", class, source file, source): the class of a module, with its code.
        callee = callee.value[1] if callee.value[0] == "module" else None
    return callee if isinstance(callee, Symbol) else None


def geometry_of(attributes: dict[str, object], class_name: str) -> GeometryFacts:
    """Return the geometry that a module's plain attributes state; what is not sane is not stated."""
    padding = attributes.get("padding")
    mode = attributes.get("padding_mode")
    groups = attributes.get("groups")
    transposed = attributes.get("transposed")
    facts = GeometryFacts(
        stride=_amounts(attributes.get("stride"), 1),
        padding=padding if padding in ("same", "valid") else _amounts(padding, 0),
        padding_mode=mode if isinstance(mode, str) and mode in PADDINGS else _first_mode(attributes),
        dilation=_amounts(attributes.get("dilation"), 1),
        groups=groups if type(groups) is int and 1 <= groups <= MAX_INT else None,
        transposed=transposed if isinstance(transposed, bool) else None,
        output_padding=_amounts(attributes.get("output_padding"), 0),
    )
    return replace(facts, padding="same") if class_name in _SAME_PADDED else facts


def _first_mode(attributes: dict[str, object]) -> str | None:
    # PyTorch before 1.1: its convolutions had no such attribute, and padded with zeros.
    is_early = "padding_mode" not in attributes and {"transposed", "output_padding"} <= attributes.keys()
    return "zeros" if is_early else None


def _amounts(value: object, least: int) -> int | tuple[int, ...] | None:
    numbers = value if isinstance(value, (tuple, list)) else (value,)
    if not 1 <= len(numbers) <= 3 or not all(type(n) is int and least <= n < 1 << 31 for n in numbers):
        return None
    return tuple(numbers) if isinstance(value, (tuple, list)) else numbers[0]

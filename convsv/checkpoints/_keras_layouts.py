"""The layouts in which Keras files weights in HDF5: which tensors belong to which layer, and what each is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from numpy.typing import NDArray

from convsv.checkpoints import Checkpoint, ModuleFacts, Normalisation, RegularFile, StoredTensor
from convsv.checkpoints._content import printable
from convsv.checkpoints._hdf5 import Dataset, Hdf5File
from convsv.checkpoints._hdf5_edit import place_of
from convsv.checkpoints._keras_config import LayerConfig, fits, geometries_of, parse_layers
from convsv.checkpoints._keras_layer import CONVOLUTIONS, Role, class_of_name, is_einsum_dense
from convsv.errors import CorruptCheckpointError, error_context
from convsv.geometry import GeometryFacts

__all__ = ["Contents"]

T = TypeVar("T")

_OPTIMIZERS = ("optimizer_weights", "optimizer")
_CONTAINERS = ("model_weights", *_OPTIMIZERS)
_ROLES: Mapping[str, Role] = {
    "kernel": "kernel",
    "W": "kernel",
    "depthwise_kernel": "depthwise_kernel",
    "pointwise_kernel": "pointwise_kernel",
    "bias": "bias",
    "b": "bias",
}


@dataclass
class _Module:
    """The tensors of one layer: where they are, who says what they are."""

    path: str
    name: str
    class_name: str = ""
    layer: LayerConfig | None = None
    order: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)


class Contents:
    """The datasets of a file, sorted into containers, keys and modules."""

    def __init__(self, hdf5: Hdf5File, config: str | bytes | None, read: Callable[[Dataset], NDArray[Any]]) -> None:
        self.hdf5, self.read = hdf5, read
        self.problems = list(hdf5.problems)
        self.layers: list[LayerConfig] = []
        if config is not None:
            try:
                self.layers, problems = parse_layers(config)
                self.problems += problems
            except CorruptCheckpointError as error:
                self.problems.append(f"{error.what}: geometry is not known from it")
        self.saved: dict[str, _Module] = {}
        self.position = {id(layer): at for at, layer in enumerate(self.layers)}
        self.by_group = _grouped(self.layers, lambda layer: layer.name[0])
        self.by_title = _grouped(self.layers, lambda layer: layer.name[-1])

    def checkpoint(self, file: RegularFile, name: str) -> Checkpoint:
        """Return the index of the file.

        Args:
            file: the file that the user named.
            name: name of the format.
        """
        numbered = any(re.search(r"(^|/)vars/\d+$", d.path) for d in self.hdf5.datasets if not _in_optimizer(d.path))
        root = "model_weights" if "layer_names" in self.hdf5.groups.get("model_weights", {}) else ""
        container: tuple[str, ...] = ()
        if numbered:
            container, ranks, modules = (), {}, self._numbered_modules()
        elif "layer_names" in self.hdf5.groups.get(root, {}):
            container = (root,) if root else ()
            ranks, modules = self._stored_order(root), self._named_modules(root)
        else:
            container, ranks, modules = (), {}, []
        self.saved = {module.layer.saved_as: module for module in modules if module.layer}
        facts = [fact for module in modules for fact in self._facts(module, container)]
        ranks = ranks or {key: rank for rank, module in enumerate(modules) for key in module.shapes}
        odd = {"/".join((*container, key)): problem for module in modules for key, problem in _odd_orders(module)}
        tensors = [self._tensor(dataset, file, odd.get(dataset.path)) for dataset in self.hdf5.datasets]
        tensors.sort(key=lambda t: (len(t.container), ranks.get(_path(t), len(ranks)), _natural(t.key)))
        return Checkpoint(str(file.path), name, tuple(tensors), tuple(facts), tuple(self.problems), (file,))

    def _tensor(self, dataset: Dataset, file: RegularFile, problem: str | None) -> StoredTensor:
        container, key = _split(dataset.path)
        place = ("bytes", dataset.offset) if dataset.offset is not None else ("object", dataset.address)
        return StoredTensor(
            key=key,
            shape=dataset.shape,
            dtype=dataset.dtype,
            read=partial(self._read, dataset, str(file.path)),
            container=container,
            identity=(str(file.path), *place, dataset.dtype, dataset.order, dataset.shape),
            problem=dataset.problem or problem,
            place=place_of(dataset, file) if self.hdf5.file is file else None,
        )

    def _read(self, dataset: Dataset, path: str) -> NDArray[Any]:
        with error_context(path=path, tensor=printable(dataset.path)):
            return self.read(dataset)

    # Keras 1 and 2 ------------------------------------------------------------------------------------------------

    def _stored_order(self, root: str) -> dict[str, int]:
        prefix = f"{root}/" if root else ""
        ordered = []
        for layer in self._names(root, "layer_names"):
            ordered += [f"{prefix}{layer}/{w}" for w in self._names(f"{prefix}{layer}", "weight_names")]
        return {path: rank for rank, path in enumerate(ordered)}

    def _names(self, group: str, attribute: str) -> list[str]:
        names = self.hdf5.groups.get(group, {}).get(attribute, [])
        return names if isinstance(names, list) else []

    def _named_modules(self, root: str) -> list[_Module]:
        prefix = f"{root}/" if root else ""
        layer_names = set(self._names(root, "layer_names"))
        order = {name: at for at, name in enumerate(self._names(root, "layer_names"))}
        modules: dict[str, _Module] = {}
        scopes: dict[str, set[str]] = {}
        for dataset in self.hdf5.datasets:
            if not dataset.path.startswith(prefix) or _in_optimizer(dataset.path):
                continue
            parts = dataset.path[len(prefix) :].split("/")
            group = next(
                (g for n in range(len(parts) - 1, 0, -1) if (g := "/".join(parts[:n])) in layer_names), parts[0]
            )
            path = "/".join(parts[:-1])
            scopes.setdefault(group, set()).add(path)
            module = modules.setdefault(path, _Module(path, group, order=order.get(group, len(order))))
            key = "/".join(parts)
            module.shapes[key] = dataset.shape
            role = _role_of_name(parts[-1], group)
            if role:
                module.roles[key] = role
        for module in modules.values():
            self._name_module(module, alone=len(scopes[module.name]) == 1)
        return sorted(modules.values(), key=lambda m: (m.order, _natural(m.path)))

    def _name_module(self, module: _Module, *, alone: bool) -> None:
        group = module.name
        parts = module.path.removeprefix(group).strip("/").split("/") if module.path != group else []
        module.layer = _choose(self.by_group.get(group, []), [group, *parts])
        own = module.layer is not None and len(module.layer.name) == 1
        module.name = "/".join(_joined(group.split("/"), parts, single=own or alone))
        last = module.name.split("/")[-1]
        module.class_name = module.layer.class_name if module.layer else class_of_name(last)
        if CONVOLUTIONS.get(module.class_name) is None or not module.layer:
            if module.class_name.startswith("Convolution") and not module.layer:
                module.roles = {k: _keras1_role(module, k, r) for k, r in module.roles.items()}
            return
        kind = CONVOLUTIONS[module.class_name].kind
        for key, role in module.roles.items():
            if role == "kernel" and kind == "depthwise":
                module.roles[key] = "depthwise_kernel"  # as Keras 3 calls it in HDF5 files
            if role == "kernel" and module.layer.config.get("dim_ordering") == "th":
                module.roles[key] = "kernel_oik"

    # Keras 3 ------------------------------------------------------------------------------------------------------

    def _numbered_modules(self) -> list[_Module]:
        modules: dict[str, _Module] = {}
        for dataset in self.hdf5.datasets:
            found = re.fullmatch(r"(?:(.*)/)?vars/(\d+)", dataset.path)
            if found is None or _in_optimizer(dataset.path):
                continue
            path = found[1] or ""
            plain = [p for p in path.split("/") if p not in ("layers", "_layer_checkpoint_dependencies")]
            module = modules.setdefault(path, _Module(path, "/".join(plain), order=len(self.layers)))
            module.shapes[dataset.path] = dataset.shape
        chosen = _match_numbered(list(modules), self.layers)
        for path, module in modules.items():
            title = self.hdf5.groups.get(f"{path}/vars" if path else "vars", {}).get("name")
            self._identify(module, chosen.get(path), title if isinstance(title, str) else None)
            wrapped = modules.get(f"{path}/layer")
            if not module.class_name and wrapped and [*module.shapes.values()][:1] == [*wrapped.shapes.values()][:1]:
                module.class_name = "SpectralNormalization"  # it saves the kernel that it wraps once more
        return sorted(modules.values(), key=lambda m: (m.order, _natural(m.path)))

    def _identify(self, module: _Module, layer: LayerConfig | None, title: str | None) -> None:
        # The path tells the layer by Keras' rule; newer files also state its name, which must agree.
        if title is not None and (layer is None or layer.name[-1] != title):
            named = self.by_title.get(title, [])
            layer = named[0] if len(named) == 1 else None
        module.layer = layer
        last = module.path.split("/")[-1]
        module.class_name = layer.class_name if layer else class_of_name(title or last) or class_of_name(last)
        if not module.class_name and is_einsum_dense(module.path, title):
            module.class_name = "EinsumDense"
        if layer:
            module.name, module.order = "/".join(layer.name), self.position[id(layer)]
        kind = CONVOLUTIONS.get(module.class_name)
        for key in module.shapes if kind else ():
            number = int(key.rsplit("/", 1)[-1])
            if kind and number < len(kind.variables):
                module.roles[key] = kind.variables[number]

    # Both ---------------------------------------------------------------------------------------------------------

    def _facts(self, module: _Module, container: tuple[str, ...]) -> list[ModuleFacts]:
        if module.class_name not in CONVOLUTIONS:
            owner = next(iter(module.shapes)).rpartition("/")[0]  # Keras 3 puts variables one group deeper
            return [replace(self._fact(module, container, module.name, module.roles, GeometryFacts()), path=owner)]
        facts = []
        for key, role in module.roles.items():
            if not role.endswith(("kernel", "kernel_oik")):
                continue
            name = module.name
            if CONVOLUTIONS[module.class_name].kind == "separable":
                name = f"{name}/{role.removesuffix('_kernel')}"
            rest = {k: r for k, r in module.roles.items() if k == key or "kernel" not in r}
            if module.layer is None:
                inferred = _by_name(module, module.shapes[key], role)
                facts.append(replace(self._fact(module, container, name, rest, GeometryFacts()), inferred=inferred))
                continue
            calls = self._calls(module.layer, module.shapes[key], role)
            fact = self._fact(module, container, name, rest, calls[0])
            last = role != "depthwise_kernel" or CONVOLUTIONS[module.class_name].kind == "depthwise"
            facts.append(replace(fact, calls=calls[1:] and calls, norm=self._norm(module.layer) if last else None))
        return facts

    def _fact(
        self,
        module: _Module,
        container: tuple[str, ...],
        name: str,
        roles: Mapping[str, Role],
        geometry: GeometryFacts,
    ) -> ModuleFacts:
        return ModuleFacts(module.path, module.class_name, geometry, container, name, dict(roles))

    def _norm(self, layer: LayerConfig) -> Normalisation | None:
        """Return the batch normalisation behind a layer, where the file holds its variables."""
        module = self.saved.get(layer.norm or "")
        if module is None or module.layer is None:
            return None
        config, keys = module.layer.config, list(module.shapes)
        scaled, shifted = (config.get(name, True) is not False for name in ("scale", "center"))
        if any(re.search(r"(^|/)vars/\d+$", key) for key in keys):
            # Keras 3 numbers them: gamma and beta where there are any, then mean and variance.
            numbered = {int(key.rpartition("/")[2]): key for key in keys}
            variance, scale = numbered.get(scaled + shifted + 1), numbered.get(0) if scaled else None
        else:
            named = {re.sub(r":\d+$", "", key.rpartition("/")[2]): key for key in keys}
            variance, scale = named.get("moving_variance"), named.get("gamma")
        epsilon = config.get("epsilon")
        known = isinstance(epsilon, float) and 0 <= epsilon < 1
        if variance is None or (scaled and scale is None):
            return None
        return Normalisation("/".join(module.layer.name), variance, scale, epsilon if known else None)

    def _calls(self, layer: LayerConfig, shape: tuple[int, ...], role: Role) -> tuple[GeometryFacts, ...]:
        if not fits(layer, role, shape):
            where = printable("/".join(layer.name))
            self.problems.append(f"{where}: its configuration does not fit the stored kernel of shape {shape}: ignored")
            return (GeometryFacts(),)
        return geometries_of(layer, role, shape)


def _by_name(module: _Module, shape: tuple[int, ...], role: Role) -> GeometryFacts:
    # The class is known from the layer's automatic name only.
    depthwise = shape[-2] if role == "depthwise_kernel" and len(shape) > 2 else None
    return GeometryFacts(groups=depthwise, transposed=CONVOLUTIONS[module.class_name].kind == "transposed")


# ------------------------------------------------------------------------------------------------------------ names


def _in_optimizer(path: str) -> bool:
    return path.split("/", 1)[0] in _OPTIMIZERS


def _split(path: str) -> tuple[tuple[str, ...], str]:
    first, _, rest = path.partition("/")
    return ((first,), rest) if first in _CONTAINERS and rest else ((), path)


def _path(tensor: StoredTensor) -> str:
    return "/".join((*tensor.container, tensor.key))


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(word) if word.isdigit() else -1, word) for word in re.split(r"(\d{1,18})", key)]


def _role_of_name(name: str, group: str) -> Role | None:
    # "kernel:0" of TensorFlow, "kernel" of Keras 3, "conv1_W" and "conv1_W_1:0" of Keras 1.
    bare = re.sub(r":\d+$", "", name)
    return _ROLES.get(re.sub(r"_\d+$", "", bare.removeprefix(group.rsplit("/", maxsplit=1)[-1] + "_")))


def _keras1_role(module: _Module, key: str, role: Role) -> Role:
    """Tell Theano's axis order by the bias, which has one entry an output channel."""
    shape = module.shapes[key]
    biases = [module.shapes[k] for k, r in module.roles.items() if r == "bias"]
    if role != "kernel" or len(shape) < 4 or not biases or len(biases[0]) != 1:
        return role
    return "kernel_oik" if shape[0] == biases[0][0] != shape[-1] else role


def _odd_orders(module: _Module) -> Iterator[tuple[str, str]]:
    """Yield kernels whose axes Keras 1 ordered in a way that no other generation shares, with the reason."""
    theano = module.layer is not None and module.layer.config.get("dim_ordering") == "th"
    plain = module.class_name in CONVOLUTIONS and CONVOLUTIONS[module.class_name].kind == "plain"
    if module.class_name.startswith("Deconvolution") or (theano and not plain):
        for key, role in module.roles.items():
            if "kernel" in role and len(module.shapes[key]) > 2:
                yield key, f"the axes of a Keras 1 {printable(module.class_name)} kernel are not known"


def _joined(group: Sequence[str], scope: Sequence[str], *, single: bool) -> list[str]:
    """Return the parts of a layer's name: the group it is filed under and the scope of its weights, nothing twice."""
    size = len(group)
    for at in range(len(scope) - size, -1, -1):
        if list(scope[at : at + size]) == list(group):
            return [*group, *scope[at + size :]]
    renamed = len(scope) == 1 and _stem(scope[0]) == _stem(group[-1])
    return [*group] if single and (renamed or size > len(scope)) else [*group, *scope]


def _choose(layers: Sequence[LayerConfig], parts: Iterable[str]) -> LayerConfig | None:
    """Return the layer that a weight belongs to, among those of one group: the only one, or the one it names last."""
    if len(layers) == 1:
        return layers[0]
    for part in reversed(list(parts)):
        named = [layer for layer in layers if layer.name[-1] == part]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def _match_numbered(paths: Sequence[str], layers: Sequence[LayerConfig]) -> dict[str, LayerConfig]:
    """Return the layer of each path that Keras 3 saved variables under.

    The paths follow from the classes by rule. Files whose numbers have gaps (one generation counted layers with
    weights twice) are matched by order, class by class, when the numbers of layers agree.
    """
    by_rule = {layer.saved_as: layer for layer in layers}
    stored = {path.replace("_layer_checkpoint_dependencies", "layers"): path for path in paths}
    matched = {path: by_rule[plain] for plain, path in stored.items() if plain in by_rule}
    wanted = _grouped(layers, lambda layer: _stem(layer.saved_as))
    for stem, same in _grouped(sorted(stored, key=_natural), _stem).items():
        if all(plain in by_rule for plain in same):
            continue
        if len(same) == len(wanted.get(stem, [])):
            matched.update({stored[plain]: layer for plain, layer in zip(same, wanted[stem], strict=True)})
        else:
            for plain in same:
                matched.pop(stored[plain], None)
    return matched


def _stem(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _grouped(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups

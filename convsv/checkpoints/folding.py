"""Convolutions together with the batch normalisation behind them, as both act in inference.

There a batch normalisation maps each channel by ``y = gamma (x - mean) / sqrt(variance + epsilon) + beta``. With the
convolution before it, it is one convolution, whose output channels are scaled by ``gamma / sqrt(variance + epsilon)``.
The folded kernel is computed in float64, and what is certified of it afterwards is about that kernel: the rounding of
this one product, a few parts in 1e16, is not part of the certificate.

Which norm follows which convolution is asked of the file's own graph, of ``nn.Sequential`` inside pickled modules, of
the trace of a running model, and, only on request, of the order of the keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints import Checkpoint, ModuleFacts, Normalisation, StoredTensor
from convsv.checkpoints.naming import Place, locate, natural
from convsv.geometry import Geometry
from convsv.layer import Folded, Layout, as_float64, from_canonical, to_canonical

if TYPE_CHECKING:
    from convsv.checkpoints.candidates import Find

__all__ = ["Fold", "find_folds"]

_VARIANCES: Mapping[str, str] = {"running_var": "weight", "moving_variance": "gamma"}
"""What a moving variance is called, and the learned scale beside it: PyTorch, Keras and Flax."""
_SEQUENTIAL = frozenset({"Sequential", "ConvNormActivation", "Conv2dNormActivation", "Conv3dNormActivation"})
"""Modules that run their children in order; the others are torchvision's subclasses."""
_EPSILON: Mapping[str, float] = {"keras": 1e-3}
_TORCH_EPSILON = 1e-5


@dataclass(frozen=True)
class Fold:
    """A batch normalisation to report a layer with.

    Attributes:
        folded: its name and epsilon, for reports.
        variance: its moving variance.
        scale: its learned scale, if it has one.
        by_order: whether only the order of the keys says that it follows.
    """

    folded: Folded
    variance: StoredTensor
    scale: StoredTensor | None = None
    by_order: bool = False

    def misfit(self, shape: tuple[int, ...], layout: Layout, geometry: Geometry) -> str | None:
        """Return why the norm cannot be that of a layer, if so.

        Args:
            shape: the layer's stored shape.
            layout: what its axes mean.
            geometry: its geometry.
        """
        channels = _output_channels(shape, layout, geometry)
        for tensor in filter(None, (self.variance, self.scale)):
            if tensor.problem:
                return f"{tensor.key}: {tensor.problem}"
            if tensor.shape != (channels,):
                return f"{tensor.key} has shape {tensor.shape}, and the layer {channels} outputs"
        return None

    def apply(self, stored: NDArray[np.float64], layout: Layout, geometry: Geometry) -> NDArray[np.float64]:
        """Return a kernel whose output channels are scaled as the norm does it.

        Args:
            stored: the kernel as stored.
            layout: what its axes mean.
            geometry: the layer's geometry; the channels of the kernel's second axis are a transposed layer's outputs.

        Returns:
            The folded kernel as stored, float64; NaN where the variance is negative.

        Raises:
            CheckpointError: the norm could not be read.
        """
        variance = as_float64(self.variance.read())
        gamma = np.ones_like(variance) if self.scale is None else as_float64(self.scale.read())
        with np.errstate(invalid="ignore", divide="ignore"):
            factors = gamma / np.sqrt(variance + self.folded.epsilon)
        canonical = to_canonical(as_float64(stored), layout, geometry.groups)
        outputs = [canonical.shape[0], *[1] * (canonical.ndim - 1)]
        axis = 2 if geometry.transposed else 1
        outputs[axis] = canonical.shape[axis]
        return from_canonical(canonical * factors.reshape(outputs), layout)


def find_folds(checkpoint: Checkpoint, finds: Sequence[Find], how: Literal["known", "by-order"]) -> None:
    """Tell each find the batch normalisation that follows it, where that is known.

    Args:
        checkpoint: what they were found in; no tensor is read.
        finds: kernels.
        how: ``"by-order"`` also takes the norm whose keys come right behind the layer's, where nothing else tells.
    """
    norms = _Norms(checkpoint)
    ordered = norms.by_order(finds) if how == "by-order" else {}
    for find in finds:
        known = (
            find.facts.norm if find.facts else None,
            norms.in_sequence.get((find.tensor.container, find.place.path)),
            find.traced.norm if find.traced else None,
        )
        folds = [norms.fold(norm, find.tensor.container) for norm in known if norm]
        if not any(folds) and id(find) in ordered:
            fold = norms.fold(ordered[id(find)], find.tensor.container)
            folds.append(fold and replace(fold, by_order=True))
        find.fold = next(filter(None, folds), None)


class _Norms:
    """The batch normalisations of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._default = _EPSILON.get(checkpoint.format, _TORCH_EPSILON)
        self._places: dict[int, Place] = {
            id(t): locate(t.key, slashes=checkpoint.format == "keras") for t in checkpoint.tensors
        }
        self._tensors = checkpoint.tensors
        self._by_key = {(t.container, self._places[id(t)].full): t for t in reversed(checkpoint.tensors)}
        self._by_key |= {(t.container, t.key): t for t in reversed(checkpoint.tensors)}
        self._epsilons = {(facts.container, facts.path): facts.epsilon for facts in checkpoint.modules}
        self.in_sequence = {
            (first.container, first.path): self._of_module(second) for first, second in _sequences(checkpoint.modules)
        }

    def fold(self, norm: Normalisation, container: tuple[str, ...]) -> Fold | None:
        """Return what to fold, if the file holds the norm's tensors."""
        variance = self._by_key.get((container, norm.variance))
        scale = self._by_key.get((container, norm.scale)) if norm.scale else None
        if variance is None or (scale is None and norm.scale):
            return None
        epsilon = norm.epsilon
        if epsilon is None:
            epsilon = self._epsilons.get((container, self._places[id(variance)].path))
        known = epsilon is not None
        return Fold(Folded(norm.name, self._default if epsilon is None else epsilon, known), variance, scale)

    def _of_module(self, module: ModuleFacts) -> Normalisation:
        key = f"{module.path}.weight"
        scale = key if (module.container, key) in self._by_key else None
        return Normalisation(module.path, f"{module.path}.running_var", scale, module.epsilon)

    def by_order(self, finds: Sequence[Find]) -> dict[int, Normalisation]:
        """Return, by the id of a find, the norm whose keys come right behind those of its module."""
        followers: dict[int, Normalisation] = {}
        modules: dict[tuple[str, ...], dict[tuple[str, ...], dict[str, StoredTensor]]] = {}
        for tensor in self._tensors:
            place = self._places[id(tensor)]
            modules.setdefault(tensor.container, {}).setdefault(place.owner, {})[place.leaf] = tensor
        for container, members in modules.items():
            owners = list(members)
            keys = [tensor.key for module in members.values() for tensor in module.values()]
            if keys == sorted(keys):
                owners.sort(key=lambda owner: natural(".".join(owner)))
            position = {owner: place for place, owner in enumerate(owners)}
            for find in (find for find in finds if find.tensor.container == container):
                own = find.place.owner
                at = position[self._places[id(find.tensor)].owner]
                # A weight in parts has modules of its own below its layer.
                later = (owners[n] for n in range(at + 1, len(owners)) if owners[n][: len(own)] != own)
                norm = _norm_of(next(later, ()), members)
                if norm:
                    followers[id(find)] = norm
        return followers


def _norm_of(
    owner: tuple[str, ...], members: Mapping[tuple[str, ...], Mapping[str, StoredTensor]]
) -> Normalisation | None:
    module = members.get(owner, {})
    for leaf, scale in _VARIANCES.items():
        if leaf in module:
            gamma = module.get(scale)
            return Normalisation(".".join(owner), module[leaf].key, gamma.key if gamma else None)
    return None


def _sequences(modules: Sequence[ModuleFacts]) -> Iterator[tuple[ModuleFacts, ModuleFacts]]:
    """Yield each module of an ``nn.Sequential`` and the batch normalisation that it runs right behind it."""
    sequences = {(m.container, m.path) for m in modules if m.class_name in _SEQUENTIAL}
    children: dict[tuple[tuple[str, ...], str], list[ModuleFacts]] = {}
    for module in modules:
        parent = (module.container, module.path.rpartition(".")[0])
        if module.path and parent in sequences:
            children.setdefault(parent, []).append(module)
    for members in children.values():
        pairs = itertools.pairwise(members)
        yield from ((first, second) for first, second in pairs if "BatchNorm" in second.class_name)


def _output_channels(shape: tuple[int, ...], layout: Layout, geometry: Geometry) -> int:
    if layout == "KCM":
        return shape[-2] * shape[-1]
    first, second = (shape[0], shape[1]) if layout == "OIK" else (shape[-1], shape[-2])
    return second * geometry.groups if geometry.transposed else first

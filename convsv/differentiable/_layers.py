"""The convolutions of a PyTorch module: their effective weights and geometry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

from convsv.errors import UsageError
from convsv.geometry import Geometry, GeometryFacts, resolve

__all__ = ["ModuleLayer", "canonical", "convolutions", "geometry_of"]


@dataclass(frozen=True)
class ModuleLayer:
    """A convolution of a model.

    Attributes:
        name: module path.
        module: the module.
        geometry: as its attributes tell; the size is not known.
    """

    name: str
    module: nn.Module
    geometry: Geometry

    @property
    def weight(self) -> Tensor:
        """The effective weight, through parametrisations, in PyTorch's layout; part of the autograd graph."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight


def geometry_of(module: nn.Module) -> Geometry:
    """Return the geometry that a convolution's attributes tell; its size, which they do not, counts as assumed.

    Args:
        module: one of ``nn.Conv1d`` to ``nn.ConvTranspose3d``, or of a subclass.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(module, _ConvNd):
        raise UsageError("this module is no convolution", found=type(module).__name__)
    padding: Any = module.padding  # a tuple, or "same" or "valid"
    facts = GeometryFacts(
        stride=tuple(module.stride),
        padding=padding if isinstance(padding, str) else tuple(padding),  # type: ignore[arg-type]
        padding_mode=module.padding_mode,
        dilation=tuple(module.dilation),
        groups=module.groups,
        transposed=isinstance(module, _ConvTransposeNd),
        output_padding=tuple(module.output_padding),
    )
    return _resolved(tuple(module.kernel_size), facts)


@lru_cache(maxsize=1024)
def _resolved(kernel_size: tuple[int, ...], facts: GeometryFacts) -> Geometry:
    return resolve(kernel_size, [("stored", facts)])


def convolutions(model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Iterator[ModuleLayer]:
    """Yield the convolutions of a model in the order of its modules, each once.

    Args:
        model: any module, also one that is itself a convolution.
        include: globs on module paths; everything when empty.
        exclude: globs on module paths to leave out.

    Raises:
        UsageError: a lazy module has no weight yet, or a weight is complex.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _ConvNd):
            continue
        wanted = not include or any(fnmatchcase(name, glob) for glob in include)
        if not wanted or any(fnmatchcase(name, glob) for glob in exclude):
            continue
        if isinstance(module.weight, UninitializedParameter):
            raise UsageError("a lazy module has no weight yet", tensor=name, advice="run the model once")
        if not torch.is_floating_point(module.weight):
            raise UsageError("a kernel must be of real floating-point numbers", tensor=name)
        yield ModuleLayer(name, module, geometry_of(module))


def canonical(weight: Tensor, groups: int) -> Tensor:
    """Return a kernel of PyTorch's layout, either direction, as ``(G, O, I, *K)`` float64; differentiable.

    Args:
        weight: ``(c_out, c_in / groups, *K)``, or for a transposed layer ``(c_in, c_out / groups, *K)``.
        groups: number of groups.
    """
    return weight.to(torch.float64).reshape(groups, weight.shape[0] // groups, *weight.shape[1:])

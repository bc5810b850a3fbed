"""Trained layers to measure on: those of public checkpoints where they are at hand, else of the sample network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convsv import find_layers, open_checkpoint, operator_norm
from convsv.layer import ConvLayer
from convsv.results import Interval
from reproduce.claims import Settings

__all__ = ["Network", "networks", "resnet"]

Kernel = NDArray[np.float64]

SAMPLE = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits.keras"

_PUBLIC = {
    "ResNet-20": "resnet20-cifar10.th",
    "VDSR": "vdsr-whole.pth",
    "UltraFace": "ultraface-rfb320.onnx",
    "TAESANA": "taesana-encoder-fp16.pth",
}


_MOST = 20


@dataclass(frozen=True)
class Network:
    """The convolutions of one checkpoint, and what to call it."""

    name: str
    layers: tuple[ConvLayer, ...]
    _norms: dict[str, Interval] = field(default_factory=dict)

    def norm(self, name: str, kernel: Kernel) -> Interval:
        """Return the certified norm of a layer, of any size and with stride 1; all experiments share it."""
        if name not in self._norms:
            self._norms[name] = operator_norm(kernel)
        return self._norms[name]

    def plain(self) -> Iterator[tuple[str, Kernel]]:
        """Yield the names and kernels, ``(c_out, c_in, k, k)``, of 2-d layers of one group with more than one tap."""
        for layer in self.layers:
            kernel = layer.kernel()
            if (
                kernel.shape[0] == 1
                and kernel.ndim == 5
                and max(kernel.shape[3:]) > 1
                and not layer.geometry.transposed
            ):
                yield layer.name, kernel[0]


def _read(name: str, path: Path) -> Network:
    return Network(name, tuple(find_layers(open_checkpoint(path))))


@cache
def networks(settings: Settings) -> list[Network]:
    """Return the networks at hand, the sample network last; in a quick run that one and a few layers of the ResNet.

    Of a network with very many layers alike, every so many are kept.
    """
    public = dict(list(_PUBLIC.items())[:1]) if settings.quick else _PUBLIC
    found = [_read(name, path) for name, file in public.items() if (path := settings.checkpoints / file).is_file()]
    steps = [4 if settings.quick else 1 + len(list(network.plain())) // (_MOST + 1) for network in found]
    found = [Network(network.name, network.layers[::step]) for network, step in zip(found, steps, strict=True)]
    return [*found, _read("sample network", SAMPLE)]


def resnet(settings: Settings) -> Network:
    """Return the trained ResNet, or where it is missing the sample network."""
    return networks(settings)[0]

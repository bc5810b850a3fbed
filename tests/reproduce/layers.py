"""Trained layers to measure on: those of public checkpoints where they are at hand, else of the sample network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convsv import find_layers, open_checkpoint
from convsv.layer import ConvLayer
from reproduce.claims import Settings

__all__ = ["Network", "networks", "resnet"]

SAMPLE = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits.keras"

_PUBLIC = {
    "ResNet-20": "resnet20-cifar10.th",
    "VDSR": "vdsr-whole.pth",
    "UltraFace": "ultraface-rfb320.onnx",
    "TAESANA": "taesana-encoder-fp16.pth",
}


@dataclass(frozen=True)
class Network:
    """The convolutions of one checkpoint, and what to call it."""

    name: str
    layers: tuple[ConvLayer, ...]

    def plain(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
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


def networks(settings: Settings) -> list[Network]:
    """Return the networks at hand, the sample network last; in a quick run that one and a few layers of the ResNet."""
    public = dict(list(_PUBLIC.items())[:1]) if settings.quick else _PUBLIC
    found = [_read(name, path) for name, file in public.items() if (path := settings.checkpoints / file).is_file()]
    if settings.quick:
        found = [Network(network.name, network.layers[::4]) for network in found]
    return [*found, _read("sample network", SAMPLE)]


def resnet(settings: Settings) -> Network:
    """Return the trained ResNet, or where it is missing the sample network."""
    return networks(settings)[0]

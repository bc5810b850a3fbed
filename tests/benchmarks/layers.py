"""What benchmarks measure: square layers and their weights; and what a piece of work takes."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from cases import make_layer
from convsv.geometry import Geometry
from convsv.layer import ConvLayer

__all__ = ["CHECKPOINTS", "Kernel", "Shape", "Times", "timed"]

CHECKPOINTS = Path(__file__).resolve().parents[3] / "shared" / "checkpoints"
"""Real checkpoints, where they are at hand."""

Kernel = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """A square layer with zero padding: channels (inputs of one group), taps, input size, and how often it occurs."""

    name: str
    out: int
    inp: int
    k: int
    size: int
    stride: int = 1
    pad: int | None = None
    dilation: int = 1
    groups: int = 1
    times: int = 1

    @property
    def padding(self) -> int:
        """Zeros on each side: unless told, half of what keeps the size."""
        return self.dilation * (self.k - 1) // 2 if self.pad is None else self.pad

    @property
    def geometry(self) -> Geometry:
        """Where the layer runs."""
        pair = (self.padding, self.padding)
        two = (self.stride,) * 2, (pair, pair), "zeros", (self.dilation,) * 2, self.groups
        return Geometry((self.size, self.size), *two)

    def weights(self, seed: int = 0) -> Kernel:
        """Gaussian weights of the scale of a trained layer, rounded as in a checkpoint."""
        scale = math.sqrt(2 / (self.inp * self.k**2))
        drawn = np.random.default_rng(seed).standard_normal((self.out, self.inp, self.k, self.k)) * scale
        return drawn.astype(np.float32).astype(np.float64)

    def layer(self, kernel: Kernel) -> ConvLayer:
        """The layer with these weights."""
        return make_layer(kernel, self.geometry)


@dataclass(frozen=True)
class Times:
    """Seconds on the clock and of all cores together."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(self.wall + other.wall, self.cpu + other.cpu)


def timed(work: Callable[[], Any]) -> tuple[Any, Times]:
    """Return what a function returns, and what that took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, Times(time.perf_counter() - wall, time.process_time() - cpu)

"""What is often computed instead of a convolution's norm, as it is usually written in numpy.

The README sets these numbers beside the certified ones, on layers of the sample network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import convsv
from convsv.reports._numbers import DOWN, UP, short
from convsv.results import Interval
from tables import table

Array = NDArray[np.float64]

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = "sample_checkpoints/digits.keras"
_FFT = "`svd(fft2(kernel, (N, N)))`"


@dataclass(frozen=True)
class Shortcut:
    """A number that is taken for a norm, and the norm.

    Attributes:
        done: what is done.
        layer: on which layer.
        gives: what comes out.
        norm: the certified norm of the same operator.
    """

    done: str
    layer: str
    gives: float
    norm: Interval


def weight_matrix(kernel: Array) -> float:
    """Return the norm of a kernel ``(h, w, c_in, c_out)`` as a matrix, as spectral normalisation does (Miyato 2018)."""
    return float(np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2))


def sedghi(kernel: Array, size: int) -> float:
    """Return the largest value of the two lines that Sedghi, Gupta and Long (2019) print."""
    transforms = np.fft.fft2(kernel, [size, size], axes=[0, 1])
    return float(np.linalg.svd(transforms, compute_uv=False).max())


def measured() -> list[Shortcut]:
    """Return shortcuts on layers of the sample network."""
    layers = {layer.name: layer for layer in convsv.find_layers(convsv.open_checkpoint(str(REPOSITORY / SAMPLE)))}
    stem, down = (np.asarray(layers[name].read(), np.float64) for name in ("stem", "down"))
    norm = {name: convsv.operator_norm(layers[name]) for name in ("stem", "down")}
    own = convsv.analyze([layers["draw"]])[0].norm_at_size
    iterated = convsv.bounds(layers["draw"], names=["farnia2019"])["farnia2019"]
    small = convsv.spectrum(stem.transpose(3, 2, 0, 1), convsv.GeometryFacts(size=2))
    assert own is not None
    assert small.error is not None
    around = Interval(small.max - small.error, small.max + small.error, of=small.of)
    return [
        Shortcut("the norm of the kernel as a `c_out x c_in k^2` matrix", "`stem`", weight_matrix(stem), norm["stem"]),
        Shortcut("ten power iterations, as an upper bound", "`draw`, 8x8", iterated.value, own),  # type: ignore[union-attr]
        Shortcut(f"{_FFT} at N = 8, for other sizes too", "`stem`", sedghi(stem, 8), norm["stem"]),
        Shortcut(f"{_FFT}, the stride forgotten", "`down`, N = 8", sedghi(down, 8), norm["down"]),
        Shortcut(f"{_FFT} with N < k: the kernel is cropped", "`stem`, N = 2", sedghi(stem, 2), around),
    ]


def shortcuts() -> str:
    """Return a table of them."""
    rows = [
        [x.done, x.layer, short(x.gives), f"[{short(x.norm.lower, DOWN)}, {short(x.norm.upper, UP)}]"]
        for x in measured()
    ]
    return table(["what is often done", "layer", "it gives", "certified norm"], rows)

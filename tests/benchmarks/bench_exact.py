"""The exact spectrum beside what is else in use, in one run: values, products, time.

    python tests/benchmarks/bench_exact.py [--quick]

Small layers, all values: the matrix by its definition, numpy loops over outputs and taps, and numpy's SVD of it.
Large layers, the norm: 100 power iterations with the layer's own convolution, torch float32, as in Gouk et al.
(2018) and Ryu et al. (2019): 200 products. Of both the ratio to the certified upper end is shown: power iteration is
below the norm, by how much nothing in it tells. Trained layers, the smallest values: by inverse iteration, and within a
memory budget that leaves products alone (2,000 of them), in units of the norm. Threads: one, unless OMP_NUM_THREADS
says otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from layers import CHECKPOINTS, Kernel, Shape, Times, timed
from torch.nn import functional

from convsv.execution import Execution
from convsv.results import Spectrum
from convsv.spectra import SpectrumOptions
from convsv.spectra.exact import exact
from trained import resnet20

EXACT = import_module("convsv.spectra.exact")


def trained() -> Iterator[tuple[Shape, Kernel]]:
    """Layers of a CIFAR ResNet-20, where its weights are at hand."""
    if not CHECKPOINTS.is_dir():
        return
    kernels = resnet20(CHECKPOINTS)
    for stage, size in ((1, 32), (2, 16), (3, 8)):
        kernel = kernels[f"layer{stage}.1.conv1"]
        yield Shape(f"trained layer{stage}.1.conv1", *kernel.shape[:3], size), kernel


SMALL = (
    Shape("8 channels at 8", 8, 8, 3, 8),
    Shape("16 channels at 8", 16, 16, 3, 8),
    Shape("stride 2", 32, 16, 3, 8, stride=2),
    Shape("dilation 2", 16, 16, 3, 8, pad=2, dilation=2),
    Shape("depthwise", 32, 1, 3, 8, groups=32),
    Shape("pointwise", 32, 24, 1, 6, pad=0),
    Shape("patchify", 48, 3, 4, 16, pad=0, stride=4),
)
LARGE = (
    Shape("64 channels at 56", 64, 64, 3, 56),
    Shape("64 to 128, stride 2", 128, 64, 3, 56, stride=2),
    Shape("dilation 2", 32, 32, 3, 28, pad=2, dilation=2),
    Shape("groups", 64, 4, 3, 28, groups=16),
    Shape("7x7 stem", 64, 3, 7, 112, pad=3, stride=2),
)


def definition(layer: Shape, k: Kernel) -> float:
    """All singular values of the matrix that plain loops over outputs and taps fill."""
    n, g = layer.size, layer.groups
    inputs, outputs = k.shape[1], k.shape[0] // g
    rows = (n + 2 * layer.padding - layer.dilation * (k.shape[2] - 1) - 1) // layer.stride + 1
    matrix = np.zeros((k.shape[0], rows, rows, inputs * g, n, n))
    for y, x, a, b in itertools.product(range(rows), range(rows), range(k.shape[2]), range(k.shape[3])):
        top, left = (o * layer.stride - layer.padding + t * layer.dilation for o, t in ((y, a), (x, b)))
        if 0 <= top < n and 0 <= left < n:
            for group in range(g):
                out, come = (slice(group * c, (group + 1) * c) for c in (outputs, inputs))
                matrix[out, y, x, come, top, left] = k[out, :, a, b]
    values = np.linalg.svd(matrix.reshape(k.shape[0] * rows**2, -1), compute_uv=False)
    return float(values[0])


def power(layer: Shape, weights: Kernel, rounds: int = 100) -> float:
    """Power iteration with the convolution and its transpose, torch float32."""
    kernel = torch.from_numpy(weights).float()
    facts: dict[str, Any] = {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }
    x = torch.randn(1, kernel.shape[1] * layer.groups, layer.size, layer.size)
    y = functional.conv2d(x, kernel, **facts)
    reach = layer.dilation * (kernel.shape[2] - 1) + 1 - 2 * layer.padding
    missing = layer.size - (y.shape[2] - 1) * layer.stride - reach
    value = 0.0
    for _ in range(rounds):
        y = functional.conv2d(x / x.norm(), kernel, **facts)
        value = float(y.norm())
        x = functional.conv_transpose2d(y, kernel, output_padding=missing, **facts)
    return value


def run(layer: Shape, kernel: Kernel, options: SpectrumOptions) -> tuple[Spectrum, Times]:
    """Return the spectrum of a layer, and what it took."""
    found, spent = timed(lambda: exact(layer.layer(kernel), Execution("cpu"), options))
    return found, spent


def all_values() -> None:
    """Print the table of small layers."""
    print(f"{'all values':28} {'norm, relative':>15} {'definition':>11} {'convsv':>9} {'ratio':>7}  how")
    for layer in SMALL:
        kernel = layer.weights()
        found, ours = run(layer, kernel, SpectrumOptions())
        norm, slow = timed(lambda layer=layer, kernel=kernel: definition(layer, kernel))
        print(
            f"{layer.name:28} {abs(found.max / norm - 1):15.1e} {slow.wall:10.3f}s {ours.wall:8.3f}s"
            f" {slow.wall / ours.wall:6.1f}x  {'; '.join(found.notes)}"
        )


def norms() -> None:
    """Print the table of the norms of large layers."""
    print(f"\n{'norm':28} {'power / upper':>15} {'convsv / upper':>15} {'power':>9} {'top 1':>9} {'top 6':>9}  how")
    for layer, kernel in (*trained(), *((layer, layer.weights()) for layer in LARGE)):
        torch.manual_seed(0)
        below, slow = timed(lambda layer=layer, kernel=kernel: power(layer, kernel))
        one, first = run(layer, kernel, SpectrumOptions(top=1))
        six, second = run(layer, kernel, SpectrumOptions(top=6))
        upper = one.upper or one.max + (one.error or 0.0)
        print(
            f"{layer.name:28} {below / upper:15.8f} {one.max / upper:15.8f} {slow.wall:8.2f}s {first.wall:8.2f}s"
            f" {second.wall:8.2f}s  {'; '.join(six.notes)};"
            f" largest residual {max(six.residuals or (0.0,)) / six.max:.0e}"
        )


def smallest() -> None:
    """Print the table of the smallest values of trained layers, by inverse iteration and by products alone."""
    heads = "".join(f" {way:>12} {'residual':>9} {'time':>9}" for way in ("inverse", "products"))
    print(f"\n{'smallest three':28}{heads}")
    options = SpectrumOptions(top=1, trailing=3)
    least, EXACT._DENSE_WORK = EXACT._DENSE_WORK, 0.0
    for layer, kernel in trained():
        cells = ""
        for memory in (1 << 30, 1 << 24):
            found, spent = timed(
                lambda kernel=kernel, layer=layer, memory=memory: exact(
                    layer.layer(kernel), Execution("cpu", memory=memory), options
                )
            )
            worst = max(found.residuals[1:]) / found.max
            cells += f" {found.min / found.max:12.3e} {worst:9.1e} {spent.wall:8.2f}s"
        print(f"{layer.name:28}{cells}")
    EXACT._DENSE_WORK = least


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small layers only")
    quick = parser.parse_args().quick
    all_values()
    if not quick:
        norms()
        smallest()


if __name__ == "__main__":
    main()

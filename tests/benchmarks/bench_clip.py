"""Clipping beside what else is in use, in one run: how far the kernel moves, and how long it takes.

    python tests/benchmarks/bench_clip.py [--quick] [--yardstick] [--only layer1 layer3.1.conv2]

The 19 trained 3x3 layers of a ResNet-20, radius = half and a quarter of each layer's certified norm. Every result is
finished alike: scaled until the certificate finds it within the radius, so that distances belong to one certified norm.

* convsv: the default method, from the kernel to the certified kernel as stored in float32;
* one pass, 20 alternations: the published projection (Sedghi, Gupta, Long 2019) at the layer's own size, numpy's FFT
  and SVD in complex128, once and twenty times;
* scale: divide by the norm;
* Dykstra: 1,000 rounds on a 32-grid, in their textbook form (``--yardstick``: minutes a layer of 64 channels).

Distances are ||K' - K||_F / ||K||_F, shown over convsv's. Threads: numpy gets what OMP_NUM_THREADS says (`make bench`
sets it to 1); convsv runs a thread a CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convsv.analysis import AnalysisOptions, analyze_layer
from convsv.api import layer_of
from convsv.clipping import ClipOptions, Judge, clip_layer
from convsv.geometry import GeometryFacts
from convsv.layer import ConvLayer
from trained import resnet20

Kernel = NDArray[np.float64]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "checkpoints"


def own_size(name: str) -> int:
    """The spatial size that the network gives a layer: strided layers at the size of their output."""
    return 8 if name.startswith("layer3") else 16 if name.startswith("layer2") else 32


def judge_of(layer: ConvLayer) -> Judge:
    """Certify the norm of any size of another kernel in the layer's place."""

    def judge(kernel: Kernel) -> object:
        stored = kernel.reshape(layer.shape)
        return analyze_layer(replace(layer, read=lambda: stored), AnalysisOptions()).norm

    return judge  # type: ignore[return-value]


def alternations(kernel: Kernel, radius: float, size: int, rounds: int, *, remember: bool = False) -> Kernel:
    """The published projection, so many times; with a memory of what was cut they are Dykstra's."""
    taps = kernel.shape[2:]
    spatial_first = kernel.transpose(2, 3, 0, 1)
    correction: NDArray[np.complex128] | float = 0.0
    for _ in range(rounds):
        transform = np.fft.fft2(spatial_first, (size, size), axes=(0, 1)) + correction
        left, values, right = np.linalg.svd(transform, compute_uv=True, full_matrices=False)
        inside = np.matmul(left * np.minimum(values, radius)[..., None, :], right)
        correction = transform - inside if remember else 0.0
        spatial_first = np.fft.ifft2(inside, axes=(0, 1)).real[: taps[0], : taps[1]]
    return spatial_first.transpose(2, 3, 0, 1)


def within(kernel: Kernel, radius: float, judge: Judge) -> Kernel:
    """Scale until it is certified within the radius."""
    while (upper := judge(kernel[None]).upper) > radius:
        kernel = kernel * (radius / upper * (1 - 1e-9))
    return kernel


def timed(work: Callable[[], Kernel]) -> tuple[Kernel, float]:
    """Return the result, and the seconds it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def rivals(name: str, kernel: Kernel, radius: float, *, yardstick: bool) -> dict[str, Callable[[], Kernel]]:
    """What is measured against: name -> the work, without the finish."""
    size = own_size(name)
    found = {
        "one pass": lambda: alternations(kernel, radius, size, 1),
        "20 alternations": lambda: alternations(kernel, radius, size, 20),
        "scale": lambda: kernel,
    }
    if yardstick:
        found["Dykstra"] = lambda: alternations(kernel, radius, 32, 1000, remember=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one layer of each size")
    parser.add_argument("--yardstick", action="store_true", help="also 1,000 rounds of Dykstra on a 32-grid")
    parser.add_argument("--only", nargs="+", default=[""], help="layers whose names start so")
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"{SHARED} is missing: there are no trained layers to clip")
    layers = {name: kernel for name, kernel in resnet20(SHARED).items() if name.startswith(tuple(options.only))}
    if options.quick:
        layers = {
            name: layers[name] for name in ("layer1.0.conv1", "layer2.1.conv1", "layer3.1.conv2") if name in layers
        }
    totals: dict[str, float] = {}
    logs: dict[str, list[float]] = {}
    print(f"{'layer':16} {'radius':>6} {'moved':>7} {'gap':>6} {'ms':>6}   rivals: distance over convsv's (ms)")
    for name, kernel in layers.items():
        layer = layer_of(torch.from_numpy(kernel), GeometryFacts(stride=1, groups=1, dilation=1))
        judge = judge_of(layer)
        norm = judge(kernel[None]).upper
        for share in (0.5, 0.25):
            start = time.perf_counter()
            ours = clip_layer(
                layer,
                ClipOptions(radius=norm * share),
                judge,
                as_stored=lambda values: values.astype(np.float32).astype(np.float64),
            )
            seconds = time.perf_counter() - start
            totals["convsv"] = totals.get("convsv", 0) + seconds
            line = f"{name:16} {share:6} {ours.distance:7.4f} {100 * (ours.gap or 0):5.2f}% {1e3 * seconds:6.0f}  "
            for rival, work in rivals(name, kernel, norm * share, yardstick=options.yardstick).items():
                moved, taken = timed(work)
                distance = np.linalg.norm(within(moved, norm * share, judge) - kernel) / np.linalg.norm(kernel)
                totals[rival] = totals.get(rival, 0) + taken
                logs.setdefault(rival, []).append(float(distance / ours.distance))
                line += f" {rival} {distance / ours.distance:.4f} ({1e3 * taken:.0f})"
            print(line, flush=True)
    print(f"\nseconds in all: {', '.join(f'{name} {value:.2f}' for name, value in totals.items())}")
    for rival, ratios in logs.items():
        print(f"{rival}: moves {np.exp(np.mean(np.log(ratios))):.4f} times as far (least {min(ratios):.4f})")


if __name__ == "__main__":
    main()

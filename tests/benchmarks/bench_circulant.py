"""The circulant spectra of ResNet-18 at 224x224 beside the published numpy code, in one run: time, error, memory.

    python tests/benchmarks/bench_circulant.py [--quick] [--threads own one] [--large]

The rival is the code of Sedghi, Gupta, Long (2019), section 3, with PyTorch's order of axes: the two-dimensional FFT of
the kernel on the whole grid, and numpy's SVD of all its matrices in float64. Strided layers, which it does not treat,
get it on their polyphase kernels. Weights are random. ``--threads own`` lets numpy's BLAS use what threads it likes,
``one`` holds it to one thread, which is faster where matrices are small or cores are busy: ratios are to the faster.

Values are compared with the rival's, all of them. Peak memory is that of a fresh process that computes the statistics
of all layers, less what the interpreter takes with torch imported; ``--large`` adds 64 channels at 1024x1024.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from layers import Kernel, Shape, Times, timed
from threadpoolctl import threadpool_limits

from convsv.execution import Execution
from convsv.results import Spectrum
from convsv.spectra import SpectrumOptions
from convsv.spectra.circulant import circulant

RESNET18 = [
    Shape("conv1", 64, 3, 7, 224, 2),
    Shape("layer1.*.conv", 64, 64, 3, 56, 1, times=4),
    Shape("layer2.0.conv1", 128, 64, 3, 56, 2),
    Shape("layer2.0.downsample", 128, 64, 1, 56, 2),
    Shape("layer2.*.conv", 128, 128, 3, 28, 1, times=3),
    Shape("layer3.0.conv1", 256, 128, 3, 28, 2),
    Shape("layer3.0.downsample", 256, 128, 1, 28, 2),
    Shape("layer3.*.conv", 256, 256, 3, 14, 1, times=3),
    Shape("layer4.0.conv1", 512, 256, 3, 14, 2),
    Shape("layer4.0.downsample", 512, 256, 1, 14, 2),
    Shape("layer4.*.conv", 512, 512, 3, 7, 1, times=3),
]
"""All 20 convolutions of ResNet-18 at 224x224."""
LARGE = Shape("64 channels", 64, 64, 3, 1024, 1)


def layers(*, quick: bool) -> list[tuple[Shape, int]]:
    """Every layer with a seed of its own; of equal shapes the first only when quick."""
    found = [(shape, which) for shape in RESNET18 for which in range(1 if quick else shape.times)]
    return [(shape, seed) for seed, (shape, _) in enumerate(found)]


# ---------------------------------------------------------------------------------------------------------- the rival


def polyphase(kernel: Kernel, stride: int) -> Kernel:
    """Space to depth: K'[o, (i, t), q] = K[o, i, stride q + t], zeros where there is no tap."""
    out, inp, k, _ = kernel.shape
    taps = -(-k // stride)
    padded = np.zeros((out, inp, taps * stride, taps * stride))
    padded[:, :, :k, :k] = kernel
    split = padded.reshape(out, inp, taps, stride, taps, stride)
    return split.transpose(0, 1, 3, 5, 2, 4).reshape(out, inp * stride**2, taps, taps)


def published(kernel: Kernel, n: int) -> Kernel:
    transforms = np.fft.fft2(kernel, (n, n), axes=(2, 3)).transpose(2, 3, 0, 1)
    return np.linalg.svd(transforms, compute_uv=False)


# ---------------------------------------------------------------------------------------------------------- measuring


def ours(shape: Shape, seed: int, dtype: str, *, values: bool = False) -> Spectrum:
    return circulant(
        shape.layer(shape.weights(seed)), Execution(device="cpu", dtype=dtype), SpectrumOptions(values=values)
    )


def rival(shape: Shape, seed: int, threads: str) -> tuple[Kernel, Times]:
    kernel = shape.weights(seed)
    with threadpool_limits(1 if threads == "one" else None):
        return timed(lambda: published(polyphase(kernel, shape.stride), shape.size // shape.stride))


def row(shape: Shape, seed: int, threads: list[str]) -> dict[str, Times]:
    """Measure one layer by each way, and print it."""
    times: dict[str, Times] = {}
    for way in threads:
        found, times[f"numpy, {way}"] = rival(shape, seed, way)
    expected = np.sort(found.ravel())[::-1]
    cells = ""
    for dtype in ("float64", "float32"):
        spectrum, times[dtype] = timed(lambda chosen=dtype: ours(shape, seed, chosen))
        values = ours(shape, seed, dtype, values=True).values
        assert values is not None
        assert spectrum.error is not None
        actual = np.abs(values - expected).max() / expected[0]
        cells += f"{times[dtype].wall:9.3f}{times[dtype].cpu:9.3f}{actual:10.1e}{spectrum.error / spectrum.max:9.1e}"
    rivals = "".join(f"{times[f'numpy, {way}'].wall:9.3f}{times[f'numpy, {way}'].cpu:9.3f}" for way in threads)
    print(f"{shape.name:20}{rivals}{cells}", flush=True)
    return times


def compare(threads: list[str], *, quick: bool) -> None:
    head = "".join(f"{'numpy ' + way:>9}{'cpu':>9}" for way in threads)
    head += "".join(f"{dtype:>9}{'cpu':>9}{'error':>10}{'stated':>9}" for dtype in ("float64", "float32"))
    print(f"{'layer':20}{head}")
    totals: dict[str, Times] = {}
    for shape, seed in layers(quick=quick):
        for name, spent in row(shape, seed, threads).items():
            totals[name] = totals.get(name, Times()) + spent
    print("\ntotals, in seconds (clock, all cores)")
    for name, spent in totals.items():
        print(f"  {name:14}{spent.wall:9.2f}{spent.cpu:9.2f}")
    fastest = min((f"numpy, {way}" for way in threads), key=lambda name: totals[name].wall)
    for dtype in ("float64", "float32"):
        clock = totals[fastest].wall / totals[dtype].wall
        cores = totals[fastest].cpu / totals[dtype].cpu
        print(f"{fastest} over {dtype}: {clock:.2f} on the clock, {cores:.2f} of all cores together")


# ------------------------------------------------------------------------------------------------------------- memory


def peak() -> float:
    """Peak resident memory of this process so far, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike ru_maxrss, it does not begin with that of the process that started this one.
        return float(re.search(r"VmHWM:\s*(\d+) kB", status.read_text()).group(1)) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e6 if sys.platform == "darwin" else 1024)


def memory(which: str) -> None:
    """Print what a process like this one needs for its statistics, and what it needed before."""
    before = peak()
    chosen = [(LARGE, 0)] if which == "large" else layers(quick=which == "quick")
    _, spent = timed(lambda: [ours(shape, seed, "float64") for shape, seed in chosen])
    print(json.dumps({"before": before, "after": peak(), "wall": spent.wall, "cpu": spent.cpu}))


def report_memory(which: str) -> None:
    command = [sys.executable, __file__, "--memory-of", which]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    more = found["after"] - found["before"]
    print(
        f"{which}: {found['before']:.0f} MB with torch imported, {more:.0f} MB more at the peak; "
        f"{found['wall']:.1f} s on the clock, {found['cpu']:.1f} s of all cores"
    )


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one layer of each shape")
    parser.add_argument("--threads", nargs="+", choices=("own", "one"), default=["own", "one"], help="numpy's BLAS")
    parser.add_argument("--large", action="store_true", help="memory of 64 channels at 1024x1024 too, a minute or more")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory(options.memory_of)
        return
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{cpus} CPUs; torch {torch.__version__}; numpy {np.__version__}")
    ours(RESNET18[1], 0, "float64")
    compare(options.threads, quick=options.quick)
    print("\nmemory, float64, statistics only")
    for which in ["quick" if options.quick else "all", *(["large"] if options.large else [])]:
        report_memory(which)


if __name__ == "__main__":
    main()

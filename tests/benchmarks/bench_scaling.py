"""Weak and strong scaling over processes: many small checkpoints like a ResNet-20 for CIFAR, with 1 job and with 2.

Wall times need a quiet machine; the CPU time beside them tells how busy it was. With ``--repeat`` the runs take turns,
and the best of each counts.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from layers import Times
from safetensors.numpy import save_file

WIDTHS = (16, 32, 64)


def checkpoint(path: Path, seed: int) -> None:
    """Write 19 kernels of trained-like weights: a few strong directions and noise."""
    rng = np.random.default_rng(seed)
    shapes = [(16, 3)] + [(w, w // 2 if w > 16 and i == 0 else w) for w in WIDTHS for i in range(6)]
    tensors = {}
    for i, (out, inp) in enumerate(shapes):
        noise = rng.standard_normal((out, inp * 9)) * 0.2 / np.sqrt(inp)
        strong = rng.standard_normal((out, 2)) @ rng.standard_normal((2, inp * 9)) * 0.1
        tensors[f"layers.{i}.conv.weight"] = (noise + strong).reshape(out, inp, 3, 3).astype(np.float32)
    save_file(tensors, path)


def analysed(folder: Path, jobs: int) -> Times:
    command = [sys.executable, "-m", "convsv", "analyze", str(folder), "--method", "circulant", "--size", "32"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = [*command, "--jobs", str(jobs), "--no-cache", "--quiet"]
    subprocess.run(done, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Times(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=int, default=40)
    parser.add_argument("--repeat", type=int, default=1)
    stated = parser.parse_args()
    count = stated.checkpoints
    with tempfile.TemporaryDirectory() as made:
        whole, half = Path(made) / "whole", Path(made) / "half"
        whole.mkdir()
        half.mkdir()
        for i in range(count):
            checkpoint(whole / f"{i}.safetensors", i)
            if i < count // 2:
                (half / f"{i}.safetensors").symlink_to(whole / f"{i}.safetensors")
        runs = [(analysed(whole, 1), analysed(whole, 2), analysed(half, 1)) for _ in range(stated.repeat)]
        one, two, less = (min(taken, key=lambda times: times.wall) for taken in zip(*runs, strict=True))
        print(f"{count} checkpoints, 1 job: wall {one.wall:.1f} s, CPU {one.cpu:.1f} s")
        print(f"{count} checkpoints, 2 jobs: wall {two.wall:.1f} s, CPU {two.cpu:.1f} s")
        print(f"strong scaling: {one.wall / two.wall:.2f} times as fast")
        print(f"weak scaling: {less.wall / two.wall:.0%} (half of them on 1 job: {less.wall:.1f} s)")


if __name__ == "__main__":
    main()

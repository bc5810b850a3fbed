"""The 98 convolutions of Stable Diffusion 1.5's U-Net, at their own sizes (a latent of 64x64): time, memory, and share
of the machine's measured peak.

The weights are random, written as fp16 into a safetensors file of real size. Gaussian ones are the hard case: their
spectra are flat, and a certificate has to cover the whole torus. ``--weights decaying`` adds a few strong directions
to weaker noise, as training does. Without arguments the channels are an eighth of the real ones; the real thing:

    python tests/benchmarks/bench_unet.py --divide 1 --memory 4GiB --budget 0

That takes an hour or so; with ``--keep FOLDER`` a second call goes on where a first one was stopped, and tells the time
of what was left. The share in processor time is the one to look at where others use the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from layers import Shape
from numpy.typing import NDArray

from convsv.checkpoints import open_checkpoint
from convsv.checkpoints.discovery import find_layers
from convsv.checkpoints.sidecar import read_sidecar
from convsv.checkpoints.sources import GeometryOptions
from convsv.costs import Dimensions, Wanted, costs_of

WIDTHS = (320, 640, 1280, 1280)


def residual(name: str, inp: int, out: int, size: int) -> Iterator[Shape]:
    yield Shape(f"{name}.conv1", out, inp, 3, size)
    yield Shape(f"{name}.conv2", out, out, 3, size)
    if inp != out:
        yield Shape(f"{name}.conv_shortcut", out, inp, 1, size)


def attention(name: str, width: int, size: int) -> Iterator[Shape]:
    yield Shape(f"{name}.proj_in", width, width, 1, size)
    yield Shape(f"{name}.proj_out", width, width, 1, size)


def unet() -> Iterator[Shape]:
    """The convolutions in the order in which they run."""
    yield Shape("conv_in", 320, 4, 3, 64)
    size, before, skips = 64, 320, [320]
    for i, width in enumerate(WIDTHS):
        for j in range(2):
            yield from residual(f"down_blocks.{i}.resnets.{j}", before, width, size)
            if i < 3:
                yield from attention(f"down_blocks.{i}.attentions.{j}", width, size)
            before = width
            skips.append(width)
        if i < 3:
            yield Shape(f"down_blocks.{i}.downsamplers.0.conv", width, width, 3, size, 2)
            size //= 2
            skips.append(width)
    yield from residual("mid_block.resnets.0", 1280, 1280, size)
    yield from attention("mid_block.attentions.0", 1280, size)
    yield from residual("mid_block.resnets.1", 1280, 1280, size)
    for i, width in enumerate(reversed(WIDTHS)):
        for j in range(3):
            yield from residual(f"up_blocks.{i}.resnets.{j}", before + skips.pop(), width, size)
            if i > 0:
                yield from attention(f"up_blocks.{i}.attentions.{j}", width, size)
            before = width
        if i < 3:
            size *= 2
            yield Shape(f"up_blocks.{i}.upsamplers.0.conv", width, width, 3, size)
    yield Shape("conv_out", 4, 320, 3, 64)


def weights(conv: Shape, kind: str, rng: np.random.Generator) -> NDArray[np.float16]:
    fan = conv.inp * conv.k**2
    noise = rng.standard_normal((conv.out, fan), dtype=np.float32) / np.sqrt(np.float32(fan))
    if kind == "decaying":
        rank = max(1, min(conv.out, fan) // 8)
        strength = np.float32(4) / np.sqrt(np.arange(1, rank + 1, dtype=np.float32))
        left = rng.standard_normal((conv.out, rank), dtype=np.float32) / np.sqrt(np.float32(conv.out))
        right = rng.standard_normal((rank, fan), dtype=np.float32) / np.sqrt(np.float32(fan))
        noise = 0.25 * noise + (left * strength) @ right
    return noise.astype(np.float16).reshape(conv.out, conv.inp, conv.k, conv.k)


def write(path: Path, convs: list[Shape], kind: str) -> None:
    """Write a safetensors file tensor by tensor: eight bytes of length, a JSON header, the numbers."""
    header: dict[str, Any] = {}
    end = 0
    for conv in convs:
        start, end = end, end + 2 * conv.out * conv.inp * conv.k**2
        shape = [conv.out, conv.inp, conv.k, conv.k]
        header[f"{conv.name}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for conv in convs:
            file.write(weights(conv, kind, rng).tobytes())


def geometry(path: Path, convs: list[Shape]) -> None:
    tables = [
        f'[layers."{c.name}"]\nsize = [{c.size}, {c.size}]\nstride = {c.stride}\npadding = {c.k // 2}\n'
        'padding_mode = "zeros"\ndilation = 1\ngroups = 1\ntransposed = false\n'
        for c in convs
    ]
    path.write_text("\n".join(tables), encoding="utf-8")


def peak(cores: int) -> float:
    """Measure the float64 matrix product on all cores, in operations a second: the best of three."""
    program = (
        f"import torch, time; torch.set_num_threads({cores}); a = torch.randn(2048, 2048, dtype=torch.float64); a @ a\n"
        "best = 1e9\n"
        "for _ in range(3):\n    t = time.perf_counter(); a @ a; best = min(best, time.perf_counter() - t)\n"
        "print(2 * 2048**3 / best)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


@contextmanager
def watched(process: int) -> Iterator[list[int]]:
    """Yield a list that afterwards holds the memory of a process and its children, every five seconds, in bytes.

    Proportional set sizes: a page that several processes share is counted once.
    """
    seen: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(5.0):
            try:
                children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
                seen.append(sum(map(proportional, [str(process), *children])))
            except OSError:  # it has ended
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def proportional(process: str) -> int:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def operations(report: Any, model: Path, facts: Path) -> float:
    """Count what was done: the circulant's operations from shapes, the certificate's from its evaluations."""
    layers = find_layers(open_checkpoint(model), geometry=GeometryOptions(sidecar=read_sidecar(facts)))
    total = 0.0
    for layer, row in zip(layers, report["checkpoints"][0]["layers"], strict=True):
        d = Dimensions.of(layer)
        pairs = d.taps * (d.taps + 1) / 2
        evaluations = row["norm"]["evaluations"] if row["norm"] else 0
        total += 2 * d.few**2 * d.many * pairs + evaluations * (2 * d.lags * d.few**2 + 4 / 3 * d.few**3)
        total += costs_of(layer, Wanted(("circulant",), norm=False)).whole.flops
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--divide", type=int, default=8, help="channels are the real ones over this")
    parser.add_argument("--weights", choices=("gaussian", "decaying"), default="gaussian")
    parser.add_argument("--tol", default="1e-2")
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--budget", default="0", help="seconds a layer; 0 for no limit")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--include", default="*", help="only these layers")
    parser.add_argument("--keep", type=Path, help="folder for the model, its report and results; kept")
    given = parser.parse_args()
    convs = [
        Shape(c.name, max(c.out // given.divide, 4), max(c.inp // given.divide, 4), c.k, c.size, c.stride)
        for c in unet()
    ]
    assert len(convs) == 98
    with tempfile.TemporaryDirectory() as made:
        folder = given.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        model, facts, out = (folder / name for name in ("unet.safetensors", "facts.toml", "report.json"))
        if not model.exists():
            write(model, convs, given.weights)
        geometry(facts, convs)
        print(f"98 convolutions, {given.weights} weights, {model.stat().st_size / 1e9:.2f} GB of fp16", flush=True)
        command = [sys.executable, "-m", "convsv", "analyze", str(model), "--geometry", str(facts), "-o", str(out)]
        command += ["--tol", given.tol, "--method", "circulant", "--memory", given.memory, "--budget", given.budget]
        command += ["--jobs", str(given.jobs), "--include", given.include, "--quiet"]
        results = folder / "results"
        goes_on = results.exists()
        environment = {**os.environ, "CONVSV_CACHE_DIR": str(results)}
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
            with watched(process.pid) as memory:
                process.wait()
            if process.returncode:
                raise SystemExit(process.returncode)
        wall = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads(out.read_text(encoding="utf-8"))
        rows = [row for row in report["checkpoints"][0]["layers"] if row["norm"]]
        widths = [row["norm"]["upper"] / row["norm"]["lower"] - 1 for row in rows]
        reached = sum(width <= float(given.tol) * 1.0001 for width in widths)
        busy = used.ru_utime + used.ru_stime
        print(f"wall {wall:.1f} s, CPU {busy:.1f} s on {given.jobs} cores")
        largest, together = used.ru_maxrss / 2**20, max(memory, default=0) / 2**30
        print(f"peak of the largest process {largest:.2f} GiB, of all together {together:.2f} GiB")
        print(f"{reached} of {len(rows)} intervals reached {given.tol}; the widest is {max(widths):.4g}")
        if given.include == "*" and not goes_on:
            done, most, one = operations(report, model, facts), peak(given.jobs), peak(1)
            print(f"{done:.3g} operations: {100 * done / wall / most:.0f} % of {most / 1e9:.1f} Gflop/s (measured),")
            print(f"and in processor time {100 * done / busy / one:.0f} % of one core's {one / 1e9:.1f}")


if __name__ == "__main__":
    main()

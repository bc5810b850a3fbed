"""What norms cost in a training loop: steps with and without, of one ResNet on digits, side by side in one run.

    python tests/benchmarks/bench_training.py [--steps 20] [--batch 128] [--width 16]

A residual network of nine convolutions (widths w, 2w, 4w on 8x8, 4x4, 2x2) with batch normalisation, SGD with momentum,
one thread. Steps of all kinds take turns, so that a busy machine slows all alike; CPU time, medians. Ratios are to the
plain step. A clip is timed by itself, and shared among the steps up to the next: with every layer outside of the norm,
which takes most, and with every layer far within.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convsv.differentiable import SpectralClip, bounded, spectral_penalty
from networks import BasicBlock

PENALTIES = ("miyato2018", "l1_linf", "singla2021_t", "tap_sum", "singla2021", "norm")
EVERY = 100


class Network(nn.Sequential):
    """The network of the run; batch normalisation follows every convolution but the first."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            BasicBlock(width, width, 1),
            BasicBlock(width, 2 * width, 2),
            BasicBlock(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, 10),
        )


def batches(size: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return what draws a batch of digits."""
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    targets, generator = torch.tensor(labels), torch.Generator().manual_seed(0)

    def draw() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(inputs), (size,), generator=generator)
        return inputs[chosen], targets[chosen]

    return draw


def stepper(model: nn.Module, draw: Callable[[], tuple[Tensor, Tensor]], penalty: str | None) -> Callable[[], None]:
    """Return one training step of a model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step() -> None:
        inputs, targets = draw()
        loss = cross_entropy(model(inputs), targets)
        if penalty:
            loss = loss + 1e-3 * spectral_penalty(model, penalty)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def outside(model: nn.Module) -> None:
    """Take weights beyond the norm that they were clipped to."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw = batches(arguments.batch)
    kinds = {"plain": stepper(Network(arguments.width), draw, None)}
    kinds |= {f"penalty {name}": stepper(Network(arguments.width), draw, name) for name in PENALTIES}
    inside = Network(arguments.width)
    for module in inside.modules():
        if isinstance(module, nn.Conv2d):
            bounded(module, 1.0)
    kinds["bounded (singla2021)"] = stepper(inside, draw, None)
    clipped = Network(arguments.width)
    clips = {method: SpectralClip(clipped, 1.0, EVERY, method=method) for method in ("scale", "nearest")}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    far = SpectralClip(clipped, 10.0, EVERY)
    times |= {f"clip {name}": [] for name in (*clips, "far within")}
    for _ in range(arguments.steps):
        for name, step in kinds.items():
            times[name].append(seconds(step))
        outside(clipped)
        times["clip scale"].append(seconds(clips["scale"].clip))
        times["clip far within"].append(seconds(far.clip))
    outside(clipped)
    times["clip nearest"].append(seconds(clips["nearest"].clip))
    plain = statistics.median(times["plain"])
    print(f"plain step: {1e3 * plain:.1f} ms of CPU time, batch {arguments.batch}, width {arguments.width}")
    for name, spent in times.items():
        middle = statistics.median(spent)
        ratio = 1 + middle / (EVERY * plain) if name.startswith("clip") else middle / plain
        every = f", every {EVERY} steps" if name.startswith("clip") else ""
        print(f"{name + every:40} {1e3 * middle:8.1f} ms   {ratio:6.3f}x")


if __name__ == "__main__":
    main()

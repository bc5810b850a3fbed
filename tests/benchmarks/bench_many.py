"""Many small checkpoints: what a call costs beside the mathematics, a checkpoint, and what a second call costs.

Run ``python tests/benchmarks/bench_many.py CHECKPOINT [COUNT]``: that many copies of a PyTorch checkpoint with other
weights are written to a temporary folder (1,000 of a ResNet-20 take 1.1 GB) and analysed in this process, on one
thread.

Times are processor time of this process, so that a busy machine does not count; the time within ``analyze_layer`` is
the mathematics. A first call on one checkpoint loads everything, and is left out: the figures are those after start.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from convsv import analysis
from convsv.cli import app


class Clock:
    """Processor time, and the part of it that is mathematics."""

    def __init__(self) -> None:
        self.mathematics = 0.0
        before = analysis.analyze_layer

        def timed(layer: Any, options: Any) -> Any:
            begun = time.process_time()
            try:
                return before(layer, options)
            finally:
                self.mathematics += time.process_time() - begun

        analysis.analyze_layer = timed

    def call(self, *arguments: str) -> tuple[float, float]:
        """Return the seconds of a call, and those of its mathematics."""
        self.mathematics, begun = 0.0, time.process_time()
        with contextlib.suppress(SystemExit), open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):  # noqa: PTH123
            app(["analyze", *arguments, "--jobs", "1", "--device", "cpu", "--quiet"])
        return time.process_time() - begun, self.mathematics


def copies(source: Path, folder: Path, count: int) -> None:
    """Write checkpoints like a given one, with other weights."""
    whole = torch.load(source, map_location="cpu", weights_only=True)
    state = whole.get("state_dict", whole)
    noise = torch.Generator().manual_seed(0)
    for number in range(count):
        new = {
            key: value + 1e-3 * torch.randn(value.shape, generator=noise) if value.ndim >= 3 else value
            for key, value in state.items()
        }
        torch.save({"state_dict": new}, folder / f"epoch_{number:05}.pt")


def main(source: Path, count: int) -> None:
    torch.set_num_threads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        room, models = Path(name), Path(name) / "models"
        os.environ["CONVSV_CACHE_DIR"] = str(room / "cache")
        models.mkdir()
        copies(source, models, count)
        clock.call(str(models / "epoch_00000.pt"), "--no-cache", "--format", "json")
        plans = {
            "no cache, jsonl": ["--format", "jsonl", "--no-cache"],
            "first call, jsonl": ["--format", "jsonl"],
            "second call, jsonl": ["--format", "jsonl"],
            "second call, json": ["--format", "json"],
        }
        rows = [(label, *clock.call(str(models), *options)) for label, options in plans.items()]
    print(f"{count} copies of {source.name}; processor time a checkpoint, in milliseconds")
    for label, taken, mathematics in rows:
        each = [1e3 * seconds / count for seconds in (taken, mathematics, taken - mathematics)]
        print(f"{label:20} total {each[0]:8.2f}   mathematics {each[1]:8.2f}   beside it {each[2]:7.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000)

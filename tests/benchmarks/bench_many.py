"""Many small checkpoints: what a call costs beside the mathematics, a checkpoint, and what a second call costs.

Run ``python tests/benchmarks/bench_many.py CHECKPOINT [COUNT]``: that many copies of a PyTorch checkpoint with other
weights are written to a temporary folder (1,000 of a ResNet-20 take 1.1 GB) and analysed in this process, on one
thread.

Times are processor time of this process, so that a busy machine counts little (it still takes away the caches of the
processor). The mathematics is the time within ``analyze_layer``, and that of reading each kernel once: where it was
read already for the name of its results and stayed at hand, that reading counts. Beside it is everything else: opening,
hashing and searching the file, names of results, what is kept, the rows. The figures are those after start:
everything is loaded by a call before, and it is the difference between a call on all of them and one on a single other.
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
from convsv.checkpoints import pytorch
from convsv.cli import app


class Clock:
    """Processor time, and the part of it that is mathematics."""

    def __init__(self) -> None:
        self.mathematics = self._read = 0.0
        analyze, read = analysis.analyze_layer, pytorch._read
        within = reads_itself = False

        def analyzed(layer: Any, options: Any) -> Any:
            nonlocal within, reads_itself
            begun, within, reads_itself = time.process_time(), True, False
            try:
                return analyze(layer, options)
            finally:
                within = False
                self.mathematics += time.process_time() - begun + (0.0 if reads_itself else self._read)
                self._read = 0.0

        def timed(*which: Any) -> Any:
            nonlocal reads_itself
            reads_itself = reads_itself or within
            begun = time.process_time()
            try:
                return read(*which)
            finally:
                self._read = time.process_time() - begun

        analysis.analyze_layer, pytorch._read = analyzed, timed

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
        room, models, one = Path(name), Path(name) / "models", Path(name) / "one"
        os.environ["CONVSV_CACHE_DIR"] = str(room / "cache")
        models.mkdir()
        copies(source, models, count + 1)
        one.mkdir()
        (models / f"epoch_{count:05}.pt").rename(one / "epoch.pt")
        clock.call(str(one), "--no-cache", "--format", "json")
        plans = {
            "no cache, jsonl": ["--format", "jsonl", "--no-cache"],
            "first call, jsonl": ["--format", "jsonl"],
            "second call, jsonl": ["--format", "jsonl"],
            "second call, json": ["--format", "json"],
        }
        print(f"{count} copies of {source.name}; processor time a checkpoint, in milliseconds")
        for label, options in plans.items():
            (single, once), (taken, mathematics) = (clock.call(str(folder), *options) for folder in (one, models))
            beside = ((taken - mathematics) - (single - once)) / (count - 1)
            print(f"{label:20} mathematics {1e3 * mathematics / count:8.2f}   beside it {1e3 * beside:7.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000)

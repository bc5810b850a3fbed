"""``convsv analyze``, killed again and again at random moments, then left alone: what does it say in the end?

Run by ``test_cache.py``: ``python killed.py FOLDER SEED KILLS``, where the folder holds ``model.safetensors``.
Everything is imported once; each call is a fork, so that moments are moments of the work. What it says is one JSON
object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from convsv.cache import Folder
from convsv.cli import app


def call(folder: Path, *options: str) -> int:
    """Start a call in a process of its own."""
    child = os.fork()
    if child:
        return child
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.chdir(folder)
    try:
        app(["analyze", "model.safetensors", "--method", "circulant", "--jobs", "1", "--device", "cpu", *options])
    except SystemExit as end:
        os._exit(int(end.code or 0))
    os._exit(99)


def end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, seed: int, kills: int) -> None:
    import torch  # noqa: F401 - before the forks

    import convsv.analysis  # noqa: F401

    rng = random.Random(seed)
    begun = time.monotonic()
    ends = [end_of(call(folder, "--no-cache", "-o", "wanted.json"))]
    took = time.monotonic() - begun
    cache, known, kinds = Folder(Path(os.environ["CONVSV_CACHE_DIR"]), 1 << 30), [], []
    for _ in range(kills):
        child = call(folder, "-o", "out.json")
        enough = cache.usage().entries + rng.randint(1, 3)
        while cache.usage().entries < enough:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05) * took)
        kind = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT])
        os.kill(child, kind)
        kinds.append(end_of(child))
        known.append(cache.usage().entries)
    ends.append(end_of(call(folder, "-o", "out.json")))
    ends.append(end_of(call(folder, "-o", "again.json")))
    print(json.dumps({"ends": ends, "killed": kinds, "known": known}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

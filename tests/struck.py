"""``convsv analyze`` on several processes while one of them is killed at a random moment, and then once more in peace.

Run by ``test_struck.py``: ``python struck.py WHAT FOLDER SEED``, where the folder holds checkpoints in ``models``.
What is killed is a ``process`` of the pool, the ``scheduler`` of a dask cluster, one ``worker`` of it, or the
``client`` itself. What it says is one JSON object: exit codes, and whether the rows are those of an undisturbed call.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from convsv.cache import Folder

CLIENT = """
import sys
from convsv.scheduling.choice import Spreader
Spreader._pays = lambda self, *costs: True  # processes from the first checkpoint on
from convsv.cli import app
app(sys.argv[1:])
"""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
PATIENCE = 120.0


def started(*arguments: str) -> subprocess.Popen[bytes]:
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, *arguments], env={**os.environ, **ONE_THREAD}, **quiet)


def analyze(folder: Path, out: str, *options: str) -> subprocess.Popen[bytes]:
    asked = ["analyze", str(folder / "models"), "--method", "circulant", "--size", "24", "--device", "cpu"]
    return started("-c", CLIENT, *asked, "-o", str(folder / out), *options)


def rows(path: Path) -> Any:
    """Return what a report says of each layer, beside how long it took and where."""
    if not path.exists():
        return None
    report = json.loads(path.read_text())
    return {
        (one["path"], layer["name"]): (layer["norm"], layer["norm_at_size"], layer["results"], layer["unavailable"])
        for one in report["checkpoints"]
        for layer in one["layers"]
    }


def children(parent: int) -> list[int]:
    """Return the worker processes of a pool, among all that a process started."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(name) for name in listed if b"popen_loky" in Path(f"/proc/{name}/cmdline").read_bytes()]


class Cluster:
    """A dask scheduler with two workers, each a process that can be killed alone."""

    def __init__(self, stack: ExitStack) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        plain = ("--no-dashboard",)
        self.scheduler = self.run(stack, "scheduler", "--host", self.address, "--dashboard-address", ":0", *plain)
        self.workers = [self.run(stack, "worker", self.address, "--nthreads", "1", "--no-nanny", *plain) for _ in "ab"]

    @staticmethod
    def run(stack: ExitStack, what: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = started("-m", "dask", what, *arguments)
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process


def victim_of(what: str, client: subprocess.Popen[bytes], cluster: Cluster | None, rng: random.Random) -> int:
    if what == "client":
        return client.pid
    if cluster is None:
        return rng.choice(children(client.pid))
    return cluster.scheduler.pid if what == "scheduler" else rng.choice(cluster.workers).pid


def strike(what: str, client: subprocess.Popen[bytes], cluster: Cluster | None, rng: random.Random) -> None:
    """Kill it once some layers are known, a random moment later."""
    known, begun = Folder(Path(os.environ["CONVSV_CACHE_DIR"]), 1 << 30), time.monotonic()
    enough = rng.randint(1, 8)
    while known.usage().entries < enough and client.poll() is None:
        assert time.monotonic() - begun < PATIENCE, "nothing is computed"
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.2))
    os.kill(victim_of(what, client, cluster, rng), signal.SIGKILL)


def main(what: str, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    ends = [analyze(folder, "wanted.json", "--jobs", "1", "--no-cache").wait()]
    wanted = rows(folder / "wanted.json")
    with ExitStack() as stack:
        cluster = Cluster(stack) if what in ("scheduler", "worker") else None
        spread = ("--dask", cluster.address) if cluster else ("--jobs", "2")
        client = analyze(folder, "struck.json", *spread)
        stack.callback(client.kill)
        strike(what, client, cluster, rng)
        ends.append(client.wait(PATIENCE))
    struck = rows(folder / "struck.json")
    ends.append(analyze(folder, "resumed.json", "--jobs", "2").wait(PATIENCE))
    right = None if struck is None else all(wanted[name] == row for name, row in struck.items())
    partial = None if struck is None else json.loads((folder / "struck.json").read_text())["partial"]
    found = {"ends": ends, "right": right, "partial": partial, "rows": len(struck or ()), "all": len(wanted)}
    print(json.dumps({**found, "resumed": rows(folder / "resumed.json") == wanted}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

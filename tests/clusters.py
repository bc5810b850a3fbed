"""A program that computes on a small dask cluster while something of it is killed: run by ``test_cluster.py``.

``python clusters.py WHAT FILE...``: what is killed once the first report is there: ``nothing``, ``worker`` or
``scheduler``. It prints one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from convsv.analysis import AnalysisOptions, analyze
from convsv.checkpoints import open_checkpoint
from convsv.checkpoints.discovery import find_layers
from convsv.checkpoints.sources import GeometryOptions
from convsv.errors import AbandonedError
from convsv.execution import Execution
from convsv.scheduling import Dispatcher
from convsv.scheduling.cluster import ClusterPool

OPTIONS = AnalysisOptions(methods=("circulant",), execution=Execution("cpu", jobs=1))


def main(what: str, paths: list[str]) -> None:
    options = GeometryOptions(size=(8,))
    layers = [find_layers(open_checkpoint(path), geometry=options) for path in paths]
    expected = [list(analyze(some, OPTIONS)) for some in layers]
    pool = ClusterPool("local:2", "cpu")
    dispatcher = Dispatcher(pool, OPTIONS, lambda layer: float(layer.shape[0]))
    begun = [dispatcher(some) for some in layers]
    found = [[next(begun[0])], *([] for _ in begun[1:])]
    if what == "worker":
        os.kill(min(pool._client.run(os.getpid).values()), signal.SIGKILL)
    if what == "scheduler":
        pool._cluster.close()
    said = ""
    try:
        for reports, one in zip(found, begun, strict=True):
            reports.extend(one)
    except AbandonedError as error:
        said = str(error)
    pool.close()
    right = all(some == all_[: len(some)] for some, all_ in zip(found, expected, strict=True))
    print(json.dumps({"complete": found == expected, "right": right, "said": said}))


if __name__ == "__main__":
    assert all(Path(path).is_file() for path in sys.argv[2:])
    main(sys.argv[1], sys.argv[2:])

"""A program that computes on a small dask cluster while something of it is killed: run by ``test_cluster.py``.

``python clusters.py WHAT FILE...``: what is killed once the first report is there: ``nothing``, ``worker`` or
``scheduler``. With ``cut`` layers are cut, and a worker is killed when one task of the first is done. It prints one
JSON object.
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
from convsv.layer import ConvLayer
from convsv.results import LayerReport
from convsv.scheduling import Dispatcher
from convsv.scheduling.batch import Piece
from convsv.scheduling.cluster import ClusterPool
from convsv.scheduling.cutting import Cut

OPTIONS = AnalysisOptions(methods=("circulant",), execution=Execution("cpu", jobs=1))


def in_three(layer: ConvLayer, left: float, workers: int) -> Cut:
    """Cut every layer, as if it took long."""
    return Cut(1.0, tuple((Piece("circulant", (k, 3)), 1.0) for k in range(3)))


def main(what: str, paths: list[str]) -> None:
    options = GeometryOptions(size=(8,))
    layers = [find_layers(open_checkpoint(path), geometry=options) for path in paths]
    expected = [list(analyze(some, OPTIONS)) for some in layers]
    pool = ClusterPool("local:2", "cpu")
    dispatcher = Dispatcher(
        pool, OPTIONS, lambda layer: float(layer.shape[0]), cutter=in_three if what == "cut" else None
    )
    begun = [dispatcher(some) for some in layers]
    found: list[list[LayerReport]] = [[] for _ in begun]
    if what == "cut":
        dispatcher._advance()  # one task of four of the first layer is done
    else:
        found[0].append(next(begun[0]))
    if what in ("worker", "cut"):
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

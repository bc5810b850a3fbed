"""The same reports from a dask cluster of two worker processes, whatever of it is killed meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from convsv.analysis import AnalysisOptions
from convsv.checkpoints import open_checkpoint
from convsv.checkpoints.discovery import find_layers
from convsv.cli import app
from convsv.scheduling.batch import Batch, Piece
from convsv.scheduling.cluster import ClusterPool

pytest.importorskip("distributed")

PROGRAM = Path(__file__).with_name("clusters.py")


def weights(path: Path, seed: int) -> str:
    rng = np.random.default_rng(seed)
    save_file({f"conv{i}.weight": rng.standard_normal((24, 24, 3, 3)).astype(np.float32) for i in range(5)}, path)
    return str(path)


def after_killing(what: str, folder: Path) -> Any:
    paths = [weights(folder / f"{seed}.safetensors", seed) for seed in range(2)]
    command = [sys.executable, str(PROGRAM), what, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_killed_worker_changes_no_row(tmp_path: Path) -> None:
    assert after_killing("worker", tmp_path) == {"complete": True, "right": True, "said": ""}


@pytest.mark.slow
def test_a_worker_killed_amid_the_tasks_of_one_layer_changes_no_row(tmp_path: Path) -> None:
    assert after_killing("cut", tmp_path) == {"complete": True, "right": True, "said": ""}


@pytest.mark.slow
def test_a_lost_scheduler_is_said_in_one_line(tmp_path: Path) -> None:
    found = after_killing("scheduler", tmp_path)
    assert found == {"complete": False, "right": True, "said": "the connection to the scheduler is lost"}


@pytest.mark.parametrize("address", ["local:x", "nowhere:1", "tcp://127.0.0.1:1"])
def test_a_wrong_address_is_usage(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsv.scheduling.cluster._PATIENCE", 1)
    path = weights(tmp_path / "a.safetensors", 0)
    result = CliRunner().invoke(app, ["analyze", path, "--dask", address, "--no-cache"])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert address in result.stderr


def whereabouts(batch: Batch) -> list[Any]:
    """Stand for what a worker does: tell which one it is."""
    from distributed import get_worker

    return [get_worker().name for _ in batch.layers]


@pytest.fixture
def mixed_cluster() -> Iterator[str]:
    """The address of two workers without a GPU and one that says it has one, all in this process."""
    from distributed import Scheduler, SpecCluster, Worker

    workers: dict[str, Any] = {
        "plain0": {"cls": Worker, "options": {"nthreads": 2}},
        "plain1": {"cls": Worker, "options": {"nthreads": 2}},
        "gpu": {"cls": Worker, "options": {"nthreads": 2, "resources": {"GPU": 1}}},
    }
    options = {"dashboard": False, "protocol": "tcp", "port": 0}
    with SpecCluster(workers, {"cls": Scheduler, "options": options}, silence_logs=50) as cluster:
        yield str(cluster.scheduler_address)


@pytest.mark.slow
@pytest.mark.parametrize(("device", "slots", "names"), [("cuda", 1, {"gpu"}), ("cuda:0", 1, {"gpu"}), ("cpu", 6, None)])
def test_work_for_a_gpu_goes_to_workers_that_have_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mixed_cluster: str,
    device: str,
    slots: int,
    names: set[str] | None,
) -> None:
    monkeypatch.setattr("convsv.scheduling.cluster.carry_out", whereabouts)
    layers = find_layers(open_checkpoint(weights(tmp_path / "a.safetensors", 0)))
    pool = ClusterPool(mixed_cluster, device)
    try:
        assert pool.slots == slots
        # With a batch of each kind: of many layers, and a piece of one.
        pieces = (None, Piece("circulant", (0, 2)))
        batches = [Batch.of(layers[:1], AnalysisOptions(), device, piece) for piece in pieces] * 10
        found = {name for future in [pool.submit(batch) for batch in batches] for name in future.result(timeout=60)}
        assert found == names if names else len(found) > 1
    finally:
        pool.close()

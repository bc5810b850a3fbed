"""The same reports from a dask cluster of two worker processes, whatever of it is killed meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from convsv.cli import app

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

"""Whatever is killed at a random moment, the next call says what an undisturbed one says: no row wrong or missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

PROGRAM = Path(__file__).with_name("struck.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="nothing lists the children of a process here"),
]


def after(what: str, folder: Path, seed: int) -> Any:
    (folder / "models").mkdir()
    for number in range(4):
        rng = np.random.default_rng(number)
        kernels = {f"conv{i}.weight": rng.standard_normal((56, 56, 3, 3)).astype(np.float32) for i in range(8)}
        save_file(kernels, folder / "models" / f"{number}.safetensors")
    command = [sys.executable, str(PROGRAM), what, str(folder), str(seed)]
    place = {**os.environ, "CONVSV_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=place)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_process_of_the_pool(tmp_path: Path, seed: int) -> None:
    found = after("process", tmp_path, seed)
    assert found == {"ends": [0, 0, 0], "right": True, "partial": False, "rows": 32, "all": 32, "resumed": True}


@pytest.mark.parametrize("seed", [1, 2])
def test_the_call_itself(tmp_path: Path, seed: int) -> None:
    found = after("client", tmp_path, seed)
    assert found == {"ends": [0, -9, 0], "right": None, "partial": None, "rows": 0, "all": 32, "resumed": True}


@pytest.mark.parametrize("seed", [1, 2])
def test_a_worker_of_a_cluster(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("distributed")
    found = after("worker", tmp_path, seed)
    assert found == {"ends": [0, 0, 0], "right": True, "partial": False, "rows": 32, "all": 32, "resumed": True}


@pytest.mark.parametrize("seed", [1, 2])
def test_the_scheduler_of_a_cluster_that_never_comes_back(tmp_path: Path, seed: int) -> None:
    # Exit code 5, and a partial report in which every row is right.
    pytest.importorskip("distributed")
    found = after("scheduler", tmp_path, seed)
    assert 0 < found.pop("rows") < 32
    assert found == {"ends": [0, 5, 0], "right": True, "partial": True, "all": 32, "resumed": True}

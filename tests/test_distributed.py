"""Training on two ranks that see different data: equal to the last bit, and within the promised norm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.utils import parametrize

import ranks
from convsv import operator_norm
from convsv.differentiable import geometry_of

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="torch without gloo"
)


@pytest.mark.slow
def test_two_ranks_stay_equal_and_within_the_norm(tmp_path: Path) -> None:
    store = tmp_path / "store"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, ranks.__file__]
    begun = [
        subprocess.Popen(
            [*command, str(rank), "2", str(store)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in begun]
    assert [process.returncode for process in begun] == [0, 0], outputs
    reports = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    assert reports[0]["loss"] != reports[1]["loss"], "the ranks saw the same data: equality would show nothing"
    assert reports[0]["moved"] > 0, "no clip had anything to do"
    assert reports[0]["digest"] == reports[1]["digest"]
    assert reports[0]["norms"] == reports[1]["norms"]
    assert_within(torch.load(f"{store}.0", weights_only=True), reports[0]["norms"])


def assert_within(state: dict[str, torch.Tensor], certified: dict[str, float]) -> None:
    model = ranks.network()
    model.load_state_dict(state)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert set(certified) == set(layers)
    assert parametrize.is_parametrized(layers["0"])
    for name, module in layers.items():
        norm = operator_norm(module.weight, geometry_of(module), tol=1e-4)
        assert norm.lower <= certified[name] <= ranks.MAX_NORM

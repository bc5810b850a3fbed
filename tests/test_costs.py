"""What a layer will cost: operations that can be counted by hand, times that grow as they must, and a kept speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from cases import make_layer
from convsv import speed
from convsv.cli import app
from convsv.cli._words import method_names
from convsv.costs import METHODS, Cost, Dimensions, Speed, Wanted, cost_of, costs_of
from convsv.geometry import Geometry
from convsv.layer import ConvLayer
from convsv.symbol import half_grid_span

EVERYTHING = Wanted(method_names())


def layer(out: int, inp: int, k: int, size: int, stride: int = 1, groups: int = 1) -> ConvLayer:
    kernel = np.zeros((out, inp // groups, k, k))
    pad = ((k // 2, k // 2),) * 2
    return make_layer(kernel, Geometry((size, size), (stride, stride), pad, "zeros", (1, 1), groups))


def test_every_method_has_a_cost() -> None:
    assert set(METHODS) == {"norm", *method_names()}


def test_dimensions_are_those_of_the_normal_form() -> None:
    d = Dimensions.of(layer(8, 16, 4, 32, stride=2))
    assert (d.few, d.many, d.taps, d.groups) == (8, 64, 4, 1)
    assert (d.outputs, d.inputs) == (256, 1024)
    grouped = Dimensions.of(layer(16, 16, 3, 8, groups=4))
    assert (grouped.groups, grouped.few, grouped.many) == (4, 4, 4)


@pytest.mark.parametrize("size", [7, 8, 32])
def test_frequencies_of_the_half_grid(size: int) -> None:
    assert abs(Dimensions.of(layer(4, 4, 3, size)).points - half_grid_span((size, size))) <= size


def test_operations_of_a_pointwise_layer_by_hand() -> None:
    # One matrix of 32x64: 4 (4 m n^2 - 4/3 n^3) for a complex SVD, 8 n m for its one tap.
    cost = cost_of(layer(32, 64, 1, 16), Wanted(("circulant",), norm=False))
    by_svd = 4 * (4 * 64 * 32**2 - 4 / 3 * 32**3) + 8 * 32 * 64
    by_gram = 2 * 32**2 * 64 + 16 / 3 * 32**3 + 2 * 32**2
    assert any(cost.flops == pytest.approx(flops) for flops in (by_svd, by_gram))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_more_channels_cost_more_of_everything(name: str) -> None:
    wanted = Wanted((name,), norm=name == "norm")
    small, large = (cost_of(layer(c, c, 3, 16), wanted) for c in (16, 128))
    assert small.flops < large.flops
    assert small.seconds < large.seconds
    assert small.memory < large.memory


def test_costs_add_up_and_only_the_largest_memory_counts() -> None:
    found = costs_of(layer(16, 16, 3, 16), EVERYTHING)
    assert set(found.each) == {"norm", *method_names()}
    assert found.whole.seconds == pytest.approx(sum(cost.seconds for cost in found.each.values()))
    assert found.whole.memory == max(cost.memory for cost in found.each.values())
    assert Cost(1, 2, 3) + Cost(10, 1, 30) == Cost(11, 2, 33)


def test_a_faster_machine_takes_less_time_for_the_same_operations() -> None:
    one = layer(64, 64, 3, 16)
    slow, fast = (cost_of(one, EVERYTHING, Speed(f * 1e10, f * 1e10, f * 1e9, 1 / f)) for f in (1, 4))
    assert slow.seconds == pytest.approx(4 * fast.seconds, rel=1e-6)
    assert slow.flops == fast.flops


# ------------------------------------------------------------------------------------------------------- this machine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVSV_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Speed]:
    """Every measurement that was made."""
    made: list[Speed] = []

    def measure() -> Speed:
        made.append(Speed(1e9 * (1 + len(made)), 2e9, 3e9, 0.5))
        return made[-1]

    monkeypatch.setattr(speed, "measure", measure)
    return made


def test_the_speed_is_measured_once(folder: Path, measured: list[Speed]) -> None:
    assert speed.speed_of_this_machine() == speed.speed_of_this_machine() == measured[0]
    assert len(measured) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"MACHINE": 3}', '{"MACHINE": {"gemm": "fast"}}'])
def test_a_damaged_file_is_measured_anew(folder: Path, measured: list[Speed], content: str) -> None:
    folder.mkdir()
    (folder / "speed.json").write_text(content.replace("MACHINE", speed._machine()))
    speed.speed_of_this_machine()
    assert len(measured) == 1
    assert speed.known_speed() == measured[0]


def test_another_machines_speed_is_kept_and_not_believed(folder: Path, measured: list[Speed]) -> None:
    folder.mkdir()
    (folder / "speed.json").write_text('{"other": {"gemm": 1.0}}')
    speed.speed_of_this_machine()
    assert set(json.loads((folder / "speed.json").read_text())) == {"other", speed._machine()}


def test_a_folder_that_cannot_be_written_to_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[Speed]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONVSV_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert speed.speed_of_this_machine() == measured[0]


def test_what_is_measured_is_finite_and_positive() -> None:
    found = speed.measure()
    assert all(0 < number < 1e16 for number in (found.gemm, found.factorise, found.eigen, found.small))


# ------------------------------------------------------------------------------------------------------------ --dry-run


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.safetensors"
    save_file({f"{name}.weight": np.full((4, 3, 3, 3), np.nan, np.float32) for name in ("=a", "b")}, path)
    return str(path)


def convsv(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


def test_dry_run_in_json(folder: Path, measured: list[Speed], model: str) -> None:
    result = convsv("analyze", model, "--dry-run", "--method", "circulant", "--size", "8", "--format", "json")
    assert result.exit_code == 0, result.stderr
    plan = json.loads(result.stdout)
    layers = plan["checkpoints"][0]["layers"]
    assert plan["guarantee"] == "estimate"
    assert [set(one["cost"]) for one in layers] == [{"norm", "circulant"}] * 2
    assert plan["total"]["flops"] == pytest.approx(sum(one["total"]["flops"] for one in layers))
    assert plan["total"]["seconds_on_all_jobs"] == pytest.approx(plan["total"]["seconds"] / plan["jobs"])
    assert "estimates from shapes alone" in result.stderr


def test_dry_run_in_tsv_disarms_names_and_ends_with_the_sum(folder: Path, measured: list[Speed], model: str) -> None:
    result = convsv("bounds", model, "--dry-run")
    header, *rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [dict(zip(header, row, strict=True))["name"] for row in rows] == ["'=a", "b", "total"]
    column = header.index("flops")
    assert float(rows[-1][column]) == pytest.approx(sum(float(row[column]) for row in rows[:-1]), rel=1e-3)


@pytest.mark.parametrize("verb", ["analyze", "circulant", "asymptotic", "exact", "bounds"])
def test_dry_run_in_a_table(folder: Path, measured: list[Speed], model: str, verb: str) -> None:
    result = convsv(verb, model, "--dry-run", "--format", "table")
    assert result.exit_code == 0, result.stderr
    assert "sum" in result.stdout
    assert ("norm" if verb == "analyze" else verb) in result.stdout


def test_dry_run_reads_no_tensor_and_says_which_file_fails(folder: Path, measured: list[Speed], model: str) -> None:
    broken = Path(model).with_name("broken.pt")
    broken.write_bytes(b"nothing of the kind")
    result = convsv("analyze", model, str(broken), "--dry-run")
    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == 4
    assert "NaN" not in result.stderr


@pytest.mark.parametrize("more", [["-o", "x.json"], ["--format", "markdown"]])
def test_dry_run_refuses_what_it_cannot_write(model: str, more: list[str]) -> None:
    result = convsv("analyze", model, "--dry-run", *more)
    assert result.exit_code == 2
    assert "--dry-run" in result.stderr

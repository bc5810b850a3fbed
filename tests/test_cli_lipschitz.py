"""``convsv lipschitz``: a whole network on the command line."""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

import convsv
from convsv.cli import app

MODEL = ("--model", "sample_checkpoints.digit_net:DigitNet", "--input-shape", "1x8x8", "--tol", "0.01")
Run = Callable[..., Any]


@pytest.fixture
def run(sample_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(sample_checkpoints.parent)
    return lambda *args: CliRunner().invoke(app, ["lipschitz", *args])


def network(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    whole = json.loads(result.stdout)
    schema = json.loads((resources.files("convsv.reports") / "report.schema.json").read_text("utf-8"))
    Draft202012Validator(schema).validate(whole)
    found: dict[str, Any] = whole["checkpoints"][0]["network"]
    return found


def model() -> torch.nn.Module:
    from sample_checkpoints.digit_net import DigitNet

    made = DigitNet()
    made.load_state_dict(torch.load("sample_checkpoints/digits.pt", weights_only=True))
    return made


def test_a_traced_network_has_the_bound_of_the_model_itself(run: Run) -> None:
    found = network(run("sample_checkpoints/digits.pt", *MODEL, "--format", "json"))
    bound = convsv.network_bound(model(), (1, 1, 8, 8), tol=0.01)
    assert found["upper"] == bound.upper
    assert found["outputs"] == bound.outputs
    assert [row["name"] for row in found["operations"]] == [row.name for row in bound.operations]
    assert sum(row["share"] for row in found["operations"]) == pytest.approx(1)


@pytest.mark.parametrize(
    "name", ["digits-weightnorm.pt", "digits-lightning.ckpt", "digits.safetensors", "digits-module.pt"]
)
def test_weights_are_found_however_they_are_stored(run: Run, name: str) -> None:
    found = network(run(f"sample_checkpoints/{name}", *MODEL, "--format", "json"))
    plain = network(run("sample_checkpoints/digits.pt", *MODEL, "--format", "json"))
    assert found["upper"] == pytest.approx(plain["upper"], rel=1e-5)


def test_another_output_or_operation(run: Run) -> None:
    found = network(run("sample_checkpoints/digits.pt", *MODEL, "--to", "1", "--format", "json"))
    assert found["operations"][-1]["name"] == "draw"
    assert found["upper"] == found["outputs"]["1"]
    part = network(run("sample_checkpoints/digits.pt", *MODEL, "--to", "down", "--format", "json"))
    assert [row["name"] for row in part["operations"]][-1] == "down"
    unknown = run("sample_checkpoints/digits.pt", *MODEL, "--to", "nowhere")
    assert unknown.exit_code == 2
    assert "nowhere" in unknown.stderr


def test_rows_tables_and_markdown(run: Run, tmp_path: Path) -> None:
    page, lines = tmp_path / "page.html", tmp_path / "all.jsonl"
    done = run("sample_checkpoints/digits.pt", *MODEL, "-o", str(page), "-o", str(lines), "--format", "tsv")
    rows = list(csv.DictReader(io.StringIO(done.stdout), delimiter="\t"))
    assert [row["name"] for row in rows][:2] == ["stem", "relu"]
    assert float(rows[0]["factor"]) > 1
    assert "classify" in page.read_text()
    assert json.loads(lines.read_text().splitlines()[-1])["summary"]["checkpoints"][0]["network"]["upper"]
    table = run("sample_checkpoints/digits.pt", *MODEL, "--format", "table").stdout
    assert "Lipschitz constant ≤" in table
    assert "share" in run("sample_checkpoints/digits.pt", *MODEL, "--format", "markdown").stdout


def test_weights_alone_are_no_network(run: Run) -> None:
    result = run("sample_checkpoints/digits.pt")
    assert result.exit_code == 2
    assert "--model" in result.stderr


@pytest.mark.parametrize("option", [["--include", "stem"], ["--exclude", "stem"], ["--fold-bn"], ["--sort", "name"]])
def test_what_is_about_layers_by_themselves_is_refused(run: Run, option: list[str]) -> None:
    assert run("sample_checkpoints/digits.pt", *MODEL, *option).exit_code == 2


def test_a_network_without_a_bound_says_why(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import torch
from torch import nn

class Squared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        y = self.conv(x)
        return y * torch.tanh(y)
"""
    (tmp_path / "squared_net.py").write_text(source)
    torch.save({"conv.weight": torch.randn(2, 1, 3, 3), "conv.bias": torch.zeros(2)}, tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    traced = ["--model", "squared_net:Squared", "--input-shape", "1x8x8", "--format", "json"]
    result = run("w.pt", *traced)
    found = network(result)
    assert found["upper"] is None
    assert found["operations"][0]["factor"] > 0
    assert "product" in found["unavailable"]
    assert "product" in result.stderr
    torch.save({"conv.weight": torch.full((2, 1, 3, 3), float("nan"))}, tmp_path / "nan.pt")
    assert "NaN" in network(run("nan.pt", *traced))["unavailable"]
    torch.save({"other.weight": torch.ones(2, 1, 3, 3)}, tmp_path / "other.pt")
    assert network(run("other.pt", *traced))["upper"] is None


def test_normalisations_and_wrappers_are_found_too(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.slopes = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(4)
        self.inner, self.head = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.Linear(4, 3)

    def forward(self, x):
        x = self.slopes(self.norm(self.conv(x)))
        return self.head((x + self.inner(x)).mean((2, 3)))
"""
    (tmp_path / "block_net.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    block = importlib.import_module("block_net").Block()
    for name, tensor in block.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    torch.save({f"module.{name}": tensor for name, tensor in block.state_dict().items()}, "block.pt")
    result = run("block.pt", "--model", "block_net:Block", "--input-shape", "1x6x6", "--format", "json")
    found, bound = network(result), convsv.network_bound(block, (1, 1, 6, 6))
    assert bound.upper is not None, bound.unavailable
    assert found["upper"] == pytest.approx(bound.upper, rel=1e-6)

"""The page on geometry: its commands run, and what it shows is what they write."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from convsv.checkpoints.sidecar import read_sidecar
from convsv.cli import app
from convsv.geometry import ORIGINS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "geometry.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda text: text.split("\n")[0])
def test_the_commands_run(
    block: str, tmp_path: Path, sample_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sample_checkpoints").symlink_to(sample_checkpoints)
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines():
        assert line.startswith("$ convsv ")
        result = CliRunner().invoke(app, shlex.split(line)[2:])
        assert result.exit_code == 0, result.stderr
        assert result.stdout
    for name in [name for name in sys.modules if name.split(".")[0] == "sample_checkpoints"]:
        del sys.modules[name]


def test_there_are_commands() -> None:
    assert len(BLOCKS) == 3


def test_the_table_shown_is_the_one_that_is_written(tmp_path: Path, sample_checkpoints: Path) -> None:
    path = tmp_path / "g.toml"
    model = str(sample_checkpoints / "digits-module.pt")
    assert CliRunner().invoke(app, ["layers", model, "--write-geometry", str(path)]).exit_code == 0
    (shown,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]
    table = shown[shown.index("[layers") :]
    assert [line for line in table.splitlines() if " ".join(line.split()) not in lines] == []
    (tmp_path / "shown.toml").write_text(shown, encoding="utf-8")
    read_sidecar(tmp_path / "shown.toml")


def test_the_origins_are_in_their_order() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert tuple(named) == ORIGINS

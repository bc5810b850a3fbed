"""The page on clipping: its commands and its Python run, its table of radii is read, and what it lists exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from convsv.checkpoints.sidecar import read_sidecar
from convsv.cli import app
from convsv.clipping import METHODS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "clipping.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, sample_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the page assumes it: the sample checkpoints, and the file of radii that it shows."""
    (tmp_path / "sample_checkpoints").symlink_to(sample_checkpoints)
    (radii,) = blocks("toml")
    (tmp_path / "radii.toml").write_text(radii, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", blocks("console"), ids=lambda text: text.split("\n")[0])
def test_the_commands_run(block: str, folder: Path) -> None:
    for line in block.splitlines():
        assert line.startswith("$ convsv ")
        result = CliRunner().invoke(app, shlex.split(line)[2:])
        assert result.exit_code == 0, result.stderr
        assert result.stdout
        for option, name in re.findall(r"(-o|--report) (\S+)", line):
            assert (folder / name).is_file(), f"{option} wrote nothing"


def test_there_are_commands() -> None:
    assert len(blocks("console")) == 5


@pytest.mark.usefixtures("folder")
def test_the_python_runs() -> None:
    (example,) = blocks("python")
    exec(compile(example, "clipping.md", "exec"), {})


def test_the_radii_are_those_it_speaks_of(folder: Path) -> None:
    radii = read_sidecar(folder / "radii.toml")
    assert (radii.max_norm("stem"), radii.max_norm("down")) == (3.0, 2.0)


def test_every_method_is_listed() -> None:
    assert set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)) == set(METHODS)

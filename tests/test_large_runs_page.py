"""The commands of docs/large-runs.md that need no cluster run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from convsv.cli import app


def test_the_commands_of_the_page_run(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (repository / "docs" / "large-runs.md").read_text(encoding="utf-8")
    commands = re.findall(r"\n\n```\n(convsv .*)\n```", text)
    assert len(commands) == 2
    monkeypatch.chdir(repository)
    monkeypatch.setenv("CONVSV_CACHE_DIR", str(tmp_path))
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, done.stderr
        assert len(done.stdout.splitlines()) >= 9

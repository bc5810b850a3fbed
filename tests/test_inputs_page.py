"""The page on inputs: its commands run, in their order, in one folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from webserver import serving

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "inputs.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
HERE, ELSEWHERE = BLOCKS[:-1], BLOCKS[-1:]
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(blocks: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run commands as one script."""
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    script = "\n".join(["set -e -o pipefail", 'convsv() { "$PYTHON" -m convsv "$@"; }', *lines])
    environment = {**os.environ, "PYTHON": sys.executable, "no_proxy": "*"}
    command = ["bash", "-c", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    return done


def test_the_commands_run(tmp_path: Path, sample_checkpoints: Path) -> None:
    (tmp_path / "sample_checkpoints").symlink_to(sample_checkpoints)
    rows = run(HERE, tmp_path).stdout.splitlines()
    assert rows[rows.index("old_path\tnew_path") :][1:3] == [
        "run/epoch_1.safetensors\trun/epoch_2.safetensors",
        "run/epoch_2.safetensors\trun/epoch_10.safetensors",
    ]
    assert [row for row in rows if row.startswith("run/") and "\t" not in row] == [
        "run/ema/best.pt",
        *(f"run/epoch_{n}.safetensors" for n in (1, 2, 10)),
    ]


def test_what_is_elsewhere_is_read(
    tmp_path: Path, sample_checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("urllib3")
    monkeypatch.setenv("no_proxy", "*")
    served = shutil.copytree(sample_checkpoints / "digits-sharded", tmp_path / "served")
    for name in ("digits.pt", "digits.safetensors"):
        shutil.copy(sample_checkpoints / name, served)
    # A server on this machine takes the place of that of the page.
    with serving(served) as web:
        done = run([block.replace("https://example.org", web.address) for block in ELSEWHERE], tmp_path)
        assert '"name": "stem"' in done.stdout
        for example in EXAMPLES:
            exec(compile(example.replace("https://example.org", web.address), "inputs.md", "exec"), {})
    assert capsys.readouterr().out.startswith("stem Interval(")


def test_there_are_commands() -> None:
    assert (len(HERE), len(ELSEWHERE), len(EXAMPLES)) == (3, 1, 1)

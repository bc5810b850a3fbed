"""The page on inputs: its commands run, in their order, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "inputs.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)


def test_the_commands_run(tmp_path: Path, sample_checkpoints: Path) -> None:
    (tmp_path / "sample_checkpoints").symlink_to(sample_checkpoints)
    lines = [line.removeprefix("$ ") for block in BLOCKS for line in block.splitlines()]
    script = "\n".join(["set -e -o pipefail", 'convsv() { "$PYTHON" -m convsv "$@"; }', *lines])
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    rows = done.stdout.splitlines()
    assert rows[rows.index("old_path\tnew_path") :][1:3] == [
        "run/epoch_1.safetensors\trun/epoch_2.safetensors",
        "run/epoch_2.safetensors\trun/epoch_10.safetensors",
    ]
    assert [row for row in rows if row.startswith("run/") and "\t" not in row] == [
        "run/ema/best.pt",
        *(f"run/epoch_{n}.safetensors" for n in (1, 2, 10)),
    ]


def test_there_are_commands() -> None:
    assert len(BLOCKS) == 3

"""The page on training: its Python runs, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import convsv.constructions

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS[1:], ids=range(1, len(BLOCKS)))
def test_the_python_runs(block: str) -> None:
    exec(compile(block, "docs/training.md", "exec"), {})


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 3


def test_the_loop_keeps_its_promise(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    exec(compile(BLOCKS[0], "docs/training.md", "exec"), {})
    lowers = [float(number) for number in re.findall(r"lower=([\d.e-]+)", capsys.readouterr().out)]
    assert len(lowers) == 3
    assert all(lower <= 2 for lower in lowers)


def test_the_tables_name_every_construction() -> None:
    made = {name for name in convsv.constructions.__all__ if name[0].islower()}
    assert {name for name in made if f"| `{name}`" in PAGE} == made

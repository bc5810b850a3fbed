"""Run the commands of figures.md again, and take a picture of the page where there is a browser."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from pathlib import Path

from typer.testing import CliRunner

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENT = REPOSITORY / "docs" / "figures.md"
OPEN_ONE = 'press(page.querySelectorAll("#layers tbody button")[3]); return page.title;'


def commands() -> list[list[str]]:
    """Return the arguments of every shown command."""
    shown = re.findall(r"^\$ convsv (.+)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in shown]


def run(arguments: list[str]) -> None:
    """Run a command of the program.

    Raises:
        SystemExit: it failed.
    """
    from convsv.cli import app

    done = CliRunner().invoke(app, [*arguments, "--quiet"])
    if done.exit_code:
        sys.exit(f"convsv {shlex.join(arguments)}\n{done.output}")


def page() -> None:
    """Take a picture of a page with one layer opened."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from browser import CHROMIUM, visit

    if CHROMIUM is None:
        print("no browser: docs/figures/page.png is left as it is")
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "page.html"
        methods = ["--method", "circulant", "--method", "bounds"]
        run(["report", "sample_checkpoints/digits.keras", *methods, "-o", str(target)])
        visit(target, OPEN_ONE, width=1100, height=1160, shot=REPOSITORY / "docs" / "figures" / "page.png")


if __name__ == "__main__":
    import os

    os.chdir(REPOSITORY)
    for command in commands():
        run(command)
    page()

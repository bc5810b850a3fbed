"""Console sessions in documents: run, and written down as a reader would see them.

In a block of kind ``console`` a line ``$ convsv …`` is followed by what the command prints: its table without the
legend, and what standard error says beside notes. ``$ echo $?`` shows the exit code. The commands of a document run
one after the other in one folder, which holds the sample checkpoints.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from typer.testing import CliRunner

from convsv.cli import app

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = ("docs/network.md", "docs/tutorial.md")

_BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.DOTALL)


def replayed(text: str, folder: Path) -> str:
    """Return a document with its sessions run again in a folder; its Python runs in between, and must not fail."""
    session = _Session()
    with _inside(folder):
        return _BLOCK.sub(lambda block: f"```{block[1]}\n{session.block(block[1], block[2])}```", text)


def rewrite(document: str) -> None:
    """Run the sessions of a document and write down what they print."""
    path = REPOSITORY / document
    with tempfile.TemporaryDirectory() as folder:
        new = replayed(path.read_text(encoding="utf-8"), Path(folder))
    path.write_text(new, encoding="utf-8")


class _Session:
    """A shell that knows two commands, and the Python beside it."""

    def __init__(self) -> None:
        self._code = 0
        self._names: dict[str, object] = {}

    def block(self, kind: str, text: str) -> str:
        if kind == "python":
            with redirect_stdout(io.StringIO()):
                exec(compile(text, "document", "exec"), self._names)
            return text
        lines = [line for line in text.splitlines() if line.startswith("$ ")]
        return "\n".join(f"{line}\n{self._output(line[2:])}".rstrip("\n") for line in lines) + "\n"

    def _output(self, line: str) -> str:
        if line == "echo $?":
            return str(self._code)
        program, verb, *arguments = shlex.split(line)
        assert program == "convsv", f"a session runs convsv and echo $?, not {line!r}"
        done = CliRunner().invoke(app, [verb, *_as_table(verb, arguments), *arguments])
        self._code = done.exit_code
        table = done.stdout.split("\n\n")[0]
        said = [text for text in done.stderr.splitlines() if not text.startswith("note: ")]
        return "\n".join([*filter(None, [table.rstrip()]), *said])


def _as_table(verb: str, arguments: list[str]) -> list[str]:
    """Return what makes a verb print as it does on a terminal."""
    return [] if verb in ("plot", "report") or "--format" in arguments else ["--format", "table"]


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    (folder / "sample_checkpoints").symlink_to(REPOSITORY / "sample_checkpoints")
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)

"""The generated parts of docs/reference.md and docs/commands.md: everything a user may type, read or meet."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tables import code, escaped, summary, table

REPOSITORY = Path(__file__).resolve().parent.parent
WIDTH = 100

# In a process of its own: typer takes its width and its colours from the environment, once.
_SAY_HELP = """
import sys
from convsv.cli import app
for name in sys.argv[1:]:
    print("\\f" + name, flush=True)
    try:
        app([*name.split(), "--help"])
    except SystemExit as error:
        assert error.code == 0, name
"""


def command_names() -> list[str]:
    """Return all commands, in the order of the help; those of a group one by one behind it."""
    from typer.main import get_command

    from convsv.cli import app

    names = []
    for name, command in getattr(get_command(app), "commands").items():  # noqa: B009 - typer vendors click's types
        names += [name, *(f"{name} {inner}" for inner in getattr(command, "commands", ()))]
    return names


def help_texts() -> str:
    """Return what ``--help`` of every command prints, on a terminal of fixed width."""
    loud = ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS")
    environment = {key: value for key, value in os.environ.items() if key not in loud}
    environment |= {"TERMINAL_WIDTH": str(WIDTH), "COLUMNS": str(WIDTH), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    program = [sys.executable, "-c", _SAY_HELP, *command_names()]
    done = subprocess.run(program, env=environment, capture_output=True, encoding="utf-8", check=True)
    pages = [page.split("\n", 1) for page in done.stdout.split("\f")[1:]]
    return "\n\n".join(f"## convsv {name}\n\n```text\n{_trimmed(text)}\n```" for name, text in pages)


def _trimmed(text: str) -> str:
    """Return lines without trailing blanks, and without the column of blanks before what is in no box."""
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()).strip("\n")


def exit_codes() -> str:
    """Return the exit codes, and which of them wins."""
    from convsv.cli._screen import EXIT_CODES, PRECEDENCE

    order = ", ".join(map(str, PRECEDENCE))
    rows = table(["code", "meaning"], [[str(number), escaped(EXIT_CODES[number])] for number in sorted(EXIT_CODES)])
    return f"{rows}\n\nWhere several apply, the first of these is taken: {order}."


def padding_modes() -> str:
    """Return the padding modes by what they make of a row of four pixels, and what they do to a norm."""
    from convsv.geometry import PADDINGS, padding_multiplicity

    rows = []
    for mode, positions in PADDINGS.items():
        padded = ["0" if source < 0 else "abcd"[source] for source in positions(4, 2, 2).tolist()]
        factor = np.sqrt(padding_multiplicity(mode, 4, 2, 2))
        rows.append([f"`{mode}`", f"`{' '.join(padded)}`", f"{factor:.4g}"])
    return table(["mode", "`a b c d` padded by two on each side", "norm of this padding"], rows)


def origins() -> str:
    """Return where geometry may come from, strongest first."""
    from convsv.checkpoints.sources import SOURCES
    from convsv.geometry import ORIGINS

    said = {origin: summary(source) for origin, source in SOURCES.items()}
    return table(["origin", "it is"], [[f"`{name}`", said.get(name, "nobody's word: a guess")] for name in ORIGINS])


def public_names() -> str:
    """Return the functions and types of the library."""
    import convsv

    found = {name: getattr(convsv, name) for name in convsv.__all__ if not name.startswith("__")}
    found["bounds"] = importlib.import_module("convsv.api").bounds  # a package has this name too
    return table(["name", "what it is"], [[f"`convsv.{name}`", summary(value)] for name, value in found.items()])


def exceptions() -> str:
    """Return the tree of exceptions, as it is drawn in the code."""
    from convsv import errors

    lines = (errors.__doc__ or "").partition("The tree::\n\n")[2].split("\n\n")[0].splitlines()
    return "\n".join(["```text", *(line.removeprefix("    ") for line in lines), "```"])


def methods() -> str:
    """Return the spectral methods."""
    from convsv.spectra import SPECTRA

    rows = [
        [f"`{name}`", entry.guarantee, summary(entry.compute), entry.reference]
        for name, entry in sorted(SPECTRA.items())
    ]
    return table(["method", "guarantee", "what it computes", "source"], rows)


def writers() -> str:
    """Return the report formats."""
    from convsv.reports import WRITERS

    rows = [[f"`{name}`", code(entry.suffixes), summary(entry.make)] for name, entry in sorted(WRITERS.items())]
    return table(["`--format`", "suffix of `-o`", "what it is"], rows)

"""The generated parts of the documents, taken from the registries and from the commands themselves.

Run as a program it rewrites them; the tests compare. A part stands between `<!-- name -->` and `<!-- /name -->`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import reference
import sessions
from schemadoc import json_keys
from shortcuts import shortcuts
from tables import code, escaped, summary, table

REPOSITORY = Path(__file__).resolve().parent.parent
SHOWN = ("analyze", "--method", "circulant", "sample_checkpoints/digits.keras")
"""The command whose real output opens the README; `make demo` ends with the same."""


def commands() -> str:
    """Return the commands and what each answers."""
    from typer.main import get_command

    from convsv.cli import app

    group = get_command(app)
    rows = []
    for name, command in getattr(group, "commands").items():  # noqa: B009 - typer vendors click's types
        rows.append([f"`convsv {name}`", " ".join((command.help or "").split("\n\n")[0].split()).removesuffix(".")])
    return table(["command", "what it answers"], rows)


def formats() -> str:
    """Return the checkpoint formats."""
    from convsv.checkpoints import FORMATS

    rows = [
        [name, code(entry.suffixes), summary(sys.modules[type(entry).__module__])]
        for name, entry in sorted(FORMATS.items())
    ]
    return table(["format", "usual suffixes", "how it is read"], rows)


def bounds() -> str:
    """Return the published bounds, in short."""
    from convsv.bounds import BOUNDS

    rows = [
        [f"`{name}`", entry.side, entry.guarantee, entry.holds_for, summary(entry.compute)]
        for name, entry in sorted(BOUNDS.items())
    ]
    return table(["bound", "side", "guarantee", "about", "what it is"], rows)


def bound_sources() -> str:
    """Return what each bound costs and where it was published."""
    from convsv.bounds import BOUNDS

    rows = [[f"`{name}`", escaped(entry.cost), entry.reference] for name, entry in sorted(BOUNDS.items())]
    return table(["bound", "leading cost", "source"], rows)


def scopes() -> str:
    """Return what the words under "about" mean."""
    from convsv.bounds import SCOPES

    return "\n".join(f"- *{name}*: {meaning}" for name, meaning in SCOPES.items())


def rules() -> str:
    """Return what bounds each kind of operation, and why; kinds of the same rule in one row."""
    from convsv.network import RULES

    kinds: dict[tuple[str, str], list[str]] = {}
    for name, entry in RULES.items():
        kinds.setdefault((entry.factor, entry.why), []).append(f"`{name}`")
    rows = [
        [", ".join(names), escaped(factor), escaped(why)] for (factor, why), names in sorted(kinds.items(), key=_last)
    ]
    return table(["operation", "factor", "why"], rows)


def _last(row: tuple[tuple[str, str], list[str]]) -> tuple[bool, str]:
    (factor, _), names = row
    return factor == "none", names[0]


def output() -> str:
    """Return what the shown command prints, as a console session."""
    program = [sys.executable, "-m", "convsv", *SHOWN, "--format", "table"]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return f"```console\n$ convsv {' '.join(SHOWN)}\n{done.stdout.rstrip()}\n```"


_README, _REFERENCE, _BOUNDS, _COMMANDS = "README.md", "docs/reference.md", "docs/bounds.md", "docs/commands.md"

PARTS: dict[str, tuple[tuple[str, ...], Callable[[], str]]] = {
    "output": ((_README,), output),
    "shortcuts": ((_README,), shortcuts),
    "commands": ((_README, _COMMANDS), commands),
    "help": ((_COMMANDS,), reference.help_texts),
    "formats": ((_README, _REFERENCE), formats),
    "methods": ((_REFERENCE,), reference.methods),
    "bounds": ((_BOUNDS,), bounds),
    "bound-sources": ((_BOUNDS,), bound_sources),
    "scopes": ((_BOUNDS,), scopes),
    "rules": (("docs/network.md",), rules),
    "writers": ((_REFERENCE,), reference.writers),
    "padding-modes": ((_REFERENCE,), reference.padding_modes),
    "origins": ((_REFERENCE,), reference.origins),
    "exit-codes": ((_README, _REFERENCE), reference.exit_codes),
    "json-keys": ((_REFERENCE,), json_keys),
    "public-names": ((_REFERENCE,), reference.public_names),
    "exceptions": ((_REFERENCE,), reference.exceptions),
}
"""Everything generated, by the name of its markers: the documents it stands in, and what makes it."""


def current(name: str) -> list[str]:
    """Return what stands between the markers of a part, in each of its documents.

    Raises:
        ValueError: a document has no such markers.
    """
    return [_between(name, document) for document in PARTS[name][0]]


def _between(name: str, document: str) -> str:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"no part called {name!r} in {document}")
    return found[1]


def main() -> None:
    """Rewrite every generated part, and what the commands of sessions print."""
    for name, (documents, generate) in PARTS.items():
        made = generate()
        for document in documents:
            path = REPOSITORY / document
            before, rest = path.read_text(encoding="utf-8").split(f"<!-- {name} -->\n")
            after = rest.split(f"<!-- /{name} -->")[1]
            path.write_text(f"{before}<!-- {name} -->\n{made}\n<!-- /{name} -->{after}", encoding="utf-8")
    for document in sessions.DOCUMENTS:
        sessions.rewrite(document)


if __name__ == "__main__":
    main()

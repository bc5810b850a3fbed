"""Markdown tables made from code, for the generated parts of the documents."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence


def escaped(text: str) -> str:
    """Return text as a table cell, free of accidental Markdown outside backticks."""
    plain_and_code = text.replace("``", "`").replace("|", r"\|").split("`")
    plain_and_code[::2] = [re.sub(r"([*<])", r"\\\1", plain) for plain in plain_and_code[::2]]
    return "`".join(plain_and_code)


def summary(documented: object) -> str:
    """Return the first paragraph of a docstring as a table cell, without "Return" and its last full stop."""
    paragraph = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
    paragraph = re.sub(r":[a-z]+:(`[^`]+`)", r"\1", paragraph)  # Sphinx' roles
    return escaped(re.sub(r"^Return (a sink (for|that writes) )?", "", paragraph).removesuffix("."))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def code(names: Iterable[str]) -> str:
    """Return names in code style, separated by spaces."""
    return " ".join(f"`{name}`" for name in names)

"""Text that comes from a stranger's file, made harmless for the place where it is shown.

A layer's name may hold anything: line ends, terminal escapes, right-to-left overrides, spreadsheet formulas. Every
encoding here but :func:`visible` and :func:`code_span` (which are for eyes only) has an inverse.
"""

from __future__ import annotations

import json
import re
import unicodedata

__all__ = ["code_span", "from_csv", "from_tsv", "to_csv", "to_tsv", "visible"]

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that move the cursor, reorder or break lines, or cannot be encoded: control (C0, C1, DEL),
format (bidirectional marks and overrides, zero-width), lone surrogates, line and paragraph separators."""

_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_LONG = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
_NOT_IN_CSV = re.compile("[\0\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|([tnr\\]))")


def visible(text: str) -> str:
    """Return ``text`` with every control, format, bidirectional and surrogate character written as an escape.

    The result is one line and cannot steer a terminal.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(char) if unicodedata.category(char) in _HIDDEN else char for char in text)


def _escaped(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def to_tsv(text: str) -> str:
    r"""Return ``text`` as a tab-separated cell: hidden characters escaped, a backslash doubled, formulas disarmed.

    A cell that would begin with ``=``, ``+``, ``-``, ``@`` or an apostrophe gets an apostrophe before it, because
    spreadsheets run such cells as formulas. :func:`from_tsv` undoes all of it.
    """
    cell = visible(text.replace("\\", "\\\\"))
    return "'" + cell if cell.startswith(_FORMULA) else cell


def from_tsv(cell: str) -> str:
    """Return the text that :func:`to_tsv` wrote as ``cell``."""
    cell = cell[1:] if cell.startswith("'") else cell
    return _ESCAPE.sub(_unescaped, cell)


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    return chr(int(code, 16)) if code else _LONG[match[4]]


def to_csv(text: str) -> str:
    """Return ``text`` as the content of a CSV cell (the csv module does the quoting): formulas disarmed.

    A text that begins with ``=``, ``+``, ``-``, ``@``, a tab, a line end or an apostrophe gets an apostrophe before it,
    because spreadsheets run such cells as formulas. A text that no CSV file can hold (NUL, lone
    surrogates) is written as an apostrophe and a JSON string. All other text is written as it is.
    :func:`from_csv` undoes it.
    """
    if _NOT_IN_CSV.search(text):
        return "'" + json.dumps(text)
    return "'" + text if text.startswith(_FORMULA) else text


def from_csv(cell: str) -> str:
    """Return the text that :func:`to_csv` wrote as ``cell``."""
    if cell.startswith("'\""):
        return str(json.loads(cell[1:]))
    return cell[1:] if cell.startswith("'") else cell


def code_span(text: str) -> str:
    """Return ``text`` as a Markdown code span that may stand in a table: no markup, no HTML, one line."""
    shown = visible(text).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if "`" in shown or not shown.strip() else ""
    return f"{fence}{pad}{shown}{pad}{fence}"

"""The page: every claim on a line of its own, then how each was measured, with tables and figures."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import catalogue
from convsv import __version__
from reproduce.claims import PAPERS, Claim, Section, Settings

__all__ = ["machine", "write_page"]

_SAID = {"holds": "**holds**", "does not hold": "**does not hold**", "not tested": "could not be tested here"}
_LIBRARIES = ("numpy", "torch", "scikit-learn", "matplotlib")


def write_page(sections: Sequence[Section], settings: Settings, minutes: float, target: Path) -> None:
    """Write ``target``, a Markdown file, and the figures into a folder of its name beside it.

    Args:
        sections: in the order of the page.
        settings: what was run.
        minutes: processor time it took.
        target: the file; a figure of the same name is replaced, and figures of no section are removed.
    """
    folder = target.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {f"{figure.name}.svg": figure.svg for section in sections for figure in section.figures}
    for stale in set(folder.glob("*.svg")) - {folder / name for name in drawn}:
        stale.unlink()
    for name, content in drawn.items():
        (folder / name).write_bytes(content)
    numbers = _numbers(sections)
    parts = [_opening(sections, settings, minutes), _lines(sections)]
    parts += [_section(section, numbers, folder.name) for section in sections]
    parts.append(_papers(sections))
    target.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def machine() -> str:
    """Return what ran: the processor, the number of cores, and the versions."""
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = platform.python_version()
    return f"{_processor()}, {cores} cores, no GPU used; convsv {__version__}, Python {python}, {libraries}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _numbers(sections: Sequence[Section]) -> dict[int, int]:
    """Return the number of each claim, by its identity."""
    claims = [claim for section in sections for claim in section.claims]
    return {id(claim): number for number, claim in enumerate(claims, 1)}


def _opening(sections: Sequence[Section], settings: Settings, minutes: float) -> str:
    counts = Counter(claim.verdict for section in sections for claim in section.claims)
    extent = "a quick run, at small sizes" if settings.quick else "the whole run"
    return f"""# The papers' experiments again

Which claims of the papers behind convsv hold, on what can be run on a small machine: measured, not quoted. Written by
`make reproduce` from `tests/reproduce/`, which has a file an experiment. Of {counts.total()} claims, {counts["holds"]}
hold, {counts["does not hold"]} do not, and {counts["not tested"]} could not be tested here.

A verdict is about what was run here: the details say what that was, what decides, and where the paper's side was read.
“The paper says” gives the paper's number where its text, abstract or code was at hand, and else says that it was not.
“As remembered” is from memory of the paper, and not looked up.

- **Run**: {extent}, {max(1, round(minutes))} min of processor time.
- **Machine**: {machine()}. All times are processor times of one thread.
- **Verdicts** follow from the measurements by the rule that each entry states."""


def _lines(sections: Sequence[Section]) -> str:
    claims = [claim for section in sections for claim in section.claims]
    rows = [
        (str(n), claim.paper, claim.text, claim.published, claim.ours, _SAID[claim.verdict])
        for n, claim in enumerate(claims, 1)
    ]
    header = ("#", "paper", "claim", "the paper says", "found here", "verdict")
    return "## Line by line\n\n" + catalogue.table(header, [[_cell(text) for text in row] for row in rows])


def _cell(text: str) -> str:
    """Return text for a table cell: no line ends, no accidental column."""
    return " ".join(text.split()).replace("|", r"\|")


def _section(section: Section, numbers: dict[int, int], folder: str) -> str:
    parts = [f"## {section.title}", section.setting]
    parts.append("\n".join(_details(claim, numbers[id(claim)]) for claim in section.claims))
    for table in section.tables:
        rows = [[_cell(text) for text in row] for row in table.rows]
        parts += [f"{table.title}:", catalogue.table(table.header, rows)]
    parts += [f"![{figure.caption}]({folder}/{figure.name}.svg)\n\n*{figure.caption}*" for figure in section.figures]
    return "\n\n".join(parts)


def _details(claim: Claim, number: int) -> str:
    return f"- **{number}** ({_SAID[claim.verdict].strip('*')}): {claim.how} Paper's side: {claim.source}."


def _papers(sections: Sequence[Section]) -> str:
    used = {claim.paper for section in sections for claim in section.claims}
    return "## The papers\n\n" + "\n".join(f"- *{name}*: {PAPERS[name]}" for name in PAPERS if name in used)

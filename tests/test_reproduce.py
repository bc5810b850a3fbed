"""The papers' experiments: the whole of them in small, what their page must say, and the page in the documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from convsv.api import bounds
from convsv.results import Bound
from reproduce.claims import EXPERIMENTS, PAPERS, Claim, Figure, Section, Settings, Table, Verdict, judge
from reproduce.drawing import draw
from reproduce.experiments.later_bounds import _gram_errors, _two_waves
from reproduce.experiments.singla2021 import FOUR, PUBLISHED, power_iteration_bound
from reproduce.measuring import geometric_mean, in_seconds, rank_correlation, slope
from reproduce.page import machine, write_page

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "reproduction.md"
VERDICTS = ("**holds**", "**does not hold**", "could not be tested here")


def claim(**changes: str) -> Claim:
    fields = {
        "paper": "Yi 2020",
        "text": "A claim.",
        "published": "1",
        "source": "page 2",
        "ours": "2",
        "how": "By hand.",
    }
    return Claim(**{**fields, "verdict": "holds", **changes})  # type: ignore[arg-type]


def rows_of(page: str) -> list[list[str]]:
    """The rows of the table of claims, as their cells."""
    table = page.split("## Line by line")[1].split("\n## ", maxsplit=1)[0]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if re.match(r"\| \d", line)]


def judge_section(section: Section) -> None:
    assert section.claims
    for found in section.claims:
        assert found.paper in PAPERS
        assert found.verdict in get_args(Verdict)
        assert all(text.strip() for text in (found.text, found.published, found.source, found.ours, found.how))
        assert "nan" not in found.ours.split()
    for table in section.tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.header)}
    for figure in section.figures:
        assert figure.svg.startswith(b"<?xml")
        assert b"</svg>" in figure.svg


@pytest.mark.slow
@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_each_experiment_runs_in_small_without_any_public_checkpoint(name: str, tmp_path: Path) -> None:
    judge_section(EXPERIMENTS[name].run(Settings(quick=True, checkpoints=tmp_path)))


def test_every_section_has_a_place_of_its_own() -> None:
    places = [entry.place for _, entry in EXPERIMENTS.items()]
    assert sorted(set(places)) == sorted(places)


# ---------------------------------------------------------------------------------------------------------- the page


def test_the_page_has_a_line_a_claim_and_leads_to_its_figures(tmp_path: Path) -> None:
    sections = [
        Section("One", "Set.", [claim(ours="a | b"), claim(verdict="not tested")], [Table("T", ("a",), (("1",),))]),
        Section("Two", "Set.", [claim(verdict="does not hold")], figures=[Figure("drawn", "It.", b"<svg/>")]),
    ]
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "stale.svg").write_bytes(b"")
    write_page(sections, Settings(), 12.3, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    rows = rows_of(text)
    assert [row[-1].strip() for row in rows] == [VERDICTS[0], VERDICTS[2], VERDICTS[1]]
    assert {len(row) for row in rows} == {6}
    assert "Of 3 claims, 1\nhold, 1 do not, and 1 could not be tested" in text
    assert re.findall(r"!\[.*\]\((.*)\)", text) == ["page/drawn.svg"]
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["drawn.svg"]
    assert machine() in text
    assert "the whole run, 12 min of processor time" in text
    assert PAPERS["Yi 2020"] in text


def test_a_figure_is_the_same_twice() -> None:
    first, second = (draw(lambda figure: figure.subplots().plot([1, 2])) for _ in range(2))
    assert first == second


@pytest.mark.skipif(not PAGE.exists(), reason="not written yet")
def test_the_page_in_the_documents_is_whole() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = rows_of(text)
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(row[-1].strip() in VERDICTS for row in rows)
    assert all(cell.strip() for row in rows for cell in row)
    details = re.findall(r"^- \*\*(\d+)\*\* .* Paper's side: .+\.$", text, re.MULTILINE)
    assert list(map(int, details)) == list(range(1, len(rows) + 1))
    assert "a quick run" not in text
    size = len(text.encode()) + sum(path.stat().st_size for path in PAGE.with_suffix("").iterdir())
    assert size < 300_000


# ------------------------------------------------------------------------------------------------------ what measures


def test_numbers_in_words() -> None:
    assert [in_seconds(value) for value in (2.31e-3, 0.12, 3.456, 250)] == ["2.3 ms", "0.12 s", "3.5 s", "250 s"]
    assert slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert geometric_mean([1, 4]) == pytest.approx(2)
    assert rank_correlation([1, 2, 3], [5, 4, 1]) == pytest.approx(-1)
    assert (judge(True), judge(False)) == ("holds", "does not hold")


def test_the_published_ratios_are_those_of_the_paper() -> None:
    ratios = [bound / exact for bound, exact in PUBLISHED]
    assert len(ratios) == 17
    assert (min(ratios), max(ratios)) == pytest.approx((1.016, 1.815), abs=1e-3)
    assert geometric_mean(ratios) == pytest.approx(1.27, abs=5e-3)


def test_power_iteration_ends_at_the_bound_and_starts_below_it() -> None:
    kernel = np.random.default_rng(0).standard_normal((6, 5, 3, 3))
    exact = min(bound.value for bound in bounds(kernel, names=FOUR).values() if isinstance(bound, Bound))
    few, many = (power_iteration_bound(kernel, rounds, 0) for rounds in (2, 2000))
    assert few < exact * (1 - 1e-3)
    assert many == pytest.approx(exact, rel=1e-9)


def test_gram_errors_are_those_of_the_iteration() -> None:
    matrix = np.random.default_rng(0).standard_normal((6, 6))
    iterated, found = matrix / np.linalg.norm(matrix, 2), []
    for t in range(1, 5):
        iterated = iterated.T @ iterated
        found.append(np.linalg.norm(iterated) ** (0.5**t) - 1)
    assert _gram_errors(matrix, 4) == pytest.approx(found, rel=1e-9)


def test_two_waves_have_two_local_maxima() -> None:
    symbol = np.abs(np.linalg.norm(np.fft.fft2(_two_waves(0), (8, 8)).transpose(2, 3, 0, 1), 2, (2, 3)))
    assert symbol.max() == symbol[0, 0]
    assert symbol[4, 4] == pytest.approx(0.9 * symbol[0, 0], rel=0.1)
    assert symbol[4, 4] == symbol[2:7, 2:7].max()

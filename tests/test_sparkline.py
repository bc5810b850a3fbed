"""Sparklines: a spectrum in a few characters."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsv.reports import Style, write_report
from convsv.reports._sparkline import EMPTY, SPARKLINE, WIDTH, sparkline
from convsv.results import Histogram, Spectrum
from reportcases import layer, report, spectrum

BLOCKS = "▁▂▃▄▅▆▇█"


def of(counts: list[int], top: float, largest: float, **changes: object) -> Spectrum:
    return spectrum([2.0, 1.0], max=largest, histogram=Histogram(top, tuple(counts)), **changes)


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ([1] * 8, "████████"),
        ([8, 7, 6, 5, 4, 3, 2, 1], "██▇▆▅▄▃▂"),
        ([0, 0, 0, 0, 0, 0, 0, 5], "·······█"),
        ([1000, 1, 0, 0, 0, 0, 0, 1], "█▁·····▁"),
    ],
)
def test_a_bin_a_block(counts: list[int], shown: str) -> None:
    assert sparkline(of(counts, 8.0, 8.0)) == shown


def test_the_range_ends_at_the_largest_value_not_at_the_last_bin() -> None:
    assert sparkline(of([0, 0, 0, 9, 0, 0, 0, 0], 8.0, 4.0)) == "······██"


def test_a_bin_that_two_blocks_share_is_divided() -> None:
    # Three bins over eight blocks of 3/8 of a bin each: the values of the second lie in blocks 2 (a third of it) to 5.
    assert sparkline(of([0, 12, 0], 3.0, 3.0)) == "··▃██▃··"


@given(st.lists(st.integers(0, 10**9), min_size=64, max_size=64).filter(any), st.floats(1e-300, 1e300))
def test_it_has_always_the_same_width_and_a_fullest_block(counts: list[int], top: float) -> None:
    last = max(number for number, count in enumerate(counts) if count)
    largest = top * (last + 0.7) / 64
    shown = sparkline(of(counts, top, largest, count=sum(counts)))
    assert len(shown) == WIDTH
    assert set(shown) <= {*BLOCKS, EMPTY}
    assert "█" in shown
    assert shown[-1] != EMPTY


@pytest.mark.parametrize(
    "without",
    [
        spectrum([2.0, 1.0]),
        of([4, 4], 0.0, 0.0),
        of([4, 4], math.inf, math.inf),
        of([0, 0], 1.0, 1.0),
    ],
    ids=["no histogram", "zero operator", "infinite", "no values"],
)
def test_nothing_is_drawn_of_nothing(without: Spectrum) -> None:
    assert sparkline(without) == ""


# ------------------------------------------------------------------------------------------------------------ in tables


def written(form: str, *layers_: object, **settings: object) -> str:
    out = io.StringIO()
    write_report(report(*layers_, methods=("circulant",), **settings), out, form, Style(width=None))  # type: ignore[arg-type]
    return out.getvalue()


SHOWN = layer("x", results={"circulant": of([8, 7, 6, 5, 4, 3, 2, 1], 8.0, 8.0)})


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_tables_for_people_have_a_column_and_explain_it(form: str) -> None:
    text = written(form, SHOWN)
    assert "██▇▆▅▄▃▂" in text
    assert text.count(SPARKLINE) == 2
    assert "from zero at the left to the largest at the right" in " ".join(text.split())


@pytest.mark.parametrize("form", ["tsv", "csv", "json", "jsonl"])
def test_files_for_programs_have_none(form: str) -> None:
    text = written(form, SHOWN)
    assert SPARKLINE not in text
    assert "█" not in text


def test_there_is_no_column_where_no_layer_has_a_histogram() -> None:
    assert SPARKLINE not in written("table", layer("x", results={"circulant": spectrum([2.0, 1.0])}))


def test_a_layer_without_the_spectrum_leaves_its_cell_empty() -> None:
    text = written("table", SHOWN, layer("y", unavailable={"circulant": "odd"}))
    assert next(line for line in text.splitlines() if line.startswith("y")).rstrip().endswith("— [1]")

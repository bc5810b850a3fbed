"""The gate's findings as sentences: for annotations, test results and standard error."""

from __future__ import annotations

from convsv.reports._numbers import DOWN, UP, as_stated, short
from convsv.results import Finding

__all__ = ["sentence"]

_WHAT = {
    "max_norm": "norm",
    "min_norm": "smallest singular value",
    "max_condition": "condition",
    "max_product": "product of all norms",
}


def sentence(found: Finding) -> str:
    """Return a finding in words: ``norm is at least 2.0188 and must be at most 2``, and the reason if any."""
    what = _WHAT.get(found.criterion, found.criterion)
    side = "at least" if found.criterion == "min_norm" else "at most"
    limit = f"must be {side} {as_stated(found.limit)}"
    if found.interval is None:
        return f"{what} is unknown and {limit}: {found.reason}"
    low, high = short(found.interval.lower, DOWN), short(found.interval.upper, UP)
    if found.verdict != "FAIL":
        value = f"between {low} and {high}"
    else:
        value = f"at most {high}" if found.criterion == "min_norm" else f"at least {low}"
    text = f"{what} is {value} and {limit}"
    return f"{text}: {found.reason}" if found.reason else text

"""The JSON Schema that ships with the package, and reports against it."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from convsv.geometry import ORIGINS, PADDINGS
from convsv.reports import Style, write_report
from convsv.results import CheckpointReport, Histogram, Interval, Reached, Report
from reportcases import HOSTILE_NAMES, bounds, clipping, geometry, layer, report, spectrum


def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((resources.files("convsv.reports") / "report.schema.json").read_text("utf-8"))
    return loaded


def validator(part: str | None = None) -> Draft202012Validator:
    whole = schema()
    return Draft202012Validator({"$ref": f"#/$defs/{part}", "$defs": whole["$defs"]} if part else whole)


def written(found: Report, form: str = "json", **style: bool) -> str:
    out = io.StringIO()
    write_report(found, out, form, Style(**style))
    return out.getvalue()


RESULTS = {"circulant": spectrum([3.0, 2.0, 1.0]), "bounds": bounds()}
REPORTS = {
    "no checkpoint": Report("analyze"),
    "no layer": report(),
    "unreadable": Report("analyze", {}, (CheckpointReport("x.pt", "", problems=("truncated",)),)),
    "everything": report(
        layer(results=RESULTS, unavailable={"asymptotic": "why"}, notes=("tied",)), methods=("circulant",)
    ),
    "at size": report(layer(norm_at_size=Interval(1.0, 1.1, "zeros 56x56"))),
    "histogram": report(
        layer(results={"circulant": spectrum([1.0, 3.0], histogram=Histogram(4.0, (0, 1, 0, 1)), quantile_error=1e-6)})
    ),
    "residuals": report(layer(results={"exact": spectrum([1.0], kind="leading", residuals=(1e-9,))})),
    "not finite": report(
        layer(norm=Interval(0.0, math.inf), results={"circulant": spectrum([1.0], condition=math.nan)})
    ),
    "no ranks": report(layer(results={"circulant": spectrum([1.0], stable_rank=None, condition=None)})),
    "traced": report(layer(geometry=replace(geometry(), origin={"size": "traced"}))),
    "clipped": report(
        layer(clip=clipping()), layer("inside", clip=clipping(method="none", touched=False)), command="clip"
    ),
    "edited": report(layer(clip=clipping(radius=None, gap=0.01, notes=("tied",))), command="clip"),
    "edited and measured": report(
        layer(clip=clipping(radius=None, reached=Reached("rank", 2, 0.0, 1.0, 0.01, (12, 12), ("groups",)))),
        layer("flat", clip=clipping(reached=Reached("flatten", 1.0, 0.9, 1.1, None, (8,)))),
        command="clip",
    ),
    "not clipped": report(layer(unavailable={"clip": "its weights are NaN"}), command="clip"),
    "partial": replace(report(layer()), partial=True),
    "layers": report(layer(norm=None), command="layers"),
} | {name: report(layer(text)) for name, text in HOSTILE_NAMES.items()}


def test_the_schema_is_a_valid_schema() -> None:
    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("found", REPORTS.values(), ids=REPORTS.keys())
@pytest.mark.parametrize("values", [False, True], ids=["plain", "with values"])
def test_every_report_is_valid(found: Report, values: bool) -> None:
    validator().validate(json.loads(written(found, values=values, summary=values)))


@pytest.mark.parametrize("found", REPORTS.values(), ids=REPORTS.keys())
def test_every_json_line_is_valid(found: Report) -> None:
    *rows, last = map(json.loads, written(found, "jsonl", summary=True).splitlines())
    for row in rows:
        validator("jsonl_layer").validate(row)
    validator("jsonl_summary").validate(last)


def spoilt(path: str, value: object, of: str = "everything") -> Any:
    whole = json.loads(written(REPORTS[of], values=True))
    *most, last = path.split("/")
    place = whole
    for key in most:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return whole


LAYER = "checkpoints/0/layers/0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", "convsv/2"),
        ("partial", None),
        ("checkpoints/0/sha256", "nonsense"),
        (f"{LAYER}/norm", None),
        (f"{LAYER}/norm/upper", "2.0"),
        (f"{LAYER}/norm/guarantee", "sure"),
        (f"{LAYER}/norm/assumes", None),
        (f"{LAYER}/kind", "linear"),
        (f"{LAYER}/shape", [64, "64"]),
        (f"{LAYER}/geometry/stride", [0, 1]),
        (f"{LAYER}/geometry/padding", [1, 1]),
        (f"{LAYER}/geometry/origin/size", "dreamt"),
        (f"{LAYER}/results/circulant/quantiles/median", 1.0),
        (f"{LAYER}/results/circulant/max", None),
        (f"{LAYER}/results/bounds/singla2021/side", "left"),
        (f"{LAYER}/unavailable/exact", 7),
    ],
)
def test_a_wrong_report_is_refused(path: str, value: object) -> None:
    with pytest.raises(ValidationError):
        validator().validate(spoilt(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [("histogram/top", None), ("histogram/counts", [1, -1]), ("histogram/counts", [0.5]), ("quantile_error", "0")],
)
def test_a_wrong_histogram_is_refused(path: str, value: object) -> None:
    with pytest.raises(ValidationError):
        validator().validate(spoilt(f"{LAYER}/results/circulant/{path}", value, "histogram"))


@pytest.mark.parametrize("path", ["new", "checkpoints/0/new", f"{LAYER}/new", f"{LAYER}/norm/new"])
def test_unknown_keys_are_allowed(path: str) -> None:
    validator().validate(spoilt(path, "anything"))


def test_the_schema_knows_every_padding_mode_and_origin() -> None:
    properties = schema()["$defs"]["geometry"]["properties"]
    assert properties["padding_mode"]["enum"] == list(PADDINGS)
    assert properties["origin"]["additionalProperties"]["enum"] == list(ORIGINS)

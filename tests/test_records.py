"""JSON, JSON Lines, CSV, TSV and Markdown: full precision, every name back again, one row a layer."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from convsv.errors import UsageError
from convsv.geometry import FIELDS
from convsv.reports import WRITERS, Style, format_of, open_sink, write_report
from convsv.reports._sort import sort_column, sort_report
from convsv.reports._summary import summarise
from convsv.reports._text import code_span, from_csv, from_tsv, to_tsv, visible
from convsv.reports.records import _json, columns
from convsv.results import Bound, CheckpointReport, Histogram, Interval, LayerReport, Report
from reportcases import HOSTILE_NAMES, bounds, geometry, layer, report, spectrum

names = pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
anything = st.text(st.characters(codec=None, categories=None))


def text(found: Report, form: str, **style: object) -> str:
    out = io.StringIO(newline="")
    write_report(found, out, form, Style(**style))  # type: ignore[arg-type]
    return out.getvalue()


def csv_rows(found: Report, **style: object) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text(found, "csv", **style), newline="")))


def tsv_rows(found: Report, **style: object) -> list[dict[str, str]]:
    header, *rows = text(found, "tsv", **style).rstrip("\n").split("\n")
    return [dict(zip(header.split("\t"), row.split("\t"), strict=True)) for row in rows]


# ---------------------------------------------------------------------------------------------------------- the door


def test_a_format_is_found_by_suffix_whatever_the_case() -> None:
    writers = [writer for _, writer in WRITERS.items() if writer.writes("analyze")]
    assert {format_of(f"a.b{suffix.upper()}") for writer in writers for suffix in writer.suffixes} == {
        "json", "jsonl", "csv", "tsv", "markdown", "html",
    }  # fmt: skip


@pytest.mark.parametrize("path", ["report", "report.txt", "json", "a.json/b"])
def test_a_name_that_stands_for_no_format_is_a_usage_error(path: str) -> None:
    with pytest.raises(UsageError, match="no report format"):
        format_of(path)


def test_an_unknown_format_is_a_usage_error_that_lists_them() -> None:
    with pytest.raises(UsageError, match="csv, html, json, jsonl, markdown, table, tsv"):
        open_sink(io.StringIO(), "xml", report())


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "tsv", "markdown", "table"])
def test_a_report_without_layers_can_be_written(form: str) -> None:
    assert text(report(), form)
    assert text(Report("analyze"), form) or form in ("table", "markdown")


# -------------------------------------------------------------------------------------------------------------- JSON


def test_json_has_the_keys_of_the_contract() -> None:
    found = json.loads(text(report(layer(results={"circulant": spectrum([2, 1]), "bounds": bounds()})), "json"))
    assert list(found)[:6] == ["schema", "version", "command", "settings", "partial", "checkpoints"]
    checkpoint = found["checkpoints"][0]
    assert list(checkpoint) == ["path", "format", "sha256", "problems", "layers"]
    first = checkpoint["layers"][0]
    assert {"name", "weight", "kind", "shape", "dtype", "geometry", "norm", "norm_at_size", "results"} <= first.keys()
    assert first["norm"]["lower"] == 2.0188123
    assert first["norm"]["assumes"] == {"lower": ["stride"], "upper": []}
    assert first["geometry"]["padding"] == [[1, 1], [1, 1]]
    assert first["geometry"]["origin"]["size"] == "stored"
    assert first["results"]["circulant"]["quantiles"]["0.5"] == 1.5
    assert first["results"]["bounds"]["singla2021"]["ratio"] == 1.5466


def test_json_has_values_only_when_asked() -> None:
    found = report(layer(results={"circulant": spectrum([3, 2, 1])}))
    plain, whole = (json.loads(text(found, "json", values=values)) for values in (False, True))
    assert "values" not in plain["checkpoints"][0]["layers"][0]["results"]["circulant"]
    assert whole["checkpoints"][0]["layers"][0]["results"]["circulant"]["values"] == [3, 2, 1]


def test_json_has_the_histogram_and_how_wrong_quantiles_may_be_and_csv_the_latter() -> None:
    counted = spectrum([3.0, 1.0], histogram=Histogram(4.0, (0, 1, 0, 1)), quantile_error=1e-6)
    leading = spectrum([3.0], kind="leading", quantiles={}, histogram=None)
    found = report(layer(results={"circulant": counted, "exact": leading}), methods=("circulant", "exact"))
    whole = json.loads(text(found, "json"))["checkpoints"][0]["layers"][0]["results"]
    line = json.loads(text(found, "jsonl").splitlines()[0])["results"]
    for results in (whole, line):
        assert results["circulant"]["histogram"] == {"top": 4.0, "counts": [0, 1, 0, 1]}
        assert results["circulant"]["quantile_error"] == 1e-6
        assert not {"histogram", "quantile_error"} & set(results["exact"])
    (row,) = csv_rows(found)
    assert row["results_circulant_quantile_error"] == "1e-06"
    assert row["results_exact_quantile_error"] == ""
    assert not [name for name in row if "histogram" in name]


def test_what_is_not_finite_is_null_with_a_note() -> None:
    loose = layer(
        norm=Interval(0.0, math.inf), results={"bounds": {"b": Bound("b", math.nan, "upper", "x", "estimate")}}
    )
    first = json.loads(text(report(loose), "json"))["checkpoints"][0]["layers"][0]
    assert first["norm"]["upper"] is None
    assert first["norm"]["width"] is None
    assert first["results"]["bounds"]["b"]["value"] is None
    assert "norm.upper is not finite (inf): null" in first["notes"]
    assert "results.bounds.b.value is not finite (nan): null" in first["notes"]


def test_json_lines_are_a_layer_each_and_a_summary() -> None:
    *rows, last = map(json.loads, text(report(layer("a"), layer("b")), "jsonl").splitlines())
    assert [row["name"] for row in rows] == ["a", "b"]
    assert rows[0]["checkpoint"] == {"path": "model.pt", "format": "pytorch", "sha256": "ab" * 32}
    assert last["summary"]["layers"] == 2
    assert last["summary"]["checkpoints"][0]["problems"] == ["conv9: quantised"]
    assert last["summary"]["partial"] is False


def test_json_lines_appear_as_layers_are_finished() -> None:
    out = io.StringIO()
    sink = open_sink(out, "jsonl", report())
    sink.layer(CheckpointReport("m", "pytorch"), layer("first"))
    assert json.loads(out.getvalue())["name"] == "first"


def test_an_interrupted_report_says_so_everywhere() -> None:
    partial = replace(report(layer()), partial=True)
    assert json.loads(text(partial, "json"))["partial"] is True
    assert json.loads(text(partial, "jsonl").splitlines()[-1])["summary"]["partial"] is True
    assert "interrupted" in text(partial, "table")
    assert "interrupted" in text(partial, "markdown")


# --------------------------------------------------------------------------------------------------------- CSV and TSV


def test_csv_columns_are_json_keys_joined() -> None:
    found = report(layer(results={"circulant": spectrum([2.0, 0.1])}), methods=("circulant",))
    (row,) = csv_rows(found)
    assert (row["norm_lower"], row["norm_upper"], row["norm_assumes_lower"]) == ("2.0188123", "2.0194987", "stride")
    assert (row["shape"], row["geometry_padding"], row["geometry_stride"]) == ("64x32x3x3", "1:1x1:1", "1x1")
    assert (row["geometry_transposed"], row["norm_at_size_upper"]) == ("false", "")
    assert row["results_circulant_max"] == "2.0"
    assert float(row["results_circulant_quantiles_0.5"]) == 1.05
    assert row["checkpoint_path"] == "model.pt"
    assert tsv_rows(found) == [row]


def test_every_digit_survives() -> None:
    value = 0.1 + 0.2
    assert json.loads(text(report(layer(norm=Interval(value, value))), "json"))["checkpoints"][0]["layers"][0]["norm"][
        "lower"
    ] == value  # fmt: skip
    assert float(csv_rows(report(layer(norm=Interval(value, value))))[0]["norm_lower"]) == value


def test_bounds_are_a_row_a_layer_and_bound() -> None:
    found = report(
        layer("a", results={"bounds": bounds()}), layer("b", unavailable={"bounds": "NaN"}), command="bounds"
    )
    rows = csv_rows(found)
    assert [(row["name"], row["bound"], row["value"]) for row in rows] == [
        ("a", "singla2021", "3.123456789"),
        ("a", "araujo2021", "2.523456789"),
        ("a", "miyato2018", "1.512345678"),
        ("a", "grishina2024", "2.223456789"),
        ("b", "", ""),
    ]
    assert {row["norm_upper"] for row in rows} == {"2.0194987"}
    assert rows[4]["unavailable"] == "bounds: NaN"


def test_bounds_beside_other_results_are_columns() -> None:
    few = {"singla2021": bounds()["singla2021"]}
    found = report(layer("a", results={"bounds": few}), layer("b", results={"bounds": bounds()}), methods=("bounds",))
    rows = csv_rows(found)
    assert rows[0]["results_bounds_singla2021_value"] == rows[1]["results_bounds_singla2021_value"] == "3.123456789"
    assert (rows[0]["results_bounds_miyato2018_side"], rows[1]["results_bounds_miyato2018_side"]) == ("", "lower")


def test_rows_stream_once_their_columns_are_known() -> None:
    out = io.StringIO()
    sink = open_sink(out, "tsv", report(methods=("circulant",)))
    where = CheckpointReport("m", "pytorch")
    sink.layer(where, layer("a", unavailable={"circulant": "stride"}))
    assert out.getvalue() == ""
    sink.layer(where, layer("b", results={"circulant": spectrum([1.0])}))
    assert len(out.getvalue().splitlines()) == 3
    sink.layer(where, layer("c", unavailable={"circulant": "stride"}))
    assert len(out.getvalue().splitlines()) == 4


def test_a_key_that_comes_late_is_not_lost() -> None:
    odd = spectrum([3.0, 1.0], quantiles={"0.3": 7.5})
    found = report(
        layer("a", results={"circulant": spectrum([1.0])}),
        layer("b", results={"circulant": odd}),
        methods=("circulant",),
    )
    assert csv_rows(found)[1]["notes"] == "results_circulant_quantiles_0.3=7.5"


def test_every_fact_of_geometry_has_a_column_and_an_origin() -> None:
    found = columns(report(command="layers"))
    assert {f"geometry_{name}" for name in FIELDS} <= set(found)
    assert {f"geometry_origin_{name}" for name in FIELDS} <= set(found)


def test_layers_have_no_columns_of_results() -> None:
    (row,) = csv_rows(report(layer(norm=None), command="layers"))
    assert not [name for name in row if name.startswith(("norm", "results"))]
    assert row["geometry_origin_stride"] == "assumed"


# ------------------------------------------------------------------------------------------------------- hostile names


@names
def test_csv_gives_every_name_back(name: str) -> None:
    found = report(layer(name))
    written = text(found, "csv")
    assert written.encode("utf-8").decode("utf-8") == written
    (row,) = csv.DictReader(io.StringIO(written, newline=""))
    assert from_csv(row["name"]) == name
    assert from_csv(row["weight"]) == f"{name}.weight"


@names
def test_tsv_is_one_line_a_row_and_gives_every_name_back(name: str) -> None:
    found = report(layer(name))
    written = text(found, "tsv")
    assert len(written.splitlines()) == 2
    assert from_tsv(tsv_rows(found)[0]["name"]) == name


@names
def test_json_gives_every_name_back(name: str) -> None:
    written = text(report(layer(name)), "json")
    assert written.isascii()
    assert "\x7f" not in written
    assert json.loads(written)["checkpoints"][0]["layers"][0]["name"] == name
    assert json.loads(text(report(layer(name)), "jsonl").splitlines()[0])["name"] == name


plain_text = st.text(st.characters(max_codepoint=0xD7FF))
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain_text
json_values = st.recursive(values, lambda inner: st.lists(inner) | st.dictionaries(plain_text, inner))


@given(json_values, st.sampled_from([0, 2]))
@example(["\x7f\x1b[31m\u2028é", 2**200, -0.0, 5e-324], 0)
@example({"ascii alone": [2**200, -0.0, 5e-324, 1e22, 0.1 + 0.2, "\x00\x7f"]}, 2)
def test_json_reads_back_equal_to_the_last_bit_and_is_harmless_ascii(value: object, indent: int) -> None:
    written = _json(value, indent)
    assert repr(json.loads(written)) == repr(value)
    assert re.fullmatch("[ -~\n]*" if indent else "[ -~]*\n", written)


@pytest.mark.parametrize("name", ["conv", "cönv"])
def test_json_is_laid_out_alike_whatever_the_names(name: str) -> None:
    value = {name: [1, 2.5, {"a": [], "b": {}, "c": [None, True]}], "d": "e, f: g"}
    assert _json(value) == json.dumps(value) + "\n"
    assert _json(value, 2) == json.dumps(value, indent=2) + "\n"


@names
def test_no_cell_is_a_spreadsheet_formula(name: str) -> None:
    found = report(layer(name))
    for row in (*csv_rows(found), *tsv_rows(found)):
        for column, cell in row.items():
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")), (column, cell)


def test_numbers_are_never_guarded() -> None:
    (row,) = csv_rows(report(layer(norm=Interval(-0.5, 1e-7))))
    assert (row["norm_lower"], row["norm_upper"]) == ("-0.5", "1e-07")


@given(anything)
def test_any_text_survives_csv_and_tsv(given_text: str) -> None:
    out = io.StringIO(newline="")
    write_report(report(layer(given_text)), out, "csv")
    out.getvalue().encode("utf-8")
    (row,) = csv.DictReader(io.StringIO(out.getvalue(), newline=""))
    cell = row["name"]
    assert from_csv(cell) == given_text
    assert from_tsv(to_tsv(given_text)) == given_text
    assert len(to_tsv(given_text).splitlines()) <= 1


@given(anything)
def test_visible_text_cannot_steer_a_terminal(given_text: str) -> None:
    shown = visible(given_text)
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert len(shown.splitlines()) <= 1


@names
def test_csv_on_a_terminal_is_escaped(name: str) -> None:
    shown = text(report(layer(name)), "csv", terminal=True)
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2


@names
def test_markdown_rows_stay_rows_without_html(name: str) -> None:
    hostile = replace(report(layer(name, unavailable={"norm": name})).checkpoints[0], path=f"{name}.pt")
    lines = text(Report("analyze", {"norm": True}, (hostile,)), "markdown").split("\n")
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) == 3
    assert len({len(line.replace("\\|", "").split("|")) for line in tables}) == 1
    outside = [part for line in lines for part in _outside_code(line)]
    assert not [part for part in outside if "<script" in part.replace("\\<", "")]


def _outside_code(line: str) -> list[str]:
    """Return the parts of a Markdown line that are not in code spans, by the rule of equal runs of backticks."""
    parts, rest = [], line
    while "`" in rest:
        before, _, rest = rest.partition("`")
        fence = "`" * (1 + len(rest) - len(rest.lstrip("`")))
        _, found, rest = rest[len(fence) - 1 :].partition(fence)
        parts.append(before)
        if not found:
            break
    return [*parts, rest]


def test_a_code_span_holds_backticks() -> None:
    assert code_span("a``b`c") == "``` a``b`c ```"


# ------------------------------------------------------------------------------------------------- sorting, summaries


def named(found: Report) -> list[str]:
    return [each.name for each in found.checkpoints[0].layers]


def test_numbers_sort_from_the_largest_and_what_is_missing_comes_last() -> None:
    found = report(layer("a", norm=None), layer("b", norm=Interval(1, 2)), layer("c", norm=Interval(2, 3)))
    assert named(sort_report(found, sort_column(found, "norm_upper"))) == ["c", "b", "a"]
    assert named(sort_report(found, sort_column(found, "name"))) == ["a", "b", "c"]


def test_sizes_sort_as_numbers() -> None:
    found = report(
        layer("a", geometry=geometry(8)), layer("b", geometry=geometry(112)), layer("c", geometry=geometry(56))
    )
    assert named(sort_report(found, sort_column(found, "size"))) == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("wanted", "column"),
    [
        ("norm_upper", "norm_upper"),
        ("norm", "norm_upper"),
        ("width", "norm_width"),
        ("layer", "name"),
        ("stride", "geometry_stride"),
        ("max", "results_circulant_max"),
        ("norm at size", "norm_at_size_upper"),
    ],
)
def test_a_column_may_be_named_as_the_table_names_it(wanted: str, column: str) -> None:
    assert sort_column(report(methods=("circulant",)), wanted) == column


def test_an_unknown_column_is_a_usage_error_that_lists_them() -> None:
    with pytest.raises(UsageError, match="norm_lower, norm_upper"):
        sort_column(report(), "loudness")


def test_bounds_sort_within_each_layer() -> None:
    found = report(layer("a", results={"bounds": bounds()}), command="bounds")
    rows = csv_rows(sort_report(found, sort_column(found, "ratio")))
    assert [row["bound"] for row in rows] == ["singla2021", "araujo2021", "grishina2024", "miyato2018"]


def test_every_sortable_column_exists() -> None:
    for command in ("layers", "analyze", "circulant", "bounds"):
        found = report(layer(results={"bounds": bounds()}), command=command)
        for column in columns(found):
            assert len(sort_report(found, sort_column(found, column)).checkpoints[0].layers) == 1


def test_the_summary_of_bounds_counts_what_is_tightest() -> None:
    second = {**bounds(), "singla2021": Bound("singla2021", 2.1, "upper", "any size", "certified", 1.05, 1.0)}
    found = report(layer("a", results={"bounds": bounds()}), layer("b", results={"bounds": second}), command="bounds")
    rows = {row.bound: row for row in summarise(found)}
    assert list(rows) == ["grishina2024", "araujo2021", "singla2021", "miyato2018"]
    singla = rows["singla2021"]
    assert (singla.layers, singla.tightest, singla.worst_ratio) == (2, 1, 1.5466)
    assert singla.median_ratio == pytest.approx((1.5466 + 1.05) / 2)
    assert singla.seconds == pytest.approx(1.0123)
    assert (rows["araujo2021"].tightest, rows["miyato2018"].tightest) == (1, 2)
    assert rows["miyato2018"].worst_ratio == 0.7491
    assert rows["grishina2024"].tightest is None
    assert singla.of == "any size"


def test_a_bound_of_another_operator_does_not_compete() -> None:
    def at(size: str, value: float) -> dict[str, Bound]:
        return {**bounds(), "d": Bound("d", value, "upper", f"circular {size}", "certified", 0.99)}

    found = report(layer("a", results={"bounds": at("32x32", 2.0)}), layer("b", results={"bounds": at("16x16", 1.9)}))
    rows = {row.bound: row for row in summarise(found)}
    assert (rows["d"].of, rows["d"].tightest) == ("circular, each at its size", None)
    assert rows["araujo2021"].tightest == 2


def test_the_summary_is_a_row_a_bound_in_every_format() -> None:
    found = report(layer("a", results={"bounds": bounds()}), command="bounds")
    assert [row["bound"] for row in csv_rows(found, summary=True)] == [row.bound for row in summarise(found)]
    assert len(tsv_rows(found, summary=True)) == 4
    assert json.loads(text(found, "json", summary=True))["summary"]["bounds"][0]["bound"] == "grishina2024"
    assert len(json.loads(text(found, "jsonl", summary=True).splitlines()[-1])["summary"]["bounds"]) == 4
    assert text(found, "markdown", summary=True).count("\n| ") == 5


def test_a_layer_report_without_anything_is_a_row() -> None:
    bare = LayerReport("n", "n.weight", "conv1d", (4, 2, 3), "float16", geometry())
    assert csv_rows(report(bare))[0]["norm_lower"] == ""

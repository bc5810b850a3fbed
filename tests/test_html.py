"""The HTML page: what it holds, that it is harmless, and that it works in a real browser."""

from __future__ import annotations

import html
import io
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import convsv.reports
from browser import CHROMIUM, visit
from convsv.cli import app
from convsv.reports import Style, write_report
from convsv.reports._text import visible
from convsv.reports.html import command_line
from convsv.results import CheckpointReport, Histogram, Interval, LayerReport, Report, Spectrum
from reportcases import HOSTILE_NAMES, bounds, clipping, geometry, layer, report, spectrum

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")

SCHEMA = json.loads((Path(convsv.reports.__file__).parent / "report.schema.json").read_text(encoding="utf-8"))


def whole_spectrum(largest: float, **changes: object) -> Spectrum:
    counts = tuple(range(64, 0, -1))
    return spectrum([largest, largest / 2, largest / 9], histogram=Histogram(largest, counts), **changes)


def full_layer(name: str, largest: float = 2.0, **changes: object) -> LayerReport:
    facts = {
        "norm": Interval(largest, largest * 1.001),
        "results": {"circulant": whole_spectrum(largest), "bounds": bounds()},
    }
    return layer(name, **{**facts, **changes})


def page_of(found: Report, **style: object) -> str:
    out = io.StringIO()
    write_report(found, out, "html", Style(**style))  # type: ignore[arg-type]
    return out.getvalue()


def several(*norms: float, **settings: object) -> Report:
    layers = (full_layer(f"layer{number}.conv", norm) for number, norm in enumerate(norms))
    return report(*layers, methods=("circulant", "bounds"), **settings)


def data_in(page: str) -> Any:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


class _Outline(HTMLParser):
    """Elements and attributes of a page, as a parser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


# ------------------------------------------------------------------------------------------------------------ contents


def test_the_page_holds_the_whole_report_and_it_fits_the_schema() -> None:
    held = data_in(page_of(several(2.0, 3.0)))
    jsonschema.validate(held, SCHEMA)
    assert [one["norm"]["lower"] for one in held["checkpoints"][0]["layers"]] == [2.0, 3.0]


def test_nothing_is_loaded_from_anywhere() -> None:
    page = page_of(several(2.0))
    outline = _Outline(page)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(outline.tags)
    assert not {"src", "href", "style", "srcset", "action"} & {name for name, _ in outline.attributes}
    assert not {name for name, _ in outline.attributes if name.startswith("on")}
    without_names = page.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in without_names.replace("http-equiv", "")
    assert "@import" not in page
    assert "url(" not in page


def test_the_policy_names_the_only_style_and_script() -> None:
    page = page_of(several(2.0))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[1]
    assert policy[1].count("sha256-") == 2


def test_the_same_report_gives_the_same_page() -> None:
    assert page_of(several(2.0)) == page_of(several(2.0))


def test_table_and_words_are_those_of_the_terminal() -> None:
    page = _Outline(page_of(several(2.0188123))).text
    assert "[2.0188, 2.0209]" in page
    assert "Certified: proved to lie between the two numbers, rounding errors included" in page


def test_what_was_assumed_is_listed() -> None:
    assert "stride: of 2 of 2 layers" in _Outline(page_of(several(2.0, 3.0))).text
    known = replace(geometry(stride=1), origin={})
    assert "Nothing: the geometry of every layer is known" in page_of(report(full_layer("a", geometry=known)))


def test_several_checkpoints_share_a_table_that_names_them() -> None:
    one = several(2.0)
    two = replace(one, checkpoints=(*one.checkpoints, replace(one.checkpoints[0], path="dir/other.pt")))
    page = page_of(two)
    assert page.count('<tr class="layer"') == 2
    assert "<td>other.pt</td>" in page
    assert [int(number) for number in re.findall(r'data-layer="(\d+)"', page)] == [0, 1]


def test_a_checkpoint_that_could_not_be_read_has_its_card_and_its_reason() -> None:
    found = Report("report", {"methods": ()}, (CheckpointReport("broken.pt", "", problems=("broken.pt: is a <lie>",)),))
    page = page_of(found)
    assert "could not be read" in page
    assert "is a &lt;lie&gt;" in page
    assert "No convolutions." in page


def test_an_interrupted_run_says_so() -> None:
    assert "Interrupted" in page_of(replace(several(2.0), partial=True))
    assert "Interrupted" not in page_of(several(2.0))


@pytest.mark.parametrize("command", ["layers", "analyze", "bounds", "circulant", "report", "clip"])
def test_every_verb_that_reports_on_layers_has_a_page(command: str) -> None:
    found = report(
        full_layer("a", clip=clipping()), full_layer("b", norm=None), command=command, methods=("circulant",)
    )
    page = page_of(found)
    assert page.count('<tr class="layer"') == 2
    assert data_in(page)["command"] == command


def test_the_summary_of_the_bounds_stands_on_the_page() -> None:
    page = page_of(several(2.0, command="bounds"), summary=True)
    assert "Bounds over all layers" in page
    assert "singla2021" in page


def test_fifty_layers_take_less_than_two_megabytes() -> None:
    many = bounds()
    many |= {f"{name}_{copy}": bound for name, bound in bounds().items() for copy in range(5)}
    results = {"circulant": whole_spectrum(2.0), "exact": whole_spectrum(1.9), "bounds": many}
    found = report(*(full_layer(f"layer{n}.block.conv", results=results) for n in range(50)), methods=tuple(results))
    assert len(page_of(found).encode()) < 2_000_000


# -------------------------------------------------------------------------------------------------------- command line


def test_the_command_line_is_one_that_the_program_takes(tmp_path: Path) -> None:
    path = tmp_path / "my model.safetensors"
    save_file({"a.weight": np.ones((2, 2, 3, 3), np.float32)}, path)
    target = tmp_path / "first.json"
    options = [
        "--method",
        "circulant",
        "--size",
        "8x6",
        "--tol",
        "0.01",
        "--include",
        "a*",
        "--padding-mode",
        "circular",
    ]
    assert CliRunner().invoke(app, ["analyze", str(path), *options, "-o", str(target)]).exit_code == 0
    first = json.loads(target.read_text())
    found = Report("analyze", first["settings"], (CheckpointReport(str(path), "safetensors"),))
    program, *arguments = shlex.split(command_line(found))
    assert program == "convsv"
    again = tmp_path / "again.json"
    assert CliRunner().invoke(app, [*arguments, "-o", str(again)]).exit_code == 0
    assert json.loads(again.read_text())["checkpoints"] == first["checkpoints"]


@pytest.mark.parametrize("path", ["a b.pt", "$(touch x).pt", "it's.pt", "-o", ";rm", "*.pt"])
def test_a_path_in_the_command_line_is_one_word(path: str) -> None:
    found = Report("analyze", {}, (CheckpointReport(path, "pytorch"),))
    words = shlex.split(command_line(found))
    assert words == ["convsv", "analyze", f"./{path}" if path.startswith("-") else path]


# ------------------------------------------------------------------------------------------------------- hostile names

BREAKOUTS = {
    "script end": "</script><script>alert(1)</script>",
    "comment": "<!-- <script>",
    "title end": "</title><img src=x onerror=alert(1)>",
    "attribute": '" onmouseover="alert(1)" x="',
    "apostrophe": "' onclick='alert(1)",
    "entity": "&lt;b&gt; &amp;amp;",
    "line separators": "a\u2028b\u2029c",
    "template": "${alert(1)} {{7*7}} `x`",
    "style": "</style><style>*{display:none}",
}
STRANGE = {**HOSTILE_NAMES, **BREAKOUTS}


def hostile_report(name: str) -> Report:
    one = full_layer(name, unavailable={"exact": name or "odd", name: "odd"}, notes=(name,), folded=name)
    found = report(one, methods=("circulant", "exact"), include=[name], model=name or "-")
    return replace(found, checkpoints=(replace(found.checkpoints[0], path=name, problems=(name,)),))


@pytest.mark.parametrize("name", STRANGE.values(), ids=STRANGE.keys())
def test_a_hostile_name_adds_no_element_and_no_attribute(name: str) -> None:
    calm, strange = _Outline(page_of(hostile_report("calm"))), _Outline(page_of(hostile_report(name)))
    assert strange.tags == calm.tags
    assert [key for key, _ in strange.attributes] == [key for key, _ in calm.attributes]


@pytest.mark.parametrize("name", STRANGE.values(), ids=STRANGE.keys())
def test_a_hostile_name_is_kept_exactly_in_the_data_and_shown_without_hidden_characters(name: str) -> None:
    page = page_of(hostile_report(name))
    assert data_in(page)["checkpoints"][0]["layers"][0]["name"] == name
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", page)
    assert html.escape(visible(name), quote=True) in page


# ---------------------------------------------------------------------------------------------------- in a real browser

NAMES = '[...page.querySelectorAll("#layers tr.layer:not([hidden]) th .name")].map((item) => item.textContent)'
HEADING = """const headings = [...page.querySelectorAll("#layers thead button")];
    const heading = (title) => headings.find((button) => button.textContent === title);"""


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """Return a function that writes a report's page and runs a script in it; the browser must have no complaints."""

    def run(found: Report, script: str, width: int = 1200) -> Any:
        path = tmp_path / "page.html"
        path.write_bytes(page_of(found).encode("utf-8"))
        visited = visit(path, script, width=width)
        assert visited.console == []
        return visited.value

    return run


@needs_browser
def test_it_opens_without_a_complaint(opened: Any) -> None:
    assert opened(several(2.0, 3.0), "return page.documentElement.dataset.ready;") == "yes"


@needs_browser
def test_a_heading_sorts_in_both_directions_and_says_so(opened: Any) -> None:
    script = f"""{HEADING}
        const button = heading("norm"), found = [];
        for (const pressed of [button, button, heading("layer")]) {{
            press(pressed);
            found.push([button.closest("th").getAttribute("aria-sort"), {NAMES}]);
        }}
        return found;"""
    a, b, c = (f"layer{number}.conv" for number in range(3))
    assert opened(several(2.0, 10.0, 3.0), script) == [
        ["descending", [b, c, a]],
        ["ascending", [a, c, b]],
        ["none", [a, b, c]],
    ]


@needs_browser
def test_what_is_not_known_sorts_last_in_both_directions(opened: Any) -> None:
    found = report(full_layer("none", norm=None), full_layer("small", 1.0), full_layer("big", 5.0), methods=())
    script = f'{HEADING} const b = heading("norm"); press(b); const down = {NAMES}; press(b); return [down, {NAMES}];'
    assert opened(found, script) == [["big", "small", "none"], ["small", "big", "none"]]


@needs_browser
def test_names_sort_as_people_count(opened: Any) -> None:
    found = report(*(full_layer(f"conv{number}") for number in (10, 9, 1)), methods=())
    assert opened(found, f'{HEADING} press(heading("layer")); return {NAMES};') == ["conv1", "conv9", "conv10"]


@needs_browser
def test_the_filter_keeps_rows_that_hold_all_words_and_counts_them(opened: Any) -> None:
    script = f"""const box = page.getElementById("filter"); box.focus(); box.value = "LAYER1 64x32";
        box.dispatchEvent(new view.Event("input", {{ bubbles: true }}));
        return [{NAMES}, page.getElementById("count").textContent];"""
    assert opened(several(2.0, 3.0, 4.0), script) == [["layer1.conv"], "1 of 3 layers"]


@needs_browser
def test_a_layer_opens_its_figures_and_facts_and_closes_again(opened: Any) -> None:
    script = """const button = page.querySelectorAll("#layers tbody button")[1]; press(button);
        const detail = button.closest("tr").nextElementSibling;
        const seen = [button.getAttribute("aria-expanded"), detail.querySelectorAll("svg[role=img]").length,
            detail.querySelectorAll("svg rect.area").length, detail.textContent.includes("layer1.conv.weight")];
        press(button);
        return [...seen, button.getAttribute("aria-expanded"), page.querySelectorAll("tr.detail").length];"""
    assert opened(several(2.0, 3.0), script) == ["true", 3, 64, True, "false", 0]


@needs_browser
def test_an_opened_layer_stays_with_its_row_when_sorted_and_filtered(opened: Any) -> None:
    script = f"""{HEADING} press(page.querySelectorAll("#layers tbody button")[0]); press(heading("norm"));
        const detail = page.querySelector("tr.detail");
        const owner = detail.previousElementSibling.querySelector(".name").textContent;
        const box = page.getElementById("filter"); box.value = "layer1"; box.dispatchEvent(new view.Event("input"));
        return [owner, detail.hidden];"""
    assert opened(several(2.0, 3.0), script) == ["layer0.conv", True]


@needs_browser
def test_everything_that_acts_is_reached_by_the_keyboard(opened: Any) -> None:
    script = """const acting = [...page.querySelectorAll("#layers thead th, #layers tbody th")];
        return acting.every((cell) => { const b = cell.querySelector("button"); b.focus();
            return b.tabIndex === 0 && page.activeElement === b && b.type === "button"; });"""
    assert opened(several(2.0, 3.0), script) is True


@needs_browser
def test_on_a_phone_the_page_does_not_scroll_sideways(opened: Any) -> None:
    long = "a.very.long.name." * 12 + "conv"
    found = report(
        *(full_layer(f"{long}{n}", unavailable={"exact": "x" * 300}) for n in range(3)), methods=("circulant",)
    )
    found = replace(found, checkpoints=(replace(found.checkpoints[0], path="p" * 200 + ".pt", problems=("q" * 300,)),))
    script = """const open = [...page.querySelectorAll("#layers tbody button")]; open.forEach(press);
        page.querySelectorAll("details").forEach((item) => { item.open = true; });
        const widths = [...page.querySelectorAll(".panel")].map((item) => item.getBoundingClientRect().width);
        const widest = Math.max(...widths);
        return [page.documentElement.scrollWidth, view.innerWidth, widest];"""
    scrolled, width, widest = opened(found, script, width=390)
    assert (scrolled, width) == (390, 390)
    assert widest <= 390


@needs_browser
def test_hostile_names_run_nothing_and_are_shown_as_text(opened: Any) -> None:
    layers = [
        full_layer(name, unavailable={name: name}, notes=(name,), folded=name, weight=name) for name in STRANGE.values()
    ]
    found = report(*layers, methods=("circulant", "bounds"))
    found = replace(found, checkpoints=(replace(found.checkpoints[0], path=BREAKOUTS["title end"]),))
    script = f"""view.alert = () => {{ view.attacked = true; }};
        [...page.querySelectorAll("#layers tbody button")].forEach(press);
        const hidden = /[\\p{{Cc}}\\p{{Cf}}\\p{{Cs}}\\p{{Zl}}\\p{{Zp}}]/u;
        const facts = [...page.querySelectorAll(".panel, tr.layer")].map((item) => item.textContent);
        return [view.attacked === true, page.querySelectorAll("img, iframe, .panel script").length,
            facts.filter((text) => hidden.test(text)).length, {NAMES}.length, page.title];"""
    title = f"{Path(BREAKOUTS['title end']).name} · convsv"
    assert opened(found, script) == [False, 0, 0, len(STRANGE), title]


@needs_browser
def test_without_a_histogram_or_a_norm_figures_are_left_out(opened: Any) -> None:
    plain = full_layer("a", norm=None, results={"circulant": spectrum([2.0, 1.0]), "bounds": bounds()})
    leading = full_layer("b", results={"exact": spectrum([2.0, 1.0], kind="leading", quantiles={})})
    zero = full_layer("c", norm=Interval(0.0, 0.0), results={"circulant": spectrum([2.0, 1.0], max=0.0, min=0.0)})
    script = """[...page.querySelectorAll("#layers tbody button")].forEach(press);
        return [...page.querySelectorAll(".panel")].map((panel) => panel.querySelectorAll("svg").length);"""
    assert opened(report(plain, leading, zero, methods=("circulant",)), script) == [1, 0, 0]


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.safetensors"
    save_file({f"{name}.weight": np.ones((4, 3, 3, 3), np.float32) for name in "ab"}, path)
    return str(path)


def test_report_writes_a_page_and_nothing_to_standard_output(model: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", model, "--size", "8", "-o", str(tmp_path / "x.html")])
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    held = data_in((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert [list(one["results"]) for one in held["checkpoints"][0]["layers"]] == [["circulant"]] * 2


@pytest.mark.parametrize("verb", ["analyze", "bounds", "circulant", "layers"])
def test_other_verbs_write_pages_too(verb: str, model: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [verb, model, "-o", str(tmp_path / "x.html")])
    assert done.exit_code == 0, done.output
    assert data_in((tmp_path / "x.html").read_text(encoding="utf-8"))["command"] == verb


def test_report_without_a_file_is_a_wrong_call(model: str) -> None:
    done = CliRunner().invoke(app, ["report", model])
    assert done.exit_code == 2
    assert "give -o FILE.html" in done.stderr


def test_report_of_a_broken_file_beside_a_good_one_has_both(model: str, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"nonsense")
    done = CliRunner().invoke(app, ["report", model, str(tmp_path / "broken.pt"), "-o", str(tmp_path / "x.html")])
    assert done.exit_code == 3
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert page.count('<li class="card">') == 2
    assert "could not be read" in page


@needs_browser
def test_a_real_page_opens(sample_checkpoints: Path, tmp_path: Path) -> None:
    target = tmp_path / "digits.html"
    arguments = ["report", str(sample_checkpoints / "digits.keras"), "--method", "circulant", "--method", "bounds"]
    assert CliRunner().invoke(app, [*arguments, "-o", str(target)]).exit_code == 0
    script = """[...page.querySelectorAll("#layers tbody button")].forEach(press);
        return [page.querySelectorAll(".panel").length, page.querySelectorAll(".panel svg").length];"""
    visited = visit(target, script)
    assert visited.console == []
    assert visited.value == [8, 24]


@needs_browser
def test_a_gate_with_several_limits_has_a_row_a_limit_and_each_opens_its_layer(model: str, tmp_path: Path) -> None:
    target = tmp_path / "check.html"
    arguments = ["check", model, "--max-norm", "1e9", "--max-product", "1e9", "--size", "8", "--quiet"]
    assert CliRunner().invoke(app, [*arguments, "-o", str(target)]).exit_code == 0
    script = f"""{HEADING} const rows = [...page.querySelectorAll("#layers tr.layer")];
        const last = rows[rows.length - 1];
        press(rows[1].querySelector("button")); press(heading("layer")); press(heading("layer"));
        const detail = page.querySelector("tr.detail");
        return [{NAMES}, last.querySelectorAll("button").length, detail.previousElementSibling === rows[1],
            detail.textContent.includes("b.weight"), page.getElementById("count").textContent];"""
    visited = visit(target, script)
    assert visited.console == []
    assert visited.value == [["b", "all layers", "a"], 0, True, True, "3 of 3 rows"]


def test_a_comparison_shows_its_changes(model: str, tmp_path: Path) -> None:
    other, target = tmp_path / "other.safetensors", tmp_path / "compare.html"
    save_file({f"{name}.weight": np.full((4, 3, 3, 3), 2, np.float32) for name in "ac"}, other)
    arguments = ["compare", model, str(other), "--size", "8", "--quiet", "-o", str(target)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    outline = _Outline(target.read_text(encoding="utf-8"))
    assert "Changes" in outline.text
    assert "added" in outline.text
    assert "removed" in outline.text

"""Figures: what they show, that names in them are harmless, and that the same data give the same bytes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from convsv.cli import app
from convsv.cli._plot import _methods
from convsv.cli.plot import Kind, Pictures, Theme
from convsv.errors import UnavailableError, UsageError
from convsv.reports._drawing import PictureData, Surface
from convsv.reports._drawing.canvas import brief
from convsv.reports._drawing.curves import curve_of, operators
from convsv.reports.figures import KINDS, THEMES, FigureStyle, format_of_figure, render
from convsv.results import CheckpointReport, Interval, LayerReport
from reportcases import HOSTILE_NAMES, bounds, geometry, layer, spectrum

pytest.importorskip("matplotlib", reason="needs the extra convsv[plot]")

REPOSITORY = Path(__file__).resolve().parent.parent
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
SIGNATURES = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF-"}


def full_layer(name: str = "conv1", norm: float = 2.0, **changes: object) -> LayerReport:
    values = np.geomspace(norm, norm / 1000, 500)
    facts = {"norm": Interval(norm, norm * 1.001), "results": {"circulant": spectrum(list(values)), "bounds": bounds()}}
    return layer(name, **{**facts, **changes})


def collected(*layers: LayerReport, path: str = "model.pt", torus: bool = False) -> PictureData:
    data = PictureData(("circulant",))
    for one in layers:
        data.add(CheckpointReport(path, "pytorch"), one)
        if torus:
            turns = np.linspace(-np.pi, np.pi, 17)
            data.surfaces[path, one.weight] = Surface(2 + np.cos(turns)[:, None] * np.cos(turns), 2)
    return data


def data_for(kind: str, *names: str) -> PictureData:
    layers = [full_layer(name) for name in names or ("conv1",)]
    return collected(*layers[: 1 if kind == "torus" else None], torus=kind == "torus")


def drawn_texts(data: PictureData, kind: str, theme: str = "light") -> list[str]:
    """Return every text that matplotlib was given to draw, by drawing onto a figure that is looked at."""
    import matplotlib as mpl
    from matplotlib.text import Text

    seen: list[str] = []
    original: Callable[..., Any] = Text.draw

    def draw(text: Text, *args: Any, **options: Any) -> Any:
        if text.get_visible() and text.get_text():
            assert text.get_parse_math() is False
            seen.append(text.get_text())
        return original(text, *args, **options)

    with mpl.rc_context(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        render(data, FigureStyle(kind, theme), "png")
    return seen


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("form", SIGNATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_in_every_format_and_the_same_data_give_the_same_bytes(kind: str, form: str) -> None:
    first, second = (render(data_for(kind, "a", "b"), FigureStyle(kind), form) for _ in range(2))
    assert first.startswith(SIGNATURES[form])
    assert len(first) > 2000
    assert first == second


@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_no_date_is_in_a_figure(form: str) -> None:
    content = render(data_for("spectrum"), FigureStyle("spectrum"), form)
    assert not re.search(rb"CreationDate|ModDate|20\d\d-\d\d-\d\d", content)


def test_the_user_s_own_settings_change_nothing() -> None:
    import matplotlib as mpl

    plain = render(data_for("spectrum"), FigureStyle("spectrum"), "svg")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "text.parse_math": True, "lines.linewidth": 9}):
        before = dict(mpl.rcParams)
        assert render(data_for("spectrum"), FigureStyle("spectrum"), "svg") == plain
        assert dict(mpl.rcParams) == before


def test_themes_differ() -> None:
    light, dark = (render(data_for("spectrum"), FigureStyle("spectrum", theme), "svg") for theme in THEMES)
    assert b"#ffffff" in light
    assert b"#ffffff" not in dark


@pytest.mark.parametrize(("path", "form"), [("a.png", "png"), ("b.SVG", "svg"), ("c.x.pdf", "pdf")])
def test_the_suffix_decides(path: str, form: str) -> None:
    assert format_of_figure(path) == form


@pytest.mark.parametrize("path", ["a", "a.jpg", "a.json", "png"])
def test_other_suffixes_are_refused(path: str) -> None:
    with pytest.raises(UsageError, match=r"use \.png, \.svg or \.pdf"):
        format_of_figure(path)


# ------------------------------------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_says_the_operator_and_the_guarantee(kind: str) -> None:
    said = " ".join(drawn_texts(data_for(kind), kind))
    assert "certified" in said
    assert "circular 32x32" in said or "any size" in said


def test_what_was_assumed_is_said() -> None:
    assert any("assumed: size" in text for text in drawn_texts(data_for("spectrum"), "spectrum"))


def test_sizes_that_differ_are_not_all_named() -> None:
    assert operators(["circular 32x32", "circular 16x16"]) == "circular, each layer at its size"
    assert operators(["circular 8x8", "circular 8x8"]) == "circular 8x8"


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_few_layers_are_all_named(count: int) -> None:
    names = [f"conv{number}" for number in range(count)]
    assert set(names) <= set(drawn_texts(data_for("spectrum", *names), "spectrum"))


@pytest.mark.parametrize("kind", ["spectrum", "histogram", "intervals", "heatmap"])
def test_of_150_layers_some_are_named_and_no_more_than_can_be_read(kind: str) -> None:
    names = [f"layer.{number}" for number in range(150)]
    shown = set(drawn_texts(data_for(kind, *names), kind)) & set(names)
    assert 10 <= len(shown) <= 76


def test_layers_that_cannot_be_drawn_are_counted_with_their_reason() -> None:
    odd = layer("odd", unavailable={"circulant": "stride 2 does not divide size 7"})
    said = drawn_texts(collected(full_layer(), odd), "spectrum")
    assert any("1 not drawn: stride 2 does not divide size 7" in text for text in said)


def test_intervals_show_the_exact_norm_unasked_where_the_layer_runs() -> None:
    assert _methods(Pictures(kind=Kind.intervals)) == ("circulant", "exact", "bounds")
    assert _methods(Pictures(kind=Kind.intervals, method=["bounds"])) == ("bounds",)
    exact = replace(spectrum([1.9]), method="exact", of="zeros 8x8", kind="leading")
    data = PictureData(("circulant", "exact"))
    data.add(CheckpointReport("model.pt", "pytorch"), full_layer(results={"exact": exact}))
    assert "largest σ, exact: zeros 8x8" in drawn_texts(data, "intervals")


def test_an_interrupted_run_says_so() -> None:
    data = replace(data_for("spectrum"), partial=True)
    assert any("interrupted" in text for text in drawn_texts(data, "spectrum"))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_draw_is_an_error_and_no_empty_figure(kind: str) -> None:
    nothing = collected(
        layer("x", norm=None, unavailable={"norm": "3 weights are NaN", "circulant": "3 weights are NaN"})
    )
    with pytest.raises(UnavailableError, match="3 weights are NaN"):
        render(nothing, FigureStyle(kind), "png")


def test_layers_missing_in_a_checkpoint_leave_a_gap_in_the_heat_map() -> None:
    data = collected(full_layer("a"), path="one.pt")
    data.add(CheckpointReport("two.pt", "pytorch"), full_layer("b", norm=3.0))
    said = drawn_texts(data, "heatmap")
    assert {"one.pt", "two.pt", "a", "b", "hatched: no such layer, or no norm"} <= set(said)
    assert {"2.01", "3.01"} <= set(said)  # upper ends, rounded up
    assert {text for text in said if re.fullmatch(r"\d\.\d\d", text)} == {"2.01", "3.01"}


# --------------------------------------------------------------------------------------------------------- the numbers


def test_a_curve_runs_through_the_values_it_was_made_from() -> None:
    values = np.sort(np.random.default_rng(0).lognormal(size=10_000))[::-1]
    curve = curve_of("x", spectrum(list(values)))
    assert curve is not None
    ranks = np.round(curve.index * 9_999).astype(int)
    np.testing.assert_array_equal(curve.values, values[ranks])
    assert (curve.index[0], curve.index[-1]) == (0, 1)
    assert len(curve.index) < 500


def test_the_shares_of_a_histogram_are_those_of_the_values() -> None:
    values = np.sort(np.random.default_rng(1).lognormal(size=2_000))[::-1]
    curve = curve_of("x", spectrum(list(values)))
    assert curve is not None
    assert curve.shares.sum() == pytest.approx(1)
    for low, high, share in zip(curve.edges, curve.edges[1:], curve.shares, strict=False):
        assert share == pytest.approx(((values >= low) & (values < high)).mean(), abs=1e-12)


def test_bins_of_all_layers_lie_on_one_lattice() -> None:
    curves = [curve_of("x", spectrum([top, top / 37, top / 900])) for top in (0.031, 1.0, 77.7)]
    for curve in curves:
        assert curve is not None
        np.testing.assert_allclose(np.log10(curve.edges) * 10, np.round(np.log10(curve.edges) * 10), atol=1e-9)


def test_values_within_their_error_of_zero_are_not_drawn() -> None:
    curve = curve_of("x", spectrum([1.0, 0.5, 1e-13, 1e-14], error=1e-12))
    assert curve is not None
    assert list(curve.values) == [1.0, 0.5]


def test_a_spectrum_without_values_is_drawn_from_its_quantiles() -> None:
    curve = curve_of("x", spectrum([4.0, 3.0, 2.0, 1.0]).without_whole_values())
    assert curve is not None
    assert not curve.exact
    assert list(curve.index) == pytest.approx([0, 0.01, 0.5, 0.99, 1])
    assert curve.values[0] == 4.0
    assert curve.values[-1] == 1.0


@pytest.mark.parametrize("changes", [{"kind": "leading"}, {"max": 0.0}], ids=["leading", "zero"])
def test_what_is_no_whole_spectrum_is_no_curve(changes: dict[str, object]) -> None:
    assert curve_of("x", spectrum([2.0, 1.0], **changes)) is None


# ------------------------------------------------------------------------------------------------------- hostile names


MATHEMATICS = ["$x^2$", r"$\frac{", "a_b^{c}$$"]
STRANGE = [*HOSTILE_NAMES.values(), *MATHEMATICS]
TORUS_NAMES = [[HOSTILE_NAMES[what]] for what in ("ansi", "right to left", "lone surrogate")] + [[MATHEMATICS[1]]]


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_names_are_drawn_as_they_are_read(kind: str) -> None:
    groups = TORUS_NAMES if kind == "torus" else [STRANGE[at : at + 7] for at in range(0, len(STRANGE), 7)]
    for names in groups:
        texts = drawn_texts(data_for(kind, *names), kind)
        assert {brief(name, 50 if kind == "torus" else 30) for name in names} <= set(texts)
        assert not any(HIDDEN.search(text) for text in texts)


def test_a_hostile_name_leaves_the_svg_well_formed() -> None:
    content = render(data_for("spectrum", "<script>alert(1)</script>&\"'", "]]>"), FigureStyle("spectrum"), "svg")
    tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(content).iter()}
    assert "script" not in tags


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.safetensors"
    rng = np.random.default_rng(0)
    kernels = {f"{name}.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32) for name in "ab"}
    save_file(kernels, path)
    return str(path)


def plot(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plot", *arguments])


@pytest.mark.parametrize("kind", KINDS)
def test_plot_writes_every_figure_asked_for_and_nothing_to_standard_output(
    kind: str, model: str, tmp_path: Path
) -> None:
    files = [tmp_path / f"figure.{form}" for form in SIGNATURES]
    outputs = [word for file in files for word in ("-o", str(file))]
    done = plot(model, "--kind", kind, "--size", "8", "--include", "a" if kind == "torus" else "*", *outputs)
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert [file.read_bytes()[:5] for file in files] == [begin[:5] for begin in SIGNATURES.values()]


def test_the_torus_of_several_layers_is_a_wrong_option(model: str, tmp_path: Path) -> None:
    done = plot(model, "--kind", "torus", "-o", str(tmp_path / "x.png"))
    assert done.exit_code == 2
    assert "choose one with --include" in done.stderr
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "where to write the figure is missing"),
        (["-o", "x.gif"], "no figure format goes with this name"),
        (["-o", "x.png", "--kind", "heatmap", "--method", "circulant"], "leave --method out"),
        (["-o", "x.png", "--method", "bounds"], "does not draw this"),
        (["-o", "x.png", "--method", "nonsense"], "is not a method"),
        (["-o", "x.png", "-o", "./x.png"], "written twice"),
    ],
)
def test_wrong_options(
    arguments: list[str], said: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = plot(model, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_a_figure_never_takes_the_place_of_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.png"
    save_file({"a.weight": np.ones((2, 2, 3, 3), np.float32)}, path)
    before = path.read_bytes()
    assert plot(str(path), "-o", str(path)).exit_code == 2
    assert path.read_bytes() == before


def test_nothing_to_draw_is_no_figure_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    save_file({"a.weight": np.full((2, 2, 3, 3), np.nan, np.float32)}, path)
    done = plot(str(path), "-o", str(tmp_path / "x.png"))
    assert done.exit_code == 5
    assert "no spectrum to draw" in done.stderr
    assert not (tmp_path / "x.png").exists()


def test_an_unreadable_checkpoint_leaves_no_figure(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"nonsense")
    done = plot(str(tmp_path / "broken.pt"), "-o", str(tmp_path / "x.png"))
    assert done.exit_code == 3
    assert not (tmp_path / "x.png").exists()


def test_without_matplotlib_the_advice_comes_before_any_work(model: str, tmp_path: Path) -> None:
    program = "import sys; sys.modules['matplotlib'] = None; from convsv.__main__ import main; main()"
    command = [sys.executable, "-c", program, "plot", model, "-o", str(tmp_path / "x.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "convsv[plot]" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["plot", "--help"], ["report", "--help"]])
def test_help_imports_no_matplotlib(arguments: list[str]) -> None:
    program = f"""import sys
from convsv.cli import app
try: app({arguments!r})
except SystemExit: pass
assert not {{"matplotlib", "numpy", "torch"}} & set(sys.modules), sorted(sys.modules)"""
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)


SHOWN = re.findall(r"^\$ convsv (.+)$", (REPOSITORY / "docs" / "figures.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("norm", [0.0234, 2.34, 9.0, 12345.0])
def test_the_torus_keeps_clear_of_its_labels(norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    data = data_for("torus")
    data.surfaces = {key: Surface(found.values * norm / 3, 2) for key, found in data.surfaces.items()}
    seen: list[tuple[float, float]] = []
    original = Figure.savefig

    def save(figure: Figure, *args: Any, **options: Any) -> None:
        original(figure, *args, **options)
        box, headline = figure.axes[0].get_tightbbox(), figure.texts[0].get_window_extent()
        seen.append((box.y0, headline.y0 - box.y1))

    monkeypatch.setattr(Figure, "savefig", save)
    render(data, FigureStyle("torus"), "png")
    assert min(seen[0]) >= 0


@pytest.mark.parametrize("line", SHOWN)
def test_the_commands_of_the_documentation_make_their_figures(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    *arguments, figure = shlex.split(line)
    assert (REPOSITORY / figure).is_file(), "run `make docs`"
    target = tmp_path / Path(figure).name
    done = CliRunner().invoke(app, [*arguments, str(target)])
    assert done.exit_code == 0, done.output
    assert target.stat().st_size > 2000


def test_the_options_are_what_can_be_drawn() -> None:
    assert tuple(kind.value for kind in Kind) == KINDS
    assert tuple(theme.value for theme in Theme) == THEMES


# --------------------------------------------------------------------------------------------------------------- torus


@pytest.mark.parametrize(
    ("shape", "facts"),
    [
        ((5, 3, 7), {}),
        ((4, 3, 3, 3), {}),
        ((4, 3, 3, 3), {"stride": 2}),
        ((4, 3, 3, 3), {"dilation": 3}),
        ((4, 2, 3, 2), {"groups": 2}),
        ((2, 3, 3, 3, 3), {}),
    ],
    ids=["1-d", "2-d", "stride 2", "dilation 3", "2 groups", "3-d"],
)
def test_the_torus_holds_sigma_1_of_the_symbol(shape: tuple[int, ...], facts: dict[str, int]) -> None:
    import torch

    from convsv.api import layer_of, operator_norm
    from convsv.execution import Execution
    from convsv.geometry import GeometryFacts
    from convsv.spectra._torus import largest_on_torus
    from convsv.symbol import normal_form, symbol

    kernel = np.random.default_rng(3).normal(size=shape)
    known = GeometryFacts(size=12, **facts)  # type: ignore[arg-type]
    one = layer_of(kernel, known)
    values = largest_on_torus(one, Execution("cpu"))
    turns = np.linspace(-np.pi, np.pi, len(values))
    form = normal_form(torch.from_numpy(one.kernel()), one.geometry.stride, one.geometry.dilation)
    rng = np.random.default_rng(4)
    for _ in range(20):
        index = tuple(rng.integers(len(values), size=values.ndim))
        at = torch.tensor([[turns[place] * step for place, step in zip(index, form.dilation, strict=True)]])
        expected = torch.linalg.svdvals(symbol(form.kernel, at)).max()
        assert values[index] == pytest.approx(float(expected), rel=1e-10)
    norm = operator_norm(kernel, known)
    assert values.max() <= norm.upper * (1 + 1e-12)
    assert values.max() >= 0.97 * norm.lower


def test_a_nan_has_no_torus(tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    save_file({"a.weight": np.full((2, 2, 3, 3), np.nan, np.float32)}, path)
    done = plot(str(path), "--kind", "torus", "-o", str(tmp_path / "x.png"))
    assert done.exit_code == 5
    assert "NaN" in done.stderr


def test_the_geometry_of_the_torus_is_named() -> None:
    data = collected(replace(full_layer(), geometry=geometry()), torus=True)
    assert any("assumed: stride" in text for text in drawn_texts(data, "torus"))

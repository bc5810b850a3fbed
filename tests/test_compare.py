"""``convsv compare``: changes known by hand, distances against their definition, reports in the place of files."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from safetensors.numpy import save_file
from typer.testing import CliRunner

import reportcases
from convsv.cli import app
from convsv.cli.compare import Which
from convsv.comparison import EVENTS, parse_conditions, wasserstein
from convsv.errors import CorruptCheckpointError, UsageError
from convsv.report_file import looks_like_report, read_report
from convsv.reports import write_report
from convsv.results import Histogram, Spectrum
from convsv.spectra import SPECTRA
from reportcases import HOSTILE_NAMES, spectrum

Kernel = NDArray[np.float32]


def compare(*args: str | Path) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, args)])


def saved(path: Path, **kernels: Kernel) -> Path:
    save_file({f"{name}.weight": np.ascontiguousarray(kernel) for name, kernel in kernels.items()}, path)
    return path


def steps(result: Any) -> list[dict[str, dict[str, Any]]]:
    found = json.loads(result.stdout)["comparison"]["steps"]
    return [{layer["name"]: layer for layer in step["layers"]} for step in found]


def step(*args: str | Path) -> dict[str, dict[str, Any]]:
    result = compare(*args, "--format", "json")
    assert result.exit_code == 0, result.stderr
    (only,) = steps(result)
    return only


def report(path: Path, *args: str) -> Path:
    """Analyse a checkpoint into a report beside it."""
    target = path.with_suffix(".json")
    assert CliRunner().invoke(app, ["analyze", str(path), "-o", str(target), *args]).exit_code == 0
    return target


def kernel(*shape: int, seed: int = 0) -> Kernel:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    layers = {"same": kernel(4, 4, 3, 3), "grown": kernel(4, 4, 3, 3, seed=1), "gone": kernel(4, 4, 1, 1, seed=2)}
    return saved(tmp_path / "old.safetensors", **layers, shape=kernel(8, 4, 3, 3, seed=3))


@pytest.fixture
def new(tmp_path: Path) -> Path:
    layers = {"same": kernel(4, 4, 3, 3), "grown": 2 * kernel(4, 4, 3, 3, seed=1), "fresh": kernel(4, 4, 1, 1, seed=2)}
    return saved(tmp_path / "new.safetensors", **layers, shape=kernel(16, 4, 3, 3, seed=3))


# ------------------------------------------------------------------------------------------------------------- changes


def test_choices_are_methods() -> None:
    assert {which.value for which in Which} - {"none"} <= set(SPECTRA)


def test_layers_are_matched_by_name(old: Path, new: Path) -> None:
    found = step(old, new)
    assert {name: layer["status"] for name, layer in found.items()} == {
        "same": "same", "grown": "changed", "gone": "removed", "fresh": "added", "shape": "reshaped",
    }  # fmt: skip
    assert found["gone"]["new"] is None
    assert found["fresh"]["old"] is None


def test_doubled_layer_has_twice_the_norm_and_moved_by_itself(old: Path, new: Path) -> None:
    grown = step(old, new)["grown"]
    assert grown["trend"] == "increase"
    assert grown["ratio"]["lower"] <= 2 <= grown["ratio"]["upper"] < 2.01
    assert grown["kernel_distance"] == pytest.approx(1.0, rel=1e-12)
    shrunk = step(new, old)["grown"]
    assert shrunk["trend"] == "decrease"
    assert shrunk["ratio"]["lower"] <= 0.5 <= shrunk["ratio"]["upper"]
    assert shrunk["kernel_distance"] == pytest.approx(0.5, rel=1e-12)


def test_spectrum_distance_is_that_of_the_sorted_values(tmp_path: Path) -> None:
    before, after = kernel(3, 2, 3, 3), kernel(3, 2, 3, 3, seed=1)
    paths = [saved(tmp_path / f"{i}.safetensors", conv=each) for i, each in enumerate((before, after))]
    found = step(*paths, "--size", "5")["conv"]["spectrum"]
    # By definition: every value of one spectrum to the value of the same rank in the other.
    kernels = (np.float64(each) for each in (before, after))
    x, y = (np.sort(np.linalg.svd(np.fft.fft2(k, (5, 5)).transpose(2, 3, 0, 1))[1].ravel()) for k in kernels)
    assert found["wasserstein1"] == pytest.approx(np.mean(np.abs(x - y)) / x.max(), rel=1e-9)
    assert found["wasserstein2"] == pytest.approx(math.sqrt(np.mean((x - y) ** 2)) / x.max(), rel=1e-9)
    assert (found["old_of"], found["method"]) == ("circular 5x5", "circulant")
    assert found["error"] < 1e-12


def test_same_layer_is_not_computed_twice_and_has_no_distance(old: Path, new: Path) -> None:
    same = step(old, new)["same"]
    assert (same["kernel_distance"], same["spectrum"]["wasserstein1"], same["trend"]) == (0.0, 0.0, None)
    assert same["old"]["norm"] == same["new"]["norm"]


def test_norm_that_only_may_have_changed_has_no_trend(tmp_path: Path) -> None:
    before = kernel(4, 4, 3, 3)
    paths = [saved(tmp_path / f"{i}.safetensors", conv=before * (1 + i * 1e-5)) for i in range(2)]
    assert step(*paths)["conv"]["trend"] is None
    assert step(*paths, "--tol", "1e-7")["conv"]["trend"] == "increase"


def test_formats_with_other_axes_agree(sample_checkpoints: Path) -> None:
    found = step(sample_checkpoints / "digits.pt", sample_checkpoints / "digits.keras", "--method", "none")
    assert {layer["status"] for layer in found.values()} == {"same"}


def test_guess_against_a_fact_is_no_change_of_the_norm(sample_checkpoints: Path) -> None:
    # digits.pt tells no stride, digits.keras does: the same kernel, read with stride 1 and with stride 4.
    found = step(sample_checkpoints / "digits.pt", sample_checkpoints / "digits.keras", "--method", "none")
    assert found["down"]["trend"] is None
    assert found["down"]["ratio"] is None
    assert "stride" in found["down"]["unavailable"]["norm"]


def test_stated_stride_that_changed_is_a_fact_that_changed(tmp_path: Path) -> None:
    model, reports = saved(tmp_path / "m.safetensors", conv=kernel(4, 4, 3, 3)), []
    for stride in (1, 2):
        sidecar = tmp_path / f"{stride}.toml"
        sidecar.write_text(f'[layers."*"]\nstride = {stride}\ngroups = 1\n')
        reports.append(report(model, "--geometry", str(sidecar)).rename(tmp_path / f"{stride}.json"))
    found = step(*reports)["conv"]
    assert found["geometry"] == ["stride"]


def test_zero_layers(tmp_path: Path) -> None:
    nothing = saved(tmp_path / "0.safetensors", conv=np.zeros((2, 2, 3, 3), np.float32))
    something = saved(tmp_path / "1.safetensors", conv=kernel(2, 2, 3, 3))
    assert step(nothing, nothing)["conv"]["kernel_distance"] == 0.0
    found = step(nothing, something)["conv"]
    assert (found["kernel_distance"], found["trend"], found["spectrum"]) == (None, "increase", None)
    assert step(something, nothing)["conv"]["kernel_distance"] == 1.0


def test_spoilt_weights_are_unknown_and_the_others_compared(tmp_path: Path) -> None:
    bad = kernel(2, 2, 3, 3)
    bad[0, 0, 0, 0] = np.nan
    before = saved(tmp_path / "0.safetensors", bad=bad, good=kernel(2, 2, 3, 3))
    after = saved(tmp_path / "1.safetensors", bad=kernel(2, 2, 3, 3), good=kernel(2, 2, 3, 3))
    found = step(before, after)
    assert found["bad"]["status"] == "unknown"
    assert "NaN" in found["bad"]["unavailable"]["norm"]
    assert found["good"]["status"] == "same"


# ----------------------------------------------------------------------------------------------------- more than two


def test_several_checkpoints_give_a_trajectory(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"epoch{i}.safetensors", conv=kernel(4, 4, 3, 3) * (i + 1)) for i in range(3)]
    result = compare(*paths, "--format", "json")
    assert [found["conv"]["trend"] for found in steps(result)] == ["increase", "increase"]
    table = compare(*paths, "--format", "table").stdout
    header, row = (next(x for x in table.splitlines() if x.startswith(word)) for word in ("layer", "conv"))
    assert header.split()[1:4] == ["epoch0.safetensors", "epoch1.safetensors", "epoch2.safetensors"]
    numbers = [float(word.rstrip("?")) for word in row.split() if word.rstrip("?").replace(".", "").isdigit()]
    assert numbers[1] == pytest.approx(2 * numbers[0], rel=1e-3)
    assert numbers[2] == pytest.approx(3 * numbers[0], rel=1e-3)
    assert "▲" in row
    rows = compare(*paths, "--format", "tsv").stdout.splitlines()
    assert len(rows) == 3


def test_folder_of_checkpoints_is_a_series(tmp_path: Path) -> None:
    for index in range(3):
        saved(tmp_path / f"{index}.safetensors", conv=kernel(2, 2, 3, 3, seed=index))
    assert len(steps(compare(tmp_path, "--format", "json"))) == 2


# ------------------------------------------------------------------------------------------------------------- reports


@pytest.mark.parametrize("which", ["old", "new", "both"])
def test_report_stands_for_its_checkpoint(old: Path, new: Path, which: str) -> None:
    whole = step(old, new)
    before = report(old, "--method", "circulant") if which in ("old", "both") else old
    after = report(new, "--method", "circulant") if which in ("new", "both") else new
    found = step(before, after)
    assert found["grown"]["trend"] == "increase"
    assert found["grown"]["status"] == "changed"
    assert found["gone"]["status"] == "removed"
    assert found["shape"]["status"] == "reshaped"
    assert found["same"]["status"] == "unknown"
    assert found["grown"]["kernel_distance"] is None
    assert found["grown"]["unavailable"]["kernel_distance"] == "a report holds no kernels"
    near, exact = found["grown"]["spectrum"], whole["grown"]["spectrum"]
    for key in ("wasserstein1", "wasserstein2"):
        assert abs(near[key] - exact[key]) <= near["error"]
    assert near["error"] < 0.1


def test_report_with_values_is_as_good_as_the_checkpoint(old: Path, new: Path) -> None:
    exact = step(old, new)["grown"]["spectrum"]
    found = step(report(old, "--method", "circulant", "--values"), new)["grown"]["spectrum"]
    assert found["wasserstein1"] == pytest.approx(exact["wasserstein1"], rel=1e-12)
    assert found["error"] < 1e-12


def test_report_without_spectra_says_what_is_missing(old: Path, new: Path) -> None:
    found = step(report(old), new)["grown"]
    assert found["spectrum"] is None
    assert "--method circulant" in found["unavailable"]["circulant"]


def test_report_of_the_same_file_is_the_same(old: Path) -> None:
    assert {layer["status"] for layer in step(report(old), old, "--method", "none").values()} == {"same"}


def test_report_reads_back_as_it_was(old: Path) -> None:
    found = read_report(report(old, "--method", "circulant", "--method", "symbol_min"))
    whole = json.loads(old.with_suffix(".json").read_text())
    (checkpoint,) = found.checkpoints
    assert (checkpoint.sha256, found.command) == (whole["checkpoints"][0]["sha256"], "analyze")
    for layer, entry in zip(checkpoint.layers, whole["checkpoints"][0]["layers"], strict=True):
        assert layer.norm is not None
        assert layer.symbol_min is not None
        assert (layer.name, list(layer.shape), layer.norm.upper) == (
            entry["name"], entry["shape"], entry["norm"]["upper"],
        )  # fmt: skip
        assert layer.geometry.origin == entry["geometry"]["origin"]
        values = layer.results["circulant"]
        assert isinstance(values, Spectrum)
        assert values.max == entry["results"]["circulant"]["max"]


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
def test_every_name_survives_a_report(tmp_path: Path, name: str) -> None:
    page = io.StringIO()
    write_report(reportcases.report(reportcases.layer(name)), page, "json")
    path = tmp_path / "r.json"
    path.write_text(page.getvalue(), encoding="utf-8")
    assert read_report(path).checkpoints[0].layers[0].name == name


def spoilt(whole: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    place: Any = whole
    *most, last = path.split("/")
    for key in most:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", "convsv/2"),
        ("checkpoints", 3),
        ("checkpoints/0/path", 3),
        ("checkpoints/0/layers/0/name", None),
        ("checkpoints/0/layers/0/name", ["x"]),
        ("checkpoints/0/layers/0/norm/upper", "2"),
        ("checkpoints/0/layers/0/norm/guarantee", "sure"),
        ("checkpoints/0/layers/0/geometry/stride", [0, 1]),
        ("checkpoints/0/layers/0/geometry/padding_mode", "magic"),
        ("checkpoints/0/layers/0/shape", [1.5]),
        ("checkpoints/0/layers/0/results/circulant/max", "x"),
    ],
)
def test_report_that_is_not_whole_is_refused(old: Path, new: Path, path: str, value: object) -> None:
    target = report(old, "--method", "circulant")
    target.write_text(json.dumps(spoilt(json.loads(target.read_text()), path, value)))
    with pytest.raises(CorruptCheckpointError):
        read_report(target)
    result = compare(target, new)
    assert result.exit_code == 3
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_two_reports_need_no_torch(old: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [report(path) for path in (old, new)]
    for module in ("convsv.analysis", "convsv.certificate"):
        monkeypatch.setitem(sys.modules, module, None)
    assert len(step(*paths)) == 5


def test_what_looks_like_a_report(tmp_path: Path, old: Path) -> None:
    assert looks_like_report(report(old))
    for text in ("", "{}", '{"a": 1}', "schema"):
        (tmp_path / "x").write_text(text)
        assert not looks_like_report(tmp_path / "x")
    assert not looks_like_report(tmp_path)
    assert not looks_like_report(old)


# -------------------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        ("added", ["fresh"]),
        ("removed", ["gone"]),
        ("reshaped", ["shape"]),
        ("changed", ["grown", "shape"]),
        ("norm-increase", ["grown"]),
        ("norm-increase=99%", ["grown"]),
        ("norm-increase=0.99", ["grown"]),
        ("norm-increase=101%", []),
        ("norm-decrease", []),
        ("added,removed", ["gone", "fresh"]),
    ],
)
def test_named_changes_end_with_1(old: Path, new: Path, conditions: str, names: list[str]) -> None:
    result = compare(old, new, "--fail-on", conditions, "--method", "none", "--format", "json")
    assert result.exit_code == (1 if names else 0)
    happened = json.loads(result.stdout)["comparison"]["happened"]
    assert [entry["name"] for entry in happened] == names
    for name in names:
        assert [line for line in result.stderr.splitlines() if line.endswith(f": {name}")]


def test_conditions_may_be_repeated(old: Path, new: Path) -> None:
    result = compare(old, new, "--fail-on", "added", "--fail-on", "removed", "--method", "none")
    assert result.exit_code == 1
    assert len([line for line in result.stderr.splitlines() if " -> " in line]) == 2


@pytest.mark.parametrize(
    "text", ["grown", "", "added=1", "norm-increase=", "norm-increase=x", "norm-increase=-5%", "norm-increase=5%%"]
)
def test_other_conditions_are_usage(old: Path, new: Path, text: str) -> None:
    with pytest.raises(UsageError):
        parse_conditions([text])
    assert compare(old, new, "--fail-on", text).exit_code == 2


# --------------------------------------------------------------------------------------------------------- exit codes


def test_one_checkpoint_is_usage(old: Path) -> None:
    assert compare(old).exit_code == 2
    assert compare().exit_code == 2


def test_missing_and_broken_files(old: Path, new: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no checkpoint at all\n" * 20)
    assert compare(old, broken).exit_code == 3
    assert compare(old, tmp_path / "gone.pt").exit_code == 2
    result = compare(old, broken, new, "--format", "json", "--fail-on", "added")
    assert result.exit_code == 3
    assert len(steps(result)) == 1


def test_output_over_an_input_is_refused(old: Path, new: Path) -> None:
    target = report(old)
    assert compare(target, new, "-o", target).exit_code == 2


# -------------------------------------------------------------------------------------------------------------- output


def test_json_is_valid_against_the_schema(old: Path, new: Path) -> None:
    schema = json.loads((resources.files("convsv.reports") / "report.schema.json").read_text("utf-8"))
    for pair in ((old, new), (report(old), new), (report(old), report(new), new)):
        whole = json.loads(compare(*pair, "--format", "json", "--fail-on", "added").stdout)
        assert list(Draft202012Validator(schema).iter_errors(whole)) == []
        assert whole["command"] == "compare"
    *rows, last = map(json.loads, compare(old, new, "--format", "jsonl").stdout.splitlines())
    assert len(rows) == 8
    assert len(last["summary"]["comparison"]["steps"][0]["layers"]) == 5


@pytest.mark.parametrize("form", ["table", "tsv", "csv", "markdown", "json", "jsonl"])
def test_every_format_tells_every_change(old: Path, new: Path, form: str) -> None:
    result = compare(old, new, "--format", form)
    for word in ("grown", "gone", "fresh", "removed", "added", "reshaped"):
        assert word in result.stdout


def test_rows_can_be_sorted(old: Path, new: Path) -> None:
    lines = compare(old, new, "--format", "tsv", "--sort", "kernel_distance").stdout.splitlines()
    assert [line.split("\t")[2] for line in lines[1:3]] == ["grown", "same"]
    assert compare(old, new, "--sort", "colour").exit_code == 2


def test_table_marks_what_certainly_grew_and_what_was_named(old: Path, new: Path) -> None:
    table = compare(old, new, "--format", "table", "--fail-on", "norm-increase=5%").stdout
    row = next(line for line in table.splitlines() if line.startswith("grown"))
    assert "▲ [1.99" in row
    assert "[1] --fail-on norm-increase=5%" in table
    assert "8x4x3x3 → 16x4x3x3" in table


def test_layers_are_chosen_by_name(old: Path, new: Path) -> None:
    assert list(step(old, new, "--include", "g*", "--method", "none")) == ["gone", "grown"]
    assert list(step(report(old), report(new), "--exclude", "[!g]*")) == ["gone", "grown"]


# ---------------------------------------------------------------------------------------------------------- distance

VALUES = st.lists(st.floats(0.01, 100), min_size=1, max_size=30)


def by_definition(x: list[float], y: list[float], power: int) -> float:
    """The distance with each value repeated until both have as many: then rank goes to rank."""
    count = math.lcm(len(x), len(y))
    wide, other = (np.repeat(np.sort(v), count // len(v)) for v in (x, y))
    return float(np.mean(np.abs(wide - other) ** power) ** (1 / power)) / max(x)


@given(VALUES, VALUES)
def test_distance_of_spectra_of_any_two_sizes(x: list[float], y: list[float]) -> None:
    found = wasserstein(spectrum(x), spectrum(y))
    assert found is not None
    assert found[0] == pytest.approx(by_definition(x, y, 1), rel=1e-9, abs=1e-9)
    assert found[1] == pytest.approx(by_definition(x, y, 2), rel=1e-6, abs=1e-6)
    assert found[0] <= found[1] * (1 + 1e-9) + 1e-12


@given(VALUES, VALUES)
def test_bins_in_the_place_of_values_err_by_no_more_than_they_say(x: list[float], y: list[float]) -> None:
    top = 2.0 ** math.ceil(math.log2(max(x) * 1.01))
    counts = np.histogram(x, bins=64, range=(0, top))[0]
    binned = replace(spectrum(x), values=None, histogram=Histogram(top, tuple(int(n) for n in counts)))
    found, exact = wasserstein(binned, spectrum(y)), wasserstein(spectrum(x), spectrum(y))
    assert found is not None
    assert exact is not None
    assert abs(found[0] - exact[0]) <= found[2]
    assert abs(found[1] - exact[1]) <= found[2]


def test_some_of_the_values_are_no_spectrum() -> None:
    assert wasserstein(spectrum([1.0, 2.0], kind="leading"), spectrum([1.0])) is None
    assert wasserstein(replace(spectrum([1.0, 2.0]), values=None), spectrum([1.0])) is None


# ---------------------------------------------------------------------------------------------------------------- page

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "compare.md").read_text(encoding="utf-8")


def test_commands_of_the_page_run(tmp_path: Path, sample_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sample_checkpoints").symlink_to(sample_checkpoints)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    for line in "".join(blocks).splitlines():
        assert line.startswith("$ convsv ")
        result = CliRunner().invoke(app, shlex.split(line)[2:])
        assert result.exit_code == 0, result.stderr
        assert result.stdout


def test_page_names_every_condition_and_status() -> None:
    for word in (*EVENTS, "same", "unknown"):
        assert f"`{word}`" in PAGE

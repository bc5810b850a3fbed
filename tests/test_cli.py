"""The command line: exit codes, streams, files, and what is never imported."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from safetensors.numpy import save_file
from typer.testing import CliRunner

from convsv.cli import _run, app
from convsv.cli._groups import VERBS
from convsv.cli._output import interrupts_watched, uninterrupted
from convsv.cli._screen import PRECEDENCE, exit_code, worst
from convsv.cli._words import method_names, parse_memory, parse_size
from convsv.cli.options import Dtype, PaddingMode
from convsv.describe import describe
from convsv.errors import (
    ContradictionError,
    CorruptCheckpointError,
    GeometryError,
    OutputError,
    UnsafeCheckpointError,
    UsageError,
)
from convsv.geometry import PADDINGS
from convsv.layer import ConvLayer
from convsv.reports import format_names
from convsv.results import Interval, LayerReport
from reportcases import HOSTILE_NAMES, bounds, spectrum

ESCAPE = "\x1b"


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A small checkpoint of two convolutions."""
    path = tmp_path / "model.safetensors"
    kernels = {"a.weight": np.ones((4, 3, 3, 3), np.float32), "b.weight": np.ones((2, 4, 3, 3), np.float32)}
    save_file(kernels, path)
    return str(path)


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A file that is no checkpoint."""
    path = tmp_path / "broken.pt"
    path.write_bytes(b"no checkpoint at all\n" * 20)
    return str(path)


@dataclass
class Analysis:
    """A stand-in for the mathematics: what the command line asks of it, and answers to choose."""

    asked: list[Any] = field(default_factory=list)
    answer: Callable[[LayerReport], LayerReport] = lambda report: report

    def analyze(self, layers: Iterable[ConvLayer], options: Any) -> Iterator[LayerReport]:
        self.asked.append(options)
        for layer in layers:
            norm = Interval(1.25, 1.2505) if options.norm else None
            results: dict[str, Any] = {}
            if "circulant" in options.methods:
                results["circulant"] = spectrum([2.0, 1.0])
            if "bounds" in options.methods:
                results["bounds"] = bounds()
            yield self.answer(replace(describe(layer), norm=norm, results=results))


@pytest.fixture
def analysis(monkeypatch: pytest.MonkeyPatch) -> Analysis:
    """Stand in for ``convsv.analysis``, so that these tests are about the command line only."""
    fake = Analysis()
    module = types.ModuleType("convsv.analysis")
    module.AnalysisOptions = types.SimpleNamespace  # type: ignore[attr-defined]
    module.analyze = fake.analyze  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "convsv.analysis", module)
    return fake


def convsv(*args: str, **environment: str) -> Any:
    return CliRunner().invoke(app, list(args), env=environment)


def process(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS")}
    environment |= kwargs.pop("env", {})
    command = [sys.executable, "-m", "convsv", *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **kwargs)


def errors(result: Any) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


# --------------------------------------------------------------------------------------------------------- exit codes


def test_all_is_well(model: str, analysis: Analysis) -> None:
    for verb in ("layers", "analyze", "circulant", "bounds"):
        result = convsv(verb, model)
        assert result.exit_code == 0, result.stderr
        assert len(result.stdout.splitlines()) == (9 if verb == "bounds" else 3)


def test_the_whole_program_certifies_a_norm_known_by_hand(model: str) -> None:
    result = convsv("analyze", model, "--format", "json", "--size", "8", "--method", "circulant", "--method", "bounds")
    assert result.exit_code == 0, result.stderr
    first = json.loads(result.stdout)["checkpoints"][0]["layers"][0]
    norm = 9 * 12**0.5  # nine taps, each the 4x3 matrix of ones
    assert first["norm"]["lower"] <= norm <= first["norm"]["upper"] <= first["norm"]["lower"] * 1.001
    assert first["results"]["circulant"]["max"] == pytest.approx(norm, rel=1e-12)
    assert first["results"]["bounds"]["singla2021"]["value"] >= norm


@pytest.mark.parametrize(
    ("codes", "code"), [((0, 3), 3), ((3, 5), 5), ((5, 2, 3), 2), ((2, 130), 130), ((1, 4), 1), ((4, 3), 3), ((), 0)]
)
def test_the_strongest_code_wins(codes: tuple[int, ...], code: int) -> None:
    assert worst(*codes) == worst(*reversed(codes)) == code


def test_the_order_is_that_of_the_contract() -> None:
    assert PRECEDENCE == (130, 2, 5, 3, 1, 4, 0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (GeometryError("x"), 2),
        (CorruptCheckpointError("x"), 3),
        (UnsafeCheckpointError("x"), 3),
        (ContradictionError("x"), 5),
        (OutputError("x"), 5),
        (MemoryError(), 5),
        (ZeroDivisionError(), 5),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_code(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_a_missing_file_is_usage_and_writes_nothing(tmp_path: Path) -> None:
    result = convsv("layers", str(tmp_path / "none.pt"), "-o", str(tmp_path / "r.json"))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == f"error: {tmp_path / 'none.pt'}: no such file\n"
    assert not (tmp_path / "r.json").exists()


def test_a_bad_checkpoint_is_3_and_the_others_are_reported(model: str, broken: str) -> None:
    result = convsv("layers", broken, model, "--format", "json")
    assert result.exit_code == 3
    (line,) = errors(result)
    assert broken in line
    bad, good = json.loads(result.stdout)["checkpoints"]
    assert (bad["path"], bad["format"], bad["layers"]) == (broken, "", [])
    assert bad["problems"] == [line.removeprefix("error: ")]
    assert [layer["name"] for layer in good["layers"]] == ["a", "b"]


def test_a_missing_file_beside_a_good_one_is_2_and_both_are_reported(model: str, broken: str) -> None:
    result = convsv("layers", "none.pt", model, broken, "--format", "json")
    assert result.exit_code == 2
    assert len(errors(result)) == 2
    assert [c["path"] for c in json.loads(result.stdout)["checkpoints"]] == ["none.pt", model, broken]


def test_what_is_unavailable_does_not_change_the_code(model: str, analysis: Analysis) -> None:
    analysis.answer = lambda report: replace(report, norm=None, unavailable={"norm": "3 weights are NaN"})
    result = convsv("analyze", model)
    assert result.exit_code == 0
    assert "warning: " in result.stderr
    assert "no norm for a, b: 3 weights are NaN" in result.stderr


def test_what_could_not_be_computed_is_5(model: str, analysis: Analysis) -> None:
    analysis.answer = lambda report: replace(report, unavailable={"norm": "out of memory"}, failures=("norm",))
    assert convsv("analyze", model).exit_code == 5


@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError("1/0"), ContradictionError("certified both ways")])
def test_a_failure_is_one_line_and_5_and_the_layers_before_it_are_kept(
    model: str, analysis: Analysis, error: Exception
) -> None:
    def fail_at_b(report: LayerReport) -> LayerReport:
        if report.name == "b":
            raise error
        return report

    analysis.answer = fail_at_b
    result = convsv("analyze", model, "--format", "json")
    assert result.exit_code == 5
    assert len(errors(result)) == 1
    assert "Traceback" not in result.stderr
    (checkpoint,) = json.loads(result.stdout)["checkpoints"]
    assert [layer["name"] for layer in checkpoint["layers"]] == ["a"]
    assert checkpoint["problems"] == [errors(result)[0].removeprefix("error: ")]
    assert "Traceback" in convsv("analyze", model, "--verbose").stderr


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "tsv", "table", "markdown"])
@pytest.mark.parametrize("sort", [(), ("--sort", "name")], ids=["streamed", "sorted"])
def test_an_interrupt_is_130_and_leaves_a_valid_partial_report(
    model: str, analysis: Analysis, tmp_path: Path, form: str, sort: tuple[str, ...]
) -> None:
    def interrupt_at_b(report: LayerReport) -> LayerReport:
        if report.name == "b":
            os.kill(os.getpid(), signal.SIGINT)
        return report

    analysis.answer = interrupt_at_b
    result = convsv("analyze", model, model, "--format", form, "-o", str(tmp_path / "r.json"), *sort)
    assert result.exit_code == 130
    assert errors(result) == ["error: interrupted; the report is partial"]
    assert "Traceback" not in result.stderr
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["partial"] is True
    assert [[layer["name"] for layer in c["layers"]] for c in written["checkpoints"]] == [["a"]]
    if form == "jsonl":
        first, last = map(json.loads, result.stdout.splitlines())
        assert first["name"] == "a"
        assert last["summary"]["partial"] is True
    if form in ("csv", "tsv"):
        assert len(result.stdout.splitlines()) == 2
    if form in ("table", "markdown"):
        assert "interrupted" in result.stdout


@pytest.mark.parametrize("around", [nullcontext, interrupts_watched, uninterrupted])
def test_an_interrupt_waits_until_a_row_is_written(around: Callable[[], AbstractContextManager[None]]) -> None:
    done = []

    def write() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("row")

    def twice() -> None:
        with around():
            write()
            done.append("and what is around it")

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert done == ["row", "and what is around it"][: 2 if around is uninterrupted else 1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt), interrupts_watched():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# -------------------------------------------------------------------------------------------------------------- usage

WRONG = {
    "an unknown verb": ["lyers", "MODEL"],
    "no verb's model": ["layers"],
    "an empty path": ["layers", ""],
    "an unknown option": ["layers", "MODEL", "--bogus"],
    "an option without its value": ["layers", "MODEL", "--size"],
    "a wrong size": ["layers", "MODEL", "--size", "32x"],
    "a negative size": ["layers", "MODEL", "--size", "-3"],
    "a size of zero": ["layers", "MODEL", "--size", "0"],
    "a wrong padding mode": ["layers", "MODEL", "--padding-mode", "wrap"],
    "a missing geometry file": ["layers", "MODEL", "--geometry", "none.toml"],
    "a wrong format": ["layers", "MODEL", "--format", "xml"],
    "an output without suffix": ["layers", "MODEL", "-o", "report"],
    "an output of unknown suffix": ["layers", "MODEL", "-o", "report.xlsx"],
    "the same output twice": ["layers", "MODEL", "-o", "r.json", "-o", "./r.json"],
    "an unknown column": ["layers", "MODEL", "--sort", "loudness"],
    "a wrong method": ["analyze", "MODEL", "--method", "magic"],
    "a wrong device": ["analyze", "MODEL", "--device", "tpu"],
    "a wrong dtype": ["analyze", "MODEL", "--dtype", "float16"],
    "a wrong tolerance": ["analyze", "MODEL", "--tol", "small"],
    "a negative tolerance": ["analyze", "MODEL", "--tol", "-1"],
    "a tolerance that is no number": ["analyze", "MODEL", "--tol", "nan"],
    "wrong memory": ["analyze", "MODEL", "--memory", "lots"],
    "too little memory": ["analyze", "MODEL", "--memory", "1"],
    "no job": ["analyze", "MODEL", "--jobs", "0"],
    "a wrong array file": ["analyze", "MODEL", "--spectra", "s.mat"],
    "sorting a summary": ["bounds", "MODEL", "--summary", "--sort", "ratio"],
    "computing options on layers": ["layers", "MODEL", "--tol", "1"],
}


@pytest.mark.parametrize("args", WRONG.values(), ids=WRONG.keys())
def test_wrong_usage_is_2_and_one_line(args: list[str], model: str, analysis: Analysis, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = convsv(*(model if arg == "MODEL" else arg for arg in args))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert sorted(tmp_path.iterdir()) == before
    assert not analysis.asked


def test_no_verb_shows_the_help() -> None:
    result = convsv()
    assert result.exit_code == 2
    assert "analyze" in result.output


def test_an_unknown_column_lists_those_there_are(model: str) -> None:
    assert "geometry_stride, geometry_padding" in convsv("layers", model, "--sort", "x").stderr


def test_a_near_miss_is_pointed_out() -> None:
    assert "Did you mean 'layers'" in convsv("layrs").stderr


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2GiB", 2 << 30),
        ("500MB", 500_000_000),
        ("1.5GiB", 3 << 29),
        ("2097152", 2097152),
        ("64M", 64_000_000),
        ("64 mib", 64 << 20),
        ("1TB", 10**12),
        ("2000K", 2_000_000),
        ("2048Ki", 2 << 20),
        ("3000000b", 3_000_000),
    ],
)
def test_memory_is_read_as_people_write_it(text: str, amount: int) -> None:
    assert parse_memory(text) == amount


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1e9", "1GiBs", "1 2", "٣GiB", "iB", "1iB", "9" * 16])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_memory(text)


@pytest.mark.parametrize(("text", "size"), [("56", (56,)), ("56x48", (56, 48)), ("8X8x4", (8, 8, 4)), ("7×9", (7, 9))])
def test_sizes_are_numbers_with_an_x(text: str, size: tuple[int, ...]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "3x", "a", "-1", "0", "1.5", "²", "3,3", "9" * 11])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_size(text)


def test_what_options_list_is_what_there_is() -> None:
    assert [mode.value for mode in PaddingMode] == list(PADDINGS)
    assert [dtype.value for dtype in Dtype] == ["float64", "float32"]
    listed = re.search(r"auto\|(table[a-z|]+)", (Path(_run.__file__).parent / "options.py").read_text())
    assert listed
    assert set(listed[1].split("|")) == set(format_names("analyze"))
    from convsv.analysis import method_names as computed

    assert set(method_names()) == set(computed())


# ------------------------------------------------------------------------------------------------------------ options


def test_options_reach_the_mathematics(model: str, analysis: Analysis) -> None:
    args = (
        "--method",
        "circulant",
        "--method",
        "bounds",
        "--method",
        "circulant",
        "--tol",
        "1e-5",
        "--dtype",
        "float32",
    )
    result = convsv("analyze", model, *args, "--memory", "3MiB", "--jobs", "2", "--device", "cpu", "--format", "json")
    assert result.exit_code == 0, result.stderr
    (options,) = analysis.asked
    assert (options.methods, options.norm, options.tol, options.values) == (("circulant", "bounds"), True, 1e-5, False)
    execution = options.execution
    assert (execution.device, execution.dtype, execution.memory, execution.jobs) == ("cpu", "float32", 3 << 20, 2)
    settings = json.loads(result.stdout)["settings"]
    assert settings["device"] == "cpu"
    assert settings["dtype"] == "float32"
    assert settings["tol"] == 1e-5
    assert settings["memory"] == 3 << 20
    assert settings["methods"] == ["circulant", "bounds"]


def test_geometry_options_reach_discovery(model: str, tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text('[layers."b"]\nstride = 2\n')
    args = (
        "--size",
        "16x8",
        "--padding-mode",
        "circular",
        "--geometry",
        str(tmp_path / "g.toml"),
        "--exclude",
        "nothing",
    )
    first, second = json.loads(convsv("layers", model, *args, "--format", "json").stdout)["checkpoints"][0]["layers"]
    assert first["geometry"]["size"] == [16, 8]
    assert first["geometry"]["origin"]["size"] == "option"
    assert (first["geometry"]["padding_mode"], first["geometry"]["origin"]["padding_mode"]) == ("circular", "option")
    assert (second["geometry"]["stride"], second["geometry"]["origin"]["stride"]) == ([2, 2], "sidecar")


def test_include_and_exclude_choose_layers(model: str) -> None:
    def names(*args: str) -> list[str]:
        shown = convsv("layers", model, "--format", "csv", *args).stdout
        return [row["name"] for row in csv.DictReader(io.StringIO(shown))]

    assert names("--include", "a") == ["a"]
    assert names("--exclude", "a") == ["b"]
    assert names("--include", "[ab]", "--include", "c", "--exclude", "b") == ["a"]


def test_sort_orders_every_output(model: str, analysis: Analysis, tmp_path: Path) -> None:
    analysis.answer = lambda report: replace(report, norm=Interval(1.0, 2.0 if report.name == "a" else 3.0))
    result = convsv("analyze", model, "--sort", "norm", "-o", str(tmp_path / "r.jsonl"))
    assert [line.split("\t")[1] for line in result.stdout.splitlines()] == ["name", "b", "a"]
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row.get("name") for row in rows] == ["b", "a", None]


def test_values_and_spectra_files(model: str, analysis: Analysis, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    result = convsv("circulant", model, "--spectra", str(path), "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert '"values"' not in result.stdout
    with np.load(path) as file:
        assert set(file.files) == {"a/circulant", "b/circulant", "index"}
        assert list(file["a/circulant"]) == [2.0, 1.0]
    whole = json.loads(convsv("circulant", model, "--values", "--format", "json").stdout)
    assert whole["checkpoints"][0]["layers"][0]["results"]["circulant"]["values"] == [2.0, 1.0]
    assert [options.values for options in analysis.asked] == [True, True]


def test_the_hash_is_that_of_the_file_and_layers_leaves_large_files_alone(
    model: str, analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    digest = hashlib.sha256(Path(model).read_bytes()).hexdigest()

    def hashed(verb: str) -> str | None:
        found: str | None = json.loads(convsv(verb, model, "--format", "json").stdout)["checkpoints"][0]["sha256"]
        return found

    assert hashed("layers") == hashed("analyze") == digest
    monkeypatch.setattr(_run, "_HASHED_BY_LAYERS", 10)
    assert hashed("layers") is None
    assert hashed("analyze") == digest


def test_a_folder_is_all_its_checkpoints(model: str, tmp_path: Path) -> None:
    save_file({"c.weight": np.ones((2, 2, 3, 3), np.float32)}, tmp_path / "other.safetensors")
    found = json.loads(convsv("layers", str(tmp_path), "--format", "json").stdout)["checkpoints"]
    assert [[layer["name"] for layer in c["layers"]] for c in found] == [["a", "b"], ["c"]]


def test_a_folder_without_a_checkpoint_is_3_and_a_problem_in_the_report(tmp_path: Path) -> None:
    result = convsv("layers", str(tmp_path), "--format", "json")
    assert result.exit_code == 3
    assert len(errors(result)) == 1
    found = json.loads(result.stdout)["checkpoints"][0]
    assert (found["path"], found["layers"], len(found["problems"])) == (str(tmp_path), [], 1)


def test_a_checkpoint_without_convolutions_is_said_to_have_none(tmp_path: Path) -> None:
    save_file({"fc.weight": np.ones((4, 3), np.float32)}, tmp_path / "m.safetensors")
    result = convsv("layers", str(tmp_path / "m.safetensors"))
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 1)
    assert result.stderr.endswith("m.safetensors: no convolutions to report\n")


def test_a_name_with_a_leading_dash_comes_after_two_dashes(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(model).parent)
    Path(model).rename("--verbose.safetensors")
    result = convsv("layers", "--format", "json", "--", "--verbose.safetensors")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["checkpoints"][0]["path"] == "--verbose.safetensors"


@pytest.mark.parametrize("path", ["./model.safetensors", "../here/model.safetensors"])
def test_a_path_is_reported_as_the_user_wrote_it(model: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(model).parent / "here"
    here.mkdir()
    Path(model).rename(here / "model.safetensors")
    monkeypatch.chdir(here)
    assert json.loads(convsv("layers", path, "--format", "json").stdout)["checkpoints"][0]["path"] == path


# ------------------------------------------------------------------------------------------------------------ streams


def test_assumed_geometry_is_counted_on_standard_error_and_quiet_hides_it(model: str) -> None:
    said = convsv("layers", model, "--size", "8").stderr
    assert "note: 2 layers with assumed geometry" in said
    assert "stride 2" in said
    assert "size 2" not in said
    assert convsv("layers", model, "-q").stderr == ""


def test_quiet_does_not_hide_errors(model: str, broken: str) -> None:
    result = convsv("layers", model, broken, "--quiet")
    assert result.stderr.splitlines() == errors(result) != []


def test_what_is_left_out_is_counted_and_named_on_request(tmp_path: Path) -> None:
    path = str(tmp_path / "m.safetensors")
    tensors = {"a.weight": np.ones((4, 3, 3, 3), np.float32), "pos_embed": np.ones((1, 7, 9), np.float32)}
    save_file(tensors, path)
    assert "1 other tensor shaped like kernels left out (" in convsv("layers", path).stderr
    assert re.search(r"note: .*: pos_embed is no layer", convsv("layers", path, "--verbose").stderr)


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "0"}, False),
    ],
)
def test_colour_is_as_the_environment_says(
    model: str, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    result = convsv("layers", model, "--format", "table", **environment)
    assert (ESCAPE in result.stdout) is coloured
    assert ESCAPE not in convsv("layers", model, **environment).stdout


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
def test_a_hostile_path_is_one_calm_error_line(name: str) -> None:
    if "\0" in name:
        pytest.skip("no argument can hold a NUL")
    result = convsv("layers", "--", f"none/{name}.pt")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", result.stderr)


def test_hostile_layer_names_come_through_a_real_file(tmp_path: Path) -> None:
    from convsv.reports._text import from_csv, from_tsv

    names = [name for name in HOSTILE_NAMES.values() if name.isprintable() or "\ud800" not in name]
    names = [name for name in names if name.encode("utf-8", "replace").decode() == name and "\0" not in name]
    path = str(tmp_path / "m.safetensors")
    save_file({f"{name}.weight": np.ones((2, 2, 3, 3), np.float32) for name in names}, path)
    found = json.loads(convsv("layers", path, "--format", "json").stdout)["checkpoints"][0]["layers"]
    weights = {layer["weight"] for layer in found}
    assert weights == {f"{name}.weight" for name in names}
    shown = convsv("layers", path, "--format", "csv").stdout_bytes.decode("utf-8")
    assert {from_csv(row["weight"]) for row in csv.DictReader(io.StringIO(shown, newline=""))} == weights
    tsv = convsv("layers", path).stdout_bytes.decode("utf-8").rstrip("\n").split("\n")[1:]
    assert {from_tsv(line.split("\t")[2]) for line in tsv} == weights
    said = convsv("layers", path, "--verbose", "--format", "table")
    assert ESCAPE not in said.output


# -------------------------------------------------------------------------------------------------------------- files


def test_every_output_is_written_and_standard_output_too(model: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"r{suffix}" for suffix in (".json", ".jsonl", ".csv", ".tsv", ".md")]
    result = convsv("layers", model, *(arg for path in paths for arg in ("-o", str(path))))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.encode() == (tmp_path / "r.tsv").read_bytes()
    assert all(path.stat().st_size for path in paths)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths} | {"model.safetensors"}


def test_an_output_that_cannot_be_written_is_5_before_anything_is_computed(
    model: str, analysis: Analysis, tmp_path: Path
) -> None:
    result = convsv("analyze", model, "-o", str(tmp_path / "none" / "r.json"))
    assert result.exit_code == 5
    assert len(errors(result)) == 1
    assert result.stdout == ""
    assert not analysis.asked


def test_the_checkpoint_is_never_written_over(tmp_path: Path, model: str) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(model)
    before = Path(model).read_bytes()
    result = convsv("layers", model, "-o", str(link))
    assert result.exit_code == 2
    assert "read and written" in result.stderr
    assert Path(model).read_bytes() == before


def test_a_failure_leaves_an_old_report_alone(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.json").write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    result = convsv("layers", model, "-o", str(tmp_path / "r.json"))
    assert result.exit_code == 5
    assert "No space left on device" in result.stderr
    assert (tmp_path / "r.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    assert len(result.stdout.splitlines()) == 3


# ------------------------------------------------------------------------------------------------------ real processes


def test_a_pipe_gets_tab_separated_lines(model: str) -> None:
    result = process("layers", model)
    assert result.returncode == 0
    header, *rows = result.stdout.splitlines()
    assert header.split("\t")[:3] == ["checkpoint_path", "name", "weight"]
    assert [row.split("\t")[1] for row in rows] == ["a", "b"]
    assert ESCAPE not in result.stdout + result.stderr


@pytest.mark.parametrize(
    "args", [["--help"], ["layers", "--help"], ["layers", "M"], ["layers", "M", "--format", "json"]]
)
def test_a_closed_pipe_is_silent(args: list[str], model: str) -> None:
    command = [sys.executable, "-m", "convsv", *(model if arg == "M" else arg for arg in args)]
    reader, writer = os.pipe()
    os.close(reader)
    quiet = ["-q"] if "M" in args else []
    result = subprocess.run([*command, *quiet], stdout=writer, stderr=-1, text=True, check=False)
    os.close(writer)
    assert result.stderr == ""
    assert result.returncode == 0


def test_a_closed_pipe_does_not_lose_the_files(model: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "convsv", "layers", model, model, "-q", "-o", str(tmp_path / "r.json")]
    result = subprocess.run(command, stdout=writer, stderr=-1, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(json.loads((tmp_path / "r.json").read_text())["checkpoints"]) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_is_5(model: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "convsv", "layers", model, "-q"]
        result = subprocess.run(command, stdout=full, stderr=-1, text=True, check=False)
    assert result.returncode == 5
    assert result.stderr == "error: standard output: cannot be written (found No space left on device)\n"


@pytest.mark.parametrize(("closed", "code"), [((0,), 0), ((2,), 0), ((1,), 5), ((1, 2), 5), ((0, 1, 2), 5)], ids=str)
@pytest.mark.parametrize("args", [["--version"], ["layers", "M", "-q"]], ids=lambda args: args[0])
def test_streams_closed_from_the_start_are_no_crash(
    args: list[str], closed: tuple[int, ...], code: int, model: str
) -> None:
    redirections = " ".join(f"{stream}>&-" for stream in closed)
    command = " ".join(["exec", sys.executable, "-m", "convsv", *(model if arg == "M" else arg for arg in args)])
    result = subprocess.run(f"{command} {redirections}", shell=True, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == (1 in closed and 2 not in closed)


def test_files_are_written_although_standard_output_is_closed(model: str, tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m convsv layers {model} -o {tmp_path}/r.json <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, check=False).returncode == 5
    assert len(json.loads((tmp_path / "r.json").read_text())["checkpoints"][0]["layers"]) == 2


def test_nothing_is_counted_for_a_reader_who_left(model: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([sys.executable, "-m", "convsv", "layers", model], stdout=writer, stderr=-1, check=False)
    os.close(writer)
    assert result.stderr == b""


def on_a_terminal(*args: str, columns: int) -> str:
    """Return what a command writes to a terminal that is its standard output and standard error."""
    import fcntl
    import pty
    import struct
    import termios

    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")}
    command = [sys.executable, "-m", "convsv", *args]
    with subprocess.Popen(command, stdout=secondary, stderr=secondary, env=environment | {"TERM": "xterm"}) as running:
        os.close(secondary)
        parts = []
        while True:
            try:
                part = os.read(primary, 4096)
            except OSError:  # how Linux says that the other side is closed
                break
            if not part:
                break
            parts.append(part)
        assert running.wait() == 0
    os.close(primary)
    return b"".join(parts).decode()


@pytest.mark.parametrize("columns", [60, 140])
def test_a_terminal_gets_a_coloured_table_of_its_width(model: str, columns: int) -> None:
    shown = on_a_terminal("layers", model, "-q", columns=columns)
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown).replace("\r", "")
    assert ESCAPE in shown
    assert "· safetensors · 2 convolutions" in " ".join(plain.split())  # a long path folds the title
    assert max(map(len, plain.splitlines())) <= max(columns, len(model) + 40)
    assert ("dtype" in plain.split("hidden")[0]) is (columns == 140)


def test_progress_on_a_terminal_leaves_whole_lines_behind(model: str, broken: str) -> None:
    noisy, quiet = (on_a_terminal("layers", model, model, *flags, columns=100) for flags in ((), ("-q",)))
    assert "\x1b[?25l" in noisy  # the bar hides the cursor while it is there
    assert noisy.rindex("\x1b[?25h") > noisy.rindex("\x1b[?25l")
    assert "\x1b[?25l" not in quiet
    for line in quiet.splitlines():
        assert line in noisy


IMPORTS = (
    "import sys; sys.argv[0] = 'convsv'\nfrom convsv.__main__ import main\ntry:\n main()\nexcept SystemExit:\n pass\n"
)


def loaded(*args: str) -> set[str]:
    """Return the top modules that a command line has imported."""
    code = IMPORTS + "print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    return set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["layers", "--help"], ["analyze", "--help"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    assert not loaded(*args) & {"torch", "numpy", "h5py", "safetensors", "ml_dtypes"}


@pytest.mark.parametrize(
    "args",
    [
        ["layers", "MODEL"],
        ["layers", "MODEL", "--format", "table"],
        ["layers", "HDF5"],
        ["analyze", "none.pt"],
        ["analyze", "MODEL", "--sort", "loudness"],
        ["analyze", "MODEL", "-o", "r.xyz"],
        ["analyze", "MODEL", "--method", "magic"],
        ["analyze", "MODEL", "--tol", "x"],
        ["check", "MODEL"],
        ["compare", "MODEL"],
    ],
)
def test_layers_and_usage_errors_do_not_import_torch(args: list[str], model: str, tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["conv/kernel"] = np.ones((3, 3, 2, 4), np.float32)
    given = {"MODEL": model, "HDF5": str(tmp_path / "model.h5")}
    assert not loaded(*(given.get(arg, arg) for arg in args)) & {"torch", "h5py"}


def test_the_version_is_the_package_s() -> None:
    from convsv import __version__

    assert convsv("--version").stdout == f"convsv {__version__}\n"


# --------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", list(VERBS))
def test_every_help_has_an_example_that_runs(
    name: str, model: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in ("clip", "check", "compare", "lipschitz"):  # nothing stands in for their mathematics
        request.getfixturevalue("analysis")
    monkeypatch.chdir(Path(model).parent)
    shown = " ".join(convsv(name, "--help", TERMINAL_WIDTH="200").stdout.split())
    example = VERBS[name].example
    assert f"Example: {example}" in shown
    assert example.startswith(f"convsv {name} ")
    for copy in ("model.pt", "old.pt", "new.pt"):
        Path(copy).write_bytes(Path(model).read_bytes())
    Path("my_net.py").write_text("from torch.nn import Conv2d\n\ndef build():\n    return Conv2d(3, 8, 3)\n")
    result = convsv(*example.split()[1:])
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(("name", "bracketed"), [("plot", "convsv[plot]"), ("check", "[tool.convsv.check]")])
def test_brackets_in_help_are_shown_and_not_taken_for_markup(name: str, bracketed: str) -> None:
    assert bracketed in convsv(name, "--help", TERMINAL_WIDTH="200").stdout


def test_help_in_a_pipe_has_no_colour_even_in_ci() -> None:
    assert ESCAPE not in process("analyze", "--help", env={"GITHUB_ACTIONS": "true"}).stdout


def test_the_shell_completes_verbs_and_options() -> None:
    environment = {"_CONVSV_COMPLETE": "complete_bash", "COMP_WORDS": "convsv an", "COMP_CWORD": "1"}
    assert process(env=environment).stdout.split() == ["analyze"]
    environment |= {"COMP_WORDS": "convsv layers --pad", "COMP_CWORD": "2"}
    assert process(env=environment).stdout.split() == ["--padding-mode"]

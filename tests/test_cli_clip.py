"""``convsv clip`` as a program: exit codes, what is written, and what is said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.numpy import load_file, save_file
from torch.nn.utils import parametrizations
from typer.testing import CliRunner

from convsv import analyze, editing, find_layers, open_checkpoint
from convsv.cli import app
from convsv.cli.clip import Method, Padding
from convsv.clipping import METHODS, OPERATORS


def clip(*args: str | Path) -> Any:
    return CliRunner().invoke(app, ["clip", *map(str, args)])


def errors(result: Any) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def told(result: Any) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = json.loads(result.stdout)["checkpoints"][0]["layers"]
    return layers


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of a large and a small convolution."""
    rng = np.random.default_rng(0)
    kernels = {
        "large.weight": rng.normal(size=(4, 4, 3, 3)).astype(np.float32),
        "small.weight": (rng.normal(size=(4, 4, 3, 3)) / 100).astype(np.float32),
    }
    save_file(kernels, tmp_path / "model.safetensors", metadata={"made": "by hand"})
    return tmp_path / "model.safetensors"


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """A checkpoint with a NaN in one of two convolutions."""
    kernels = {name: np.ones((2, 2, 3, 3), np.float32) for name in ("bad.weight", "good.weight")}
    kernels["bad.weight"][0, 0, 0, 0] = np.nan
    save_file(kernels, tmp_path / "spoilt.safetensors")
    return tmp_path / "spoilt.safetensors"


def test_choices_are_those_of_the_library() -> None:
    assert tuple(method.value for method in Method) == METHODS
    assert {"any size", *(padding.value for padding in Padding)} == set(OPERATORS)


# ------------------------------------------------------------------------------------------------------------- written


def test_report_is_about_the_new_file_and_says_what_happened(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = clip(model, "--max-norm", "1", "-o", out, "--format", "json", "--report", tmp_path / "r.json")
    assert result.exit_code == 0, result.stderr
    whole = json.loads(result.stdout)
    assert whole == json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert (whole["command"], whole["settings"]["max_norm"], whole["settings"]["method"]) == ("clip", 1.0, "nearest")
    (checkpoint,) = whole["checkpoints"]
    assert (checkpoint["path"], checkpoint["sha256"]) == (str(out), open_checkpoint(out).sha256())
    large, small = checkpoint["layers"]
    assert large["clip"]["norm_after"]["upper"] <= 1 < large["clip"]["norm_before"]["lower"]
    assert large["clip"].keys() >= {"radius", "method", "norm_before", "norm_after", "distance", "iterations"}
    assert (small["clip"]["touched"], small["clip"]["distance"]) == (False, 0.0)
    found = {report.name: report.norm for report in analyze(find_layers(open_checkpoint(out)))}
    for layer in (large, small):
        assert layer["norm"] == layer["clip"]["norm_after"]
        norm = found[layer["name"]]
        assert norm is not None
        assert (norm.lower, norm.upper) == (layer["norm"]["lower"], layer["norm"]["upper"])


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".md"])
def test_report_has_the_form_of_its_suffix(model: Path, tmp_path: Path, suffix: str) -> None:
    report = tmp_path / f"report{suffix}"
    assert clip(model, "--max-norm", "1", "--dry-run", "--method", "scale", "--report", report).exit_code == 0
    text = report.read_text(encoding="utf-8")
    for word in ("large", "small", "scale"):
        assert word in text
    if suffix in (".csv", ".tsv"):
        assert {"clip_radius", "clip_norm_after_upper", "clip_distance"} <= set(
            text.split("\n")[0].split(",\t"[suffix == ".tsv"])
        )


def test_report_is_valid_against_the_schema(model: Path, spoilt: Path) -> None:
    schema = json.loads((resources.files("convsv.reports") / "report.schema.json").read_text("utf-8"))
    for path in (model, spoilt):
        whole = json.loads(clip(path, "--max-norm", "1", "--dry-run", "--method", "scale", "--format", "json").stdout)
        assert list(Draft202012Validator(schema).iter_errors(whole)) == []


def test_table_shows_before_after_and_how_far(model: Path, tmp_path: Path) -> None:
    result = clip(model, "--max-norm", "1", "-o", tmp_path / "out.safetensors", "--format", "table")
    header, large, small = (
        next(x for x in result.stdout.splitlines() if x.startswith(w)) for w in ("layer", "large", "small")
    )
    assert " ".join(header.split()) == "layer kind shape stride norm before radius norm after moved how"
    assert "nearest" in large
    assert "0 %  inside already" in small


def test_what_became_of_the_file_is_a_note(model: Path, tmp_path: Path) -> None:
    result = clip(model, "--max-norm", "1", "-o", tmp_path / "out.pt")
    assert "out.pt: written and read again; 1 layer changed, 1 within the norm already" in result.stderr
    assert "out.pt: has the format of a .safetensors, whatever its name" in result.stderr


def test_dry_run_writes_nothing_and_shows_the_same_numbers(model: Path, tmp_path: Path) -> None:
    shown = told(clip(model, "--max-norm", "1", "--dry-run", "--format", "json"))
    assert [path.name for path in tmp_path.iterdir()] == [model.name]
    real = told(clip(model, "--max-norm", "1", "-o", tmp_path / "out.safetensors", "--format", "json"))
    assert [layer["clip"] for layer in shown] == [layer["clip"] for layer in real]
    assert [layer["norm"] for layer in shown] == [layer["clip"]["norm_before"] for layer in shown]


def test_radii_come_from_files_and_options_in_this_order(model: Path, tmp_path: Path) -> None:
    geometry, radii = tmp_path / "geometry.toml", tmp_path / "radii.toml"
    geometry.write_text('[layers."*"]\nstride = 2\nmax_norm = 3.0\n')
    radii.write_text('[layers."large"]\nmax_norm = 2.0\n[layers."gone*"]\nmax_norm = 1.0\n')
    options = ("--dry-run", "--format", "json", "--method", "scale")
    result = clip(model, "--max-norm", "4", "--geometry", geometry, "--radii", radii, *options)
    assert [layer["clip"]["radius"] for layer in told(result)] == [2.0, 3.0]
    assert told(result)[0]["geometry"]["stride"] == [2, 2]
    assert f'{radii}: [layers."gone*"] matches no chosen layer' in result.stderr
    assert [layer["clip"]["radius"] for layer in told(clip(model, "--geometry", geometry, *options))] == [3.0, 3.0]


def test_layers_are_chosen_by_name(model: Path, tmp_path: Path) -> None:
    result = clip(
        model, "--max-norm", "1", "--exclude", "large", "-o", tmp_path / "out.safetensors", "--format", "json"
    )
    assert [layer["name"] for layer in told(result)] == ["small"]
    assert (tmp_path / "out.safetensors").read_bytes() == model.read_bytes()


def test_single_pass_warns_of_what_it_leaves(model: Path) -> None:
    result = clip(model, "--max-norm", "2", "--method", "sedghi", "--size", "8", "--dry-run", "--format", "table")
    assert result.exit_code == 0
    assert "1 layer above the radius: sedghi is a single pass" in result.stderr
    assert "[1] above the radius" in result.stdout


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--max-norm", "1"], "give -o OUT, or --dry-run"),
        (["-o", "OUT"], "nothing to do"),
        (["--max-norm", "1", "-o", "report.json"], "--report"),
        (["--max-norm", "0", "--dry-run"], "--max-norm"),
        (["--max-norm", "nan", "--dry-run"], "--max-norm"),
        (["--max-norm", "1", "--min-norm", "2", "--dry-run"], "above the radius"),
        (["--flatten", "--rank", "2", "--dry-run"], "one edit at a time"),
        (["--flatten", "--method", "scale", "--dry-run"], "leave out the method"),
        (["--max-norm", "1", "-o", "OUT", "--report", "r.json", "--report", "r.json"], "written twice"),
        (["--max-norm", "1", "--method", "magic", "--dry-run"], "--method"),
        (["--max-norm", "1", "--dry-run", "--sort", "colour"], "no such column"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_usage_and_write_nothing(model: Path, tmp_path: Path, args: list[str], words: str) -> None:
    given = [str(tmp_path / arg) if arg in ("OUT", "report.json", "r.json") else arg for arg in args]
    result = clip(model, *given)
    assert result.exit_code == 2
    (line,) = errors(result)
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


def test_clip_takes_one_checkpoint(model: Path, tmp_path: Path) -> None:
    shutil.copy(model, tmp_path / "second.safetensors")
    for given in ([model, tmp_path / "second.safetensors"], [tmp_path]):
        result = clip(*given, "--max-norm", "1", "--dry-run")
        assert result.exit_code == 2
        assert len(errors(result)) == 1
    assert clip(tmp_path / "none.pt", "--max-norm", "1", "--dry-run").exit_code == 2


def test_file_that_is_there_stays_without_force(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    result = clip(model, "--max-norm", "1", "-o", model)
    assert (result.exit_code, model.read_bytes()) == (2, before)
    assert "--force" in errors(result)[0]
    assert clip(model, "--max-norm", "1", "-o", model, "--force").exit_code == 0
    assert model.read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


def test_report_may_not_be_the_checkpoint(model: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "out.safetensors")
    result = clip(model, "--max-norm", "1", "-o", tmp_path / "out.safetensors", "--report", link)
    assert result.exit_code == 2
    assert "written twice" in errors(result)[0]


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry run", "for real"])
def test_layer_without_a_norm_is_reported_and_stays_as_it_is(spoilt: Path, tmp_path: Path, dry_run: bool) -> None:
    out = tmp_path / "out.safetensors"
    where = ["--dry-run"] if dry_run else ["-o", str(out)]
    result = clip(spoilt, "--max-norm", "1", "--method", "scale", *where, "--format", "json")
    assert result.exit_code == 0
    (line,) = [line for line in result.stderr.splitlines() if "bad" in line]
    assert "no clip for bad: 1 of 36 weights are NaN" in line
    bad, good = told(result)
    assert "NaN" in bad["unavailable"]["clip"]
    assert good["clip"]["norm_after"]["upper"] <= 1
    assert out.exists() is not dry_run
    if not dry_run:
        before, after = load_file(spoilt), load_file(out)
        assert before["bad.weight"].tobytes() == after["bad.weight"].tobytes()
        assert before["good.weight"].tobytes() != after["good.weight"].tobytes()


def test_checkpoint_that_cannot_be_read_is_code_3(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint at all\n" * 20)
    result = clip(tmp_path / "broken.pt", "--max-norm", "1", "-o", tmp_path / "out.pt")
    assert result.exit_code == 3
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_may_not_be_written_is_code_5(model: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    result = clip(model, "--max-norm", "1", "-o", tmp_path / "closed" / "out.safetensors")
    assert result.exit_code == 5


@pytest.mark.parametrize(("target", "code"), [("folder", 2), ("none/out.safetensors", 5)])
def test_target_that_cannot_be_taken_is_refused_before_any_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, code: int
) -> None:
    def work(*_: Any) -> None:
        raise AssertionError("it was clipped")

    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(editing, "clip_layers", work)
    result = clip(model, "--max-norm", "1", "-o", tmp_path / target, "--force")
    assert result.exit_code == code
    assert len(errors(result)) == 1


def test_file_of_radii_without_a_radius_is_named(model: Path, tmp_path: Path) -> None:
    radii = tmp_path / "radii.toml"
    radii.write_text('[layers."*"]\nstride = 2\n')
    result = clip(model, "--radii", radii, "--dry-run")
    assert result.exit_code == 2
    assert f"{radii}: states no max_norm" in errors(result)[0]


def test_folder_that_is_not_there_is_code_5(model: Path, tmp_path: Path) -> None:
    result = clip(model, "--max-norm", "1", "-o", tmp_path / "none" / "out.safetensors")
    assert result.exit_code == 5
    assert len(errors(result)) == 1


def test_only_the_clipped_tensor_differs(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    clip(model, "--max-norm", "1", "-o", out)
    old, new = model.read_bytes(), out.read_bytes()
    start = 8 + int.from_bytes(old[:8], "little")
    assert (len(new), new[:start]) == (len(old), old[:start])
    assert np.array_equal(load_file(out)["small.weight"], load_file(model)["small.weight"])


def test_interrupt_leaves_no_file_and_a_partial_report(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = editing.clip_layers

    def interrupted(*args: Any) -> Iterator[editing.Outcome]:
        yield next(real(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(editing, "clip_layers", interrupted)
    result = clip(model, "--max-norm", "1", "-o", tmp_path / "out.safetensors", "--format", "json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["partial"]
    (layer,) = told(result)
    assert layer["norm"] == layer["clip"]["norm_before"]
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


def test_what_changes_with_a_layer_is_a_warning_and_a_problem(tmp_path: Path) -> None:
    weight = torch.ones(2, 2, 3, 3)
    torch.save({"a.weight": weight, "b.weight": weight}, tmp_path / "m.pt")
    result = clip(tmp_path / "m.pt", "--max-norm", "1", "--exclude", "b", "--dry-run", "--format", "json")
    assert "b.weight: shares its bytes with a, and changes with it" in result.stderr
    assert "b.weight: shares its bytes with a" in json.loads(result.stdout)["checkpoints"][0]["problems"][-1]


@pytest.mark.parametrize("form", ["table", "tsv", "csv", "jsonl", "markdown"])
def test_every_format_of_standard_output_shows_the_new_norm(model: Path, form: str) -> None:
    result = clip(model, "--max-norm", "1", "--method", "scale", "--dry-run", "--format", form)
    assert result.exit_code == 0
    assert "scale" in result.stdout


def test_layer_without_weights_does_not_stop_the_others(tmp_path: Path) -> None:
    kernels = {"empty.weight": np.zeros((0, 4, 3, 3), np.float32), "full.weight": np.ones((4, 4, 3, 3), np.float32)}
    save_file(kernels, tmp_path / "m.safetensors")
    result = clip(tmp_path / "m.safetensors", "--max-norm", "1", "-o", tmp_path / "out.safetensors", "--format", "json")
    assert result.exit_code == 0, result.stderr
    empty, full = told(result)
    assert "no weights" in empty["unavailable"]["norm"]
    assert "no norm for empty" in result.stderr
    assert full["clip"]["norm_after"]["upper"] <= 1


@pytest.mark.parametrize("edit", [["--min-norm", "0.5"], ["--flatten"], ["--rank", "2"]], ids=" ".join)
def test_edit_says_in_every_form_what_it_reached(model: Path, edit: list[str]) -> None:
    table = clip(model, *edit, "--dry-run", "--format", "table").stdout
    assert "symbol wanted" in table
    assert "with full circular padding at any size" in " ".join(table.split())
    for layer in told(clip(model, *edit, "--dry-run", "--format", "json")):
        reached = layer["clip"]["reached"]
        assert (reached["of"], reached["guarantee"]) == ("symbol", "estimate")
        assert 0 <= reached["smallest"] <= reached["largest"] <= layer["clip"]["norm_after"]["upper"] * (1 + 1e-12)
    header, *_ = clip(model, *edit, "--dry-run", "--format", "csv").stdout.splitlines()
    assert "clip_reached_smallest" in header.split(",")


def test_what_holds_in_eval_mode_only_is_a_note(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(parametrizations.spectral_norm(torch.nn.Conv2d(3, 4, 3)).state_dict(), tmp_path / "m.pt")
    result = clip(tmp_path / "m.pt", "--max-norm", "0.5", "--method", "scale", "-o", tmp_path / "out.pt")
    assert result.exit_code == 0
    assert "note: 1 layer: spectral_norm: the norm holds in eval mode" in result.stderr

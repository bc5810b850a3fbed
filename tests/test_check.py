"""``convsv check``: verdicts against norms known by hand, exit codes, what CI systems read, and the page about it."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from safetensors.numpy import save_file
from typer.testing import CliRunner

from convsv.cli import app
from convsv.cli.check import Level
from convsv.errors import UsageError
from convsv.gate import GateOptions, check_layers, check_product
from convsv.geometry import Geometry
from convsv.layer import ConvLayer
from convsv.policy import Limits, Policy, default_policy, read_policy
from convsv.reports import format_names, write_report
from convsv.results import Check, CheckpointReport, Finding, Interval, LayerReport, Report, Severity
from oracle import convolution, singular_values
from reportcases import HOSTILE_NAMES

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "check.md").read_text(encoding="utf-8")
CI_VARIABLES = ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder: no pyproject.toml, and no CI system around."""
    for name in CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(*args: str | Path, **environment: str) -> Any:
    return CliRunner().invoke(app, ["check", *map(str, args)], env=environment)


def saved(path: Path, **kernels: NDArray[Any]) -> Path:
    save_file({f"{name}.weight": kernel.astype(np.float32) for name, kernel in kernels.items()}, path)
    return path


def told(result: Any) -> dict[str, dict[str, Any]]:
    (checkpoint,) = json.loads(result.stdout)["checkpoints"]
    return {layer["name"]: layer["check"] for layer in checkpoint["layers"]}


def pointwise(norm: float) -> NDArray[np.float64]:
    """A 1x1 kernel whose norm is ``norm`` in every reading: one channel in, one out."""
    return np.full((1, 1, 1, 1), norm)


def in_a_row(*taps: float) -> NDArray[np.float64]:
    """A kernel of one channel and three taps a row: norm sum |taps| for taps of one sign."""
    return np.array(taps, dtype=np.float64).reshape(1, 1, 1, -1)


STATED = '[layers."*"]\nstride = 1\ngroups = 1\n'


@pytest.fixture
def stated(tmp_path: Path) -> Path:
    """A geometry file that leaves nothing open that a norm depends on."""
    path = tmp_path / "geometry.toml"
    path.write_text(STATED)
    return path


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_levels_are_the_severities() -> None:
    assert tuple(level.value for level in Level) == get_args(Severity)


def test_layers_pass_and_fail_by_their_norm(tmp_path: Path, stated: Path) -> None:
    model = saved(tmp_path / "m.safetensors", low=in_a_row(0.5, 0.5, 0.5), high=in_a_row(1, 1, 1))
    result = check(model, "--max-norm", "2", "--geometry", stated, "--format", "json")
    assert result.exit_code == 1
    found = told(result)
    assert {name: entry["verdict"] for name, entry in found.items()} == {"low": "PASS", "high": "FAIL"}
    assert found["high"]["interval"]["lower"] > 2
    assert found["high"]["interval"]["lower"] <= 3 <= found["high"]["interval"]["upper"]
    assert found["high"]["interval"]["assumes"]["lower"] == []
    assert {key: found["low"][key] for key in ("criterion", "limit", "severity")} == {
        "criterion": "max_norm", "limit": 2.0, "severity": "error",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "code"), [(3.0 * (1 - 1e-9), 1), (3.0 * (1 + 1e-9), 0)], ids=["just above", "just below"]
)
def test_certificate_is_made_narrower_until_it_decides(tmp_path: Path, stated: Path, limit: float, code: int) -> None:
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 1, 1))
    result = check(model, "--max-norm", repr(limit), "--geometry", stated, "--format", "json")
    assert result.exit_code == code
    interval = told(result)["conv"]["interval"]
    assert interval["upper"] / interval["lower"] - 1 < 1e-8


def test_layer_that_is_decided_at_once_keeps_its_wide_interval(tmp_path: Path, stated: Path) -> None:
    model = saved(tmp_path / "m.safetensors", conv=np.random.default_rng(1).normal(size=(8, 8, 3, 3)))
    result = check(model, "--max-norm", "1000", "--geometry", stated, "--format", "json", "--tol", "0.2")
    assert 1e-3 < told(result)["conv"]["interval"]["width"] <= 0.2


def test_limit_within_rounding_of_the_norm_is_undecided(tmp_path: Path, stated: Path) -> None:
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 1, 1))
    result = check(model, "--max-norm", "3", "--geometry", stated, "--format", "json")
    assert result.exit_code == 4
    assert told(result)["conv"]["reason"] == "the limit is within rounding of the value"


def test_out_of_budget_is_undecided_and_says_so(tmp_path: Path, stated: Path) -> None:
    model = saved(tmp_path / "m.safetensors", conv=np.random.default_rng(0).normal(size=(8, 8, 3, 3)))
    norm = told(check(model, "--max-norm", "1", "--tol", "1e-9", "--geometry", stated, "--format", "json"))["conv"]
    limit = ("--max-norm", repr(norm["interval"]["upper"] * (1 + 1e-6)), "--geometry", stated, "--format", "json")
    assert check(model, *limit).exit_code == 0
    result = check(model, *limit, "--budget", "1e-9")
    assert result.exit_code == 4
    assert "give a larger --budget" in told(result)["conv"]["reason"]


# A stride of 2 takes a row of taps apart: |1| and |1, 1| on different phases. Norm sqrt(1 + 4) instead of 3.


def test_unknown_stride_leaves_a_layer_undecided_that_only_stride_1_would_fail(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 1, 1))
    result = check(model, "--max-norm", "2.5", "--format", "json")
    assert result.exit_code == 4
    entry = told(result)["conv"]
    assert entry["verdict"] == "UNDECIDED"
    assert "stride" in entry["reason"]
    assert "--geometry" in entry["reason"]
    strided = tmp_path / "strided.toml"
    strided.write_text('[layers."*"]\nstride = 2\ngroups = 1\ndilation = 1\n')
    assert check(model, "--max-norm", "2.5", "--geometry", strided).exit_code == 0


def test_taps_fail_a_layer_whatever_is_unknown(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 1, 1))
    result = check(model, "--max-norm", "1.7", "--format", "json")  # sqrt(3) = 1.732
    assert result.exit_code == 1
    entry = told(result)["conv"]
    assert entry["interval"]["lower"] == pytest.approx(math.sqrt(3), rel=1e-9)
    assert entry["interval"]["assumes"]["lower"] == []
    assert "taps" in entry["reason"]


def test_with_unknown_groups_only_one_channel_of_taps_counts(tmp_path: Path) -> None:
    # Depthwise or not: 16 output channels that read one input each, all equal to 1. As one group sqrt(16) = 4.
    depthwise = {"dw": np.ones((16, 1, 1, 1)), "pw": np.ones((4, 16, 1, 1))}
    model = saved(tmp_path / "m.safetensors", **depthwise)
    verdicts = {
        limit: told(check(model, "--max-norm", limit, "--include", "dw", "--format", "json"))["dw"]["verdict"]
        for limit in ("0.9", "3.9", "4.1")
    }
    assert verdicts == {"0.9": "FAIL", "3.9": "UNDECIDED", "4.1": "PASS"}


def test_every_fail_is_true_of_every_geometry_it_could_have() -> None:
    rng = np.random.default_rng(7)
    unknown = Geometry((6, 6), (1, 1), ((1, 1), (1, 1)), origin={"stride": "assumed", "groups": "assumed"})
    for trial in range(6):
        kernel = rng.normal(size=(4, 2, 3, 3))
        layer = ConvLayer("c", "c", kernel.shape, "float64", "OIK", unknown, lambda kernel=kernel: kernel)
        (report,) = check_layers([layer], Policy(Limits(max_norm=0.5)), GateOptions())
        assert report.check is not None
        (found,) = report.check.findings
        assert found.verdict == "FAIL"
        assert found.interval is not None
        for stride, groups in itertools.product((1, 2, 3), (1, 2, 4)):
            real = convolution(
                kernel, (6, 6), stride=(stride,) * 2, padding=((0, 0),) * 2, dilation=(1, 1), groups=groups
            )
            norm = singular_values(real)[0]
            assert found.interval.lower <= norm * (1 + 1e-12), (trial, stride, groups)


def test_pass_on_an_assumed_padding_mode_says_so(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 1, 1))
    result = check(model, "--max-norm", "4", "--format", "json")
    assert result.exit_code == 0
    assert told(result)["conv"]["reason"] == "if the guessed padding mode is right"
    assert "1 of these PASS if the guessed padding mode is right" in result.stderr
    known = check(model, "--max-norm", "4", "--padding-mode", "zeros", "--format", "json")
    assert told(known)["conv"]["reason"] == ""
    assert "of these PASS" not in known.stderr


def test_padding_that_copies_pixels_is_undecided_between_the_ends(tmp_path: Path, stated: Path) -> None:
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 1, 1))
    stated.write_text('[layers."*"]\nstride = 1\ngroups = 1\npadding = [0, 1]\n')
    options = ("--geometry", stated, "--padding-mode", "replicate", "--format", "json")
    codes = [check(model, "--max-norm", limit, *options).exit_code for limit in ("2.9", "3.5", "9")]
    assert codes == [1, 4, 0]
    assert "copies pixels" in told(check(model, "--max-norm", "3.5", *options))["conv"]["reason"]


def test_spoilt_weights_are_undecided_and_the_others_are_checked(tmp_path: Path, stated: Path) -> None:
    bad = in_a_row(1, np.nan, 1)
    model = saved(tmp_path / "m.safetensors", bad=bad, good=in_a_row(1, 1, 1))
    result = check(model, "--max-norm", "9", "--geometry", stated, "--format", "json")
    assert result.exit_code == 4
    found = told(result)
    assert (found["bad"]["verdict"], found["good"]["verdict"]) == ("UNDECIDED", "PASS")
    assert "NaN" in found["bad"]["reason"]
    assert found["bad"]["interval"] is None


def test_weight_that_cannot_be_listed_is_undecided_unless_it_is_left_out(tmp_path: Path) -> None:
    model = tmp_path / "m.pt"
    lazy = torch.nn.LazyConv2d(4, 3)
    torch.save({"conv.weight": torch.ones(1, 1, 1, 1), "lazy.weight": lazy.weight}, model)
    result = check(model, "--max-norm", "9")
    assert result.exit_code == 4, result.stderr
    assert "could not be listed" in result.stderr
    assert check(model, "--max-norm", "9", "--exclude", "lazy").exit_code == 0
    assert check(model, "--max-norm", "9", "--include", "conv").exit_code == 0


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning")
def test_quantised_layer_is_undecided(tmp_path: Path) -> None:
    model = tmp_path / "m.pt"
    quantised = torch.quantize_per_tensor(torch.ones(2, 2, 3, 3), 0.1, 0, torch.qint8)
    torch.save({"conv.weight": quantised}, model)
    result = check(model, "--max-norm", "9", "--format", "json")
    assert result.exit_code == 4
    assert "quantised" in told(result)["conv"]["reason"]


def test_zero_layer_passes(tmp_path: Path) -> None:
    assert check(saved(tmp_path / "m.safetensors", conv=np.zeros((2, 2, 3, 3))), "--max-norm", "1e-9").exit_code == 0


def test_no_convolutions_end_with_0_and_a_warning(tmp_path: Path) -> None:
    save_file({"fc.weight": np.ones((2, 3), np.float32)}, tmp_path / "m.safetensors")
    result = check(tmp_path / "m.safetensors", "--max-norm", "1")
    assert result.exit_code == 0
    assert "nothing was checked" in result.stderr


@pytest.mark.parametrize("option", [("--include", "gone*"), ("--exclude", "*")], ids=" ".join)
def test_globs_that_leave_no_layer_are_usage(tmp_path: Path, option: tuple[str, str]) -> None:
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 1, 1))
    result = check(model, "--max-norm", "9", *option)
    assert result.exit_code == 2
    assert "no layer is left to check" in result.stderr


# -------------------------------------------------------------------------------- smallest value, condition, product

CIRCLE = '[layers."*"]\nstride = 1\ngroups = 1\ndilation = 1\ntransposed = false\npadding = "same"\n'


def circle(tmp_path: Path, *, size: int | None, mode: str = "circular") -> Path:
    path = tmp_path / "circle.toml"
    path.write_text(CIRCLE + f'padding_mode = "{mode}"\n' + (f"size = {size}\n" if size else ""))
    return path


# Taps 1, 3, 1 around a circle of 6: values |3 + 2 cos(2 pi j / 6)| from 1 to 5.


@pytest.mark.parametrize(
    ("option", "limit", "verdict"),
    [
        ("--min-norm", "0.999", "PASS"),
        ("--min-norm", "1.001", "FAIL"),
        ("--max-condition", "5.001", "PASS"),
        ("--max-condition", "4.999", "FAIL"),
    ],
)
@pytest.mark.parametrize("size", [6, None], ids=["size known", "size unknown"])
def test_circular_layer_by_its_smallest_value(
    tmp_path: Path, option: str, limit: str, verdict: str, size: int | None
) -> None:
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 3, 1))
    result = check(model, option, limit, "--geometry", circle(tmp_path, size=size), "--format", "json")
    expected = "UNDECIDED" if size is None and verdict == "FAIL" else verdict  # every size only lets pass
    assert told(result)["conv"]["verdict"] == expected
    assert result.exit_code == {"PASS": 0, "FAIL": 1, "UNDECIDED": 4}[expected]


def test_zero_padded_layer_is_judged_by_its_own_values_not_by_the_symbol(tmp_path: Path) -> None:
    # Taps 0, 0.1, 1: the symbol never falls below 0.9, the zero-padded matrix of 12 is nearly singular.
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(0, 0.1, 1))
    option = ("--min-norm", "0.5", "--format", "json", "--geometry")
    zeros = told(check(model, *option, circle(tmp_path, size=12, mode="zeros")))
    assert zeros["conv"]["verdict"] == "FAIL"
    assert zeros["conv"]["interval"]["upper"] < 1e-9
    assert told(check(model, *option, circle(tmp_path, size=12)))["conv"]["verdict"] == "PASS"
    unknown = told(check(model, *option, circle(tmp_path, size=None, mode="zeros")))
    assert unknown["conv"]["verdict"] == "UNDECIDED"
    assert "size" in unknown["conv"]["reason"]


def test_guessed_geometry_decides_nothing_about_the_smallest_value(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 3, 1))
    result = check(model, "--min-norm", "0.1", "--size", "6", "--padding-mode", "circular", "--format", "json")
    assert result.exit_code == 4
    assert "stride" in told(result)["conv"]["reason"]


def test_layer_too_large_for_its_spectrum_can_fail_but_not_pass(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.safetensors", conv=np.random.default_rng(0).normal(size=(16, 16, 3, 3)))
    geometry = circle(tmp_path, size=24, mode="zeros")
    codes = [check(model, "--min-norm", limit, "--geometry", geometry).exit_code for limit in ("1e-12", "1e3")]
    assert codes == [4, 1]


def test_all_criteria_of_a_layer_are_reported_and_the_worst_decides(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 3, 1))
    options = ("--max-norm", "6", "--min-norm", "2", "--max-condition", "9")
    result = check(model, *options, "--geometry", circle(tmp_path, size=6), "--format", "json")
    entry = told(result)["conv"]
    verdicts = {name: found["verdict"] for name, found in entry["criteria"].items()}
    assert verdicts == {"max_norm": "PASS", "min_norm": "FAIL", "max_condition": "PASS"}
    assert (entry["verdict"], entry["criterion"], result.exit_code) == ("FAIL", "min_norm", 1)


@pytest.mark.parametrize(("limit", "code"), [("6.5", 0), ("6.0000001", 0), ("5.9999999", 1), ("5", 1)])
def test_product_of_norms(tmp_path: Path, stated: Path, limit: str, code: int) -> None:
    model = saved(tmp_path / "m.safetensors", a=in_a_row(1, 1, 1), b=in_a_row(0.5, 1, 0.5))
    result = check(model, "--max-product", limit, "--geometry", stated, "--format", "json")
    assert result.exit_code == code
    (checkpoint,) = json.loads(result.stdout)["checkpoints"]
    assert checkpoint["check"]["verdict"] == ("FAIL" if code else "PASS")
    interval = checkpoint["check"]["interval"]
    assert interval["lower"] <= 6 <= interval["upper"]


def test_product_is_undecided_without_the_norm_of_a_layer_and_leaves_out_what_is_off(
    tmp_path: Path, stated: Path
) -> None:
    model = saved(tmp_path / "m.safetensors", bad=in_a_row(1, np.nan, 1), good=in_a_row(1, 1, 1))
    result = check(model, "--max-product", "99", "--geometry", stated)
    assert result.exit_code == 4
    config = tmp_path / "limits.toml"
    config.write_text('max_product = 4\n[layers.bad]\nseverity = "off"\n')
    assert check(model, "--config", config, "--geometry", stated).exit_code == 0


def test_product_of_unknown_strides_fails_by_the_taps_only(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.safetensors", a=in_a_row(1, 1, 1), b=in_a_row(1, 1, 1))
    codes = [check(model, "--max-product", limit).exit_code for limit in ("2.9", "5", "9.5")]
    assert codes == [1, 4, 0]  # taps: 3, stride 1: 9


# -------------------------------------------------------------------------------------------------------------- limits


def test_later_tables_win_key_by_key() -> None:
    policy = Policy(
        Limits(max_norm=1.0),
        (("a.*", {"max_norm": 2.0, "severity": "warn"}), ("a.b", {"max_norm": 3.0})),
        norms=lambda name: 1.5 if name == "c" else None,
    )
    assert policy.limits("a.b") == Limits(max_norm=3.0, severity="warn")
    assert policy.limits("a.c") == Limits(max_norm=2.0, severity="warn")
    assert policy.limits("b") == Limits(max_norm=1.0)
    assert policy.limits("c") == Limits(max_norm=1.5)
    assert policy.unmatched(["a.c", "b"]) == ("a.b",)


def test_limits_come_from_the_project_file_of_the_folder(tmp_path: Path, stated: Path) -> None:
    model = saved(tmp_path / "m.safetensors", one=pointwise(1), two=pointwise(2))
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "x"\n[tool.convsv.check]\nmax_norm = 1.5\n')
    assert check(model, "--geometry", stated).exit_code == 1
    assert check(model, "--geometry", stated, "--max-norm", "3").exit_code == 0
    project.write_text("[tool.convsv.check]\nmax_norm = 1.5\n[tool.convsv.check.layers.two]\nmax_norm = 2.5\n")
    assert check(model, "--geometry", stated).exit_code == 0
    project.write_text('[tool.convsv.check]\nmax_norm = 1.5\n[tool.convsv.check.layers.two]\nseverity = "warn"\n')
    result = check(model, "--geometry", stated)
    assert result.exit_code == 0
    assert "warning: " in result.stderr
    assert "FAIL: two" in result.stderr
    other = tmp_path / "other.toml"
    other.write_text("max_norm = 1.5\n")
    assert check(model, "--geometry", stated, "--config", other).exit_code == 1


def test_geometry_file_states_limits_too(tmp_path: Path, stated: Path) -> None:
    model = saved(tmp_path / "m.safetensors", one=pointwise(1), two=pointwise(2))
    stated.write_text(STATED + "max_norm = 1.5\n")
    assert check(model, "--geometry", stated).exit_code == 1
    stated.write_text(STATED + "max_norm = 2.5\n")
    assert check(model, "--geometry", stated).exit_code == 0


def test_layer_that_is_off_is_not_checked_and_not_read(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.safetensors", bad=in_a_row(1, np.nan, 1), good=in_a_row(0.1, 0.1, 0.1))
    config = tmp_path / "limits.toml"
    config.write_text('max_norm = 1\n[layers.bad]\nseverity = "off"\n')
    result = check(model, "--config", config, "--format", "json")
    assert result.exit_code == 0
    assert (told(result)["bad"]["verdict"], told(result)["bad"]["severity"]) == (None, "off")


def test_glob_of_the_limits_that_matches_nothing_is_said(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 1, 1))
    config = tmp_path / "limits.toml"
    config.write_text('max_norm = 9\n[layers."gone*"]\nmax_norm = 1\n')
    assert f'{config}: layers."gone*" matches no layer' in check(model, "--config", config).stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_nrom = 1", "did you mean max_norm?"),
        ("max_norm = '1'", "positive number"),
        ("max_norm = true", "positive number"),
        ("max_norm = 0", "positive number"),
        ("max_norm = nan", "positive number"),
        ("max_norm = 1" + "0" * 400, "positive number"),
        ("severity = 'loud'", "off, warn, error"),
        ("[layers]\nx = 1", "must be a table"),
        ("layers = 1", "must hold tables"),
        ("[layers.x]\nmax_product = 1", "unknown key"),
        ("[layers.x]\nseverity = 1", "must be one of"),
        ("max_norm = ", "not a TOML file"),
        ("[tool.other]\nx = 1", "no table"),
        ("[tool.convsv]\ncheck = 1", "must be a table"),
        ("tool = 1", "must be a table"),
    ],
)
def test_wrong_file_of_limits_is_usage(tmp_path: Path, text: str, words: str) -> None:
    config = tmp_path / "limits.toml"
    config.write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)):
        read_policy(config)
    result = check("m.safetensors", "--config", config)
    assert result.exit_code == 2
    assert words in result.stderr


def test_project_file_without_the_table_says_nothing(tmp_path: Path) -> None:
    assert default_policy(tmp_path) == Policy()
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\nline-length = 99\n")
    assert default_policy(tmp_path) == Policy()
    (tmp_path / "pyproject.toml").write_text("[tool.convsv.check]\nfoo = 1\n")
    with pytest.raises(UsageError, match="unknown key"):
        default_policy(tmp_path)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "nothing to check"),
        (["--max-norm", "0"], "--max-norm"),
        (["--max-norm", "inf"], "--max-norm"),
        (["--max-norm", "1", "--budget", "0"], "--budget"),
        (["--max-norm", "1", "--severity", "loud"], "--severity"),
        (["--max-norm", "1", "--config", "gone.toml"], "no such file"),
        (["--max-norm", "1", "--baseline", "gone.json"], "no such file"),
        (["--max-norm", "1", "--format", "xml"], "no such format"),
        (["--max-norm", "1", "-o", "a.txt"], "no report format"),
        (["--max-norm", "1", "-o", "a.xml", "--junit", "a.xml"], "written twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_usage(tmp_path: Path, args: list[str], words: str) -> None:
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 1, 1))
    before = sorted(path.name for path in tmp_path.iterdir())
    result = check(model, *args)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# ---------------------------------------------------------------------------------------------------------- exit codes


def test_every_exit_code_is_reached_in_its_order(tmp_path: Path, stated: Path) -> None:
    passing = saved(tmp_path / "pass.safetensors", conv=pointwise(1))
    failing = saved(tmp_path / "fail.safetensors", conv=pointwise(3))
    undecided = saved(tmp_path / "nan.safetensors", conv=pointwise(math.nan))
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no checkpoint at all\n" * 20)
    limit = ("--max-norm", "2", "--geometry", stated)
    assert check(passing, *limit).exit_code == 0
    assert check(passing, failing, undecided, *limit).exit_code == 1
    assert check(passing, undecided, *limit).exit_code == 4
    assert check(passing, failing, undecided, broken, *limit).exit_code == 3
    assert check(passing, failing, broken, tmp_path / "gone.pt", *limit).exit_code == 2
    unwritable = check(passing, failing, broken, *limit, "-o", tmp_path / "no" / "folder" / "r.json")
    assert unwritable.exit_code == 5


def test_other_checkpoints_are_checked_beside_a_broken_one(tmp_path: Path, stated: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no checkpoint at all\n" * 20)
    model = saved(tmp_path / "m.safetensors", conv=pointwise(3))
    result = check(broken, model, "--max-norm", "2", "--geometry", stated, "--junit", tmp_path / "r")
    assert result.exit_code == 3
    assert "FAIL: conv: norm is at least" in result.stderr
    first, second = ElementTree.parse(tmp_path / "r").getroot()
    assert [first.get("errors"), second.get("failures")] == ["1", "1"]


# ------------------------------------------------------------------------------------------------------------ baseline


def test_baseline_accepts_what_it_knows_and_nothing_worse(tmp_path: Path, stated: Path) -> None:
    rng = np.random.default_rng(0)
    kernels = {"a": rng.normal(size=(4, 4, 3, 3)), "b": rng.normal(size=(4, 4, 3, 3))}
    model = saved(tmp_path / "m.safetensors", **kernels)
    limit = ("--max-norm", "1", "--geometry", stated)
    for command in (["check", *map(str, limit), "--severity", "warn"], ["analyze", "--geometry", str(stated)]):
        report = tmp_path / f"{command[0]}.json"
        assert CliRunner().invoke(app, [*command, str(model), "-o", str(report)]).exit_code == 0
        same = check(model, *limit, "--baseline", report, "--format", "json")
        assert same.exit_code == 0
        assert [(entry["verdict"], entry["accepted"]) for entry in told(same).values()] == [("FAIL", True)] * 2
        smaller = saved(tmp_path / "smaller.safetensors", a=kernels["a"] * 0.99, b=kernels["b"] * 0.5)
        assert check(smaller, *limit, "--baseline", report).exit_code == 0
        larger = saved(tmp_path / "larger.safetensors", a=kernels["a"] * 1.2, b=kernels["b"])
        grown = check(larger, *limit, "--baseline", report, "--format", "json")
        assert grown.exit_code == 1
        assert {name: entry["accepted"] for name, entry in told(grown).items()} == {"a": False, "b": True}
        new = saved(tmp_path / "new.safetensors", **kernels, c=kernels["a"])
        assert check(new, *limit, "--baseline", report).exit_code == 1


def test_baseline_ratchets_the_smallest_value_and_the_product(tmp_path: Path) -> None:
    geometry = circle(tmp_path, size=6)
    model = saved(tmp_path / "m.safetensors", conv=in_a_row(1, 3, 1))
    limits = ("--min-norm", "2", "--max-condition", "4", "--max-product", "4", "--geometry", geometry)
    report = tmp_path / "report.json"
    assert check(model, *limits, "-o", report).exit_code == 1
    assert check(model, *limits, "--baseline", report).exit_code == 0
    worse = saved(tmp_path / "worse.safetensors", conv=in_a_row(1.1, 3, 1.1))
    assert check(worse, *limits, "--baseline", report).exit_code == 1


def test_layer_that_passed_in_the_baseline_may_not_fail_now(tmp_path: Path, stated: Path) -> None:
    model = saved(tmp_path / "m.safetensors", conv=pointwise(3))
    report = tmp_path / "report.json"
    assert check(model, "--max-norm", "4", "--geometry", stated, "-o", report).exit_code == 0
    assert check(model, "--max-norm", "2", "--geometry", stated, "--baseline", report).exit_code == 1


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"schema": "convsv/2"}', '{"schema": "convsv/1"}', "\xff"],
    ids=lambda text: text or "empty",
)
def test_baseline_that_is_no_report_is_usage(tmp_path: Path, text: str) -> None:
    report = tmp_path / "report.json"
    report.write_bytes(text.encode("latin-1"))
    result = check(saved(tmp_path / "m.safetensors", conv=pointwise(3)), "--max-norm", "2", "--baseline", report)
    assert result.exit_code == 2
    assert str(report) in result.stderr


# -------------------------------------------------------------------------------------------------------------- output


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A checkpoint with a layer of each verdict: low, high, and spoilt."""
    return saved(tmp_path / "m.safetensors", low=pointwise(1), high=pointwise(3), spoilt=pointwise(math.nan))


@pytest.mark.parametrize("form", format_names("check"))
def test_every_format_tells_every_layer_that_does_not_pass(mixed: Path, form: str) -> None:
    result = check(mixed, "--max-norm", "2", "--format", form)
    assert result.exit_code == 1
    for word in ("high", "spoilt", "FAIL", "UNDECIDED"):
        assert word in result.stdout


def test_json_is_valid_against_the_schema(mixed: Path, tmp_path: Path) -> None:
    schema = json.loads((resources.files("convsv.reports") / "report.schema.json").read_text("utf-8"))
    config = tmp_path / "limits.toml"
    config.write_text('max_norm = 2\nmin_norm = 0.1\nmax_product = 5\n[layers.low]\nseverity = "off"\n')
    geometry = circle(tmp_path, size=None)
    for more in ([], ["--config", str(config)], ["--config", str(config), "--geometry", str(geometry)]):
        result = check(mixed, "--max-norm", "2", "--format", "json", *more)
        whole = json.loads(result.stdout)
        assert list(Draft202012Validator(schema).iter_errors(whole)) == []
    *rows, last = map(json.loads, check(mixed, "--max-norm", "2", "--format", "jsonl").stdout.splitlines())
    definitions = {"$defs": schema["$defs"]}
    for row in rows:
        Draft202012Validator({"$ref": "#/$defs/jsonl_layer", **definitions}).validate(row)
        assert "check" in row
    Draft202012Validator({"$ref": "#/$defs/jsonl_summary", **definitions}).validate(last)


def test_rows_are_layers_with_the_verdict_in_columns(mixed: Path) -> None:
    header, *rows = [
        line.split("\t") for line in check(mixed, "--max-norm", "2", "--format", "tsv").stdout.splitlines()
    ]
    found = [dict(zip(header, row, strict=True)) for row in rows]
    assert {row["name"]: row["check_verdict"] for row in found} == {
        "low": "PASS", "high": "FAIL", "spoilt": "UNDECIDED",
    }  # fmt: skip
    assert {row["check_limit"] for row in found} == {"2.0"}
    assert float(found[1]["check_interval_lower"]) > 2 or found[1]["name"] != "high"
    assert check(mixed, "--max-norm", "2", "--sort", "check_verdict").exit_code == 1


def test_table_shows_limit_value_and_verdict(mixed: Path) -> None:
    result = check(mixed, "--max-norm", "2", "--format", "table")
    shown = {line.split()[0]: " ".join(line.split()) for line in result.stdout.splitlines() if line.split()}
    assert shown["layer"] == "layer kind shape limit value width verdict"
    assert shown["low"].endswith("PASS")
    assert "norm ≤ 2" in shown["high"]
    assert re.search(r"FAIL( \[\d\])?$", shown["high"])
    assert re.search(r"UNDECIDED \[\d\]$", shown["spoilt"])


def test_standard_error_names_the_layers_and_counts_the_rest(mixed: Path) -> None:
    result = check(mixed, "--max-norm", "2")
    assert f"{mixed}: FAIL: high: norm is at least 3" in result.stderr.replace("2.9999", "3")
    assert f"{mixed}: UNDECIDED: spoilt: norm is unknown" in result.stderr
    assert "1 PASS, 1 FAIL, 1 UNDECIDED" in result.stderr
    assert check(mixed, "--max-norm", "2", "--quiet").stderr == ""


def test_junit_counts_failures_errors_and_what_is_skipped(mixed: Path, tmp_path: Path) -> None:
    config = tmp_path / "limits.toml"
    config.write_text('max_norm = 2\nmax_product = 1\n[layers.low]\nseverity = "off"\n')
    assert check(mixed, "--config", config, "-o", tmp_path / "r.xml").exit_code == 1
    root = ElementTree.parse(tmp_path / "r.xml").getroot()
    counts = {name: root.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "2", "skipped": "1"}
    (failure,) = root.iter("failure")
    assert "norm is at least" in failure.get("message", "")
    names = [case.get("name") for case in root.iter("testcase")]
    assert sorted(names) == sorted(["low", "high · max_norm", "spoilt · max_norm", "all layers · max_product"])


def test_warnings_are_no_failures_in_junit(mixed: Path, tmp_path: Path) -> None:
    result = check(mixed, "--max-norm", "2", "--severity", "warn", "--junit", tmp_path / "r")
    assert result.exit_code == 0
    root = ElementTree.parse(tmp_path / "r").getroot()
    assert (root.get("failures"), root.get("errors"), root.get("skipped")) == ("0", "0", "2")


def reported(name: str) -> LayerReport:
    geometry = Geometry((8, 8), (1, 1), ((0, 0), (0, 0)))
    finding = Finding("max_norm", 2.0, "FAIL", Interval(3.0, 3.1), "because 100% of\r\nit: does, so")
    return LayerReport(name, name, "conv2d", (1, 1, 1, 1), "float32", geometry, check=Check("error", (finding,)))


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
def test_hostile_names_break_neither_xml_nor_annotations(name: str) -> None:
    report = Report("check", checkpoints=(CheckpointReport(f"dir,{name}:x", "pytorch", layers=(reported(name),)),))
    page = io.StringIO()
    write_report(report, page, "junit")
    (case,) = ElementTree.fromstring(page.getvalue().encode("utf-8")).iter("testcase")
    assert case.get("name", "").endswith(" · max_norm")
    page = io.StringIO()
    write_report(report, page, "github")
    (line,) = page.getvalue().splitlines()
    assert line.isprintable()
    match = re.fullmatch(r"::error file=([^,:]*),title=([^,:]*)::(.*)", line)
    assert match
    assert "100%25 of" in match[3]


def test_github_gets_annotations_and_a_summary(mixed: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    result = check(mixed, "--max-norm", "2", "--format", "tsv", **environment)
    lines = [line for line in result.stderr.splitlines() if line.startswith("::")]
    assert len(lines) == 2
    assert all(line.startswith(f"::error file={mixed}".replace(",", "%2C")) for line in lines)
    assert "::" not in result.stdout
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("before\n## convsv check\n")
    assert "| `high` |" in text
    assert "::error" not in check(mixed, "--max-norm", "2", "--no-github", **environment).stderr
    on_output = check(mixed, "--max-norm", "2", "--format", "github", **environment)
    assert [line for line in on_output.stdout.splitlines() if "high" in line]
    assert "::error" not in on_output.stderr
    assert "::error" in check(mixed, "--max-norm", "2", "--github").stderr


def test_summary_that_cannot_be_written_is_said(mixed: Path, tmp_path: Path) -> None:
    result = check(mixed, "--max-norm", "9", "--github", GITHUB_STEP_SUMMARY=str(tmp_path))
    assert result.exit_code == 5
    assert "cannot be written" in result.stderr


def test_other_commands_write_no_junit(mixed: Path, tmp_path: Path) -> None:
    for option in (("-o", str(tmp_path / "r.xml")), ("--format", "junit")):
        assert CliRunner().invoke(app, ["analyze", str(mixed), *option]).exit_code == 2
    assert not (tmp_path / "r.xml").exists()


# ---------------------------------------------------------------------------------------------------------------- page


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def around(tmp_path: Path, sample_checkpoints: Path) -> dict[str, str]:
    """A folder with the sample checkpoints, and an environment in which ``convsv`` is this one."""
    (tmp_path / "sample_checkpoints").symlink_to(sample_checkpoints)
    program = tmp_path / "bin" / "convsv"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m convsv "$@"\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in CI_VARIABLES}
    return {**kept, "PATH": f"{program.parent}:{os.environ['PATH']}"}


def shell(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)


def test_commands_of_the_page_run(around: dict[str, str]) -> None:
    for block in blocks("console"):
        for line in block.splitlines():
            assert line.startswith("$ convsv ")
            result = CliRunner().invoke(app, shlex.split(line)[2:])
            assert result.exit_code == 0, result.stderr
            assert result.stdout


def test_limits_of_the_page_are_valid_and_hold(around: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(blocks("toml")[0])
    result = check("sample_checkpoints/digits.keras", "--format", "json")
    assert result.exit_code == 0
    assert (told(result)["draw"]["severity"], told(result)["down"]["limit"]) == ("off", 25.0)


def test_workflow_of_the_page_gates_and_annotates(around: dict[str, str], tmp_path: Path) -> None:
    workflow = blocks("yaml")[0]
    (script,) = re.findall(r"- run: \|\n((?: {10}.*\n)+)", workflow)
    summary = tmp_path / "summary.md"
    on_github = {**around, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    assert shell(script, on_github).returncode == 0
    assert {path.suffix for path in tmp_path.glob("norms.*")} == {".xml", ".json"}
    assert "PASS" in summary.read_text(encoding="utf-8")
    failed = shell(script.replace("--max-norm 10", "--max-norm 5"), on_github)
    assert failed.returncode == 1
    annotated = [line for line in failed.stderr.splitlines() if line.startswith("::error ")]
    assert [re.search(r"::(\w+): norm is at least", line)[1] for line in annotated] == ["down", "dilated"]  # type: ignore[index]


def test_script_of_the_page_fails_for_the_right_reason(around: dict[str, str]) -> None:
    (script,) = blocks("bash")
    assert len(script.splitlines()) == 10
    passed = shell(script, around)
    assert (passed.returncode, passed.stdout.splitlines()[-1]) == (0, "every layer is certified")
    failed = shell(script.replace("limit=10", "limit=5"), around)
    assert (failed.returncode, failed.stdout.splitlines()[-1]) == (1, "a layer is above 5")
    lines = [line for line in failed.stderr.splitlines() if ": FAIL: " in line]
    assert [line.split(": ")[2] for line in lines] == ["down", "dilated"]
    undecided = shell(script.replace("digits.keras", "digits.pt").replace("limit=10", "limit=5"), around)
    assert (undecided.returncode, undecided.stdout.splitlines()[-1]) == (
        1, "a layer is undecided: state its geometry",
    )  # fmt: skip
    for model, code in (("gone.keras", 2), ("sample_checkpoints/README.md", 3)):
        unread = shell(script.replace("sample_checkpoints/digits.keras", model), around)
        assert (unread.returncode, unread.stdout.splitlines()[-1]) == (code, "the check did not run")


def test_hook_of_the_page_takes_the_changed_files(around: dict[str, str]) -> None:
    hook = blocks("yaml")[1]
    (entry,) = re.findall(r"entry: (.*)", hook)
    (pattern,) = re.findall(r"files: '(.*)'", hook)
    files = [f"sample_checkpoints/{name}" for name in ("digits.keras", "README.md", "digits.h5")]
    chosen = [name for name in files if re.search(pattern, name)]
    assert chosen == [files[0], files[2]]
    for limit, code in (("10", 0), ("5", 1)):
        arguments = [limit if word == "10" else word for word in shlex.split(entry)[2:]]
        assert check(*arguments, *chosen).exit_code == code


def test_page_tells_every_exit_code_and_limit() -> None:
    assert set(re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)) == {"0", "1", "2", "3", "4", "5", "130"}
    assert set(re.findall(r"`(m\w+)` \|", PAGE)) == {"max_norm", "min_norm", "max_condition", "max_product"}


def test_check_product_of_nothing_is_nothing() -> None:
    assert check_product([], [], Policy(max_product=1.0), GateOptions()) is None

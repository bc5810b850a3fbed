"""Clipped checkpoints: what was promised is true of the finished file, and nothing else in it has changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations

from convsv import analyze, find_layers, open_checkpoint
from convsv.checkpoints import FORMATS, Checkpoint
from convsv.checkpoints._writeback import Locked
from convsv.checkpoints.sidecar import Sidecar, Table, read_sidecar
from convsv.checkpoints.sources import GeometryOptions
from convsv.checkpoints.writing import EditableFormat
from convsv.clipping import METHODS
from convsv.editing import (
    ClipPlan,
    Outcome,
    Selection,
    bystanders,
    clip_checkpoint,
    clip_layers,
    refuse,
    refuse_format,
    write_clipped,
)
from convsv.errors import CheckpointError, ComputationError, OutputError, UsageError
from convsv.results import LayerReport
from parametrised import WRAPS, effective, trained

SAMPLES = (
    "digits.pt",
    "digits-legacy.pth",
    "digits-module.pt",
    "digits-lightning.ckpt",
    "digits-weightnorm.pt",
    "digits-fp16.pt",
    "digits.safetensors",
    "digits-bf16.safetensors",
    "digits-sharded",
    "digits.h5",
    "digits.weights.h5",
    "digits.keras",
)
RADIUS = 0.75


def content(path: Path) -> dict[str, bytes]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def clips(reports: list[LayerReport]) -> dict[str, Any]:
    return {report.name: report.clip for report in reports}


def kernels(path: Path) -> dict[str, NDArray[np.float64]]:
    return {layer.name: layer.kernel() for layer in find_layers(open_checkpoint(path))}


def saved(path: Path, kernels: Mapping[str, NDArray[Any]]) -> Path:
    save_file({f"{name}.weight": np.ascontiguousarray(kernel) for name, kernel in kernels.items()}, path)
    return path


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- each format


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_layer_of_the_new_file_is_certified_and_clipping_it_again_changes_no_bit(
    sample_checkpoints: Path, tmp_path: Path, sample: str
) -> None:
    source, out, again = sample_checkpoints / sample, tmp_path / "out", tmp_path / "again"
    before = content(source)
    # Scaling is quick and asks as much of the file; two samples stand for the others with the default.
    plan = ClipPlan(RADIUS, method="nearest" if sample in ("digits-bf16.safetensors", "digits.keras") else "scale")
    told = clip_checkpoint(source, out, plan)
    found = analyze(find_layers(open_checkpoint(out)))
    assert [report.norm for report in told] == [report.norm for report in found]
    assert all(report.norm is not None and report.norm.upper <= RADIUS for report in found)
    assert any(report.clip and report.clip.touched for report in told)
    assert content(source) == before
    assert not any(report.clip and report.clip.touched for report in clip_checkpoint(out, again, plan))
    assert content(again) == content(out)


@pytest.mark.parametrize("wrap", WRAPS)
def test_module_that_loads_the_clipped_file_keeps_within_the_radius(tmp_path: Path, wrap: str) -> None:
    module = trained("conv2d", wrap, torch.float32)
    torch.save(module.state_dict(), tmp_path / "m.pt")
    (before,) = analyze(find_layers(open_checkpoint(tmp_path / "m.pt")))
    assert before.norm is not None
    radius = before.norm.lower / 3
    (told,) = clip_checkpoint(tmp_path / "m.pt", tmp_path / "out.pt", radius)
    module.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True))
    weight = effective(module.eval())
    (layer,) = find_layers(open_checkpoint(tmp_path / "out.pt"))
    assert np.abs(layer.kernel()[0] - weight).max() <= 2e-6 * np.abs(weight).max()
    # PyTorch rounds the weight once more when it computes it: that is not part of what is stored.
    loaded = torch.linalg.matrix_norm(torch.from_numpy(weight).double().flatten(1), 2)
    assert float(loaded) <= radius * (1 + 1e-6)
    assert told.clip is not None
    assert ("eval mode" in " ".join(told.clip.notes)) == ("spectral" in wrap)


# ------------------------------------------------------------------------------------------------------- which layers


def test_layer_within_the_radius_is_not_touched(tmp_path: Path) -> None:
    source = saved(tmp_path / "m.safetensors", {"small": random(4, 4, 3, 3) / 100, "large": random(4, 4, 3, 3)})
    told = clips(clip_checkpoint(source, tmp_path / "out", 1.0))
    assert (told["small"].touched, told["small"].method, told["small"].distance) == (False, "none", 0.0)
    assert told["large"].touched
    new, old = load_file(tmp_path / "out"), load_file(source)
    assert np.array_equal(new["small.weight"], old["small.weight"])


def test_radii_of_a_file_win_over_the_common_one_and_later_tables_over_earlier(tmp_path: Path) -> None:
    source = saved(tmp_path / "m.safetensors", {f"layer{n}.conv": random(4, 4, 3, 3, seed=n) for n in range(3)})
    radii = tmp_path / "radii.toml"
    radii.write_text('[layers."layer[12].*"]\nmax_norm = 2.0\n[layers."layer2.conv"]\nmax_norm = 3.0\n')
    plan = ClipPlan(1.0, radii=(read_sidecar(radii),))
    told = clips(clip_checkpoint(source, tmp_path / "out", plan))
    assert {name: clip.radius for name, clip in told.items()} == {
        "layer0.conv": 1.0,
        "layer1.conv": 2.0,
        "layer2.conv": 3.0,
    }
    assert all(0.99 * clip.radius <= clip.norm_after.upper <= clip.radius for clip in told.values())


def test_layer_without_a_radius_is_left_alone(tmp_path: Path) -> None:
    source = saved(tmp_path / "m.safetensors", {"a": random(4, 4, 3), "b": random(4, 4, 3, seed=1)})
    plan = ClipPlan(radii=(Sidecar("r.toml", tables=(Table("a", max_norm=1.0),)),))
    told = clips(clip_checkpoint(source, tmp_path / "out", plan))
    assert told["a"].touched
    assert told["b"] is None
    assert np.array_equal(load_file(tmp_path / "out")["b.weight"], load_file(source)["b.weight"])


def test_excluded_layer_is_neither_clipped_nor_promised(tmp_path: Path) -> None:
    source = saved(tmp_path / "m.safetensors", {"a": random(4, 4, 3), "b": random(4, 4, 3, seed=1)})
    told = clip_checkpoint(source, tmp_path / "out", 1.0, selection=Selection(exclude=["b"]))
    assert [report.name for report in told] == ["a"]
    assert np.array_equal(load_file(tmp_path / "out")["b.weight"], load_file(source)["b.weight"])


def test_plan_without_anything_to_do_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to do"):
        ClipPlan()


# ---------------------------------------------------------------------------------------------------- what cannot be


def unclippable(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    nan = random(4, 4, 3, 3)
    nan[1, 2, 0, 0] = np.nan
    torch.manual_seed(0)
    orthogonal = nn.Sequential(parametrizations.orthogonal(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3))
    torch.save(orthogonal.state_dict(), tmp_path / "orthogonal.pt")
    return {
        "NaN": (saved(tmp_path / "nan.safetensors", {"0": nan, "1": random(4, 4, 3, 3)}), "NaN"),
        "parametrisation": (tmp_path / "orthogonal.pt", "orthogonal"),
        "quantised": (
            saved(tmp_path / "int8.safetensors", {"0": np.ones((4, 4, 3, 3), np.int8), "1": random(4, 4, 3, 3)}),
            "int8",
        ),
    }


@pytest.mark.parametrize("case", ["NaN", "parametrisation", "quantised"])
def test_layer_without_a_norm_stays_as_it_is_and_the_others_are_clipped(tmp_path: Path, case: str) -> None:
    source, words = unclippable(tmp_path)[case]
    told = {report.name: report for report in clip_checkpoint(source, tmp_path / "out", 1.0)}
    assert words in told["0"].unavailable["clip"]
    clip = told["1"].clip
    assert clip is not None
    assert clip.touched
    assert clip.norm_after.upper <= 1.0


def test_nothing_is_written_while_a_layer_cannot_be_written_back(tmp_path: Path) -> None:
    source = saved(tmp_path / "plain.safetensors", {"0": random(4, 4, 3, 3), "1": random(4, 4, 3, 3)})
    layers = list(find_layers(open_checkpoint(source)))
    locked = replace(layers[0], writeback=Locked("it is computed elsewhere"))
    outcomes = list(clip_layers([locked, layers[1]], ClipPlan(1.0)))
    with pytest.raises(ComputationError, match=r"0: cannot be clipped: .*computed elsewhere.*--exclude"):
        refuse(outcomes)
    refuse(outcomes[1:])


def test_reason_is_reported_where_clipping_cannot_be(tmp_path: Path) -> None:
    source, words = unclippable(tmp_path)["NaN"]
    bad, good = clip_layers(find_layers(open_checkpoint(source)), ClipPlan(1.0))
    assert words in bad.report(written=False).unavailable["clip"]
    assert bad.report(written=False).failures == ()
    assert good.reason is None


def test_format_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    source = saved(tmp_path / "m.safetensors", {"a": random(4, 4, 3)})
    for name in FORMATS:
        checkpoint = replace(open_checkpoint(source), format=name)
        if isinstance(FORMATS[name], EditableFormat):
            refuse_format(checkpoint)
            continue
        with pytest.raises(CheckpointError, match=f"cannot be edited.*{name}"):
            refuse_format(checkpoint)
    assert {name for name in FORMATS if isinstance(FORMATS[name], EditableFormat)} >= {
        "keras",
        "pytorch",
        "safetensors",
    }


def test_dtype_too_coarse_for_the_radius_is_a_failure_in_words(tmp_path: Path) -> None:
    kernel = np.full((1, 1, 3), 1.0, np.float16)
    source = saved(tmp_path / "m.safetensors", {"a": kernel})
    (outcome,) = clip_layers(find_layers(open_checkpoint(source)), ClipPlan(1e-9))
    # Either every weight vanishes, which is within any radius, or it says that nothing was found.
    assert (outcome.clip is not None and outcome.clip.norm_after.upper <= 1e-9) or outcome.failed


def test_published_single_pass_reports_what_it_leaves(tmp_path: Path) -> None:
    source = saved(tmp_path / "m.safetensors", {"a": random(8, 8, 3, 3)})
    (told,) = clip_checkpoint(source, tmp_path / "out", ClipPlan(2.0, method="sedghi", size=(16,)))
    assert told.clip is not None
    assert not told.clip.inside
    (found,) = analyze(find_layers(open_checkpoint(tmp_path / "out")))
    assert found.norm == told.clip.norm_after


# ------------------------------------------------------------------------------------------------------- every method


@pytest.mark.parametrize("method", METHODS)
def test_distance_is_that_of_the_stored_kernels(tmp_path: Path, method: str) -> None:
    source = saved(tmp_path / "m.safetensors", {"a": random(6, 4, 3, 3)})
    (told,) = clip_checkpoint(source, tmp_path / "out", ClipPlan(2.0, method=method))
    old, new = kernels(source)["a"], kernels(tmp_path / "out")["a"]
    assert told.clip is not None
    assert told.clip.distance == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-12)
    assert told.clip.method == method


@pytest.mark.parametrize("edit", [{"min_norm": 0.5}, {"flatten": True}, {"rank": 2}], ids=str)
def test_other_edits_need_no_radius(tmp_path: Path, edit: dict[str, Any]) -> None:
    source = saved(tmp_path / "m.safetensors", {"a": random(4, 4, 3, 3)})
    (told,) = clip_checkpoint(source, tmp_path / "out", ClipPlan(**edit))
    assert told.clip is not None
    assert told.clip.radius is None
    assert told.clip.method.startswith(next(iter(edit)))
    assert not np.array_equal(kernels(tmp_path / "out")["a"], kernels(source)["a"])


@pytest.mark.parametrize("of", ["zeros", "circular"])
def test_norm_at_a_size_may_be_meant(tmp_path: Path, of: str) -> None:
    source = saved(tmp_path / "m.safetensors", {"a": random(4, 4, 3, 3)})
    selection = Selection(GeometryOptions(size=(8,)))
    (told,) = clip_checkpoint(source, tmp_path / "out", ClipPlan(2.0, of=of), selection=selection)
    assert told.norm is None
    assert told.norm_at_size is not None
    assert told.norm_at_size.of == f"{of} 8x8"
    assert told.norm_at_size.upper <= 2.0


# ---------------------------------------------------------------------------------------------------------------- ties


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self, second: nn.Conv2d) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = second
        self.second.weight = self.first.weight


def test_tied_layers_are_clipped_once_and_stay_tied(tmp_path: Path) -> None:
    torch.save(Tied(nn.Conv2d(4, 4, 3)).state_dict(), tmp_path / "m.pt")
    layers = find_layers(open_checkpoint(tmp_path / "m.pt"))
    first, second = clip_layers(layers, ClipPlan(0.5))
    assert first.clip == second.clip
    clip_checkpoint(tmp_path / "m.pt", tmp_path / "out.pt", 0.5)
    new = torch.load(tmp_path / "out.pt", weights_only=True)
    assert new["first.weight"].data_ptr() == new["second.weight"].data_ptr()


def test_tied_layers_of_different_strides_both_keep_within_the_radius(tmp_path: Path) -> None:
    torch.save(Tied(nn.Conv2d(4, 4, 3, stride=2)), tmp_path / "m.pt")
    told = clips(clip_checkpoint(tmp_path / "m.pt", tmp_path / "out.pt", 0.5))
    assert told["first"].norm_after != told["second"].norm_after
    found = analyze(find_layers(open_checkpoint(tmp_path / "out.pt")))
    assert [report.geometry.stride for report in found] == [(1, 1), (2, 2)]
    assert all(report.norm is not None and report.norm.upper <= 0.5 for report in found)


def test_tied_layers_of_different_radii_keep_within_the_smaller(tmp_path: Path) -> None:
    torch.save(Tied(nn.Conv2d(4, 4, 3)).state_dict(), tmp_path / "m.pt")
    plan = ClipPlan(0.5, radii=(Sidecar("r.toml", tables=(Table("second", max_norm=0.25),)),))
    told = clips(clip_checkpoint(tmp_path / "m.pt", tmp_path / "out.pt", plan))
    assert told["first"].norm_after.upper <= 0.25
    assert told["second"].norm_after.upper <= 0.25


def test_tensor_that_shares_the_bytes_of_a_clipped_layer_is_told(tmp_path: Path) -> None:
    weight = torch.from_numpy(random(4, 4, 3, 3))
    shared = {"conv.weight": weight, "head.bank": weight, "tail.weight": weight, "other.weight": weight.clone()}
    torch.save(shared, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    layers = find_layers(checkpoint, exclude=["tail", "head"])
    outcomes = list(clip_layers(layers, ClipPlan(1.0)))
    assert [line.split(":")[0] for line in bystanders(checkpoint, outcomes)] == ["head.bank", "tail.weight"]
    write_clipped(checkpoint, outcomes, tmp_path / "out.pt", Selection(exclude=["tail", "head"]))
    new = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(new["tail.weight"], new["conv.weight"])


# ------------------------------------------------------------------------------------------------- the finished file


def clipped(source: Path) -> tuple[Checkpoint, list[Outcome]]:
    checkpoint = open_checkpoint(source)
    return checkpoint, list(clip_layers(find_layers(checkpoint), ClipPlan(1.0)))


Spoil = Callable[[Outcome], Outcome]
SPOILT: dict[str, tuple[Spoil, str]] = {
    "another kernel": (lambda outcome: replace(outcome, digest=b"other"), "does not hold the kernel"),
    "no layer of that name": (
        lambda outcome: replace(outcome, layer=replace(outcome.layer, name="gone")),
        "does not hold the kernel",
    ),
    "a norm above the radius": (
        lambda outcome: replace(outcome, clip=outcome.clip and replace(outcome.clip, radius=0.5)),
        "above the radius",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_file_that_breaks_a_promise_never_takes_its_name(tmp_path: Path, case: str) -> None:
    spoil, words = SPOILT[case]
    source = saved(tmp_path / "m.safetensors", {"a": random(4, 4, 3, 3)})
    checkpoint, outcomes = clipped(source)
    with pytest.raises(OutputError, match=words):
        write_clipped(checkpoint, [spoil(outcome) for outcome in outcomes], tmp_path / "out", Selection())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors"]


def test_hash_is_that_of_the_new_file(tmp_path: Path) -> None:
    source = saved(tmp_path / "m.safetensors", {"a": random(4, 4, 3, 3)})
    sha256 = write_clipped(*clipped(source), tmp_path / "out", Selection())
    assert sha256 == open_checkpoint(tmp_path / "out").sha256() != open_checkpoint(source).sha256()


def test_file_that_is_there_is_replaced_by_force_only(tmp_path: Path) -> None:
    source = saved(tmp_path / "m.safetensors", {"a": random(4, 4, 3, 3)})
    out = tmp_path / "out"
    shutil.copy(source, out)
    with pytest.raises(UsageError):
        clip_checkpoint(source, out, 1.0)
    assert out.read_bytes() == source.read_bytes()
    clip_checkpoint(source, out, 1.0, force=True)
    assert out.read_bytes() != source.read_bytes()


# ----------------------------------------------------------------------------------------------------- real checkpoints


def test_layers_at_which_single_precision_gives_up_are_clipped(shared_checkpoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    selection = Selection(include=["conv2d_8"])
    clip_checkpoint(shared_checkpoints / "mlperf-vww96.h5", out, 0.7, selection=selection)
    (told,) = analyze(find_layers(open_checkpoint(out), include=["conv2d_8"]))
    assert told.norm is not None
    assert told.norm.upper <= 0.7

"""The cache as users meet it: the same report without the work, never a stale one, and nothing lost when killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from convsv.cli import app
from convsv.errors import CorruptCheckpointError
from convsv.scheduling.batch import Batch, Outcome, carry_out

PROGRAM = Path(__file__).with_name("killed.py")
NOTE = re.compile(r"^note: \d+ layers? known from an earlier call; --no-cache computes anew\n", re.MULTILINE)


def write(path: Path, seed: int = 0, shapes: Sequence[tuple[int, ...]] = ((4, 3, 3, 3), (8, 4, 3, 3))) -> Path:
    rng = np.random.default_rng(seed)
    weights = {f"conv{i}.weight": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}
    save_file({**weights, "embedding.weight": np.zeros((2, 2, 2, 2, 2, 2), np.float32)}, path)
    return path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "model.safetensors")
    return Path("model.safetensors")


def convsv(*args: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*args])
    assert result.exit_code == code, result.stderr
    return result


def known(result: Any) -> int:
    found = re.search(r"note: (\d+) layers? known", result.stderr)
    return int(found[1]) if found else 0


def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the layers that are computed from now on."""
    import convsv.analysis as module

    names: list[str] = []
    before = module.analyze_layer

    def noted(layer: Any, options: Any) -> Any:
        names.append(layer.name)
        return before(layer, options)

    monkeypatch.setattr(module, "analyze_layer", noted)
    return names


def forbid(monkeypatch: pytest.MonkeyPatch, *places: str) -> None:
    def called(*args: Any, **options: Any) -> Any:
        raise AssertionError(places)

    for place in places:
        monkeypatch.setattr(place, called)


VERBS = {
    "analyze": ["analyze"],
    "spectra": ["analyze", "--method", "circulant", "--method", "symbol_min", "--size", "8", "--values"],
    "exact": ["exact", "--size", "6", "--top", "2", "--density"],
    "asymptotic": ["asymptotic", "--size", "12"],
    "bounds": ["bounds"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_second_call_opens_and_computes_nothing_and_says_the_same(
    model: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*VERBS[verb], str(model), "--format", "json"]
    first = convsv(*command)
    forbid(monkeypatch, "convsv.checkpoints.open_checkpoint", "convsv.analysis.analyze_layer")
    second = convsv(*command)
    assert second.stdout == first.stdout
    assert known(first) == 0
    assert known(second) == 2
    assert NOTE.sub("", second.stderr) == first.stderr


def test_the_bytes_decide_not_the_size_or_the_time(model: Path) -> None:
    first = convsv("analyze", str(model), "--format", "json")
    status = model.stat()
    write(model, seed=1)
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert model.stat().st_size == status.st_size
    second = convsv("analyze", str(model), "--format", "json")
    assert known(second) == 0
    assert second.stdout != first.stdout
    write(model, seed=0)
    third = convsv("analyze", str(model), "--format", "json")
    assert third.stdout == first.stdout
    assert known(third) == 2


def test_another_file_with_the_same_kernels_is_opened_but_not_computed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads(convsv("analyze", str(model), "--format", "json").stdout)
    shutil.copy(model, "copy.safetensors")
    forbid(monkeypatch, "convsv.analysis.analyze_layer")
    second = json.loads(convsv("analyze", "copy.safetensors", "--format", "json").stdout)
    assert second["checkpoints"][0].pop("path") == "copy.safetensors"
    assert first["checkpoints"][0].pop("path") == "model.safetensors"
    assert second == first


@pytest.mark.parametrize(
    "options",
    [["--tol", "1e-2"], ["--size", "9"], ["--padding-mode", "circular"], ["--dtype", "float32"], ["--memory", "2GiB"]],
    ids=" ".join,
)
def test_options_that_change_numbers_are_told_apart(
    model: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    convsv("analyze", str(model))
    names = computed(monkeypatch)
    convsv("analyze", str(model), *options)
    assert names == ["conv0", "conv1"]


def test_threads_and_outputs_are_not(model: Path) -> None:
    convsv("analyze", str(model), "--jobs", "1")
    assert known(convsv("analyze", str(model), "--jobs", "2", "-o", "out.csv", "--sort", "norm_upper")) == 2


def test_a_geometry_file_counts_by_its_content(model: Path) -> None:
    facts = Path("facts.toml")
    facts.write_text("[defaults]\nsize = [8, 8]\n")
    command = ["analyze", str(model), "--geometry", "facts.toml", "--format", "json"]
    convsv(*command)
    facts.write_text("[defaults]\nsize = [9, 9]\n")
    changed = convsv(*command)
    assert known(changed) == 0
    assert json.loads(changed.stdout)["checkpoints"][0]["layers"][0]["geometry"]["size"] == [9, 9]
    facts.write_text("[defaults]\nsize = [8, 8]\n")
    assert known(convsv(*command)) == 2


def test_what_was_chosen_is_told_apart(model: Path) -> None:
    convsv("analyze", str(model))
    only = json.loads(convsv("analyze", str(model), "--include", "conv1", "--format", "json").stdout)
    assert [layer["name"] for layer in only["checkpoints"][0]["layers"]] == ["conv1"]


def test_no_cache_reads_nothing_and_keeps_nothing(
    model: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convsv("analyze", str(model), "--no-cache")
    assert not own_cache.exists()
    convsv("analyze", str(model))
    names = computed(monkeypatch)
    assert known(convsv("analyze", str(model), "--no-cache")) == 0
    assert names == ["conv0", "conv1"]


def test_tied_and_repeated_layers_are_computed_once_without_a_cache_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    names = ["a", "b", "c"]
    for path in ("one.safetensors", "two.safetensors"):
        save_file({f"{name}.weight": kernel * (1 + (name == "b")) for name in names}, tmp_path / path)
    noted = computed(monkeypatch)
    monkeypatch.chdir(tmp_path)
    found = convsv("analyze", "one.safetensors", "two.safetensors", "--no-cache", "--format", "json")
    checkpoints = json.loads(found.stdout)["checkpoints"]
    assert noted == ["a", "b"]
    for checkpoint in checkpoints:
        a, b, c = checkpoint["layers"]
        assert [a["name"], b["name"], c["name"]] == names
        assert a["norm"] == c["norm"] != b["norm"]


def test_a_damaged_entry_is_computed_anew(model: Path, own_cache: Path) -> None:
    first = convsv("analyze", str(model), "--format", "json")
    for spoil in (lambda text: text[:99], lambda text: b"", lambda text: text.replace(b"upper", b"lower"), bytes.upper):
        entries = [path for path in own_cache.glob("?/*") if path.is_file()]
        assert len(entries) == 3
        for path in {path.stat().st_ino: path for path in entries}.values():
            path.write_bytes(spoil(path.read_bytes()))
        again = convsv("analyze", str(model), "--format", "json")
        assert again.stdout == first.stdout
        assert known(again) == 0


def test_checkpoints_that_failed_are_read_again(tmp_path: Path, model: Path) -> None:
    whole = model.read_bytes()
    model.write_bytes(whole[:-40])
    convsv("analyze", str(model), code=3)
    again = convsv("analyze", str(model), code=3)
    assert "error: " in again.stderr
    model.write_bytes(whole)
    assert known(convsv("analyze", str(model))) == 0


def test_weights_that_could_not_be_read_are_tried_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from convsv.layer import ConvLayer

    with monkeypatch.context() as patched:

        def torn(self: ConvLayer, groups: int | None = None) -> Any:
            raise CorruptCheckpointError("torn")

        patched.setattr(ConvLayer, "kernel", torn)
        convsv("analyze", str(model), code=3)
    assert known(convsv("analyze", str(model))) == 0


def test_results_that_failed_are_tried_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import convsv.analysis as module

    with monkeypatch.context() as patched:

        def fails(*args: Any, **options: Any) -> Any:
            raise MemoryError("out of memory")

        patched.setattr(module, "certify", fails)
        patched.setattr("convsv.spectra._shared.certify_with_peak", fails)
        first = convsv("analyze", str(model), "--format", "json", code=5)
        assert json.loads(first.stdout)["checkpoints"][0]["layers"][0]["failures"] == ["norm"]
    second = json.loads(convsv("analyze", str(model), "--format", "json").stdout)
    assert second["checkpoints"][0]["layers"][0]["norm"]["upper"] > 0


def test_check_knows_decided_layers_and_their_limits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["check", str(model), "--format", "json"]
    first = convsv(*command, "--max-norm", "100")
    with monkeypatch.context() as patched:
        forbid(patched, "convsv.gate.LayerNorm")
        second = convsv(*command, "--max-norm", "100")
    assert second.stdout == first.stdout
    assert known(second) == 2
    failing = convsv(*command, "--max-norm", "0.01", code=1)
    assert known(failing) == 0
    assert convsv(*command, "--max-norm", "0.01", code=1).stdout == failing.stdout


@pytest.mark.parametrize(
    "verb",
    [["analyze"], ["check", "--max-norm", "100"], ["compare"], ["plot", "-o", "p.svg"], ["report", "-o", "r.html"]],
)
def test_no_verb_leaves_anything_on_its_way_into_the_folder(verb: list[str], model: Path, own_cache: Path) -> None:
    convsv(*verb, str(model), *([str(model)] if verb == ["compare"] else []))
    assert list(own_cache.glob("?/*"))
    assert list(own_cache.glob("part-*")) == []


def test_compare_plot_and_report_know_layers_too(model: Path) -> None:
    write(Path("new.safetensors"), seed=1)
    for command in (
        ["compare", "model.safetensors", "new.safetensors"],
        ["report", "model.safetensors", "-o", "page.html"],
        ["plot", "model.safetensors", "--kind", "intervals", "-o", "figure.svg"],
    ):
        first = convsv(*command)
        second = convsv(*command)
        assert second.stdout == first.stdout
        assert known(second) >= 2


@pytest.mark.parametrize("size", ["much", "-1", "1"])
def test_a_bound_that_is_none_is_usage(model: Path, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSV_CACHE_SIZE", size)
    assert "CONVSV_CACHE_SIZE" in convsv("analyze", str(model), code=2).stderr


def test_a_folder_that_cannot_be_used_is_told_to_those_who_ask(
    model: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.write_text("in the way")
    assert str(own_cache) not in convsv("analyze", str(model)).stderr
    told = f"note: {own_cache}: nothing is kept for later calls: is not a folder\n"
    assert told in convsv("analyze", str(model), "--verbose").stderr
    monkeypatch.setenv("CONVSV_CACHE_SIZE", "0")
    assert "its size is set to 0" in convsv("analyze", str(model), "--verbose").stderr


# ------------------------------------------------------------------------------------------------------- convsv cache


def test_info_and_clear(model: Path, own_cache: Path) -> None:
    convsv("analyze", str(model))
    told = json.loads(convsv("cache", "info", "--json").stdout)
    size = told.pop("bytes")
    assert told == {"folder": str(own_cache), "entries": 3, "limit": 1 << 30, "trouble": None}
    assert 0 < size <= 3 * 4096 * 2
    lines = convsv("cache", "info").stdout
    assert f"folder   {own_cache}\nentries  3\n" in lines
    assert convsv("cache", "clear").stdout == f"3 entries deleted, {size // 1024}.0 KiB freed: {own_cache}\n"
    assert json.loads(convsv("cache", "info", "--json").stdout)["entries"] == 0
    assert known(convsv("analyze", str(model))) == 0


@pytest.mark.parametrize("args", [["cache", "info"], ["cache", "clear"], ["cache", "--help"], ["cache", "bogus"]])
def test_the_cache_is_looked_at_without_torch(args: list[str]) -> None:
    program = "import sys; from convsv.cli import app\ntry: app(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_the_usual_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CONVSV_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    folder = json.loads(convsv("cache", "info", "--json").stdout)["folder"]
    assert folder.startswith(str(tmp_path))
    assert "convsv" in folder


# ---------------------------------------------------------------------------------------------------- page, and killed


def test_the_commands_of_the_page_run(tmp_path: Path, sample_checkpoints: Path) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "cache.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "sample_checkpoints").symlink_to(sample_checkpoints)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    script = "\n".join(["set -e", 'convsv() { "$PYTHON" -m convsv "$@"; }', *lines])
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^entries  [1-9]", done.stdout, re.MULTILINE)
    assert (tmp_path / "third.json").read_bytes() == (tmp_path / "first.json").read_bytes()


def test_killed_at_random_moments_the_resumed_report_is_that_of_an_undisturbed_call(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", shapes=[(24 + 4 * (i % 5), 24, 3, 3) for i in range(24)])
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), "3", "4"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ends"] == [0, 0, 0]
    assert {*answer["killed"]} <= {-9, 130}
    assert answer["known"] == sorted({*answer["known"]})  # nothing that was finished is lost
    assert answer["known"][-1] < 24
    wanted = (tmp_path / "wanted.json").read_bytes()
    assert (tmp_path / "out.json").read_bytes() == wanted
    assert (tmp_path / "again.json").read_bytes() == wanted


class Here:
    """A pool of two workers that compute in this process."""

    slots = 2

    def __init__(self, workers: int) -> None:
        pass

    def submit(self, batch: Batch) -> Future[list[Outcome]]:
        future: Future[list[Outcome]] = Future()
        future.set_result(carry_out(batch))
        return future

    def restart(self) -> bool:
        return True

    def close(self) -> None:
        pass


def rows_of(result: Any) -> list[Any]:
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return [{**row, "checkpoint": None} for row in rows if "name" in row]


def test_what_processes_computed_is_known_and_starts_none(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(model, "again.safetensors")
    options = ["--method", "circulant", "--size", "8", "--device", "cpu", "--format", "jsonl"]
    wanted = rows_of(convsv("analyze", str(model), *options, "--jobs", "1", "--no-cache"))
    monkeypatch.setattr("convsv.scheduling.choice.Spreader._pays", lambda self, *costs: True)
    monkeypatch.setattr("convsv.scheduling.choice.ProcessPool", Here)
    assert rows_of(convsv("analyze", str(model), *options, "--jobs", "2")) == wanted
    forbid(monkeypatch, "convsv.analysis.analyze_layer", "convsv.scheduling.choice.ProcessPool")
    second = convsv("analyze", "again.safetensors", *options, "--jobs", "2")
    assert (rows_of(second), known(second)) == (wanted, len(wanted))
    alone = convsv("analyze", "again.safetensors", *options, "--jobs", "1")
    assert (rows_of(alone), known(alone)) == (wanted, len(wanted))


@pytest.mark.slow
def test_what_a_cluster_computed_is_known(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    shutil.copy(model, "again.safetensors")
    options = ["--method", "circulant", "--size", "8", "--device", "cpu", "--format", "jsonl"]
    wanted = rows_of(convsv("analyze", str(model), *options, "--jobs", "1", "--no-cache"))
    assert rows_of(convsv("analyze", str(model), *options, "--dask", "local:1")) == wanted
    monkeypatch.setattr("convsv.scheduling.cluster.ClusterPool.submit", lambda self, batch: pytest.fail("a task"))
    for name in (str(model), "again.safetensors"):
        second = convsv("analyze", name, *options, "--dask", "local:1")
        assert (rows_of(second), known(second)) == (wanted, len(wanted))
    here = convsv("analyze", str(model), *options)
    assert (rows_of(here), known(here)) == (wanted, len(wanted))

"""Layers on several workers: the same reports in the same order, whatever dies meanwhile."""

from __future__ import annotations

import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from convsv.analysis import AnalysisOptions, analyze
from convsv.checkpoints import open_checkpoint
from convsv.checkpoints.discovery import find_layers
from convsv.checkpoints.reopening import reopened
from convsv.checkpoints.sources import GeometryOptions
from convsv.errors import CheckpointError
from convsv.execution import Execution
from convsv.layer import ConvLayer
from convsv.results import LayerReport
from convsv.scheduling import Dispatcher, ProcessPool
from convsv.scheduling.batch import Batch
from convsv.scheduling.choice import Spreader
from pools import Obedient

ONE = Execution("cpu", jobs=1)
OPTIONS = AnalysisOptions(methods=("circulant",), execution=ONE)


def weights(path: Path, count: int = 6, channels: int = 8, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    shapes = [(channels + i, channels, 3, 3) for i in range(count)]
    save_file({f"conv{i}.weight": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}, path)
    return path


def layers_in(path: Path, size: int = 8) -> tuple[ConvLayer, ...]:
    return find_layers(open_checkpoint(path), geometry=GeometryOptions(size=(size,)))


def by_size(layer: ConvLayer) -> float:
    return float(layer.shape[0])


def dispatched(path: Path, pool: Obedient) -> list[LayerReport]:
    return list(Dispatcher(pool, OPTIONS, by_size)(layers_in(path)))


def test_reports_come_in_the_order_of_the_layers_and_the_longest_begins(tmp_path: Path) -> None:
    path, pool = weights(tmp_path / "a.safetensors"), Obedient()
    assert dispatched(path, pool) == list(analyze(layers_in(path), OPTIONS))
    assert pool.begun == [f"conv{i}" for i in reversed(range(6))]


def test_a_worker_that_dies_once_costs_nothing_but_time(tmp_path: Path) -> None:
    path, pool = weights(tmp_path / "a.safetensors"), Obedient(("conv2",), times=1)
    assert dispatched(path, pool) == list(analyze(layers_in(path), OPTIONS))
    assert pool.restarts == 1
    assert pool.begun.count("conv2") == 2


def test_a_layer_that_kills_its_workers_fails_alone(tmp_path: Path) -> None:
    path, pool = weights(tmp_path / "a.safetensors"), Obedient(("conv2",))
    reports = dispatched(path, pool)
    expected = list(analyze(layers_in(path), OPTIONS))
    assert [report.name for report in reports] == [report.name for report in expected]
    assert [r for r in reports if r.name != "conv2"] == [r for r in expected if r.name != "conv2"]
    failed = reports[2]
    assert failed.failures == ("norm", "circulant")
    assert "died twice" in failed.unavailable["norm"]
    assert pool.begun.count("conv2") == 2


def test_what_a_layer_raises_is_raised_at_its_turn(tmp_path: Path) -> None:
    path = weights(tmp_path / "a.safetensors")
    layers = layers_in(path)
    other = replace(layers[3], notes=("found otherwise",))
    reports = Dispatcher(Obedient(), OPTIONS, by_size)([*layers[:3], other, *layers[4:]])
    assert [next(reports).name for _ in range(3)] == ["conv0", "conv1", "conv2"]
    with pytest.raises(CheckpointError, match="conv3"):
        next(reports)


def test_a_file_that_changed_is_an_error_and_a_touched_one_is_not(tmp_path: Path) -> None:
    path = weights(tmp_path / "a.safetensors", count=1)
    checkpoint = open_checkpoint(path)
    checkpoint.sha256()
    [layer] = find_layers(checkpoint)
    os.utime(path, ns=(1, 1))
    assert np.array_equal(reopened(layer.recipe, layer).kernel(), layer.kernel())
    save_file({"conv0.weight": np.ones((8, 8, 3, 3), np.float32)}, path)
    [later] = find_layers(open_checkpoint(weights(tmp_path / "b.safetensors", count=1)))
    reopened(later.recipe, later)
    recipe = replace(layer.recipe, path=str(path), include=("*",))  # another recipe: the file is opened anew
    with pytest.raises(CheckpointError, match="changed while it was in work"):
        reopened(recipe, layer)


def test_without_a_hash_the_time_of_modification_decides(tmp_path: Path) -> None:
    path = weights(tmp_path / "a.safetensors", count=1)
    [layer] = layers_in(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match="changed while it was in work"):
        reopened(layer.recipe, layer)


def test_every_layer_of_every_format_is_found_again(sample_checkpoints: Path) -> None:
    seen = 0
    for path in sorted(sample_checkpoints.iterdir()):
        if path.suffix in (".py", ".md", ".toml", ".json") or path.is_dir():
            continue
        options = GeometryOptions(size=(8,), fold="by-order")
        for layer in find_layers(open_checkpoint(path), geometry=options):
            travelled = pickle.loads(pickle.dumps(Batch.of([layer], OPTIONS, "cpu")))
            again = reopened(travelled.recipe, travelled.layers[0])
            assert again == layer
            assert again.problem or np.array_equal(again.kernel(), layer.kernel())
            seen += 1
    assert seen > 50


@pytest.mark.slow
def test_a_killed_process_changes_no_row(tmp_path: Path) -> None:
    paths = [weights(tmp_path / f"{i}.safetensors", count=4, channels=24, seed=i) for i in range(2)]
    expected = [list(analyze(layers_in(path), OPTIONS)) for path in paths]
    pool = ProcessPool(2)
    try:
        dispatcher = Dispatcher(pool, OPTIONS, by_size)
        begun = [dispatcher(layers_in(path)) for path in paths]
        found = [[next(begun[0])], []]
        victim = next(iter(pool._executor._processes))
        os.kill(victim, signal.SIGKILL)
        for reports, one in zip(found, begun, strict=True):
            reports.extend(one)
        assert found == expected
    finally:
        pool.close()


def spread(spreader: Spreader, path: Path) -> list[LayerReport]:
    layers = layers_in(path)
    spreader.consider(layers)
    return list(spreader(layers))


def threads(count: int) -> AnalysisOptions:
    return replace(OPTIONS, execution=Execution("cpu", jobs=count))


@pytest.mark.parametrize(("jobs", "checkpoints", "processes"), [(1, 10_000, False), (2, 1, False), (2, 10_000, True)])
def test_processes_are_started_where_that_pays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, checkpoints: int, processes: bool
) -> None:
    path = weights(tmp_path / "a.safetensors")
    pools: list[Obedient] = []

    def pool(workers: int) -> Obedient:
        pools.append(Obedient())
        return pools[-1]

    monkeypatch.setattr("convsv.scheduling.choice.ProcessPool", pool)
    spreader = Spreader(analyze, threads(jobs), checkpoints)
    assert spread(spreader, path) == list(analyze(layers_in(path), OPTIONS))
    assert bool(pools) is processes
    assert (spreader.ahead() > 0) is processes


def test_what_exceeds_the_share_of_a_process_is_done_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Obedient()
    monkeypatch.setattr("convsv.scheduling.choice.ProcessPool", lambda workers: pool)
    small, large = weights(tmp_path / "a.safetensors"), weights(tmp_path / "b.safetensors", 2, channels=128)
    execution = Execution("cpu", jobs=2, memory=40 << 20)
    options = AnalysisOptions(execution=execution, tol=0.5)
    spreader = Spreader(analyze, options, 10_000)
    spread(spreader, small)
    begun = len(pool.begun)
    assert len(spread(spreader, large)) == 2
    assert len(pool.begun) == begun


def test_the_share_of_a_process_decides_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With half of this budget not all values fit, and the exact spectrum would be that of the leading ones.
    pool = Obedient()
    monkeypatch.setattr("convsv.scheduling.choice.ProcessPool", lambda workers: pool)
    path = weights(tmp_path / "a.safetensors", 1)
    execution = Execution("cpu", jobs=1, memory=12 << 20)
    options = AnalysisOptions(methods=("exact",), tol=0.5, execution=execution)
    (layer,) = layers_in(path)
    whole = next(analyze([layer], options))
    assert next(analyze([layer], replace(options, execution=replace(execution, memory=6 << 20)))) != whole
    found = spread(Spreader(analyze, replace(options, execution=replace(execution, jobs=2)), 10_000), path)
    assert pool.begun == [layer.name]
    assert found == [whole]


def test_sharers_hold_their_share_at_one_time() -> None:
    for count, each in ((10, 1 << 20), (1000, 100_000), (7, 1 << 28)):
        for execution in (
            Execution("cpu", jobs=1, memory=1 << 24, sharers=4),
            Execution("cpu", jobs=2, memory=1 << 26),
        ):
            share = execution.memory // (execution.threads * execution.sharers)
            parts = execution.chunks(count, each)
            assert parts[0][0] == 0
            assert parts[-1][1] == count
            assert all((stop - start) * each <= share or stop - start == 1 for start, stop in parts)


def test_what_is_known_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsv.scheduling.choice.ProcessPool", lambda workers: pytest.fail("a process"))
    spreader = Spreader(analyze, threads(2), 10_000)
    spreader.consider(layers_in(weights(tmp_path / "a.safetensors")))
    assert list(spreader(iter(()))) == []
    assert spreader.ahead() == 0

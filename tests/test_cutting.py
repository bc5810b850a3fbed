"""One layer computed by several tasks: the same report to the last bit, whoever computes, whatever dies meanwhile."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from cases import make_layer
from convsv.analysis import AnalysisOptions, analyze
from convsv.checkpoints import open_checkpoint
from convsv.checkpoints.discovery import find_layers
from convsv.checkpoints.sidecar import read_sidecar
from convsv.checkpoints.sources import GeometryOptions
from convsv.costs import Divisible, Wanted, costs_of
from convsv.errors import ComputationError, ContradictionError, UnavailableError
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.layer import ConvLayer
from convsv.results import Interval, LayerReport, Spectrum
from convsv.scheduling import Dispatcher, Pool, ProcessPool
from convsv.scheduling.batch import Batch, Piece
from convsv.scheduling.cutting import LEAST, Cut, Cutter, cutter_of
from convsv.spectra import SPECTRA
from pools import Obedient

OPTIONS = AnalysisOptions(methods=("circulant",), execution=Execution("cpu", jobs=1))
LAYERS: dict[str, tuple[tuple[int, ...], str]] = {
    "plain": ((12, 8, 3, 3), "size = [12, 12]"),
    "strided": ((12, 8, 4, 4), "size = [12, 12]\nstride = 2"),
    "grouped": ((12, 4, 3, 3), "size = [9, 7]\ngroups = 3"),
    "line": ((6, 5, 5), "size = [31]"),
    "volume": ((4, 3, 3, 2, 3), "size = [6, 5, 4]"),
    "dilated": ((8, 8, 3, 3), "size = [10, 10]\ndilation = 2"),
    "point": ((8, 8, 1, 1), "size = [6, 6]"),
    "up": ((6, 8, 4, 4), "size = [5, 5]\nstride = 2\ntransposed = true"),
    "odd": ((8, 8, 3, 3), "size = [7, 7]\nstride = 2"),
}
"""Shape and geometry; of the last one the stride does not divide the size."""


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConvLayer, ...]:
    """Layers of every kind in one file, and one whose weights are not finite."""
    folder, rng = tmp_path_factory.mktemp("layers"), np.random.default_rng(0)
    path, facts = folder / "model.safetensors", folder / "facts.toml"
    tensors = {f"{name}.weight": rng.standard_normal(s).astype(np.float32) for name, (s, _) in LAYERS.items()}
    tensors["broken.weight"] = np.full((8, 8, 3, 3), np.nan, np.float32)
    save_file(tensors, path)
    stated = {**{name: text for name, (_, text) in LAYERS.items()}, "broken": "size = [8, 8]"}
    facts.write_text("\n".join(f'[layers."{name}"]\n{text}' for name, text in stated.items()), encoding="utf-8")
    found = find_layers(open_checkpoint(path), geometry=GeometryOptions(sidecar=read_sidecar(facts)))
    assert {layer.name for layer in found} == set(stated)
    return found


def named(layers: tuple[ConvLayer, ...], *names: str) -> tuple[ConvLayer, ...]:
    return tuple(layer for layer in layers if layer.name in names)


def always(count: int) -> Cutter:
    """Cut every layer into a rest and so many shares."""
    return lambda layer, left, workers: Cut(1.0, tuple((Piece("circulant", (k, count)), 2.0) for k in range(count)))


def by_tasks(layers: tuple[ConvLayer, ...], pool: Pool, count: int, options: AnalysisOptions) -> list[LayerReport]:
    dispatcher = Dispatcher(pool, options, lambda layer: 1000.0, cutter=always(count))
    return list(dispatcher(layers))


def assert_the_same(found: list[LayerReport], expected: list[LayerReport]) -> None:
    """Compare everything that a report may show, in the order in which it shows it."""
    for one, other in zip(found, expected, strict=True):
        for name, result in one.results.items():
            before = other.results[name]
            if isinstance(result, Spectrum):
                assert isinstance(before, Spectrum)
                assert (result.values is None) is (before.values is None)
                assert result.values is None or np.array_equal(result.values, before.values)
                assert replace(result, values=None) == replace(before, values=None)
        assert list(one.results) == list(other.results)
        assert list(one.unavailable.items()) == list(other.unavailable.items())
        assert replace(one, results={}) == replace(other, results={})


@pytest.mark.parametrize("count", [1, 2, 5, 30])
@pytest.mark.parametrize("values", [False, True])
def test_every_kind_of_layer_comes_out_the_same(layers: tuple[ConvLayer, ...], count: int, values: bool) -> None:
    options, pool = replace(OPTIONS, values=values), Obedient()
    assert_the_same(by_tasks(layers, pool, count, options), list(analyze(layers, options)))
    assert sorted(name[1] for name in pool.begun if isinstance(name, tuple) and name[0] == "plain") == list(
        range(count)
    )


def test_other_results_stand_where_they_always_stand(layers: tuple[ConvLayer, ...]) -> None:
    options = replace(OPTIONS, methods=("asymptotic", "circulant", "symbol_min"))
    some = named(layers, "plain", "odd", "broken")
    assert_the_same(by_tasks(some, Obedient(), 3, options), list(analyze(some, options)))


def test_what_travels_is_small(layers: tuple[ConvLayer, ...]) -> None:
    pool, [wide] = Obedient(), named(layers, "plain")
    by_tasks((wide,), pool, 3, OPTIONS)
    for batch in pool.batches:
        assert wide.read().tobytes()[:64] not in pickle.dumps(batch)


def test_the_rest_and_the_shares_are_begun_longest_first(layers: tuple[ConvLayer, ...]) -> None:
    seconds = {"plain": 30.0, "strided": 20.0, "line": 9.0, "point": 2.0}
    chosen = named(layers, *seconds)

    def cut(layer: ConvLayer, left: float, workers: int) -> Cut | None:
        pieces = tuple((Piece("circulant", (k, 2)), 12.0) for k in range(2))
        return Cut(6.0, pieces) if layer.name == "plain" else None

    pool = Obedient()
    list(Dispatcher(pool, OPTIONS, lambda layer: seconds[layer.name], cutter=cut)(chosen))
    assert pool.begun == ["strided", ("plain", 0), ("plain", 1), "line", "plain", "point"]


# ---------------------------------------------------------------------------------------------------------- what fails


def test_a_worker_that_dies_once_costs_its_share_a_second_try(layers: tuple[ConvLayer, ...]) -> None:
    pool = Obedient([("grouped", 2)], times=1)
    assert_the_same(by_tasks(layers, pool, 4, OPTIONS), list(analyze(layers, OPTIONS)))
    assert pool.begun.count(("grouped", 2)) == 2
    assert pool.begun.count(("grouped", 1)) == pool.begun.count("grouped") == 1


def test_a_share_that_kills_its_workers_leaves_the_norm(layers: tuple[ConvLayer, ...]) -> None:
    found = by_tasks(layers, Obedient([("grouped", 2)]), 4, OPTIONS)
    expected = list(analyze(layers, OPTIONS))
    number = [layer.name for layer in layers].index("grouped")
    assert found[number].failures == ("circulant",)
    assert "died twice" in found[number].unavailable["circulant"]
    assert found[number].norm == expected[number].norm
    assert not found[number].results
    assert_the_same([*found[:number], *found[number + 1 :]], [*expected[:number], *expected[number + 1 :]])


@pytest.mark.parametrize("error", [ComputationError("no"), UnavailableError("none"), MemoryError(), RuntimeError("x")])
def test_what_one_share_lacks_the_spectrum_lacks(
    layers: tuple[ConvLayer, ...], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    division, one = SPECTRA["circulant"].division, named(layers, "plain")
    assert division is not None

    def part(layer: ConvLayer, execution: Execution, options: Any, shared: Any, share: tuple[int, int]) -> Any:
        if share[0] == share[1] - 1:
            raise error
        return division.part(layer, execution, options, shared, share)

    def whole(*given: Any, **named: Any) -> Spectrum:
        raise error

    monkeypatch.setitem(SPECTRA._entries, "circulant", replace(SPECTRA["circulant"], compute=whole))
    expected = list(analyze(one, OPTIONS))
    patched = replace(SPECTRA["circulant"], division=replace(division, part=part))
    monkeypatch.setitem(SPECTRA._entries, "circulant", patched)
    assert_the_same(by_tasks(one, Obedient(), 3, OPTIONS), expected)


def test_statements_that_exclude_each_other_are_refused(
    layers: tuple[ConvLayer, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Interval(1e-9, 2e-9, "any size")
    monkeypatch.setattr("convsv.analysis.LayerWork.certified", lambda self, at_size: small)
    with pytest.raises(ContradictionError, match="above the certified norm"):
        by_tasks(named(layers, "plain"), Obedient(), 3, OPTIONS)


def test_a_file_that_changed_is_an_error(layers: tuple[ConvLayer, ...]) -> None:
    other = replace(layers[0], notes=("found otherwise",))
    reports = Dispatcher(Obedient(), OPTIONS, lambda layer: 1000.0, cutter=always(2))([other])
    with pytest.raises(Exception, match="found otherwise than at first"):
        next(reports)


# ------------------------------------------------------------------------------------------------------------- the rule


def square(channels: int, size: int) -> ConvLayer:
    kernel = np.broadcast_to(np.float32(0), (channels, channels, 3, 3))
    return make_layer(kernel, Geometry((size, size), (1, 1), ((1, 1), (1, 1))))


WANTED = Wanted(("circulant",))


def test_methods_that_divide_their_work_have_a_cost_for_it() -> None:
    found = costs_of(square(64, 32), Wanted(tuple(SPECTRA)))
    assert set(found.divisible) == {name for name in SPECTRA if SPECTRA[name].division is not None}
    for name, work in found.divisible.items():
        assert work.again + work.once == pytest.approx(found.each[name].seconds)


def test_a_layer_below_the_threshold_is_not_cut() -> None:
    small = square(64, 32)
    assert costs_of(small, WANTED).whole.seconds < LEAST
    assert cutter_of(WANTED)(small, 1.0, 1000) is None


def test_a_large_layer_is_cut_where_it_holds_up_the_end() -> None:
    large, cut = square(512, 64), cutter_of(WANTED)
    seconds = costs_of(large, WANTED).whole.seconds
    assert cut(large, 1000 * seconds, 2) is None
    found = cut(large, seconds, 2)
    assert found is not None
    assert 1 < len(found.pieces) <= 8
    assert [piece.share for piece, _ in found.pieces] == [(k, len(found.pieces)) for k in range(len(found.pieces))]
    assert all(LEAST < each < seconds / 4 for _, each in found.pieces)


@pytest.mark.parametrize("workers", [2, 16, 1000])
def test_what_every_task_does_anew_outweighs_nothing(workers: int) -> None:
    large = square(1280, 64)
    work: Divisible = costs_of(large, WANTED).divisible["circulant"]
    found = cutter_of(WANTED)(large, work.once, workers)
    assert found is not None
    assert found.rest > 0
    spent = len(found.pieces) * work.again / workers + max(seconds for _, seconds in found.pieces)
    for other in (len(found.pieces) // 2, 2 * len(found.pieces)):
        longer = other * work.again / workers + work.again + work.once / other
        # Twice as many may be better by the seconds that a task takes at least, or by the part that it may take.
        assert spent <= longer + max(LEAST, work.once / workers / 4)


def test_methods_that_do_not_divide_their_work_are_not_cut() -> None:
    assert cutter_of(Wanted(("asymptotic", "exact")))(square(512, 64), 1.0, 2) is None


# ----------------------------------------------------------------------------------------------------------- processes


def killing(pool: ProcessPool) -> Callable[[Batch], Any]:
    """Hand out batches, and kill a process once the third share of a layer is in work."""
    submit, seen = pool.submit, list[Batch]()

    def submit_and_kill(batch: Batch) -> Any:
        future = submit(batch)
        seen.append(batch)
        if sum(one.piece is not None for one in seen) == 3:
            os.kill(next(iter(pool._executor._processes)), signal.SIGKILL)
        return future

    return submit_and_kill


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_processes_come_to_the_same_rows(
    layers: tuple[ConvLayer, ...], monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    pool = ProcessPool(2)
    if kill:
        monkeypatch.setattr(pool, "submit", killing(pool))
    try:
        assert_the_same(by_tasks(layers, pool, 3, OPTIONS), list(analyze(layers, OPTIONS)))
    finally:
        pool.close()

"""What stands in front of the analyst: order, misses only, ties once, and nothing that was not computed is believed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsv.analysis import AnalysisOptions, analyze
from convsv.cache import Cached, Computation, Folder, Memory, _keys, layer_key
from convsv.errors import CorruptCheckpointError
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.layer import ConvLayer, Folded
from convsv.results import Interval, LayerReport

COMPUTATION = Computation({"tol": 1e-3}, "cpu")


def layer(seed: int, name: str = "", read: Callable[[], np.ndarray] | None = None) -> ConvLayer:
    kernel = np.random.default_rng(seed).standard_normal((2, 2, 3)).astype(np.float32)
    geometry = Geometry((8,), (1,), ((1, 1),), origin={"size": "assumed"})
    name = name or f"layer{seed}"
    return ConvLayer(name, f"{name}.weight", (2, 2, 3), "float32", "OIK", geometry, read or (lambda: kernel))


def report(one: ConvLayer) -> LayerReport:
    value = float(np.abs(one.read()).max())
    blank = LayerReport(one.name, one.weight, one.kind, one.shape, one.dtype, one.geometry)
    return replace(blank, norm=Interval(value, 2 * value), notes=one.notes)


class Counting:
    """An analyst that notes what it was given; ``ahead`` layers are taken before the first report is given."""

    def __init__(self, ahead: int = 0) -> None:
        self.ahead = ahead
        self.given: list[str] = []

    def __call__(self, layers: Iterable[ConvLayer]) -> Iterator[LayerReport]:
        waiting: list[ConvLayer] = []
        for one in layers:
            self.given.append(one.name)
            waiting.append(one)
            if len(waiting) > self.ahead:
                yield report(waiting.pop(0))
        yield from map(report, waiting)


def key_of(one: ConvLayer) -> str | None:
    return layer_key(one, COMPUTATION)


@given(st.lists(st.integers(0, 6), max_size=20), st.lists(st.integers(0, 6), max_size=6), st.integers(0, 5))
def test_reports_come_in_order_and_each_kernel_is_computed_once(seeds: list[int], known: list[int], ahead: int) -> None:
    memory = Memory()
    list(Cached(Counting(), memory, key_of)([layer(seed) for seed in known]))
    inner = Counting(ahead)
    layers = [layer(seed, f"{number}: {seed}") for number, seed in enumerate(seeds)]
    found = list(Cached(inner, memory, key_of)(layers))
    assert found == list(map(report, layers))
    assert len(inner.given) == len({*seeds} - {*known})


def test_known_layers_do_not_wait_for_those_behind_them() -> None:
    memory, inner = Memory(), Counting()
    list(Cached(inner, memory, key_of)([layer(0), layer(2)]))
    inner.given.clear()
    found = Cached(inner, memory, key_of)([layer(0), layer(1), layer(2), layer(3)])
    given = []
    for _ in range(4):
        next(found)
        given.append(list(inner.given))
    assert given == [[], ["layer1"], ["layer1"], ["layer1", "layer3"]]


@pytest.mark.parametrize(("room", "reads"), [(1 << 20, [1, 1, 1]), (100, [1, 1, 2]), (47, [2, 2, 2])])
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_kernel_is_read_once_for_its_name_and_its_computation_if_there_is_room(
    room: int, reads: list[int], ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel here has 48 bytes."""

    def counted(seed: int) -> ConvLayer:
        one = layer(seed)
        return replace(one, read=lambda: read.append(seed) or one.read())  # type: ignore[func-returns-value,unused-ignore]

    read: list[int] = []
    monkeypatch.setattr("convsv.cache._analyst._ROOM", room)
    monkeypatch.setattr("convsv.cache._analyst._WEIGHT", 0)
    cached = Cached(Counting(ahead), Memory(), key_of)
    assert list(cached(map(counted, range(3)))) == [report(layer(seed)) for seed in range(3)]
    assert [read.count(seed) for seed in range(3)] == reads
    begun = cached(map(layer, range(3, 9)))
    next(begun)
    begun.close()  # type: ignore[attr-defined]
    assert cached._room == room


def test_small_layers_are_looked_up_together_and_large_ones_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_up(room: int) -> list[str]:
        names: list[str] = []
        monkeypatch.setattr("convsv.cache._analyst._ROOM", room)
        next(Cached(Counting(), Memory(), lambda one: names.append(one.name))(map(layer, range(100))))
        return names

    assert [len(looked_up(room)) for room in (1 << 20, 8 * 12 * 2, 0)] == [64, 3, 1]


def test_results_are_kept_as_they_arrive(tmp_path: Path) -> None:
    found = Cached(Counting(), Memory(Folder(tmp_path / "cache", 1 << 20)), key_of)([layer(0), layer(1)])
    next(found)
    found.close()  # type: ignore[attr-defined]
    inner = Counting()
    list(Cached(inner, Memory(Folder(tmp_path / "cache", 1 << 20)), key_of)([layer(0), layer(1)]))
    assert inner.given == ["layer1"]


def test_an_analyst_may_begin_before_it_is_asked_and_take_layers_from_its_own_threads() -> None:
    def threaded(layers: Iterable[ConvLayer]) -> Iterator[LayerReport]:
        done: Queue[LayerReport | None] = Queue()

        def work() -> None:
            for one in layers:
                done.put(report(one))
            done.put(None)

        thread = threading.Thread(target=work)
        thread.start()
        begun.append(thread)
        return iter(done.get, None)

    begun: list[threading.Thread] = []
    cached = Cached(threaded, Memory(), key_of)
    layers = [[layer(seed % 7, f"{call}: {seed}") for seed in range(call, call + 40)] for call in range(4)]
    calls = [cached(each) for each in layers]
    assert len(begun) == 4
    assert [list(each) for each in calls] == [[report(one) for one in each] for each in layers]
    assert cached.computed <= 7
    for thread in begun:
        thread.join()


def test_a_tie_with_a_layer_that_was_given_up_is_computed() -> None:
    def failing(layers: Iterable[ConvLayer]) -> Iterator[LayerReport]:
        for one in layers:
            if one.name == "bad":
                raise CorruptCheckpointError("bad")
            yield report(one)

    cached = Cached(failing, Memory(), key_of)
    first, second = cached([layer(1, "bad"), layer(2)]), cached([layer(1, "good"), layer(2)])
    with pytest.raises(CorruptCheckpointError):
        list(first)
    assert list(second) == [report(layer(1, "good")), report(layer(2))]


def test_what_cannot_be_read_reaches_the_analyst_and_is_not_kept() -> None:
    def broken() -> np.ndarray:
        asked.append(True)
        raise CorruptCheckpointError("torn")

    asked: list[bool] = []
    options = AnalysisOptions(execution=Execution("cpu"))
    cached = Cached(lambda layers: analyze(layers, options), Memory(), key_of)
    for _ in range(2):
        [found] = cached([layer(0, read=broken)])
        assert found.unread == "torn"
    assert len(asked) == 4


def test_failures_are_not_kept_but_ties_share_them() -> None:
    def failing(layers: Iterable[ConvLayer]) -> Iterator[LayerReport]:
        for one in layers:
            given.append(one.name)
            yield replace(report(one), failures=("exact",), unavailable={"exact": "out of memory"})

    given: list[str] = []
    memory = Memory()
    for _ in range(2):
        found = list(Cached(failing, memory, key_of)([layer(0, "a")]))
        assert found[0].failures == ("exact",)
    assert given == ["a", "a"]


def test_a_result_that_is_not_worth_keeping_is_not_kept() -> None:
    memory, inner = Memory(), Counting()
    for _ in range(2):
        list(Cached(inner, memory, key_of, lambda found: False)([layer(0)]))
    assert len(inner.given) == 2


def test_an_entry_that_is_no_report_is_computed_anew_and_replaced() -> None:
    memory, inner = Memory(), Counting()
    key = key_of(layer(0))
    assert key
    memory.put(key, b'{"name": "layer0"}')
    assert list(Cached(inner, memory, key_of)([layer(0)])) == [report(layer(0))]
    assert list(Cached(inner, memory, key_of)([layer(0)])) == [report(layer(0))]
    assert len(inner.given) == 1


def test_who_a_layer_is_never_comes_from_what_was_kept() -> None:
    memory, inner = Memory(), Counting()
    list(Cached(inner, memory, key_of)([replace(layer(0, "old"), notes=("of the old one",))]))
    [found] = Cached(inner, memory, key_of)([replace(layer(0, "new"), notes=("of the new one",))])
    assert (found.name, found.weight, found.notes) == ("new", "new.weight", ("of the new one",))
    assert inner.given == ["old"]


# ---------------------------------------------------------------------------------------------------------------- keys


def test_names_do_not_count_but_everything_else_does() -> None:
    base = layer(0)
    same = replace(base, name="other", weight="other", notes=("x",), call="@2")
    assert key_of(base) == key_of(same)
    other = [
        layer(1),
        replace(base, geometry=replace(base.geometry, size=(9,))),
        replace(base, geometry=replace(base.geometry, origin={"size": "option"})),
        replace(base, geometry=replace(base.geometry, padding_mode="circular")),
        replace(base, dtype="float64"),
        replace(base, layout="KIO"),
        replace(base, read=lambda: base.read().astype(np.float64)),
        replace(base, read=lambda: -base.read()),
    ]
    keys = [key_of(base), *map(key_of, other)]
    assert len({*keys}) == len(keys)
    assert None not in keys


def test_equal_geometries_are_one_and_others_never_are_however_many_there_were() -> None:
    """An object that is gone leaves its ``id`` to the next."""
    base, sizes = layer(0), range(1, 2000)
    keys = [[key_of(replace(base, geometry=Geometry((n,), (1,), ((1, 1),)))) for n in sizes] for _ in range(2)]
    assert keys[0] == keys[1]
    assert len({*keys[0]}) == len(sizes)
    assert len(_keys._geometries) <= 1024


def test_what_is_folded_in_counts() -> None:
    base = layer(0)
    folded = [None, Folded("norm", 1e-5), Folded("norm", 1e-3), Folded("norm", 1e-5, known=False)]
    keys = [key_of(replace(base, folded=each)) for each in folded]
    assert len({*keys}) == len(keys)
    assert key_of(replace(base, folded=Folded("other", 1e-3))) == keys[2]


def test_what_else_is_said_counts() -> None:
    assert len({layer_key(layer(0), COMPUTATION, more) for more in (None, "", "a")}) == 3


def test_every_option_of_the_computation_counts_but_threads() -> None:
    options = AnalysisOptions(execution=Execution("cpu", jobs=1))
    computed = Computation({"analysis": options}, "cpu", 1 << 30)
    threads = replace(options, execution=Execution("cpu", jobs=2))
    assert Computation({"analysis": threads}, "cpu", 1 << 30).name == computed.name
    others = [
        replace(options, methods=("circulant",)),
        replace(options, norm=False),
        replace(options, tol=1e-2),
        replace(options, values=True),
        replace(options, execution=Execution("cpu", dtype="float32")),
        replace(options, execution=Execution("cpu", memory=1 << 21)),
        replace(options, budget=replace(options.budget, seconds=1.0)),
        replace(options, spectra=replace(options.spectra, top=3)),
    ]
    names = {Computation({"analysis": each}, "cpu", 1 << 30).name for each in others}
    names |= {Computation({"analysis": options}, "cuda", 1 << 30).name, computed.name}
    assert len(names) == len(others) + 2


def test_another_version_or_other_code_is_another_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    def name() -> str:
        return Computation({}, "cpu").name

    names = [name()]
    monkeypatch.setattr("convsv.cache._keys.__version__", "0.0.1")
    names.append(name())
    monkeypatch.setattr("convsv.cache._keys._SCHEMA", 0)
    names.append(name())
    monkeypatch.setattr("convsv.cache._keys._code", lambda: "edited")
    names.append(name())
    monkeypatch.setattr("convsv.cache._keys.metadata.version", lambda name: "0")
    names.append(name())
    assert len({*names}) == 5


def test_layers_that_are_not_computed_are_not_read() -> None:
    def unread() -> np.ndarray:
        raise AssertionError("read")

    assert key_of(replace(layer(0, read=unread), problem="quantised")) is None
    assert layer_key(layer(0, read=unread), Computation({}, "cpu", 8)) is None

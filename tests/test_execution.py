"""Where work runs: refusals, chunks within the budget, order, threads, settings, and too little memory."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from convsv import execution
from convsv.analysis import BOUNDS_METHOD, SYMBOL_MIN, AnalysisOptions, analyze_layer
from convsv.api import layer_of
from convsv.errors import ComputationError, UsageError
from convsv.execution import Execution, full_precision, numpy_keeps_to_one_thread, one_thread_a_call
from convsv.geometry import GeometryFacts
from convsv.results import Bound, Interval, Spectrum
from convsv.spectra import SPECTRA

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "unknown device"),
        ({"device": "cuda:x"}, "unknown device"),
        ({"device": "meta"}, "not supported"),
        ({"device": "cuda:99"}, "no such CUDA device"),
        ({"dtype": "float16"}, "unknown dtype"),
        ({"memory": 1000}, "at least 1 MiB"),
        ({"jobs": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Execution(**options)  # type: ignore[arg-type]


def test_auto_is_a_device_that_is_there() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert Execution().torch_device.type == expected


def test_dtype_is_torchs() -> None:
    assert Execution(dtype="float32").torch_dtype is torch.float32
    assert Execution().torch_dtype is torch.float64


# -------------------------------------------------------------------------------------------------------------- chunks


@given(st.integers(0, 5000), st.integers(0, 1 << 24), st.integers(1 << 20, 1 << 31), st.integers(1, 16))
def test_chunks_cover_everything_and_fit_the_budget(count: int, each: int, memory: int, jobs: int) -> None:
    chunks = Execution("cpu", memory=memory, jobs=jobs).chunks(count, each)
    assert [i for start, stop in chunks for i in range(start, stop)] == list(range(count))
    for start, stop in chunks:
        assert stop - start == 1 or (stop - start) * each * jobs <= memory


@pytest.mark.parametrize("memory", [1 << 20, 5 << 20, 1 << 30])
def test_chunks_do_not_depend_on_threads_or_on_who_shares_the_budget(memory: int) -> None:
    plans = [Execution("cpu", memory=memory, jobs=jobs, sharers=n) for jobs, n in ((1, 1), (2, 1), (64, 1), (2, 5))]
    assert len({tuple(plan.chunks(1000, 5000)) for plan in plans}) == 1


# ----------------------------------------------------------------------------------------------------------------- map


@pytest.mark.parametrize("jobs", [1, 3])
def test_map_keeps_the_order(jobs: int) -> None:
    assert list(Execution("cpu", jobs=jobs).map(lambda n: n * n, range(50))) == [n * n for n in range(50)]


def test_map_works_on_several_threads_at_once() -> None:
    meeting = threading.Barrier(2, timeout=30)

    def meet(_: int) -> int:
        meeting.wait()
        return threading.get_ident()

    assert len(set(Execution("cpu", jobs=2).map(meet, range(2)))) == 2


@pytest.mark.parametrize("jobs", [1, 2])
def test_map_takes_few_items_ahead(jobs: int) -> None:
    taken = itertools.count()

    def items() -> Iterator[int]:
        while True:
            yield next(taken)

    results = Execution("cpu", jobs=jobs).map(lambda n: n, items())
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert next(taken) <= 2 * jobs


@example(8, 700_000, 3, 1)
@example(8, 400_000, 4, 1)
@example(8, 300_000, 2, 2)
@given(st.integers(1, 30), st.integers(1, 1 << 21), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=30)
def test_what_is_in_work_at_one_time_fits_the_budget(count: int, each: int, jobs: int, sharers: int) -> None:
    execution = Execution("cpu", memory=1 << 20, jobs=jobs, sharers=sharers)
    lock, in_work, largest = threading.Lock(), 0, 0

    def work(start: int, stop: int, _: torch.device) -> int:
        nonlocal in_work, largest
        with lock:
            in_work += stop - start
            largest = max(largest, in_work)
        time.sleep(1e-3)
        with lock:
            in_work -= stop - start
        return stop - start

    assert sum(execution.map_chunks(count, each, work)) == count
    assert largest <= max(1, execution.memory // sharers // each)


@pytest.mark.parametrize("jobs", [1, 2])
def test_map_raises_what_the_function_raises(jobs: int) -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        list(Execution("cpu", jobs=jobs).map(lambda n: 1 // n, [1, 0, 1]))
    assert torch.get_num_threads() == before


def reduced_precision_is_allowed() -> bool:
    backends = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return torch.get_float32_matmul_precision() != "highest" or backends.cudnn.allow_tf32
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    return any(place.fp32_precision != "ieee" for place in places)


@pytest.mark.parametrize("jobs", [1, 2])
def test_workers_use_one_thread_a_call_and_full_precision(jobs: int) -> None:
    def settings(_: int) -> tuple[int, bool]:
        return torch.get_num_threads(), reduced_precision_is_allowed()

    assert set(Execution("cpu", jobs=jobs).map(settings, range(4))) == {(1, False)}


@pytest.mark.parametrize("early", [False, True], ids=["exhausted", "closed early"])
def test_settings_are_restored_after_the_last_user(early: bool) -> None:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    try:
        with one_thread_a_call(), full_precision():
            results = Execution("cpu", jobs=2).map(lambda n: n, range(9))
            next(results)
            if not early:
                list(results)
            results.close()  # type: ignore[attr-defined]
            assert torch.get_num_threads() == 1
            assert not reduced_precision_is_allowed()
        assert torch.get_num_threads() == 2
        assert reduced_precision_is_allowed()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


# ------------------------------------------------------------------------------------------------------ out of memory


def test_chunks_that_do_not_fit_are_halved() -> None:
    def work(start: int, stop: int, device: torch.device) -> tuple[int, int]:
        if stop - start > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return start, stop

    parts = list(Execution("cpu", jobs=1).map_chunks(16, 1, work))
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(16))
    assert max(stop - start for start, stop in parts) == 2


def test_item_that_does_not_fit_the_gpu_is_computed_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(Execution, "torch_device", torch.device("cuda"))

    def work(start: int, stop: int, device: torch.device) -> str:
        if device.type == "cuda":
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return f"{start}-{stop} on {device}"

    assert list(Execution("cpu").map_chunks(2, 1, work)) == ["0-1 on cpu", "1-2 on cpu"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_item_that_fits_nowhere_is_an_error(error: Exception) -> None:
    def work(start: int, stop: int, device: torch.device) -> None:
        raise error

    with pytest.raises(ComputationError, match="out of memory"):
        list(Execution("cpu").map_chunks(3, 1, work))


def test_other_errors_are_not_tried_again() -> None:
    calls: list[int] = []

    def work(start: int, stop: int, device: torch.device) -> None:
        calls.append(start)
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        list(Execution("cpu", jobs=1).map_chunks(1, 1, work))
    assert calls == [0]


# --------------------------------------------------------------------------------------------------------- numpy's BLAS


def test_numpy_keeps_to_one_thread_meanwhile() -> None:
    threads = pytest.importorskip("threadpoolctl").ThreadpoolController().select(internal_api="openblas")
    if not numpy_keeps_to_one_thread():
        pytest.skip("numpy has another BLAS here")

    def counts() -> list[int]:
        return [library["num_threads"] for library in threads.info()]

    with threads.limit(limits=2):
        before = counts()
        with one_thread_a_call():
            assert set(counts()) == {1}
        assert counts() == before


def test_numpy_is_not_trusted_where_nothing_holds_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    execution._numpy_blas.cache_clear()
    monkeypatch.setattr(execution, "import_module", missing)
    try:
        assert not numpy_keeps_to_one_thread()
        with one_thread_a_call():
            assert torch.get_num_threads() == 1
    finally:
        execution._numpy_blas.cache_clear()


SCATTERED = """
import torch
from pathlib import Path
from convsv.execution import give_back_large_blocks

def resident():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

give_back_large_blocks()
give_back_large_blocks()  # once and for all
before = resident()
blocks = [torch.ones(16 << 20, dtype=torch.uint8) for _ in range(8)]
held = resident() - before
del blocks
print(held >> 20, (resident() - before) >> 20)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_large_blocks_go_back_to_the_system() -> None:
    # In a process of its own: what others have freed before would be counted too.
    printed = subprocess.run([sys.executable, "-c", SCATTERED], capture_output=True, text=True, check=True).stdout
    held, kept = map(int, printed.split())
    assert held > 100
    assert kept < 40


def test_threads_last_from_one_call_to_the_next() -> None:
    two = Execution("cpu", jobs=2)
    names = {name for _ in range(5) for name in two.map(lambda _: threading.current_thread().name, range(8))}
    assert len(names) <= 2


def test_work_that_spreads_work_does_not_wait_for_itself() -> None:
    two = Execution("cpu", jobs=2)

    def inner(i: int) -> int:
        return sum(two.map(lambda j: sum(two.map(lambda k: k, range(j))), range(i)))

    assert list(two.map(inner, range(6))) == [sum(j * (j - 1) // 2 for j in range(i)) for i in range(6)]


def test_nothing_runs_on_once_the_caller_stopped() -> None:
    begun, ended = [], []

    def work(i: int) -> int:
        begun.append(i)
        time.sleep(0.02)
        ended.append(i)
        return i

    results = Execution("cpu", jobs=2).map(work, range(100))
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert sorted(begun) == sorted(ended)
    assert len(begun) < 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_child_has_threads_of_its_own() -> None:
    program = """
import os, sys
from convsv.execution import Execution
two = Execution("cpu", jobs=2)
assert list(two.map(abs, range(9))) == list(range(9))
child = os.fork()
if not child:
    os._exit(0 if list(two.map(abs, range(9))) == list(range(9)) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


# ------------------------------------------------------------------------------------------- precision that users lower


@contextmanager
def lowered_by_the_user() -> Iterator[None]:
    """Everything by which a program allows products of fewer digits, as training scripts do."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def certified(device: str, dtype: str, mode: str = "circular") -> dict[str, object]:
    """What is certified of a layer: intervals of any size and at a size, spectra with their errors, bounds."""
    kernel = torch.randn(24, 20, 3, 3, generator=torch.Generator().manual_seed(3)).numpy()
    layer = layer_of(kernel, GeometryFacts(size=12, stride=1, padding=1, dilation=1, padding_mode=mode))
    methods = (*SPECTRA, BOUNDS_METHOD, SYMBOL_MIN)
    options = AnalysisOptions(methods=methods, tol=1e-4, execution=Execution(device, dtype=dtype, jobs=1))
    report = analyze_layer(layer, options)
    found: dict[str, object] = {"norm": report.norm, "norm at size": report.norm_at_size}
    for method, result in report.results.items():
        if isinstance(result, Spectrum):
            found[method] = replace(result, values=None, lower_values=None)
        elif isinstance(result, Mapping):
            found[method] = {name: replace(b, seconds=0.0) if isinstance(b, Bound) else b for name, b in result.items()}
        else:
            found[method] = result
    assert found["norm"] is not None
    return found


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("mode", ["circular", "zeros"])
def test_no_result_depends_on_the_precision_that_a_user_allows(device: str, dtype: str, mode: str) -> None:
    expected = certified(device, dtype, mode)
    with lowered_by_the_user():
        assert reduced_precision_is_allowed()
        found = certified(device, dtype, mode)
        assert reduced_precision_is_allowed()  # it is the user's own again
    assert [name for name in expected if found[name] != expected[name]] == []
    assert found.keys() == expected.keys()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_gpu_and_the_cpu_certify_intervals_that_meet(dtype: str) -> None:
    with lowered_by_the_user():
        gpu, cpu = certified("cuda", dtype), certified("cpu", "float64")
    for name in ("norm", "norm at size"):
        there, here = gpu[name], cpu[name]
        assert isinstance(there, Interval)
        assert isinstance(here, Interval)
        assert there.lower <= here.upper
        assert here.lower <= there.upper


@pytest.mark.cuda
def test_the_gpu_would_round_products_more_coarsely_without_that() -> None:
    """What the test above would see: TF32 keeps 11 bits of a float32."""
    one = torch.randn(512, 512, generator=torch.Generator().manual_seed(1)).cuda()
    exact = one.double() @ one.double()
    with lowered_by_the_user():
        coarse = float((one @ one - exact).abs().max())
        with full_precision():
            fine = float((one @ one - exact).abs().max())
    assert fine < coarse / 10

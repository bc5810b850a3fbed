"""Where work runs: device, precision, memory-sized chunks and threads.

Many small LAPACK calls are the shape of nearly all work here. A BLAS that threads each of them is slower than one
thread, by up to twenty times where cores are busy; so torch and numpy's OpenBLAS are set to one thread a call and a
thread pool spreads the calls (both release the interpreter lock).
Reduced precision (TF32, bfloat16 products) is switched off meanwhile: results carry error bounds.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from threading import Lock, local
from typing import Any, TypeAlias, TypeVar

import torch

from convsv.errors import ComputationError, UsageError

__all__ = [
    "Execution",
    "full_precision",
    "give_back_large_blocks",
    "numpy_keeps_to_one_thread",
    "one_thread_a_call",
]

T = TypeVar("T")
R = TypeVar("R")
ChunkFunction: TypeAlias = Callable[[int, int, torch.device], R]

_DTYPES = {"float64": torch.float64, "float32": torch.float32}
_LARGEST_CHUNK = 32 << 20
"""Bytes: beyond this a chunk gains nothing on a CPU and leaves the caches."""
_SMALLEST_CHUNK = 64 << 10
"""Bytes: below this handing a chunk to a thread costs more than the work."""
_MMAP_THRESHOLD = -3
"""The number of that option of mallopt, in glibc's malloc.h."""
_SHARES = 16
"""Chunks that work is cut into where they do not become too small: independent of the number of threads."""


@dataclass(frozen=True)
class Execution:
    """How and where to compute.

    Attributes:
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
        dtype: ``float64`` or ``float32``.
        memory: budget in bytes for what is in work at one time.
        jobs: threads; None for one a CPU that this process may use.
        sharers: processes that work within the budget at one time. What is computed, and how, is decided by the whole
            budget, so that no result depends on them; what each holds at one time is cut to its share.
    """

    device: str = "auto"
    dtype: str = "float64"
    memory: int = 1 << 30
    jobs: int | None = None
    sharers: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be used.

        Raises:
            UsageError: unknown or absent device, unknown dtype, or a number out of range.
        """
        if self.dtype not in _DTYPES:
            raise UsageError("unknown dtype", found=self.dtype, advice=f"use one of {', '.join(_DTYPES)}")
        if self.memory < 1 << 20:
            raise UsageError("the memory budget must be at least 1 MiB", found=f"{self.memory} bytes")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError("jobs must be at least 1", found=str(self.jobs))
        _check_device(self.device)

    @property
    def torch_device(self) -> torch.device:
        """The device that ``device`` names on this machine."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return _DTYPES[self.dtype]

    @property
    def threads(self) -> int:
        """Number of threads that work is spread over; a GPU is fed by one."""
        if self.torch_device.type != "cpu":
            return 1
        return self.jobs or _usable_cpus()

    def chunks(self, count: int, bytes_each: int) -> list[tuple[int, int]]:
        """Return ranges ``(start, stop)`` that cover ``count`` items: on a CPU the same for any number of threads.

        How long a range is changes the rounding of what is computed of it. They are cut by the whole budget, then;
        :meth:`map_chunks` lets fewer threads work where not as many fit as there are threads.

        Args:
            count: number of items.
            bytes_each: peak memory of the work on one item.
        """
        if self.torch_device.type == "cpu":
            even = max(-(-count // _SHARES) * bytes_each, _SMALLEST_CHUNK)
            share = min(self.memory // (2 * _SHARES), _LARGEST_CHUNK, even)
        else:
            share = self.memory // (2 * self.sharers)
        length = max(1, share // max(1, bytes_each))
        return [(start, min(start + length, count)) for start in range(0, count, length)]

    def map(self, function: Callable[[T], R], items: Iterable[T], at_once: int | None = None) -> Iterator[R]:
        """Yield ``function(item)`` for every item, in order, computed on the thread pool.

        Few more items than threads are taken ahead of what the caller has consumed.

        Args:
            function: called in a worker thread, with one BLAS thread and full precision.
            items: taken lazily.
            at_once: how many items fit into memory at one time; None where all threads may work.
        """
        ahead = 2 * self.threads if at_once is None or at_once >= self.threads else at_once
        with one_thread_a_call(), full_precision():
            if self.threads == 1 or ahead <= 1:
                yield from map(function, items)
                return
            if not getattr(_HERE, "is_working", False):
                yield from _in_order(_lasting_pool(self.threads), function, items, ahead)
                return
            # Within a thread of the pool that lasts, which would wait for itself.
            with _new_pool(self.threads) as pool:
                yield from _in_order(pool, function, items, ahead)

    def map_chunks(
        self, count: int, bytes_each: int, function: ChunkFunction[R], share: tuple[int, int] = (0, 1)
    ) -> Iterator[R]:
        """Yield ``function(start, stop, device)`` for ranges that cover ``count`` items, in order.

        A range for which the GPU has not enough memory is halved, and a single item that still does not fit is
        computed on the CPU: the number of results depends on the machine, what they cover does not.

        Args:
            count: number of items.
            bytes_each: peak memory of the work on one item.
            function: the work on one range.
            share: k and n for the k-th of n shares of these ranges, from 0: all n shares together are the same calls.

        Raises:
            ComputationError: not even one item fits into the memory of the CPU.
        """

        def work(bounds: tuple[int, int]) -> list[R]:
            return _halving(function, bounds, self.torch_device)

        ranges, (number, total) = self.chunks(count, bytes_each), share
        mine = ranges[len(ranges) * number // total : len(ranges) * (number + 1) // total]
        longest = max((stop - start for start, stop in mine), default=1)
        for results in self.map(work, mine, self.memory // max(1, self.sharers * longest * bytes_each)):
            yield from results


# ----------------------------------------------------------------------------------------------------- torch's settings


class _SharedSetting:
    """A global setting that any number of users need at once: the first applies it, the last restores it.

    Args:
        apply: applies it, and returns what restores what was there before.
    """

    def __init__(self, apply: Callable[[], Callable[[], None]]) -> None:
        self._apply = apply
        self._restore: Callable[[], None] | None = None
        self._users = 0
        self._lock = Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep it applied; nests, also across threads."""
        with self._lock:
            if self._users == 0:
                self._restore = self._apply()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and self._restore:
                    self._restore()


def _one_thread() -> Callable[[], None]:
    before, blas = torch.get_num_threads(), _numpy_blas()
    torch.set_num_threads(1)
    limited = blas.limit(limits=1) if blas else None

    def restore() -> None:
        torch.set_num_threads(before)
        if limited:
            limited.restore_original_limits()

    return restore


@lru_cache(maxsize=1)
def _numpy_blas() -> Any:
    """Return what sets the threads of numpy's OpenBLAS, or None where it is another BLAS or nothing can set them."""
    try:
        found = import_module("threadpoolctl").ThreadpoolController().select(internal_api="openblas")
    except ImportError:
        return None
    return found if len(found) else None


def numpy_keeps_to_one_thread() -> bool:
    """Tell whether :func:`one_thread_a_call` holds for numpy's LAPACK too."""
    return _numpy_blas() is not None


def _full_precision() -> Callable[[], None]:
    backends: Any = torch.backends  # typing stubs lack half of it
    if not hasattr(backends.cuda.matmul, "fp32_precision"):  # torch < 2.9
        matmul, cudnn = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = False

        def restore_legacy() -> None:
            torch.set_float32_matmul_precision(matmul)
            backends.cudnn.allow_tf32 = cudnn

        return restore_legacy
    # torch.get_float32_matmul_precision fails where somebody has used these; these work either way.
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"

    def restore() -> None:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision

    return restore


_ONE_THREAD = _SharedSetting(_one_thread)
_FULL_PRECISION = _SharedSetting(_full_precision)


def one_thread_a_call() -> AbstractContextManager[None]:
    """Let every call of torch and of numpy's OpenBLAS run on one thread.

    Nests, also across threads, and restores what was set before.
    """
    return _ONE_THREAD.held()


def full_precision() -> AbstractContextManager[None]:
    """Switch off TF32 and bfloat16 products; nests, also across threads, and restores what was set before."""
    return _FULL_PRECISION.held()


@lru_cache(maxsize=1)
def give_back_large_blocks() -> None:
    """Have the C library return freed blocks of over 8 MiB to the system at once, once and for all.

    By itself glibc keeps blocks as large as any that was ever freed, up to 32 MiB: work on matrices of 1280 channels
    was seen to scatter 13 MiB an evaluation over its heap. Elsewhere than on glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, 8 << 20)


# ------------------------------------------------------------------------------------------------------------- helpers


def _check_device(name: str) -> None:
    if name == "auto":
        return
    advice = "use auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError("unknown device", found=name, advice=advice) from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError("this device is not supported", found=name, advice=advice)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{name}, with {torch.cuda.device_count()} CUDA devices here"
        raise UsageError("there is no such CUDA device", found=found, advice=advice)


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_HERE = local()
_POOLS: dict[int, ThreadPoolExecutor] = {}
"""Pools by their number of threads: small layers ask for one so often that starting it would take longer than they."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOLS.clear)  # threads do not come along


def _lasting_pool(threads: int) -> ThreadPoolExecutor:
    return _POOLS.get(threads) or _POOLS.setdefault(threads, _new_pool(threads))


def _new_pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=lambda: setattr(_HERE, "is_working", True))


def _in_order(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Reached early when the caller stops or an item fails: what has not started must not start.
        wait([future for future in waiting if not future.cancel()])


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
"""How torch, its CPU allocator and NVIDIA's libraries word it; only the first has a class of its own."""


def _halving(function: ChunkFunction[R], bounds: tuple[int, int], device: torch.device) -> list[R]:
    start, stop = bounds
    try:
        return [function(start, stop, device)]
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
    # Outside the except clause, whose traceback would keep the failed attempt's tensors alive.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if stop - start > 1:
        middle = (start + stop) // 2
        return _halving(function, (start, middle), device) + _halving(function, (middle, stop), device)
    if device.type == "cpu":
        raise ComputationError("out of memory", advice="give a smaller --memory or fewer --jobs")
    return _halving(function, bounds, torch.device("cpu"))

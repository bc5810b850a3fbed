"""How fast this machine is: measured once in about a second, and kept in the user's cache folder.

A file that is missing, damaged or from another machine is measured anew; a folder that cannot be written to costs a
measurement a call, and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from convsv.costs import Speed
from convsv.errors import OutputError
from convsv.files import replacing

__all__ = ["known_speed", "measure", "speed_of_this_machine"]

_SMALL = 0.7e-3
"""Seconds of the small work below on the machine where the times of ``convsv.costs`` were fitted."""
_REPEATS = 5


def speed_of_this_machine() -> Speed:
    """Return what was measured before, or measure it now and keep it."""
    found = known_speed()
    if found is None:
        found = measure()
        _keep(found)
    return found


def known_speed() -> Speed | None:
    """Return what was measured on this machine before, if it was."""
    try:
        kept = json.loads(_file().read_text(encoding="utf-8"))[_machine()]
        numbers = {field.name: float(kept[field.name]) for field in fields(Speed)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    sound = all(0 < number < math.inf for number in numbers.values())
    return Speed(**numbers) if sound else None


def measure() -> Speed:
    """Measure one core: matrix products, factorisations, eigenvalues and small work, each the best of a few tries."""
    import torch

    from convsv.execution import one_thread_a_call

    generator = torch.Generator().manual_seed(0)
    square = torch.randn(768, 768, dtype=torch.float64, generator=generator)
    wide = torch.randn(384, 384, dtype=torch.complex128, generator=generator)
    definite = wide @ wide.mH + 384 * torch.eye(384)
    middle = torch.randn(8, 64, 64, dtype=torch.complex128, generator=generator)
    hermitian = middle + middle.mH

    def small() -> None:
        for _ in range(20):
            torch.linalg.eigvalsh(hermitian[:, :8, :8])

    with one_thread_a_call():
        return Speed(
            gemm=2 * 768**3 / _best(lambda: square @ square),
            factorise=4 / 3 * 384**3 / _best(lambda: torch.linalg.cholesky(definite)),
            eigen=8 * 16 / 3 * 64**3 / _best(lambda: torch.linalg.eigvalsh(hermitian)),
            small=_best(small) / _SMALL,
        )


def _best(work: Callable[[], Any]) -> float:
    work()
    taken = []
    for _ in range(_REPEATS):
        started = time.thread_time()
        work()
        taken.append(time.thread_time() - started)
    return max(min(taken), 1e-9)


def _keep(speed: Speed) -> None:
    path = _file()
    kept: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        read = json.loads(path.read_text(encoding="utf-8"))
        kept = read if isinstance(read, dict) else {}
    kept[_machine()] = asdict(speed)
    with suppress(OSError, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(str(path)) as temporary:
            temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def _file() -> Path:
    from platformdirs import user_cache_path

    stated = os.environ.get("CONVSV_CACHE_DIR")
    return (Path(stated) if stated else user_cache_path("convsv", appauthor=False)) / "speed.json"


def _machine() -> str:
    """Return what tells machines apart that share a cache folder."""
    return f"{platform.node()} {platform.machine()} {os.cpu_count()}"

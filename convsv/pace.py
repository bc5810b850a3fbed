"""What follows quickly is handed on together.

Right after a computation, with the processor's caches full of other things, whatever is done with its result costs
several times what it costs right after the same with the one before.
"""

from __future__ import annotations

import math
import time
from typing import Protocol

__all__ = ["Pace"]

_UNNOTICED = 0.1
"""Seconds for which a result may wait for others."""
_OF_A_KIND = 4
"""How many times as many weights the next layer may have for that: not much of a wait after one of milliseconds."""


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


class Pace:
    """Tells when results have waited long enough for others: none waits for a layer that may take much longer."""

    def __init__(self) -> None:
        self._begun = -math.inf

    def is_over(self, last: _Shaped, following: _Shaped | None) -> bool:
        """Tell whether what waits is to be handed on.

        Args:
            last: the last layer that is done.
            following: the next one; None where that is not known.
        """
        if time.monotonic() - self._begun > _UNNOTICED:
            return True
        return following is not None and math.prod(following.shape) > _OF_A_KIND * math.prod(last.shape)

    def restart(self) -> None:
        """Note that nothing waits now."""
        self._begun = time.monotonic()

"""Tensors that share some of their bytes: an edit of one would silently change the other."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from convsv.checkpoints._content import printable
from convsv.checkpoints._place import Place
from convsv.errors import CheckpointError

__all__ = ["Claim", "refuse_overlaps"]

MAX_PAIRS = 1 << 15
MAX_ELEMENTS = 1 << 27


@dataclass(frozen=True)
class Claim:
    """A tensor and its bytes.

    Attributes:
        name: what messages call it.
        place: its bytes.
        edited: whether they are to change.
    """

    name: str
    place: Place
    edited: bool = False


def refuse_overlaps(claims: Sequence[Claim]) -> None:
    """Refuse edits of tensors that share bytes with another tensor.

    Exact to the byte: interleaved views that have no byte in common may be edited.

    Args:
        claims: the tensors of a checkpoint, each tie once.

    Raises:
        CheckpointError: an edited tensor shares bytes with another one.
    """
    pairs, elements = 0, 0
    for one, other in _close_pairs(claims):
        edited, second = (one, other) if one.edited else (other, one)
        pairs, elements = pairs + 1, elements + min(math.prod(claim.place.view.shape) for claim in (one, other))
        if pairs > MAX_PAIRS or elements > MAX_ELEMENTS:
            raise CheckpointError(
                "cannot be edited: too many views lie over the same bytes", tensor=printable(edited.name)
            )
        if _meet(one.place, other.place):
            _refuse(edited, second)


def _refuse(edited: Claim, other: Claim) -> NoReturn:
    raise CheckpointError(
        "cannot be edited: it shares some of its bytes with another tensor, which would change too",
        tensor=printable(edited.name),
        found=f"a view of the same storage, {printable(other.name)}",
        advice="save the model with a copy of one of them (tensor.clone()), or leave the layer out",
    )


def _close_pairs(claims: Sequence[Claim]) -> Iterator[tuple[Claim, Claim]]:
    """Yield pairs, at least one of them edited, whose first and last bytes enclose common ones."""
    edited: list[tuple[int, int, Claim]] = []
    others: list[tuple[int, int, Claim]] = []
    current: object = None
    for number, claim in enumerate(sorted(claims, key=lambda claim: (id(claim.place.file), claim.place.first))):
        if claim.place.file is not current:
            current, edited, others = claim.place.file, [], []
        for active in (edited, others):
            while active and active[0][0] <= claim.place.first:
                heapq.heappop(active)
        for _, _, other in (*edited, *others) if claim.edited else edited:
            yield claim, other
        heapq.heappush(edited if claim.edited else others, (claim.place.end, number, claim))


def _meet(one: Place, other: Place) -> bool:
    if one.is_dense and other.is_dense:
        return True
    small, large = sorted((one, other), key=lambda place: place.byte_count)
    # Elements of one size on one grid coincide or have nothing in common: their first bytes tell.
    on_grid = small.item_size == large.item_size and (small.first - large.first) % small.item_size == 0
    positions = small.positions(1 if on_grid else small.item_size)
    return any(bool(large.holds(part).any()) for part in positions)

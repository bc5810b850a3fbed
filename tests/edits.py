"""What the tests of edited checkpoints share: new values for tensors, and bytes compared by definition."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints import Checkpoint, StoredTensor
from convsv.checkpoints._strided import DTYPES
from convsv.checkpoints.writing import Edit


def random_values(tensor: StoredTensor, seed: int = 0) -> NDArray[Any]:
    """Finite values of the tensor's shape and dtype, none of them what a fresh network holds."""
    rng = np.random.default_rng(seed)
    values: NDArray[Any] = rng.integers(-9, 9, tensor.shape).astype(np.float32) / 4 + 0.25
    return values.astype(DTYPES[tensor.dtype])


def edit(tensor: StoredTensor, seed: int = 0) -> Edit:
    """An edit that gives a tensor random values."""
    return Edit(tensor, random_values(tensor, seed))


def tensor(checkpoint: Checkpoint, key: str, *container: str) -> StoredTensor:
    """The tensor of a key; of a container, if one is given."""
    found = [t for t in checkpoint.tensors if t.key == key and container in ((), t.container)]
    assert len(found) == 1, f"{len(found)} tensors {key}"
    return found[0]


def differences(one: Path, other: Path) -> set[int]:
    """Positions of the bytes that differ; the files have one size."""
    first, second = (np.frombuffer(path.read_bytes(), np.uint8) for path in (one, other))
    assert first.size == second.size
    return set(np.flatnonzero(first != second).tolist())


def element_bytes(start: int, item: int, shape: Iterable[int], strides: Iterable[int]) -> set[int]:
    """Positions of the bytes of a strided tensor by definition; strides count elements."""
    steps = list(strides)
    indices = itertools.product(*(range(n) for n in shape))
    firsts = (start + item * sum(i * s for i, s in zip(index, steps, strict=True)) for index in indices)
    return {first + byte for first in firsts for byte in range(item)}


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())

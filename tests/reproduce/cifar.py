"""The CIFAR-10 files as their authors give them out: the binary version, and the Python version without unpickling.

A pickle is a program. The Python version's batches are therefore read by convsv's own interpreter of pickles, which
runs nothing, and its records are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints import RegularFile
from convsv.checkpoints._pickle import Call, PickledDict, Symbol, interpret
from convsv.errors import CorruptCheckpointError, UnsafeCheckpointError, UsageError, error_context

__all__ = ["read_cifar10"]

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images ``(N, 3, 32, 32)`` and labels ``(N,)`` from 0 to 9."""

PIXELS = 3 * 32 * 32
MOST = 10_000
"""Images in one of the authors' files."""


def read_cifar10(folder: Path) -> tuple[Batch, Batch]:
    """Return the training set and the test set.

    Args:
        folder: that of the files, or the one that ``cifar-10-batches-bin`` or ``cifar-10-batches-py`` lies in. Where
            both versions are there, the binary one is read.

    Raises:
        UsageError: the files are not there.
        CorruptCheckpointError: a file is no such batch.
        UnsafeCheckpointError: a pickle calls what runs code.
    """
    for place in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        for suffix, read in _VERSIONS.items():
            training = [place / f"data_batch_{number}{suffix}" for number in range(1, 6)]
            test = place / f"test_batch{suffix}"
            if test.is_file() and all(path.is_file() for path in training):
                batches = [_in_context(read, path) for path in training]
                images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
                return (images, labels), _in_context(read, test)
    advice = "expected data_batch_1.bin to data_batch_5.bin and test_batch.bin, or the same without .bin"
    raise UsageError("no CIFAR-10 files", path=str(folder), advice=advice)


def _in_context(read: Callable[[RegularFile], Batch], path: Path) -> Batch:
    with error_context(path=str(path)):
        return read(RegularFile(path))


def _refuse_labels(labels: NDArray[Any]) -> None:
    if labels.size and not 0 <= labels.min() <= labels.max() <= 9:
        raise CorruptCheckpointError("a label is not from 0 to 9", found=f"{labels.min()} to {labels.max()}")


# ------------------------------------------------------------------------------------------------------------ binary


def _read_binary(file: RegularFile) -> Batch:
    """Return a batch of records of a label and 3072 pixels, a byte each."""
    count, rest = divmod(file.size, 1 + PIXELS)
    if rest or not 1 <= count <= MOST:
        raise CorruptCheckpointError(
            f"is not a batch of 1 to {MOST} images of {1 + PIXELS} bytes", found=f"{file.size} bytes"
        )
    records = np.frombuffer(file.read(0, file.size), np.uint8).reshape(count, 1 + PIXELS)
    labels = records[:, 0].astype(np.int64)
    _refuse_labels(labels)
    return records[:, 1:].reshape(count, 3, 32, 32).copy(), labels


# ------------------------------------------------------------------------------------------------------------ pickle


def _read_pickle(file: RegularFile) -> Batch:
    """Return a batch out of the pickled dict that holds it, of which nothing is run."""
    if file.size > 2 * MOST * PIXELS:
        raise CorruptCheckpointError("is larger than any batch", found=f"{file.size} bytes")
    pickled = interpret(file)
    if pickled.payload:
        raise UnsafeCheckpointError("would run code if it were unpickled", found=pickled.payload)
    stored = pickled.value
    if not isinstance(stored, PickledDict):
        raise CorruptCheckpointError("holds no dict", found=type(stored).__name__)
    entries = {_content(key): value for key, value in stored.pairs}
    images, labels = _array(entries.get(b"data")), entries.get(b"labels")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise CorruptCheckpointError("has no list of labels", found=type(labels).__name__)
    if len(labels) != len(images):
        raise CorruptCheckpointError("has not as many labels as images", found=f"{len(labels)} and {len(images)}")
    if any(not 0 <= label <= 9 for label in labels):
        raise CorruptCheckpointError("a label is not from 0 to 9", found=f"{min(labels)} to {max(labels)}")
    return images, np.array(labels, np.int64)


def _array(stored: object) -> NDArray[np.uint8]:
    """Return the images of a numpy array's record: what it would call, its shape, dtype, order and bytes."""
    if not isinstance(stored, Call) or not isinstance(stored.callee, Symbol):
        raise CorruptCheckpointError("has no array of images", found=type(stored).__name__)
    if stored.callee.name != "_reconstruct" or not isinstance(stored.state, tuple) or len(stored.state) != 5:
        raise CorruptCheckpointError("has images in an unknown form", found=stored.callee.path)
    _version, shape, dtype, is_fortran, data = stored.state
    name = dtype.args[0] if isinstance(dtype, Call) and dtype.args else None
    if name not in ("u1", "|u1", b"u1") or is_fortran:
        raise CorruptCheckpointError("has images that are not rows of bytes", found=f"dtype {name!r}")
    content = _content(data)
    count = len(content) // PIXELS
    if shape != (count, PIXELS) or len(content) != count * PIXELS or not 1 <= count <= MOST:
        raise CorruptCheckpointError("has images of another size", found=f"shape {shape} in {len(content)} bytes")
    return np.frombuffer(content, np.uint8).reshape(count, 3, 32, 32).copy()


def _content(data: object) -> bytes:
    """Return bytes or text as bytes, also where Python 3 wrote bytes for Python 2: as text and its encoding."""
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    if isinstance(data, Call) and isinstance(data.callee, Symbol) and data.callee.path == "_codecs.encode":
        data = data.args[0] if data.args else None
    if isinstance(data, str):
        try:
            return data.encode("latin-1")
        except UnicodeEncodeError:
            pass
    raise CorruptCheckpointError("has a key or images that are no bytes", found=type(data).__name__)


_VERSIONS: dict[str, Callable[[RegularFile], Batch]] = {".bin": _read_binary, "": _read_pickle}

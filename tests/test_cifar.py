"""CIFAR-10 files, made here in the authors' formats: both versions read alike, nothing is run, damage is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convsv.errors import ConvsvError, CorruptCheckpointError, UnsafeCheckpointError, UsageError
from reproduce.cifar import PIXELS, read_cifar10

NAMES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


def batch(number: int, count: int = 3) -> tuple[np.ndarray, list[int]]:
    draws = np.random.default_rng(number)
    return draws.integers(0, 256, (count, PIXELS), np.uint8), draws.integers(0, 10, count).tolist()


def write_binary(folder: Path) -> None:
    for number, name in enumerate(NAMES):
        images, labels = batch(number)
        (folder / f"{name}.bin").write_bytes(b"".join(bytes([k, *row]) for k, row in zip(labels, images, strict=True)))


def python2(images: np.ndarray, labels: list[int]) -> bytes:
    """The batch as Python 2 pickled it, by protocol 2: old strings for keys, for the dtype and for the pixels."""

    def text(value: bytes) -> bytes:
        return (
            b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value
        )

    def number(value: int) -> bytes:
        return b"M" + value.to_bytes(2, "little")

    dtype = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    begun = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    shape = number(len(images)) + number(PIXELS) + b"\x86"
    array = begun + b"(K\x01" + shape + dtype + b"\x89" + text(images.tobytes()) + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


def write_python(folder: Path, pickled: Any = python2) -> None:
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(pickled(*batch(number)))


def check(folder: Path) -> None:
    (images, labels), (test_images, test_labels) = read_cifar10(folder)
    expected = [batch(number) for number in range(6)]
    assert images.shape == (15, 3, 32, 32)
    assert np.array_equal(images.reshape(15, -1), np.concatenate([found for found, _ in expected[:5]]))
    assert labels.tolist() == [label for _, found in expected[:5] for label in found]
    assert np.array_equal(test_images.reshape(3, -1), expected[5][0])
    assert test_labels.tolist() == expected[5][1]


def test_our_python_2_pickle_is_one() -> None:
    images, labels = batch(0)
    loaded = pickle.loads(python2(images, labels), encoding="bytes")
    assert np.array_equal(loaded[b"data"], images)
    assert loaded[b"labels"] == labels


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_binary(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)
    write_binary(tmp_path / inside)
    check(tmp_path)


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_python(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)
    write_python(tmp_path / inside)
    check(tmp_path)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("key", [str, str.encode])
def test_pickles_of_this_python(tmp_path: Path, protocol: int, key: Any) -> None:
    write_python(
        tmp_path, lambda images, labels: pickle.dumps({key("data"): images, key("labels"): labels}, protocol=protocol)
    )
    check(tmp_path)


def test_no_files(tmp_path: Path) -> None:
    write_binary(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(UsageError, match="no CIFAR-10 files"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x", bytes(PIXELS), bytes(2 * PIXELS + 3)])
def test_a_binary_of_another_size(tmp_path: Path, content: bytes) -> None:
    write_binary(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"data_batch_3\.bin") as error:
        read_cifar10(tmp_path)
    assert f"{len(content)} bytes" in str(error.value)


def test_a_label_that_is_none(tmp_path: Path) -> None:
    write_binary(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(bytes([10]) + bytes(PIXELS))
    with pytest.raises(CorruptCheckpointError, match="label"):
        read_cifar10(tmp_path)


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_nothing_is_run(tmp_path: Path) -> None:
    write_python(tmp_path)
    images, labels = batch(0)
    for place in ("data", "labels", "more"):
        entries = {"data": images, "labels": labels, place: Runs(tmp_path / "ran")}
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps(entries, protocol=4))
        with pytest.raises(UnsafeCheckpointError, match="data_batch_1"):
            read_cifar10(tmp_path)
        assert not (tmp_path / "ran").exists()


IMAGES, LABELS = batch(0)
DAMAGED = {
    "no dict": [1, 2],
    "no images": {"labels": LABELS},
    "images are text": {"data": "x" * PIXELS, "labels": LABELS},
    "images are floats": {"data": IMAGES.astype(float), "labels": LABELS},
    "images of another size": {"data": IMAGES[:, 1:].copy(), "labels": LABELS},
    "images by columns": {"data": np.asfortranarray(IMAGES), "labels": LABELS},
    "no labels": {"data": IMAGES},
    "too few labels": {"data": IMAGES, "labels": LABELS[1:]},
    "labels are true": {"data": IMAGES, "labels": [True] * 3},
    "a label of eleven": {"data": IMAGES, "labels": [11, 0, 0]},
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_no_batch(tmp_path: Path, name: str, protocol: int) -> None:
    write_python(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(DAMAGED[name], protocol=protocol))
    with pytest.raises(CorruptCheckpointError, match="test_batch"):
        read_cifar10(tmp_path)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    write_python(tmp_path)
    whole = (tmp_path / "test_batch").read_bytes()
    for end in {*range(0, 200, 7), *range(200, len(whole), 997), len(whole) - 1}:
        (tmp_path / "test_batch").write_bytes(whole[:end])
        with pytest.raises(ConvsvError):
            read_cifar10(tmp_path)

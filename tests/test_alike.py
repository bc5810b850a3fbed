"""Checkpoints of one network, one after the other: found as each alone, every one with its own weights."""

from __future__ import annotations

import gc
import os
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convsv.checkpoints import _pickle, _torch_alike, discovery, open_checkpoint
from convsv.checkpoints._file import AnonymousFile
from convsv.checkpoints.discovery import discover
from convsv.checkpoints.sources import GeometryOptions
from convsv.errors import CorruptCheckpointError

SAMPLES = sorted(
    path for path in (Path(__file__).resolve().parents[1] / "sample_checkpoints").iterdir() if "digits" in path.name
)


def forget():
    """Let nothing be known of an earlier checkpoint."""
    discovery._LAST.clear()
    _torch_alike._LAST.clear()
    _pickle._short.cache_clear()


def found(path, **options):
    """Return everything that a search says, and the bytes of every layer and tensor."""
    checkpoint = open_checkpoint(path)
    result = discover(checkpoint, **options)
    facts = [(vars(layer) | {"read": None, "writeback": None}, dict(layer.geometry.origin)) for layer in result.layers]
    tensors = [vars(tensor) | {"read": None, "identity": None} for tensor in checkpoint.tensors]
    places = [tensor.place and (tensor.place.start, tensor.place.view) for tensor in checkpoint.tensors]
    files = {tensor.place.file for tensor in checkpoint.tensors if tensor.place}
    assert files <= set(checkpoint.files)
    for tensor in tensors:
        del tensor["place"]
    values = [tensor.read().tobytes() if tensor.problem is None else None for tensor in checkpoint.tensors]
    edited = [tuple(t.key for t in layer.writeback.tensors) for layer in result.layers]
    kernels = [layer.read().tobytes() if layer.problem is None else None for layer in result.layers]
    return facts, tensors, places, values, kernels, edited, replace(result, layers=())


@pytest.fixture(autouse=True)
def fresh():
    forget()
    yield
    forget()


def saved(path, seed, **changes):
    """Write a small network; the same names and shapes whatever the seed."""
    weights = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (8, 3, 3, 3), "a.bias": (8,), "b.weight": (8, 8, 3, 3), "c.weight": (4, 8)} | changes
    state = {key: torch.randn(shape, generator=weights) for key, shape in shapes.items()}
    torch.save({"state_dict": state}, path)
    return path


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_a_copy_is_found_as_the_file_itself(sample, tmp_path):
    first = found(sample)
    copy = tmp_path / sample.name
    (shutil.copytree if sample.is_dir() else shutil.copy)(sample, copy)
    again = found(copy)
    forget()
    alone = found(copy)
    assert again == alone
    assert again[1:] == first[1:]


@pytest.mark.parametrize("name", ["digits.safetensors", "digits.pt", "digits-legacy.pth", "digits.h5", "digits.keras"])
def test_names_and_shapes_are_searched_once(name, tmp_path, monkeypatch):
    searched, search = [], discovery._search
    monkeypatch.setattr(discovery, "_search", lambda *some: searched.append(some) or search(*some))
    (sample,) = (path for path in SAMPLES if path.name == name)
    shutil.copy(sample, tmp_path / name)
    assert found(sample)[1:] == found(tmp_path / name)[1:]
    assert len(searched) == 1


def test_tied_tensors_are_searched_anew(tmp_path):
    found(saved(tmp_path / "first.pt", 1, **{"d.weight": (8, 8, 3, 3)}))
    kernel = torch.ones(8, 8, 3, 3)
    state = {"a.weight": torch.ones(8, 3, 3, 3), "a.bias": torch.ones(8), "b.weight": kernel}
    torch.save({"state_dict": {**state, "c.weight": torch.ones(4, 8), "d.weight": kernel}}, tmp_path / "tied.pt")
    result = found(tmp_path / "tied.pt")
    forget()
    assert found(tmp_path / "tied.pt") == result
    assert any("tied" in note for facts, _ in result[0] for note in facts["notes"])


def test_the_next_checkpoint_of_a_network_has_its_own_weights(tmp_path):
    paths = [saved(tmp_path / f"{seed}.pt", seed) for seed in range(3)]
    results = [found(path) for path in paths]
    assert _torch_alike._LAST
    assert discovery._LAST
    for path, result in zip(paths, results, strict=True):
        forget()
        assert found(path) == result
    assert len({result[4][0] for result in results}) == 3


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"b.weight": (8, 1, 3, 3)}, {}),
        ({"c.weight": (4, 8, 1, 1)}, {}),
        ({"d.weight": (8, 8, 3, 3)}, {}),
        ({"a.bias": (3,)}, {}),
        ({}, {"geometry": GeometryOptions(size=(16,))}),
        ({}, {"geometry": GeometryOptions(padding_mode="circular")}),
        ({}, {"include": ("a",)}),
        ({}, {"exclude": ("a",)}),
        ({}, {"geometry": GeometryOptions(fold="known")}),
    ],
)
def test_what_differs_is_searched_anew(changes, options, tmp_path):
    found(saved(tmp_path / "first.pt", 1))
    path = saved(tmp_path / "second.pt", 2, **changes)
    result = found(path, **options)
    forget()
    assert found(path, **options) == result


def test_a_storage_that_the_next_file_lacks_is_missed(tmp_path):
    # The same pickle, and an archive whose last storage has another name.
    whole = saved(tmp_path / "whole.pt", 1)
    open_checkpoint(whole)
    data = whole.read_bytes()
    lacking = tmp_path / "lacking.pt"
    lacking.write_bytes(data.replace(b"whole/data/3", b"whole/data/x"))
    with pytest.raises(CorruptCheckpointError, match="storage '3'"):
        open_checkpoint(lacking)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="nothing lists open files here")
def test_nothing_keeps_a_file_open(tmp_path):
    def held():
        links = [os.path.realpath(name) for name in Path("/proc/self/fd").iterdir()]
        return [link for link in links if link.startswith(str(tmp_path))]

    for seed in range(3):
        found(saved(tmp_path / f"{seed}.pt", seed))
    gc.collect()
    assert held() == []


def test_of_an_archive_alike_only_what_is_asked_for_is_made(tmp_path, monkeypatch):
    bound, bind = [], _torch_alike._bound
    monkeypatch.setattr(_torch_alike, "_bound", lambda *some: bound.append(some[-1]) or bind(*some))
    first, second = (open_checkpoint(saved(tmp_path / f"{seed}.pt", seed)) for seed in range(2))
    assert [layer.name for layer in discover(first).layers] == ["a", "b"]
    assert first.likeness is second.likeness is not None
    layers = discover(second).layers
    assert bound == [0, 2]  # the biases and the matrix are nobody's business
    assert layers[1].read().tobytes() == torch.load(tmp_path / "1.pt")["state_dict"]["b.weight"].numpy().tobytes()
    assert second.tensors[2] is second.tensors[-2] is second.tensors[1:][1]
    with pytest.raises(IndexError):
        second.tensors[4]


def test_the_next_archive_is_read_in_its_own_byte_order(tmp_path):
    # Names of one length, and entries of one size: the archives differ in data alone.
    torch.save({"a.weight": torch.ones(2, 2, 3, 3), "s": torch.zeros(1)}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    little = zlib.crc32(b"little").to_bytes(4, "little")
    assert data.count(little) >= 2
    damaged = tmp_path / "y.pt"
    damaged.write_bytes(data.replace(b"little", b"middle").replace(little, zlib.crc32(b"middle").to_bytes(4, "little")))
    open_checkpoint(tmp_path / "x.pt")
    with pytest.raises(CorruptCheckpointError, match="byte order"):
        open_checkpoint(damaged)


def test_arrays_in_a_pickle_come_along(tmp_path):
    state = {"a.weight": np.ones((4, 3, 3, 3), np.float32), "b.weight": torch.zeros(4, 4, 3, 3)}
    for name in ("one", "two"):
        torch.save(state, tmp_path / f"{name}.pt")
    first, again = (found(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert again[1:] == first[1:]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_is_read_through_any_window(protocol, monkeypatch):
    import pickle

    value = {"text": "x" * 700, "numbers": list(range(300)), "bytes": b"y" * 900, "long": 1 << 400, "float": 0.5}
    file = AnonymousFile("test", pickle.dumps(value, protocol) + b"rest")
    whole = _pickle.interpret(file, 0, file.size - 4)
    for window in (1, 2, 7, 64, 1 << 16):
        monkeypatch.setattr(_pickle, "_TRUSTED_READ", window)
        parts = _pickle.interpret(file)
        assert parts.end == whole.end == file.size - 4
        assert str(plain(parts.value)) == str(plain(whole.value))


def plain(value):
    """Return an inert value as comparable lists."""
    if isinstance(value, _pickle.PickledDict):
        return [plain(list(pair)) for pair in value.pairs]
    if isinstance(value, _pickle.Call):
        return [plain(value.callee), plain(list(value.args))]
    if isinstance(value, _pickle.Symbol):
        return value.path
    return [plain(item) for item in value] if isinstance(value, list) else value

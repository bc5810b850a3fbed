"""Odd but honest files: the numbers are those of a plain file, and clipping changes bytes of clipped weights alone."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from convsv import open_checkpoint
from convsv.checkpoints import Checkpoint, StoredTensor
from convsv.checkpoints._zip import StoredZip
from convsv.cli import app
from edits import differences, element_bytes, names
from oddfiles import FILES, KERAS, KERNELS, TWINS

REWRITTEN = ("packed HDF5", "packed keras")
"""Those whose weights libhdf5 writes: bytes are not where they were, and their contents are compared."""


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def clip(path: str | Path, out: str | Path, *options: str) -> Any:
    return run("clip", "--max-norm", "1", "--format", "json", f"--output={out}", *options, "--", path)


def layers_of(result: Any) -> dict[str, dict[str, Any]]:
    return {layer["name"]: layer for layer in json.loads(result.stdout)["checkpoints"][0]["layers"]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the checkpoint; the program runs there, so that a name is one without a folder."""
    made = tmp_path / "in"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


def named(path: Path, folder: Path) -> str:
    return "." if path == folder else path.name


def files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def wanted_keys(case: str) -> set[str]:
    """The keys of the tensors of the one layer that is above the radius."""
    return {"large/kernel:0"} if case in KERAS else {"large.weight", *(["twin.weight"] if case in TWINS else [])}


def content(checkpoint: Checkpoint) -> dict[str, tuple[Any, ...]]:
    return {"/".join((*t.container, t.key)): (t.shape, t.dtype, t.read().tobytes()) for t in checkpoint.tensors}


def as_stored(tensor: StoredTensor) -> set[int]:
    """Positions of its bytes, by definition."""
    assert tensor.place is not None
    view = tensor.place.view
    return element_bytes(tensor.place.first, 4, view.shape, view.strides)


def checksums(source: Checkpoint) -> set[int]:
    """Positions of the checksums over the clipped tensor, where the file has any."""
    file = source.files[0]
    if file.read(0, 4) != b"PK\x03\x04":
        return set()
    archive = StoredZip(file)
    place = next(t for t in source.tensors if "large" in "/".join((*t.container, t.key))).place
    assert place is not None
    (entry,) = (e for e in archive.entries.values() if e.offset <= place.first < e.offset + e.size)
    return {at + byte for at in entry.crc_offsets for byte in range(4)} if archive.has_checksums else set()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the program says about the convolutions of a plain file."""
    path = FILES["safetensors"](tmp_path_factory.mktemp("plain"))
    return layers_of(run("analyze", path, "--size", "6", "--method", "circulant", "--format", "json"))


@pytest.mark.parametrize("case", FILES)
def test_the_numbers_are_those_of_a_plain_file(case: str, plain: dict[str, dict[str, Any]], folder: Path) -> None:
    path = FILES[case](folder)
    options = ("--size", "6", "--method", "circulant", "--format", "json")
    result = run("analyze", *options, "--", named(path, folder))
    assert result.exit_code == 0, result.stderr
    found = layers_of(result)
    assert set(found) == {*KERNELS, *(["twin"] if case in TWINS else [])}
    for name, layer in found.items():
        same = plain["large" if name == "twin" else name]
        assert layer["norm"] == same["norm"]
        assert layer["norm"]["guarantee"] == "certified"
        circulant = layer["results"]["circulant"]
        assert {key: circulant[key] for key in ("count", "max", "min", "frobenius")} == {
            key: same["results"]["circulant"][key] for key in ("count", "max", "min", "frobenius")
        }


@pytest.mark.parametrize("case", FILES)
def test_clip_changes_the_bytes_of_the_clipped_weights_and_a_second_clip_none(case: str, folder: Path) -> None:
    path = FILES[case](folder)
    before = {file.name: file.read_bytes() for file in files(path)}
    out = folder.parent / f"out{path.suffix}"
    result = clip(named(path, folder), os.path.relpath(out, folder))
    assert result.exit_code == 0, result.stderr
    assert {file.name: file.read_bytes() for file in files(path)} == before
    assert names(folder.parent) == ["in", out.name]

    source, copy = open_checkpoint(path), open_checkpoint(out)
    old, new = content(source), content(copy)
    assert {key for key in old if old[key] != new[key]} == wanted_keys(case)
    assert [(key, facts[:2]) for key, facts in old.items()] == [(key, facts[:2]) for key, facts in new.items()]
    told = layers_of(run("analyze", out, "--format", "json"))
    assert all(layer["norm"]["upper"] <= 1 for layer in told.values())
    assert told["large"]["norm"]["lower"] > 0.99

    if case not in REWRITTEN:
        allowed = checksums(source) | set().union(
            *(as_stored(t) for t in source.tensors if "/".join((*t.container, t.key)) in wanted_keys(case))
        )
        place = next(t.place for t in source.tensors if "large" in "/".join((*t.container, t.key)))
        assert place is not None
        for one, other in zip(files(path), files(out), strict=True):
            changed = differences(one, other)
            assert changed <= (allowed if one.name == place.file.path.name else set())

    again = folder.parent / f"again{path.suffix}"
    result = clip(out, again)
    assert result.exit_code == 0, result.stderr
    assert not any(layer["clip"]["touched"] for layer in layers_of(result).values())
    assert [file.read_bytes() for file in files(again)] == [file.read_bytes() for file in files(out)]


@pytest.mark.parametrize(
    "case", ["pt", "legacy pt", "big-endian pt", "pt without checksums", "channels_last pt", "tied pt"]
)
def test_torch_loads_an_odd_file_as_we_read_it_also_after_a_clip(case: str, folder: Path) -> None:
    path = FILES[case](folder)
    assert clip(path, folder.parent / "out.pt").exit_code == 0
    for file in (path, folder.parent / "out.pt"):
        state = torch.load(file, weights_only=True)
        for tensor in open_checkpoint(file).tensors:
            np.testing.assert_array_equal(state[tensor.key].numpy(), tensor.read())
    assert state["large.weight"].is_contiguous(memory_format=torch.channels_last) == (case == "channels_last pt")
    assert case not in TWINS or state["twin.weight"].data_ptr() == state["large.weight"].data_ptr()


def test_an_archive_whose_checksums_are_all_zero_keeps_them_so(folder: Path) -> None:
    path = FILES["pt without checksums"](folder)
    assert clip(path, folder.parent / "out.pt").exit_code == 0
    archive = StoredZip(open_checkpoint(folder.parent / "out.pt").files[0])
    assert not archive.has_checksums
    assert all(zlib.crc32(archive.read(name)) for name, entry in archive.entries.items() if entry.size)


def test_a_user_block_stays_and_h5py_reads_the_clipped_file(folder: Path) -> None:
    path = FILES["HDF5 with a user block"](folder)
    with path.open("r+b") as file:
        file.write(b"somebody else's header")
    assert clip(path, folder.parent / "out.h5").exit_code == 0
    assert (folder.parent / "out.h5").read_bytes()[:1024] == path.read_bytes()[:1024]
    with h5py.File(folder.parent / "out.h5") as file:
        assert file.userblock_size == 1024
        np.testing.assert_array_equal(file["small/kernel:0"][()].transpose(3, 2, 0, 1), KERNELS["small"])
        assert not np.array_equal(file["large/kernel:0"][()].transpose(3, 2, 0, 1), KERNELS["large"])


def test_ten_thousand_tiny_layers_are_analysed(tmp_path: Path) -> None:
    """A kernel of one weight has its absolute value for a norm."""
    weights = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    path, report = tmp_path / "m.safetensors", tmp_path / "r.jsonl"
    save_file({f"l{number:04}.weight": weight.reshape(1, 1, 1, 1) for number, weight in enumerate(weights)}, path)
    result = run("analyze", path, "-o", report, "--jobs", "1", "--no-cache", "--quiet", "--format", "tsv")
    assert result.exit_code == 0
    *layers, summary = (json.loads(line) for line in report.read_text().splitlines())
    assert (summary["summary"]["layers"], summary["summary"]["partial"]) == (10_000, False)
    assert [layer["name"] for layer in layers] == [f"l{number:04}" for number in range(10_000)]
    for layer, norm in zip(layers, np.abs(weights).astype(float).tolist(), strict=True):
        assert layer["norm"]["lower"] <= norm <= layer["norm"]["upper"] <= norm * (1 + 1e-9)

"""Array files: every spectrum under a safe name of its own, and the real names beside it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from convsv.errors import OutputError, UsageError
from convsv.files import replacing
from convsv.reports import replay
from convsv.reports.arrays import ArrayFile
from convsv.results import LayerReport
from reportcases import HOSTILE_NAMES, bounds, layer, report, spectrum


def write(path: Path, *layers: LayerReport) -> None:
    with ExitStack() as stack:
        replay(report(*layers), ArrayFile(str(path), stack))


def read(path: Path) -> tuple[dict[str, NDArray[np.float64]], list[dict[str, str]]]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name != "index"}, json.loads(str(file["index"]))
    found = {}
    with h5py.File(path) as file:
        index = json.loads(file["index"][()])
        for entry in index:
            found[entry["dataset"]] = file[entry["dataset"]][()]
    return found, index


suffixes = pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5"])


@suffixes
def test_a_dataset_a_layer_and_method(tmp_path: Path, suffix: str) -> None:
    both = {"circulant": spectrum([3.0, 1.0]), "exact": spectrum([2.0]), "bounds": bounds()}
    path = tmp_path / f"spectra{suffix}"
    write(
        path, layer("layer1.0.conv1", results=both), layer("conv2", results={"circulant": spectrum([5.0])}), layer("c")
    )
    arrays, index = read(path)
    assert {name: list(values) for name, values in arrays.items()} == {
        "layer1.0.conv1/circulant": [3.0, 1.0],
        "layer1.0.conv1/exact": [2.0],
        "conv2/circulant": [5.0],
    }
    assert index[0] == {
        "dataset": "layer1.0.conv1/circulant",
        "checkpoint": "model.pt",
        "layer": "layer1.0.conv1",
        "weight": "layer1.0.conv1.weight",
        "method": "circulant",
        "of": "circular 32x32",
        "kind": "full",
        "guarantee": "certified",
        "count": 2,
    }


@suffixes
def test_hostile_names_are_safe_unique_and_told_in_the_index(tmp_path: Path, suffix: str) -> None:
    names = [*HOSTILE_NAMES.values(), "index", "..", ".", "/abs/../x", "a" * 70000, "conv", "conv", "conv~2"]
    path = tmp_path / f"spectra{suffix}"
    write(path, *(layer(name, results={"circulant": spectrum([float(i + 1)])}) for i, name in enumerate(names)))
    arrays, index = read(path)
    assert [entry["layer"] for entry in index] == names
    assert len({entry["dataset"] for entry in index}) == len(names)
    for number, entry in enumerate(index):
        assert list(arrays[entry["dataset"]]) == [number + 1.0]
        owner, _, method = entry["dataset"].rpartition("/")
        assert method == "circulant"
        assert owner.strip(".")
        assert "/" not in owner


def test_hdf5_carries_the_names_as_attributes(tmp_path: Path) -> None:
    write(tmp_path / "s.h5", layer("conv\x001", results={"circulant": spectrum([3.0])}))
    with h5py.File(tmp_path / "s.h5") as file:
        attributes = dict(file["conv_1/circulant"].attrs)
    assert attributes["layer"] == "conv\\x001"
    assert attributes["of"] == "circular 32x32"
    assert attributes["count"] == 1


def test_another_suffix_is_a_usage_error(tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(UsageError, match=r"use \.h5 or \.npz"):
        ArrayFile(str(tmp_path / "s.mat"), stack)


# ------------------------------------------------------------------------------------------------------- whole or not


def test_a_file_that_fails_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")

    def fail() -> None:
        with replacing(str(target)) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_replaced_file_keeps_its_mode_and_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "real.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    with replacing(str(link)) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(OutputError, match="not a regular file"), replacing(str(tmp_path / "x.json")):
        pass


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), replacing(str(tmp_path / "no" / "x.json")):
        pass

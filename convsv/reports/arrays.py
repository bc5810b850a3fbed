"""Whole spectra as arrays in one file: HDF5 or NPZ, a dataset a layer and method.

A dataset is called ``<layer>/<method>`` with the layer's name made safe and unique; where its values are certified
upper ends, ``<layer>/<method>_lower`` beside it has the lower ones. The dataset ``index`` is a JSON
list with the real names: for each dataset its checkpoint, layer, weight, method and operator. HDF5 also has them as
attributes, as far as they fit.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import PurePath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from convsv.errors import UsageError
from convsv.files import replacing
from convsv.reports._enduring import EnduringFile
from convsv.reports._text import visible
from convsv.results import CheckpointReport, LayerReport, Report, Spectrum

__all__ = ["ArrayFile", "suffix_of"]

Facts = Mapping[str, str | int]

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_NAME = 100
_LONGEST_ATTRIBUTE = 4096


class _Container(Protocol):
    def add(self, name: str, values: NDArray[np.float64], facts: Facts) -> None: ...

    def close(self, index: str) -> None: ...

    def abandon(self) -> None: ...


class _Npz:
    def __init__(self, file: EnduringFile) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def add(self, name: str, values: NDArray[np.float64], facts: Facts) -> None:
        self._write(name, values)

    def close(self, index: str) -> None:
        self._write("index", np.array(index))
        self._zip.close()

    def abandon(self) -> None:
        self._zip.close()

    def _write(self, name: str, values: NDArray[np.generic]) -> None:
        with self._zip.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, values, allow_pickle=False)


class _Hdf5:
    def __init__(self, file: EnduringFile) -> None:
        import h5py

        self._file = h5py.File(file, "w")

    def add(self, name: str, values: NDArray[np.float64], facts: Facts) -> None:
        dataset = self._file.create_dataset(name, data=values)
        for key, fact in facts.items():
            dataset.attrs[key] = visible(fact)[:_LONGEST_ATTRIBUTE] if isinstance(fact, str) else fact

    def close(self, index: str) -> None:
        self._file.create_dataset("index", data=index)
        self._file.close()

    def abandon(self) -> None:
        self._file.close()


_CONTAINERS: Mapping[str, Callable[[EnduringFile], _Container]] = {
    ".npz": _Npz,
    ".h5": _Hdf5,
    ".hdf5": _Hdf5,
}


def suffix_of(path: str) -> str:
    """Return the suffix of an array file.

    Raises:
        UsageError: no array format goes with it.
    """
    suffix = PurePath(path).suffix.lower()
    if suffix not in _CONTAINERS:
        raise UsageError(
            "no array format goes with this name", path=path, found=suffix or "no suffix", advice="use .h5 or .npz"
        )
    return suffix


class ArrayFile:
    """A sink for whole spectra.

    Args:
        path: the file, which appears when the report ends.
        stack: takes care of the temporary file.

    Raises:
        UsageError: no array format goes with the suffix.
        OutputError: it cannot be written there.
    """

    def __init__(self, path: str, stack: ExitStack) -> None:
        suffix = suffix_of(path)
        self._file = stack.enter_context(EnduringFile(stack.enter_context(replacing(path))))
        self._container = _CONTAINERS[suffix](self._file)
        stack.callback(self._abandon)
        self._index: list[dict[str, str | int]] = []
        self._taken = {"index"}

    def layer(self, checkpoint: CheckpointReport, layer: LayerReport) -> None:
        """Write the spectra of one layer."""
        name = self._name(layer.name)
        for method, spectrum in layer.results.items():
            if isinstance(spectrum, Spectrum) and spectrum.values is not None:
                facts: dict[str, str | int] = {
                    "checkpoint": checkpoint.path,
                    "layer": layer.name,
                    "weight": layer.weight,
                    "method": method,
                    "of": spectrum.of,
                    "kind": spectrum.kind,
                    "guarantee": spectrum.guarantee,
                    "count": spectrum.count,
                }
                self._add(f"{name}/{method}", spectrum.values, facts)
                if spectrum.lower_values is not None:
                    self._add(f"{name}/{method}_lower", spectrum.lower_values, {**facts, "kind": "lower"})

    def _add(self, dataset: str, values: NDArray[np.float64], facts: Facts) -> None:
        try:
            self._container.add(dataset, values, facts)
        finally:
            self._file.check()
        self._index.append({"dataset": dataset, **facts})

    def checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Nothing: the index tells of checkpoints."""

    def end(self, report: Report) -> None:
        """Write the index and close the file."""
        try:
            self._container.close(json.dumps(self._index))
        finally:
            self._file.check()

    def _abandon(self) -> None:
        # Closed twice is closed once. What a library says of a file that is given up is no news.
        with suppress(Exception):
            self._container.abandon()

    def _name(self, layer: str) -> str:
        safe = _UNSAFE.sub("_", layer)[:_LONGEST_NAME].strip(".") or "layer"
        name, number = safe, 1
        while name in self._taken:
            number += 1
            name = f"{safe}~{number}"
        self._taken.add(name)
        return name

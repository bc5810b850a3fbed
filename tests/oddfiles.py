"""The same two convolutions, stored in every way that convsv writes back: plain ones, and odd ones that must work."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._zip import StoredZip

__all__ = ["FILES", "KERAS", "KERNELS", "TWINS"]

_RNG = np.random.default_rng(20)
KERNELS: dict[str, NDArray[np.float32]] = {
    "large": _RNG.standard_normal((5, 4, 3, 3)).astype(np.float32),
    "small": (_RNG.standard_normal((4, 4, 3, 3)) / 100).astype(np.float32),
}
"""One that is clipped to a norm of 1, and one that is within it already."""


def _tensors() -> dict[str, NDArray[Any]]:
    kernels = {f"{name}.weight": kernel for name, kernel in KERNELS.items()}
    return {**kernels, "head.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "steps": np.array(7)}


def _state() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values.copy()) for name, values in _tensors().items()}


def _saved(path: Path, state: dict[str, Any] | None = None, **options: Any) -> Path:
    torch.save(_state() if state is None else state, path, **options)
    return path


def _channels_last(folder: Path) -> Path:
    state = _state()
    for name in KERNELS:
        state[f"{name}.weight"] = state[f"{name}.weight"].to(memory_format=torch.channels_last)
    return _saved(folder / "m.pt", state)


def _tied(folder: Path) -> Path:
    state = _state()
    return _saved(folder / "m.pt", {**state, "twin.weight": state["large.weight"]})


def _big_endian(folder: Path) -> Path:
    path = _saved(folder / "m.pt")
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for number, values in enumerate(_tensors().values()):
        entries[f"m/data/{number}"] = values.byteswap().tobytes()
    entries["m/byteorder"] = b"big"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def _without_checksums(folder: Path) -> Path:
    path = _saved(folder / "m.pt")
    content = bytearray(path.read_bytes())
    for entry in StoredZip(RegularFile(path)).entries.values():
        for at in entry.crc_offsets:
            content[at : at + 4] = bytes(4)
    path.write_bytes(content)
    return path


def _safetensors(path: Path) -> Path:
    save_file(_tensors(), path)
    return path


def _shards(folder: Path) -> Path:
    where = {name: f"m-{number}.safetensors" for number, name in enumerate(_tensors())}
    for name, values in _tensors().items():
        save_file({name: values}, folder / where[name])
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def _hdf5(path: Path, layout: dict[str, Any] | None = None, **options: Any) -> Path:
    with h5py.File(path, "w", **options) as file:
        for name, kernel in KERNELS.items():
            file.create_dataset(f"{name}/kernel:0", data=kernel.transpose(2, 3, 1, 0), **(layout or {}))
        file["head/kernel:0"] = _tensors()["head.weight"]
    return path


def _keras(folder: Path, method: int) -> Path:
    inner = _hdf5(folder / "inner.h5")
    with zipfile.ZipFile(folder / "m.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", inner.read_bytes(), method)
    inner.unlink()
    return folder / "m.keras"


_PACKED = {"chunks": True, "compression": "gzip", "fletcher32": True}
FILES: dict[str, Callable[[Path], Path]] = {
    "safetensors": lambda folder: _safetensors(folder / "m.safetensors"),
    "pt": lambda folder: _saved(folder / "m.pt"),
    "legacy pt": lambda folder: _saved(folder / "m.pt", _use_new_zipfile_serialization=False),
    "shards": _shards,
    "HDF5": lambda folder: _hdf5(folder / "m.h5"),
    "packed HDF5": lambda folder: _hdf5(folder / "m.h5", _PACKED),
    "stored keras": lambda folder: _keras(folder, zipfile.ZIP_STORED),
    "packed keras": lambda folder: _keras(folder, zipfile.ZIP_DEFLATED),
    "channels_last pt": _channels_last,
    "tied pt": _tied,
    "big-endian pt": _big_endian,
    "pt without checksums": _without_checksums,
    "HDF5 with a user block": lambda folder: _hdf5(folder / "m.h5", userblock_size=1024),
    "a leading dash": lambda folder: _saved(folder / "-m.pt"),
    "safetensors called .pth": lambda folder: _safetensors(folder / "m.pth"),
    "HDF5 called .keras": lambda folder: _hdf5(folder / "m.keras"),
}
"""Each makes a checkpoint in an empty folder and returns its path."""
KERAS = tuple(case for case in FILES if "HDF5" in case or "keras" in case)
"""Those whose tensors have the names and the order of axes of Keras."""
TWINS = ("tied pt",)
"""Those in which the first convolution has two names."""

"""Archives of ``torch.export`` (.pt2) as data: weights as bytes, and the graph, whose nodes tell every geometry.

PyTorch 2.8 and later write ``models/<name>.json`` with the graph, ``data/weights/<name>_weights_config.json`` with the
description of each weight, and the bytes of each storage as an entry beside it
(https://github.com/pytorch/pytorch/blob/main/torch/export/pt2_archive/_package.py). JSON only: nothing is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from convsv.checkpoints import ModuleFacts, StoredTensor
from convsv.checkpoints._content import printable
from convsv.checkpoints._export_graph import facts_of_graph
from convsv.checkpoints._place import Place
from convsv.checkpoints._strided import MAX_INT, Storage, StridedView, TensorRecord, strided_tensor, unreadable
from convsv.checkpoints._zip import STORED, StoredZip
from convsv.errors import CorruptCheckpointError

__all__ = ["Exported", "export_prefix", "read_export"]

Json: TypeAlias = Mapping[str, Any]

MAX_JSON = 1 << 26
_STRIDED = 7
# fmt: off
_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}
# fmt: on
"""torch.export's numbers for dtypes that can be read."""


@dataclass
class Exported:
    """What an archive holds.

    Attributes:
        tensors: parameters and buffers.
        modules: one entry a weight that the graph convolves with.
        problems: what was not understood, one line each.
    """

    tensors: list[StoredTensor] = field(default_factory=list)
    modules: list[ModuleFacts] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def export_prefix(archive: StoredZip) -> str | None:
    """Return the folder of an archive in which an exported program lies, None if this is no such archive."""
    names = (name for name in archive.entries if name.endswith("_weights_config.json"))
    found = next((name for name in names if "data/weights/" in name), None)
    return None if found is None else found[: found.rindex("data/weights/")]


def read_export(archive: StoredZip, prefix: str, *, big_endian: bool) -> Exported:
    """Index the weights and read the graphs. No tensor is read.

    Args:
        archive: the archive.
        prefix: its folder.
        big_endian: byte order of the weights.

    Raises:
        CorruptCheckpointError: a description is not JSON, or names what is not there.
        UnsafeCheckpointError: one is too large.
    """
    found = Exported()
    folder, ending = f"{prefix}data/weights/", "_weights_config.json"
    descriptions = (name for name in archive.entries if name.startswith(folder) and name.endswith(ending))
    models = [name[len(folder) : -len(ending)] for name in descriptions]
    for model in models:
        container = (model,) if len(models) > 1 else ()
        weights = _mapping(_json(archive, f"{folder}{model}{ending}").get("config"))
        for key, description in weights.items():
            record = _record(archive, folder, _mapping(description), big_endian=big_endian)
            found.tensors.append(
                StoredTensor(
                    key, record.shape, record.dtype, record.read, container, record.identity, record.problem,
                    Place.of(record),
                )
            )  # fmt: skip
        graph = f"{prefix}models/{model}.json"
        if graph in archive.entries:
            found.modules += facts_of_graph(_json(archive, graph), container)
        else:
            found.problems.append(f"has no graph of the model {model!r}: strides and paddings are not known")
    return found


def _json(archive: StoredZip, name: str) -> Json:
    try:
        value = json.loads(archive.read(name, MAX_JSON))
    except (ValueError, RecursionError):
        raise CorruptCheckpointError("holds a description that is not JSON", found=repr(name[:80])) from None
    return _mapping(value)


def _mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _record(archive: StoredZip, folder: str, description: Json, *, big_endian: bool) -> TensorRecord:
    meta = _mapping(description.get("tensor_meta"))
    shape, strides = _integers(meta.get("sizes")), _integers(meta.get("strides"))
    number, offset = meta.get("dtype"), _mapping(meta.get("storage_offset")).get("as_int")
    dtype = _DTYPES.get(number, "") if type(number) is int else ""
    if shape is None or strides is None or type(offset) is not int:
        return unreadable((), dtype, "its description is malformed")
    if not dtype:
        return unreadable(shape, "", f"its dtype has the unknown number {printable(str(number))}")
    if meta.get("layout") != _STRIDED:
        return unreadable(shape, dtype, "is not stored as a strided array")
    if description.get("use_pickle"):
        return unreadable(shape, dtype, "is stored as a pickle inside the archive")
    name = description.get("path_name")

    def find() -> Storage:
        entry = archive.entries.get(f"{folder}{name}")
        if entry is None:
            raise CorruptCheckpointError(f"lacks the data of weight {str(name)[:40]!r}")
        stands = archive.file if entry.method == STORED else None
        read = partial(archive.read_range, entry.name)
        return Storage(str(name), entry.size, read, big_endian, stands, entry.offset)

    return strided_tensor(StridedView(dtype, offset, shape, strides), find)


def _integers(value: object) -> tuple[int, ...] | None:
    """Return a list of ``{"as_int": n}`` as numbers."""
    items = [_mapping(item).get("as_int") for item in value] if isinstance(value, list) else [None]
    numbers = tuple(item for item in items if type(item) is int and abs(item) <= MAX_INT)
    return numbers if len(numbers) == len(items) else None

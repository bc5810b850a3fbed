"""safetensors files, and the indices of sharded ones.

The header is JSON: a reader of our own costs less than the library's, which maps the file into memory (a mapped file
that shrinks kills the process) and accepts duplicate keys. Layout: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints import FORMATS, Checkpoint, RegularFile, StoredTensor
from convsv.checkpoints._content import printable
from convsv.checkpoints._copying import counterpart
from convsv.checkpoints._place import Place
from convsv.checkpoints._strided import shape_problem
from convsv.checkpoints.writing import Edit, write_values
from convsv.errors import CorruptCheckpointError, UnsafeCheckpointError, UsageError, error_context

__all__ = ["Safetensors"]

MAX_HEADER = 100_000_000
MAX_OBJECTS = 3_000_000
MAX_COMMAS = 16_000_000
_LONGEST_FILE_NAME = 255
"""Bytes: no file system has longer ones, and no message should."""
MAX_SHARDS = 512
MAX_RANK = 64
_MAX_DIGITS = 20

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "C64": np.dtype("<c8"),
    "BOOL": np.dtype("?"),
}
"""Dtypes whose values are read, by the format's names."""

UNREADABLE_BITS: Mapping[str, int] = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8}
"""Dtypes whose size is known and whose values are not read."""


@dataclass(frozen=True)
class _Entry:
    """One tensor of a header: dtype as named there, absolute extent in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Safetensors:
    """The reader: a file, or the index of several."""

    name = "safetensors"
    suffixes = (".safetensors",)

    def recognises(self, file: RegularFile) -> bool:
        """Tell a header length followed by a JSON object, or a JSON index that names safetensors shards.

        Raises:
            CorruptCheckpointError: the file shrank while it was read.
        """
        if file.size < 9:
            return file.size > 0 and file.path.name.endswith(self.suffixes)
        head = file.read(0, 9)
        if head[8:9] == b"{":
            length = int.from_bytes(head[:8], "little")
            return length <= max(file.size, MAX_HEADER) or file.path.name.endswith(self.suffixes)
        return _is_index(file)

    def open(self, file: RegularFile) -> Checkpoint:
        """Index the file, or each shard of an index; everything is validated before anything is allocated.

        Raises:
            CorruptCheckpointError: the header contradicts itself or the file; a shard is missing.
            UnsafeCheckpointError: a header is too large, or an index names a file that is not a plain name.
        """
        if _is_index(file):
            return _open_index(file)
        tensors = tuple(_stored(file, key, entry) for key, entry in _read_header(file).items())
        return Checkpoint(str(file.path), self.name, tensors, files=(file,))

    def patch(self, source: Checkpoint, edits: Sequence[Edit], copy: Path) -> Sequence[Place]:
        """Put values into a copy of the file, or of the shards; headers and index are not touched.

        Args:
            source: the checkpoint.
            edits: new values, one or more.
            copy: the copy, or the folder of the copies of index and shards.

        Returns:
            Nothing: no other byte changes.

        Raises:
            OSError: the copy cannot be written.
        """
        for file in source.files:
            held = [edit for edit in edits if edit.tensor.place and edit.tensor.place.file is file]
            if held:
                write_values(held, counterpart(file, source, copy))
        return ()


FORMATS.add(Safetensors.name, Safetensors())


def _is_index(file: RegularFile) -> bool:
    # A header length below 4 GiB has NUL bytes where a text has none.
    start = file.read(0, min(file.size, 8))
    if b"\x00" in start or not start.lstrip().startswith(b"{") or file.size > MAX_HEADER:
        return False
    text = file.read(0, file.size)
    return b'"weight_map"' in text and b'.safetensors"' in text


# ------------------------------------------------------------------------------------------------------------- JSON


def _parse(text: bytes, what: str, floats: Callable[[str], object]) -> dict[str, Any]:
    """Return a JSON object; linear in the text, and no value that JSON readers disagree about.

    Args:
        text: the JSON.
        what: what messages call it.
        floats: turns the text of a number that is not an integer into a value, or refuses it.

    Raises:
        CorruptCheckpointError: it is not such an object.
        UnsafeCheckpointError: it would take too much memory.
    """
    if text.count(b"{") + text.count(b"[") > MAX_OBJECTS or text.count(b",") > MAX_COMMAS:
        raise UnsafeCheckpointError(f"the {what} lists too many things", found=f"{len(text)} bytes of JSON")
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_int=_integer,
            parse_float=floats,
            parse_constant=_no_number,
        )
    except UnicodeDecodeError:
        raise CorruptCheckpointError(f"the {what} is not UTF-8") from None
    except RecursionError:
        raise CorruptCheckpointError(f"the {what} nests too deeply") from None
    except json.JSONDecodeError as error:
        raise CorruptCheckpointError(f"the {what} is not JSON", found=f"{error.msg} at {error.pos}") from None
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"the {what} is not a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise CorruptCheckpointError("a key occurs twice", found=printable(twice))
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise CorruptCheckpointError("a number is out of range", found=f"{len(digits)} digits")
    return int(digits)


def _no_number(text: str) -> NoReturn:
    raise CorruptCheckpointError("a number is not an integer", found=printable(text))


# ----------------------------------------------------------------------------------------------------------- header


def _read_header(file: RegularFile) -> dict[str, _Entry]:
    """Return the entries of a file in stored order, after every check that needs no tensor.

    Raises:
        CorruptCheckpointError: the header contradicts itself or the file.
        UnsafeCheckpointError: the header is too large.
    """
    if file.size < 8:
        raise CorruptCheckpointError("is shorter than a safetensors header", found=f"{file.size} bytes")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > file.size - 8:
        raise CorruptCheckpointError(
            "is truncated: the header reaches beyond the end", found=f"header of {length} bytes, file of {file.size}"
        )
    if length > MAX_HEADER:
        raise UnsafeCheckpointError("the header is too large", found=f"{length} bytes, limit {MAX_HEADER}")
    text = file.read(8, length)
    if not text.startswith(b"{"):
        raise CorruptCheckpointError("the header does not start with '{'")
    header = _parse(text, "header", _no_number)
    _check_metadata(header.pop("__metadata__", {}))
    entries = {}
    for key, value in header.items():
        with error_context(tensor=printable(key)):
            entries[key] = _entry(value, 8 + length)
    _check_extents(entries, 8 + length, file.size)
    return dict(sorted(entries.items(), key=lambda item: item[1].start))


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptCheckpointError("__metadata__ must map strings to strings")


def _entry(value: object, data_start: int) -> _Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CorruptCheckpointError("an entry needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str):
        raise CorruptCheckpointError("dtype must be a string")
    if not _naturals(shape) or len(shape) > MAX_RANK:
        raise CorruptCheckpointError("shape must be a list of natural numbers")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptCheckpointError("data_offsets must be two natural numbers in order")
    bits = DTYPES[dtype].itemsize * 8 if dtype in DTYPES else UNREADABLE_BITS.get(dtype)
    wanted, size = math.prod(shape), offsets[1] - offsets[0]
    if bits is not None and wanted * bits != size * 8:
        raise CorruptCheckpointError("shape and data_offsets disagree", found=f"{dtype} {shape} in {size} bytes"[:200])
    return _Entry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _naturals(value: object) -> bool:
    # bool is an int: true must not pass as 1.
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 64 for n in value)


def _check_extents(entries: Mapping[str, _Entry], start: int, end: int) -> None:
    position = start
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            kind = "overlaps another" if entry.start < position else "leaves a hole before it"
            raise CorruptCheckpointError(f"the data of a tensor {kind}", tensor=printable(key), found=f"{entry.start}")
        position = entry.end
    if position != end:
        kind = "is truncated" if position > end else "has bytes after its last tensor"
        raise CorruptCheckpointError(kind, found=f"tensors end at {position}, the file at {end}")


def _stored(file: RegularFile, key: str, entry: _Entry) -> StoredTensor:
    dtype, problem = DTYPES.get(entry.dtype), _problem(entry)
    return StoredTensor(
        key=key,
        shape=entry.shape,
        dtype=dtype.name if dtype is not None else printable(entry.dtype),
        read=partial(_read, file, key, entry),
        identity=(str(file.path), entry.start, entry.end, entry.dtype, entry.shape),
        problem=problem,
        place=Place.contiguous(file, entry.start, dtype.name, entry.shape)
        if dtype is not None and problem is None and 0 not in entry.shape
        else None,
    )


def _problem(entry: _Entry) -> str | None:
    if entry.dtype not in DTYPES:
        return f"dtype {printable(entry.dtype)} is not supported"
    return shape_problem(entry.shape, DTYPES[entry.dtype])


def _read(file: RegularFile, key: str, entry: _Entry) -> NDArray[Any]:
    with error_context(path=str(file.path), tensor=printable(key)):
        if problem := _problem(entry):
            raise CorruptCheckpointError(problem)
        dtype = DTYPES[entry.dtype]
        raw = file.read(entry.start, entry.end - entry.start)
        return np.frombuffer(raw, dtype).reshape(entry.shape).astype(dtype.newbyteorder("="), copy=False)


# ------------------------------------------------------------------------------------------------------------ shards


def _open_index(file: RegularFile) -> Checkpoint:
    by_shard: dict[str, set[str]] = {}
    for key, name in _parse_index(file).items():
        by_shard.setdefault(name, set()).add(key)
    shards = sorted(by_shard)
    if len(shards) > MAX_SHARDS:
        raise UnsafeCheckpointError("the index names too many shards", found=f"{len(shards)}, limit {MAX_SHARDS}")
    for name in shards:
        _check_plain(name)
    files = {name: _open_shard(file, name) for name in shards}
    tensors, problems = [], []
    for name, shard in files.items():
        with error_context(path=str(shard.path)):
            entries = _read_header(shard)
        named = by_shard[name]
        lost = sorted(named - set(entries))
        if lost:
            raise CorruptCheckpointError(
                f"the index names tensors that {printable(name)} does not hold", found=_few(lost)
            )
        extra = sorted(set(entries) - named)
        if extra:
            problems.append(f"{printable(name)}: {len(extra)} tensors that the index does not name: {_few(extra)}")
        tensors += [_stored(shard, key, entry) for key, entry in entries.items() if key in named]
    return Checkpoint(
        str(file.path), Safetensors.name, tuple(tensors), problems=tuple(problems), files=(file, *files.values())
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _parse_index(file: RegularFile) -> dict[str, str]:
    # metadata.total_size may be written as a float: only the map is ours.
    index = _parse(file.read(0, file.size), "index", str)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CorruptCheckpointError("the index has no weight_map from tensors to files")
    return weight_map


def _check_plain(name: str) -> None:
    if not name or name in (".", "..") or any(c in "/\\:" or not c.isprintable() for c in name):
        raise UnsafeCheckpointError("the index names a file outside its folder", found=printable(name))


def _open_shard(index: RegularFile, name: str) -> RegularFile:
    # The one place where a name found in a file is opened: a plain name, in the folder of the index.
    with suppress(UsageError):
        if len(name.encode()) <= _LONGEST_FILE_NAME:
            return index.sibling(name)
    raise CorruptCheckpointError(
        "a shard is missing", found=printable(name), advice="fetch every file that the index names"
    )

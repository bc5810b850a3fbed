"""What pickled PyTorch tensors and numpy arrays are made of, read from their inert pickle records.

A tensor is pickled as a call of a ``torch._utils._rebuild_*`` function with a persistent id that names its storage
(https://github.com/pytorch/pytorch/blob/main/torch/_utils.py). The call is data here: what it says becomes a
:class:`TensorRecord`, whose values are read from the file on demand, or a record with a problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from convsv.checkpoints._pickle import MAX_OLD_TEXT, Call, PersistentId, PickledDict, Symbol
from convsv.checkpoints._strided import DTYPES, MAX_INT, Storage, StridedView, TensorRecord, strided_tensor, unreadable
from convsv.errors import CorruptCheckpointError

__all__ = ["FindStorage", "StorageId", "describe_tensor", "parse_storage_id"]

_MAX_WRAPPERS = 16
_MAX_LISTED = 256

STORAGE_DTYPES: Mapping[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
"""Dtype of the elements by the storage's class."""

QUANTISED_SIZES: Mapping[str, int] = {"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
"""Bytes an element of the dtypes that only quantised tensors have."""

_NUMPY_CODES = {dtype.str[1:]: name for name, dtype in DTYPES.items() if dtype.isbuiltin == 1}


@dataclass(frozen=True)
class StorageId:
    """A persistent id that names a storage.

    Attributes:
        dtype: of its elements, by torch's name; ``""`` for an unknown class.
        key: name of the storage in the file.
        location: device it was saved from.
        numel: number of elements.
        view: first element and number of elements of the part that it stands for, if not all.
    """

    dtype: str
    key: str
    location: str
    numel: int
    view: tuple[int, int] | None = None

    @property
    def item_size(self) -> int:
        """Bytes an element; 0 when unknown."""
        return DTYPES[self.dtype].itemsize if self.dtype in DTYPES else QUANTISED_SIZES.get(self.dtype, 0)


FindStorage: TypeAlias = Callable[[StorageId], Storage]
"""Finds a storage; raises ``CorruptCheckpointError`` when the file lacks it or it is shorter than it is said to be."""

_Describe: TypeAlias = Callable[[Call, FindStorage], "TensorRecord | None"]


class _MalformedError(Exception):
    """A description that torch does not write."""


def parse_storage_id(persistent: object) -> StorageId | None:
    """Return what a persistent id says about a storage, or None if it does not name one.

    The id is ``("storage", class, key, location, numel)``, in the older format with a sixth entry: None, or
    ``(view key, offset, numel)``.
    """
    value = persistent.value if isinstance(persistent, PersistentId) else None
    if not isinstance(value, tuple) or len(value) not in (5, 6) or value[0] != "storage":
        return None
    _, kind, key, location, numel, *rest = value
    if type(key) is int and abs(key) <= MAX_INT:
        key = str(key)
    if not isinstance(kind, Symbol) or not isinstance(key, str) or not _is_count(numel):
        return None
    view = rest[0] if rest else None
    if view is not None:
        if not isinstance(view, tuple) or len(view) != 3 or not _is_count(view[1]) or not _is_count(view[2]):
            return None
        view = view[1:]
    location = location if isinstance(location, str) else ""
    return StorageId(STORAGE_DTYPES.get(kind.name.rsplit(".", 1)[-1], ""), key, location, numel, view)


def describe_tensor(value: object, find: FindStorage) -> TensorRecord | None:
    """Return the tensor or numeric array that a pickled value stands for, or None if it is none.

    Args:
        value: anything the interpreter returned.
        find: finds a storage.

    Raises:
        CorruptCheckpointError: the file lacks the storage, or it is shorter than it is said to be.
    """
    declared: str | None = None
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(value, Call) or not isinstance(value.callee, Symbol):
            return None
        name, args = value.callee.path, value.args
        if name in _WRAPPERS and args:
            value = args[0]
        elif name in _FROM_TYPE and len(args) > 2 and isinstance(args[2], tuple):
            value = Call(args[0], args[2])
        elif name in _FROM_HOST and len(args) > 1:
            value, declared = args[0], _dtype_name(args[1])
        else:
            break
    describe = _DESCRIPTIONS.get(name)
    if describe is None or not isinstance(value, Call):
        return None
    try:
        record = describe(value, find)
    except (_MalformedError, IndexError):
        return unreadable((), "", "its description is malformed")
    if record is not None and declared not in (None, record.dtype):
        return unreadable(record.shape, declared or "", f"was saved as {record.dtype} for another kind of device")
    return record


# ---------------------------------------------------------------------------------------------------------- tensors


def _plain(call: Call, find: FindStorage) -> TensorRecord:
    return _strided(call, find, None, call.args[6] if len(call.args) > 6 else None)


def _with_dtype(call: Call, find: FindStorage) -> TensorRecord:
    return _strided(call, find, _dtype_name(call.args[6]), call.args[7] if len(call.args) > 7 else None)


def _strided(call: Call, find: FindStorage, dtype: str | None, metadata: object) -> TensorRecord:
    storage_id = parse_storage_id(call.args[0])
    if storage_id is None:
        raise _MalformedError
    dtype = storage_id.dtype if dtype is None else dtype
    offset, shape, strides = call.args[1], _integers(call.args[2]), _integers(call.args[3])
    if type(offset) is not int or abs(offset) > MAX_INT:
        raise _MalformedError
    if storage_id.location == "meta":
        return unreadable(_sizes(shape), dtype, "is a meta tensor, without values")
    if dtype not in DTYPES:
        return unreadable(_sizes(shape), dtype, f"its dtype, {dtype or 'unknown'}, is not supported")
    flags = _true_keys(metadata)
    view = StridedView(dtype, offset, shape, strides, "conj" in flags, "neg" in flags)
    return strided_tensor(view, lambda: _part(find(storage_id), storage_id))


def _part(storage: Storage, storage_id: StorageId) -> Storage:
    # Files of PyTorch before 0.4 may name a part of a storage as if it were one.
    if storage_id.view is None:
        return storage
    first, count = (number * storage_id.item_size for number in storage_id.view)
    if first + count > storage.size:
        raise CorruptCheckpointError("a part of a storage reaches beyond it", found=f"{first + count} bytes")
    key = f"{storage.key}[{first}:{first + count}]"
    return replace(
        storage, key=key, size=count, read=lambda start, n: storage.read(first + start, n), start=storage.start + first
    )


def _quantised(call: Call, _: FindStorage) -> TensorRecord:
    storage_id = parse_storage_id(call.args[0])
    return unreadable(_sizes(call.args[2]), storage_id.dtype if storage_id else "", "is quantised")


def _sparse(call: Call, _: FindStorage) -> TensorRecord:
    parts = call.args[1] if isinstance(call.args[1], tuple) else ()
    shape = next((_sizes(part) for part in parts if _is_torch_size(part)), ())
    return unreadable(shape, "", "is sparse")


def _meta(call: Call, _: FindStorage) -> TensorRecord:
    return unreadable(_sizes(call.args[1]), _dtype_name(call.args[0]), "is a meta tensor, without values")


def _subclass(call: Call, _: FindStorage) -> TensorRecord:
    problem = "is of a tensor subclass whose values are elsewhere"
    return unreadable(_sizes(call.args[2]), _dtype_name(call.args[1]), problem)


def _without_shape(problem: str) -> _Describe:
    return lambda _call, _find: unreadable((), "", problem)


# ----------------------------------------------------------------------------------------------------- numpy arrays


def _reconstructed(call: Call, _: FindStorage) -> TensorRecord | None:
    # The state is (version, shape, dtype, Fortran order, raw bytes).
    state = call.state
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    return _array(state[4], state[2], _sizes(state[1]), fortran=state[3] in (True, 1))


def _from_buffer(call: Call, _: FindStorage) -> TensorRecord | None:
    data, dtype, shape, order = call.args[:4]
    return _array(data, dtype, _sizes(shape), fortran=order == "F")


def _array(data: object, dtype: object, shape: tuple[int, ...], *, fortran: bool) -> TensorRecord | None:
    name, big_endian = _numpy_dtype(dtype)
    raw = _raw_bytes(data)
    if raw is None or name is None:
        return None  # objects and text are no tensors
    if raw.size != math.prod(shape) * np.dtype(name).itemsize:
        return unreadable(shape, name, "its shape does not fit its bytes")
    ordered = shape[::-1] if fortran else shape
    strides = tuple(math.prod(ordered[axis + 1 :]) for axis in range(len(shape)))
    storage = Storage("array", raw.size, raw.read, big_endian)
    record = strided_tensor(StridedView(name, 0, shape, strides[::-1] if fortran else strides), lambda: storage)
    return replace(record, identity=object())  # an array is tied to itself only


def _numpy_dtype(value: object) -> tuple[str | None, bool]:
    if not isinstance(value, Call) or not isinstance(value.callee, Symbol) or value.callee.path != "numpy.dtype":
        return None, False
    code = value.args[0] if value.args else None
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "<"
    return (_NUMPY_CODES.get(code) if isinstance(code, str) else None), order in (">", b">")


class _RawBytes(NamedTuple):
    """Bytes that may have been pickled as text: many arrays can share it, so that it is encoded only to be read."""

    size: int
    read: Callable[[int, int], bytes]


def _raw_bytes(value: object) -> _RawBytes | None:
    if isinstance(value, Call) and isinstance(value.callee, Symbol) and value.callee.path == "_codecs.encode":
        # How Python 3 writes bytes in protocols before 3.
        text, encoding = value.args[:2]
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            return None
        return _RawBytes(len(text), partial(_latin1, text))
    if isinstance(value, str) and len(value) <= MAX_OLD_TEXT:  # bytes of Python 2 that happen to be UTF-8
        return _RawBytes(len(_utf8(value)), lambda start, n: _utf8(value)[start : start + n])
    if isinstance(value, bytes):
        return _RawBytes(len(value), lambda start, n: value[start : start + n])
    return None


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _latin1(text: str, start: int, count: int) -> bytes:
    try:
        return text[start : start + count].encode("latin-1")
    except UnicodeEncodeError:
        raise CorruptCheckpointError("its bytes are pickled as text that stands for none") from None


# ------------------------------------------------------------------------------------------------------ small parts


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_INT


def _is_torch_size(value: object) -> bool:
    return isinstance(value, Call) and isinstance(value.callee, Symbol) and value.callee.path == "torch.Size"


def _integers(value: object) -> tuple[int, ...]:
    if isinstance(value, Call) and _is_torch_size(value):
        value = value.args[0] if value.args else ()
    if not isinstance(value, (tuple, list)) or len(value) > _MAX_LISTED:
        raise _MalformedError
    if not all(type(n) is int and abs(n) <= MAX_INT for n in value):
        raise _MalformedError
    return tuple(value)


def _sizes(value: object) -> tuple[int, ...]:
    sizes = _integers(value)
    if any(n < 0 for n in sizes):
        raise _MalformedError
    return sizes


def _dtype_name(value: object) -> str:
    known = isinstance(value, Symbol) and value.module == "torch" and len(value.name) < 32 and value.name.isidentifier()
    return value.name if known and isinstance(value, Symbol) else ""


def _true_keys(metadata: object) -> set[str]:
    pairs = metadata.pairs if isinstance(metadata, PickledDict) else ()
    return {key for key, value in pairs if isinstance(key, str) and value is True}


_WRAPPERS = frozenset(
    {
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch.nn.parameter.Parameter",
        "torch.autograd.variable.Variable",
    }
)
"""Calls whose first argument is the tensor."""

_FROM_TYPE = frozenset(
    f"torch.{module}._rebuild_from_type{version}" for module in ("tensor", "_tensor") for version in ("", "_v2")
)
"""Calls ``(rebuild function, type, its arguments, state)``: subclasses, and tensors with attributes."""

_FROM_HOST = frozenset(
    {
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        "torch._utils._rebuild_device_tensor_from_numpy",
        "torch._utils._rebuild_xla_tensor",
    }
)
"""Calls ``(tensor or array, dtype, device, requires_grad)``: devices without storages of their own."""

_DESCRIPTIONS: Mapping[str, _Describe] = {
    "torch._utils._rebuild_tensor": _plain,
    "torch._utils._rebuild_tensor_v2": _plain,
    "torch._utils._rebuild_tensor_v3": _with_dtype,
    "torch._utils._rebuild_qtensor": _quantised,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_nested_tensor": _without_shape("is a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_wrapper_subclass": _subclass,
    "torch.nn.parameter.UninitializedParameter": _without_shape("is not initialised: the layer saw no input yet"),
    "torch.nn.parameter.UninitializedBuffer": _without_shape("is not initialised: the layer saw no input yet"),
    "numpy.core.multiarray._reconstruct": _reconstructed,
    "numpy._core.multiarray._reconstruct": _reconstructed,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
}

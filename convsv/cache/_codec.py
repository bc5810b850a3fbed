"""Values of :mod:`convsv.results` as JSON and back, exactly: what is read equals what was written, to the last bit.

The public report (:mod:`convsv.reports`) is another thing: it leaves out what no user needs, says null for infinity,
and may be read by later versions. What stands here is read by the same version only, and believed in nothing: every
field must be there and have its type, or the whole is no value at all.
"""

from __future__ import annotations

import base64
import binascii
import collections.abc
import json
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, overload

import numpy as np

from convsv.errors import ConvsvError

__all__ = ["decoded", "encoded"]

T = TypeVar("T")
Reader = Callable[[Any], Any]

_ARRAY = "float64"
"""The one key of an object that stands for an array: little-endian bytes in base 64."""


def encoded(value: object, *, without: Collection[str] = ()) -> bytes:
    """Return a value as JSON text; infinities and NaN are written as Python's ``json`` does.

    Args:
        value: a dataclass of strings, numbers, None, tuples, mappings, float64 arrays of one axis, and more of these.
        without: fields of it that are left out.

    Raises:
        TypeError: it holds something else.
        ValueError: it holds itself.
    """
    kept = {name: field for name, field in vars(value).items() if name not in without} if without else value
    return _WRITER.encode(kept).encode("ascii")


def _plain(value: object) -> Any:
    if is_dataclass(value):
        return vars(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.ndarray) and value.dtype == np.float64 and value.ndim == 1:
        return {_ARRAY: base64.b64encode(value.astype("<f8").tobytes()).decode("ascii")}
    raise TypeError(f"{type(value).__name__} is not kept")


_WRITER = json.JSONEncoder(default=_plain, separators=(",", ":"))


@overload
def decoded(kind: type[T], text: bytes) -> T: ...
@overload
def decoded(kind: T, text: bytes, *, own: tuple[str, ...]) -> T: ...
def decoded(kind: Any, text: bytes, *, own: tuple[str, ...] = ()) -> Any:
    """Return the value that a text stands for.

    Args:
        kind: the dataclass, or a value of it which has the fields that were left out.
        text: what :func:`encoded` returned for one, or anything else.
        own: the fields that were left out.

    Raises:
        ValueError: it stands for none.
    """
    try:
        found = json.loads(text)
        if not own:
            return _reader(kind)(found)
        readers = _field_readers(cast("Any", type(kind)))
        if type(found) is not dict or found.keys() != readers.keys() - set(own):
            raise ValueError(f"no {type(kind).__name__}")
        return replace(kind, **{name: readers[name](value) for name, value in found.items()})
    except (ConvsvError, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None


# ------------------------------------------------------------------------------------------- one reader a type hint


@lru_cache(maxsize=256)
def _reader(hint: Any) -> Reader:
    """Return what reads a value of one type.

    Raises:
        TypeError: nothing reads such values: an error in this program, not in a file.
    """
    if hint in _ATOMS:
        return _ATOMS[hint]
    arguments, origin = get_args(hint), get_origin(hint)
    if is_dataclass(hint):
        return _object_reader(cast("type", hint))
    if origin is Literal:
        return _choice(arguments)
    if origin in (Union, types.UnionType):
        return _first_of([_reader(each) for each in arguments])
    if origin is tuple:
        return _tuple_reader(arguments)
    if origin is collections.abc.Mapping:
        return _mapping_reader(_reader(arguments[1]))
    if origin is np.ndarray:
        return _array
    raise TypeError(f"nothing reads {hint}")


def _exactly(*kinds: type) -> Reader:
    def read(value: Any) -> Any:
        if type(value) not in kinds:  # bool is an int elsewhere
            raise ValueError(f"{type(value).__name__} where {kinds[-1].__name__} belongs")
        return value

    return read


_ATOMS: dict[Any, Reader] = {
    str: _exactly(str),
    bool: _exactly(bool),
    int: _exactly(int),
    float: _exactly(int, float),  # an integer that stands in a field of floats is written as one in reports
    type(None): _exactly(type(None)),
}


def _choice(known: tuple[Any, ...]) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{value!r} is none of {known}")
        return value

    return read


def _first_of(readers: list[Reader]) -> Reader:
    def read(value: Any) -> Any:
        for reader in readers:
            try:
                return reader(value)
            except ValueError:
                continue
        raise ValueError(f"{type(value).__name__} where something else belongs")

    return read


def _tuple_reader(arguments: tuple[Any, ...]) -> Reader:
    is_list = _exactly(list)
    if arguments[-1] is Ellipsis:
        item = _reader(arguments[0])
        return lambda value: tuple(map(item, is_list(value)))
    items = [_reader(each) for each in arguments]
    return lambda value: tuple(read(each) for read, each in zip(items, is_list(value), strict=True))


def _mapping_reader(item: Reader) -> Reader:
    is_object = _exactly(dict)
    return lambda value: {key: item(each) for key, each in is_object(value).items()}


def _array(value: Any) -> Any:
    if type(value) is not dict or value.keys() != {_ARRAY} or not isinstance(value[_ARRAY], str):
        raise ValueError("no array")
    try:
        content = base64.b64decode(value[_ARRAY], validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    return np.frombuffer(content, "<f8").astype(np.float64)  # refuses lengths that are no multiple of 8


@lru_cache(maxsize=64)
def _field_readers(kind: Any) -> dict[str, Reader]:
    hints = get_type_hints(kind)
    return {field.name: _reader(hints[field.name]) for field in fields(kind)}


def _object_reader(kind: type) -> Reader:
    readers = _field_readers(kind)

    def read(value: Any) -> Any:
        if type(value) is not dict or value.keys() != readers.keys():
            raise ValueError(f"no {kind.__name__}")
        return kind(**{name: reader(value[name]) for name, reader in readers.items()})

    return read

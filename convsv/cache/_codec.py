"""Values of :mod:`convsv.results` as bytes and back, exactly: what is read equals what was written, to the last bit.

The public report (:mod:`convsv.reports`) is another thing: it leaves out what no user needs, says null for infinity,
and may be read by later versions. What stands here is read by the same version only, and believed in nothing: every
field must be there and have its type, and the whole must be written as it would be written again.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, make_dataclass
from functools import lru_cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints, overload

import msgspec
import numpy as np

from convsv.checkpoints.alike import changed
from convsv.errors import ConvsvError

__all__ = ["decoded", "encoded"]

T = TypeVar("T")


def encoded(value: object, *, without: tuple[str, ...] = ()) -> bytes:
    """Return a value as MessagePack.

    Args:
        value: a dataclass of strings, numbers, None, tuples, mappings, float64 arrays of one axis, and more of these.
        without: fields of it that are left out.

    Raises:
        TypeError: it holds something else.
        ValueError: it holds an integer of more than 64 bits, a string that is no Unicode, or itself.
    """
    kind: Any = type(value)
    kept = {name: getattr(value, name) for name in _names(kind, without)} if without else value
    try:
        return _WRITER.encode(kept)
    except (OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _plain(value: Any) -> Any:
    """Return what MessagePack has in the place of a value that is no part of it.

    Raises:
        TypeError: it has nothing.
    """
    if isinstance(value, np.ndarray) and value.dtype == np.float64 and value.ndim == 1:
        return value.astype("<f8").tobytes()
    if isinstance(value, float):  # numpy's
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not kept")


_WRITER = msgspec.msgpack.Encoder(enc_hook=_plain)


@overload
def decoded(kind: type[T], content: bytes) -> T: ...
@overload
def decoded(kind: T, content: bytes, *, own: tuple[str, ...]) -> T: ...
def decoded(kind: Any, content: bytes, *, own: tuple[str, ...] = ()) -> Any:
    """Return the value that bytes stand for.

    Args:
        kind: the dataclass, or a value of it which has the fields that were left out.
        content: what :func:`encoded` returned for one, or anything else.
        own: the fields that were left out.

    Raises:
        ValueError: they stand for none.
    """
    whole: Any = type(kind) if own else kind
    try:
        found = _reader(whole, own).decode(content)
        # Unknown fields, repeated ones, and what was taken for another type are not written like this.
        is_exact = _WRITER.encode(found) == content
    except (msgspec.MsgspecError, ConvsvError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not is_exact:
        raise ValueError("it is written in another way")
    return changed(kind, **vars(found)) if own else found


# ------------------------------------------------------------------------------------------------- one type a type hint


@lru_cache(maxsize=64)
def _reader(kind: type, without: tuple[str, ...]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(_stand_in(kind, without), dec_hook=_from_plain)


@lru_cache(maxsize=64)
def _names(kind: type, without: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind) if field.name not in without)


@lru_cache(maxsize=64)
def _stand_in(kind: type, without: tuple[str, ...] = ()) -> type:
    """Return a dataclass that is read in the place of another, and becomes it if no field is left out.

    The other one's own fields would not do: one with a default could be missing, an integer would become a float.
    """
    hints = get_type_hints(kind)

    def become(self: Any) -> None:
        self.__class__ = kind
        if hasattr(kind, "__post_init__"):
            self.__post_init__()

    forms = [(name, _form(hints[name])) for name in _names(kind, without)]
    return make_dataclass(kind.__name__, forms, namespace={} if without else {"__post_init__": become})


def _form(hint: Any) -> Any:
    """Return the type that reads what a type hint stands for."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _stand_in(hint)  # type: ignore[arg-type]
    if hint is float:
        return float | int  # an integer that stands in a field of floats is written as one in reports
    if origin is np.ndarray:
        return np.ndarray
    if origin in (tuple, Mapping):
        return origin[tuple(map(_form, arguments))]
    if origin in (Union, types.UnionType):
        several = sum(is_dataclass(each) or get_origin(each) is Mapping for each in arguments) > 1
        forms = tuple(map(_form, arguments))
        return _Either("Either", (), {"forms": forms}) if several else Union[forms]  # noqa: UP007
    return hint


class _Either(type):
    """What is one of several kinds of mappings, which msgspec does not tell apart."""

    forms: tuple[Any, ...]

    def __instancecheck__(cls, value: object) -> bool:
        """Believe :func:`_from_plain`."""
        return True


def _from_plain(kind: type, value: Any) -> Any:
    """Return what :func:`_plain` was given.

    Raises:
        ValueError: it was given nothing of this kind.
    """
    if not isinstance(kind, _Either):
        if type(value) is not bytes:
            raise ValueError("no array")
        return np.frombuffer(value, "<f8").astype(np.float64)  # refuses lengths that are no multiple of 8
    for form in kind.forms:
        try:
            return msgspec.convert(value, form, dec_hook=_from_plain)
        except msgspec.ValidationError:
            continue
    raise ValueError("it is of no kind")

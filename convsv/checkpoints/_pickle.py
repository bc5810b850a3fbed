"""An inert pickle interpreter: it imports nothing, calls nothing, and turns a pickle into plain records.

A pickle is a program for a stack machine (``pickletools`` documents every opcode). Here each opcode only moves data:

- a global becomes a :class:`Symbol`, never the object it names;
- a call (REDUCE, NEWOBJ, OBJ, INST) becomes a :class:`Call` that keeps callee, arguments, state and items;
- a dict becomes a :class:`PickledDict`, a list of pairs: keys are never hashed, so that any key is legal and crafted
  keys cannot collide; sets become lists, frozensets tuples;
- a persistent id becomes a :class:`PersistentId`.

Nothing recurses, nothing is copied twice, every length is compared with what is left before it is allocated, and the
number of opcodes is limited: time and memory are linear in the bytes, and bounded. The result may be cyclic and
arbitrarily deep: walk it iteratively, memoise by identity, and never hash, compare or print it.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from convsv.checkpoints._file import RegularFile
from convsv.errors import CorruptCheckpointError, UnsafeCheckpointError

__all__ = ["MAX_OLD_TEXT", "MAX_PICKLE_BYTES", "Call", "PersistentId", "Pickle", "PickledDict", "Symbol", "interpret"]

MAX_OPCODES = 4_000_000
MAX_PICKLE_BYTES = 1 << 28
_MAX_DIGITS = 4300  # decimal integers longer than this take quadratic time to parse
_MAX_GLOBAL = 1 << 10  # characters; a name is looked at once for each of its calls, which may be millions
MAX_OLD_TEXT = 1 << 12
"""Bytes of Python 2's strings that are read as text."""
_TRUSTED_READ = 1 << 16
_SHORT = 1 << 17
"""Bytes of a pickle that is kept in memory, and what it built, until others were met."""
_HIGHEST_PROTOCOL = 5

_RUNS_CODE = re.compile(
    r"(os|posix|nt)\.(system|popen\w*|exec\w+|spawn\w+|posix_spawnp?|fork\w*|kill\w*|startfile|remove\w*|unlink|rmdir"
    r"|rename\w*|replace)"
    r"|(builtins|__builtin__|_?io)\.(eval|exec|execfile|compile|open(_code)?|__import__|breakpoint)"
    r"|(subprocess|_posixsubprocess|pty|commands|popen2|runpy|shutil|socket|webbrowser|ctypes|code|timeit|pdb|pip)\..*"
)
"""Globals that no honest checkpoint calls: they run commands or code, or touch files."""


class Symbol:
    """The name of a global, not resolved.

    Attributes:
        module: module as stored.
        name: qualified name as stored.
    """

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    @property
    def path(self) -> str:
        """Module and name, joined by a dot."""
        return f"{self.module}.{self.name}"


class PersistentId:
    """A reference to something outside the pickle.

    Attributes:
        value: the id as stored; for PyTorch a tuple such as ``("storage", class, key, location, numel)``.
    """

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class PickledDict:
    """A dict as the pairs that were set, in order; a later pair replaces an earlier one of the same key."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[object, object]] | tuple[()] = ()


class Call:
    """What a pickle wanted to build by calling something; nobody called it.

    Attributes:
        callee: usually a :class:`Symbol`.
        args: positional arguments.
        kwargs: keyword arguments, if any were given.
        state: what BUILD set, None if nothing.
        items: what was appended.
        pairs: what was set by key.
    """

    __slots__ = ("args", "callee", "items", "kwargs", "pairs", "state")

    def __init__(self, callee: object, args: tuple[object, ...], kwargs: object = None) -> None:
        self.callee = callee
        self.args = args
        self.kwargs = kwargs
        self.state: object = None
        self.items: list[object] | tuple[()] = ()
        self.pairs: list[tuple[object, object]] | tuple[()] = ()


class Pickle(NamedTuple):
    """What one pickle built.

    Attributes:
        value: its object.
        end: position in the file after its last opcode.
        persistent_ids: all its references to things outside, in order.
        payload: the first thing it calls that runs commands or code (``os.system``), or None. Others may hide: what a
            pickle calls is never a proof that it is harmless.
        is_shared: whether it may come again, the same objects, when the same bytes do.
    """

    value: object
    end: int
    persistent_ids: list[PersistentId]
    payload: str | None
    is_shared: bool = False


def interpret(file: RegularFile, offset: int = 0, size: int | None = None) -> Pickle:
    """Interpret one pickle. The same short one, met again, gives the same objects: change nothing in them.

    Args:
        file: the file.
        offset: where the pickle starts.
        size: how many bytes it may take; up to the end of the file when None.

    Raises:
        CorruptCheckpointError: it is damaged or truncated.
        UnsafeCheckpointError: it is too large.
    """
    if size is not None and size <= _SHORT:
        found = _short(file.read(offset, size))
        return found._replace(end=offset + found.end, is_shared=True)
    rest = file.size - offset if size is None else size
    return _interpreted(_Machine(file.read, offset, min(offset + min(rest, MAX_PICKLE_BYTES), file.size)))


@lru_cache(maxsize=2)
def _short(content: bytes) -> Pickle:
    """Interpret a pickle in memory. Checkpoints of one network often hold the same one, of one epoch and the next."""
    return _interpreted(_Machine(lambda start, count: content[start : start + count], 0, len(content)))


def _interpreted(machine: _Machine) -> Pickle:
    try:
        return Pickle(machine.run(), machine.tell(), machine.persistent_ids, machine.payload)
    except (IndexError, ValueError, OverflowError, struct.error):
        # A pop from an empty stack, bytes that are no number or text.
        damage = _damaged("an opcode does not fit what came before")
    raise damage


def _damaged(why: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"the pickle is damaged or truncated: {why}")


class _Machine:
    """The stack machine, over bytes of which a window is in memory.

    Args:
        read: (position, count) -> so many bytes.
        start: where the pickle starts.
        end: where it must have ended; so many bytes there are.
    """

    def __init__(self, read: Callable[[int, int], bytes], start: int, end: int) -> None:
        self.read = read
        self.end = end
        self.window, self.base, self.at = b"", start, 0
        self.stack: list[object] = []
        self.marked: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.persistent_ids: list[PersistentId] = []
        self.payload: str | None = None

    def tell(self) -> int:
        return self.base + self.at

    def run(self) -> object:
        table = _OPERATIONS
        for _ in range(MAX_OPCODES):
            if self.at == len(self.window) and not self.grow(1):
                raise _damaged("it ends before its last opcode")
            code = self.window[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack.pop()
            operation = table[code]
            if operation is None:
                raise _damaged(f"unknown opcode 0x{code:02x}")
            operation(self)
        raise UnsafeCheckpointError("the pickle is too long", found=f"more than {MAX_OPCODES} opcodes")

    # --------------------------------------------------------------------------------------------- reading arguments

    def grow(self, count: int) -> bool:
        """Let the window begin here and hold ``count`` bytes and more, if there are as many."""
        held = self.window[self.at :]
        self.base, self.at = self.base + self.at, 0
        position = self.base + len(held)
        self.window = held + self.read(position, min(max(count - len(held), _TRUSTED_READ), self.end - position))
        return len(self.window) >= count

    def take(self, count: int) -> bytes:
        at = self.at
        stop = at + count
        if count < 0 or stop > len(self.window):
            return self.take_far(count)
        self.at = stop
        return self.window[at:stop]

    def take_far(self, count: int) -> bytes:
        # A length prefix may lie: compare it with what is left before anything is allocated.
        if count < 0 or (count > _TRUSTED_READ and count > self.end - self.tell()):
            raise _damaged("a length reaches beyond its end")
        if count > _TRUSTED_READ:  # past the window, so that it is not held twice
            held, position = self.window[self.at :], self.base + len(self.window)
            self.window, self.base, self.at = b"", self.base + self.at + count, 0
            return held + self.read(position, count - len(held))
        if not self.grow(count):
            raise _damaged("it ends within an opcode")
        return self.take(count)

    def number(self, layout: struct.Struct) -> int:
        data = self.take(layout.size)
        return data[0] if layout is _U8 else int(layout.unpack(data)[0])

    def line(self) -> bytes:
        stop = self.window.find(b"\n", self.at)
        while stop < 0:
            held = len(self.window) - self.at
            self.grow(2 * held + 1)
            if len(self.window) == held:
                raise _damaged("it ends within a line")
            stop = self.window.find(b"\n", held)
        data, self.at = self.window[self.at : stop], stop + 1
        return data

    # ------------------------------------------------------------------------------------------------- moving things

    def pop_mark(self) -> list[object]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def memoise(self, index: int) -> None:
        # Honest picklers count from 0; an index beyond the bytes could only serve to make hashes collide.
        if not 0 <= index <= self.end:
            raise _damaged("a memo index is out of range")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise _damaged("a memo entry is missing")
        self.stack.append(self.memo[index])

    def refer(self, value: object) -> None:
        self.persistent_ids.append(PersistentId(value))
        self.stack.append(self.persistent_ids[-1])

    def append(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, Call):
            target.items = target.items or []
            target.items.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise _damaged("something is appended to what is not a list")

    def set_items(self, flat: list[object]) -> None:
        target = self.stack[-1]
        if len(flat) % 2 or not isinstance(target, (Call, PickledDict)):
            raise _damaged("a key is set in what is not a mapping")
        if flat:
            target.pairs = target.pairs or []
            target.pairs.extend(zip(flat[::2], flat[1::2], strict=True))


_Operation: TypeAlias = Callable[[_Machine], None]
_TABLE: dict[bytes, _Operation] = {}
_STOP = ord(".")

_U8, _U16, _U32, _U64 = (struct.Struct(layout) for layout in ("<B", "<H", "<I", "<Q"))
_S32, _F64 = struct.Struct("<i"), struct.Struct(">d")


def _operation(code: bytes) -> Callable[[_Operation], _Operation]:
    def add(function: _Operation) -> _Operation:
        _TABLE[code] = function
        return function

    return add


# -------------------------------------------------------------------------------------------------------- values


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _old_string(data: bytes) -> str | bytes:
    # Python 2 had one type for text and bytes. What is UTF-8 is read as text, and gives the same bytes back; but for
    # what no name is as long as: those are the values of an array.
    if len(data) > MAX_OLD_TEXT:
        return data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def _old_literal(data: bytes) -> str | bytes:
    data = data.strip()
    if len(data) < 2 or data[:1] not in (b"'", b'"') or data[:1] != data[-1:]:
        raise _damaged("a string without quotes")
    return _old_string(codecs.escape_decode(data[1:-1])[0])


def _long(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _decimal(data: bytes) -> int:
    if len(data) > _MAX_DIGITS:
        raise _damaged("an integer has too many digits")
    return int(data)


def _decimal_or_bool(data: bytes) -> int:
    return data == b"01" if data in (b"00", b"01") else _decimal(data)


def _install_values() -> None:
    constants: dict[bytes, object] = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
    for code, constant in constants.items():
        _TABLE[code] = lambda m, constant=constant: m.stack.append(constant)  # type: ignore[misc]
    makers: dict[bytes, Callable[[], object]] = {b"]": list, b"}": PickledDict, b"\x8f": list}
    for code, make in makers.items():
        _TABLE[code] = lambda m, make=make: m.stack.append(make())  # type: ignore[misc]
    _TABLE[b"K"] = lambda m: m.stack.append(m.take(1)[0])
    fixed = {b"M": _U16, b"J": _S32, b"G": _F64}
    for code, layout in fixed.items():
        _TABLE[code] = lambda m, layout=layout: m.stack.append(  # type: ignore[misc]
            layout.unpack(m.take(layout.size))[0]
        )
    lines: dict[bytes, Callable[[bytes], object]] = {
        b"I": _decimal_or_bool,
        b"L": lambda data: _decimal(data.removesuffix(b"L")),
        b"F": float,
        b"S": _old_literal,
        b"V": lambda data: data.decode("raw-unicode-escape"),
    }
    for code, decode in lines.items():
        _TABLE[code] = lambda m, decode=decode: m.stack.append(decode(m.line()))  # type: ignore[misc]
    counted: dict[bytes, tuple[struct.Struct, Callable[[bytes], object]]] = {
        b"\x8a": (_U8, _long),
        b"\x8b": (_S32, _long),
        b"U": (_U8, _old_string),
        b"T": (_S32, _old_string),
        b"\x8c": (_U8, _text),
        b"X": (_U32, _text),
        b"\x8d": (_U64, _text),
        b"C": (_U8, bytes),
        b"B": (_U32, bytes),
        b"\x8e": (_U64, bytes),
        b"\x96": (_U64, bytes),
    }
    for code, (size, decode) in counted.items():
        _TABLE[code] = lambda m, size=size, decode=decode: m.stack.append(  # type: ignore[misc]
            decode(m.take(m.number(size)))
        )


def _install_memo() -> None:
    _TABLE[b"p"] = lambda m: m.memoise(_decimal(m.line()))
    _TABLE[b"q"] = lambda m: m.memoise(m.number(_U8))
    _TABLE[b"r"] = lambda m: m.memoise(m.number(_U32))
    _TABLE[b"\x94"] = lambda m: m.memoise(len(m.memo))
    _TABLE[b"g"] = lambda m: m.recall(_decimal(m.line()))
    _TABLE[b"h"] = lambda m: m.recall(m.number(_U8))
    _TABLE[b"j"] = lambda m: m.recall(m.number(_U32))


_install_values()
_install_memo()


# ------------------------------------------------------------------------------------------- the stream and the stack


@_operation(b"\x80")
def _proto(m: _Machine) -> None:
    if m.number(_U8) > _HIGHEST_PROTOCOL:
        raise _damaged("its protocol is unknown")


@_operation(b"\x95")
def _frame(m: _Machine) -> None:
    if m.number(_U64) > m.end - m.tell():
        raise _damaged("a frame reaches beyond its end")


@_operation(b"(")
def _mark(m: _Machine) -> None:
    m.marked.append(m.stack)
    m.stack = []


@_operation(b"0")
def _pop(m: _Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()


@_operation(b"1")
def _pop_mark(m: _Machine) -> None:
    m.pop_mark()


@_operation(b"2")
def _dup(m: _Machine) -> None:
    m.stack.append(m.stack[-1])


# ------------------------------------------------------------------------------------------------------- collections


@_operation(b"t")
@_operation(b"\x91")
def _tuple(m: _Machine) -> None:
    items = m.pop_mark()
    m.stack.append(tuple(items))


def _short_tuple(length: int) -> _Operation:
    def operation(m: _Machine) -> None:
        if len(m.stack) < length:
            raise _damaged("a tuple lacks items")
        m.stack[-length:] = [tuple(m.stack[-length:])]

    return operation


_TABLE.update({b"\x85": _short_tuple(1), b"\x86": _short_tuple(2), b"\x87": _short_tuple(3)})


@_operation(b"l")
def _list(m: _Machine) -> None:
    items = m.pop_mark()
    m.stack.append(items)


@_operation(b"d")
def _dict(m: _Machine) -> None:
    items = m.pop_mark()
    m.stack.append(PickledDict())
    m.set_items(items)


@_operation(b"a")
def _append(m: _Machine) -> None:
    item = m.stack.pop()
    m.append([item])


@_operation(b"e")
@_operation(b"\x90")
def _appends(m: _Machine) -> None:
    items = m.pop_mark()
    m.append(items)


@_operation(b"s")
def _set_item(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.set_items([key, value])


@_operation(b"u")
def _set_items(m: _Machine) -> None:
    items = m.pop_mark()
    m.set_items(items)


# ------------------------------------------------------------------------------------------- globals, calls, objects


@_operation(b"c")
def _global(m: _Machine) -> None:
    module, name = _text(m.line()), _text(m.line())
    m.stack.append(_symbol(module, name))


@_operation(b"\x93")
def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise _damaged("a global has no name")
    m.stack.append(_symbol(module, name))


def _symbol(module: str, name: str) -> Symbol:
    if len(module) + len(name) > _MAX_GLOBAL:
        raise _damaged("the name of a global is too long")
    return Symbol(module, name)


def _extension(size: struct.Struct) -> _Operation:
    return lambda m: m.stack.append(Symbol("copyreg", f"extension_{m.number(size)}"))


_TABLE.update({b"\x82": _extension(_U8), b"\x83": _extension(_U16), b"\x84": _extension(_S32)})


def _call(m: _Machine, callee: object, args: object, kwargs: object = None) -> None:
    if not isinstance(args, tuple):
        raise _damaged("arguments that are not a tuple")
    if m.payload is None and isinstance(callee, Symbol) and _RUNS_CODE.fullmatch(callee.path):
        m.payload = callee.path
    m.stack.append(Call(callee, args, kwargs))


@_operation(b"R")
@_operation(b"\x81")
def _reduce(m: _Machine) -> None:
    args, callee = m.stack.pop(), m.stack.pop()
    _call(m, callee, args)


@_operation(b"\x92")
def _new_object_ex(m: _Machine) -> None:
    kwargs, args, callee = m.stack.pop(), m.stack.pop(), m.stack.pop()
    _call(m, callee, args, kwargs)


@_operation(b"i")
def _inst(m: _Machine) -> None:
    module, name = _text(m.line()), _text(m.line())
    args = m.pop_mark()
    _call(m, _symbol(module, name), tuple(args))


@_operation(b"o")
def _obj(m: _Machine) -> None:
    callee, *args = m.pop_mark()
    _call(m, callee, tuple(args))


@_operation(b"b")
def _build(m: _Machine) -> None:
    state, target = m.stack.pop(), m.stack[-1]
    if isinstance(target, Call):  # nothing else that is honestly pickled has a state
        target.state = state


@_operation(b"P")
def _persistent_line(m: _Machine) -> None:
    m.refer(_text(m.line()))


@_operation(b"Q")
def _persistent(m: _Machine) -> None:
    m.refer(m.stack.pop())


@_operation(b"\x97")
@_operation(b"\x98")
def _buffer(_m: _Machine) -> None:
    raise _damaged("its buffers are not in the file")


_OPERATIONS = [_TABLE.get(bytes([code])) for code in range(256)]
"""What each opcode does, by its number; None where there is no such opcode."""

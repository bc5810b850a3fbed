"""The code of a TorchScript archive, as text: where its modules keep stride and padding.

TorchScript writes a class a module in a dialect of Python, one statement a line. A scripted module states its
constants (``stride : Final[Tuple[int, int]] = (2, 2)``); a traced one has them in its calls
(``torch._convolution(x, weight, bias, [2, 2], ...)``). This reads these two forms with regular expressions and a scan
for brackets, in one pass: nothing is compiled, and what has another form is not known.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from convsv.checkpoints._zip import StoredZip
from convsv.errors import CheckpointError

__all__ = ["ScriptCode"]

Constants: TypeAlias = dict[str, object]

MAX_CODE = 1 << 25
"""Bytes of code that are read of one archive; what more there is is not known."""
_MAX_CALLS = 1 << 12
_MAX_CALL = 1 << 12
_MAX_LITERAL = 128
_MAX_SCANNED = 2
"""How often a character may be scanned, once for each call that it is an argument of."""
_FORWARD = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_GENERAL = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
_CALL = re.compile(r"\btorch\.(_convolution_mode|_?convolution|conv_transpose[123]d|conv[123]d)\(")
_CLASS = re.compile(r"^class (\w+)\(Module\):$", re.MULTILINE)
_CONSTANT = re.compile(r"^  (\w+) : Final\[.*\] = (.*)$", re.MULTILINE)
_FUNCTION = re.compile(r"^  def \w+\((\w+):", re.MULTILINE)
_VARIABLE = re.compile(r"^ +(\w+) = (.{0,4096})$", re.MULTILINE)
_PAD = re.compile(r"torch\.(pad|constant_pad_nd)\(")
_NORM = re.compile(r"\btorch\.batch_norm\(")
_MARK = re.compile(r'[()\[\],"]')
_INTEGERS = re.compile(r"[\[(]((?:-?[0-9]{1,18}, )*-?[0-9]{1,18}),?[\])]")
_FLOAT = re.compile(r"[0-9]{1,20}\.[0-9]{0,20}(?:e-?[0-9]{1,3})?")
_MODES = {"constant": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}


class ScriptCode:
    """The code of one archive, read file by file when a module's class is asked for.

    Args:
        archive: the archive.
        prefix: its folder.
    """

    def __init__(self, archive: StoredZip, prefix: str) -> None:
        self._archive, self._prefix = archive, prefix
        self._files: dict[str, Mapping[str, Constants]] = {}
        self._left = MAX_CODE

    def constants(self, module: str, name: str) -> Constants:
        """Return what the code states of a class, by the names that attributes of ``torch.nn`` modules have.

        Args:
            module: where the class is, ``__torch__.torch.nn.modules.conv.___torch_mangle_0``.
            name: its name.
        """
        if module not in self._files:
            self._files[module] = self._read(module)
        return self._files[module].get(name, {})

    def frozen(self) -> dict[int, list[Constants]]:
        """Return what calls say of weights that became constants of the code, by the number of the constant."""
        calls: dict[int, list[Constants]] = {}
        folder = f"{self._prefix}code/"
        for entry in [name for name in self._archive.entries if name.startswith(folder) and name.endswith(".py")]:
            for constants in itertools.islice(_all_calls(self._text(entry)), _MAX_CALLS):
                number = re.fullmatch(r"CONSTANTS\.c([0-9]{1,9})", str(constants.get("weight")))
                if number:
                    calls.setdefault(int(number[1]), []).append(constants)
        return calls

    def _read(self, module: str) -> Mapping[str, Constants]:
        # A name in the index of the archive, not a path on the disk.
        return dict(_classes(self._text(f"{self._prefix}code/{module.replace('.', '/')}.py")))

    def _text(self, entry: str) -> str:
        """Return a file of code, empty if it is not there, is no text, or is more than is read."""
        size = self._archive.entries[entry].size if entry in self._archive.entries else None
        if size is None or size > self._left:
            return ""
        self._left -= size
        try:
            return self._archive.read(entry, size).decode("utf-8")
        except (CheckpointError, UnicodeDecodeError):
            return ""


def _classes(text: str) -> Iterator[tuple[str, Constants]]:
    pieces = _CLASS.split(text)
    for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
        stated = {key: _literal(value) for key, value in _CONSTANT.findall(body)}
        yield name, stated if "stride" in stated or "eps" in stated else {**stated, **_epsilon(body), **_called(body)}


def _epsilon(body: str) -> Constants:
    """Return what a class adds to a variance, where it normalises once."""
    calls = [_arguments(body, match.end()) for match in itertools.islice(_NORM.finditer(body), 2)]
    return {"eps": _literal(calls[0][7])} if len(calls) == 1 and len(calls[0]) > 7 else {}


def _called(body: str) -> Constants:
    """Return the geometry of the convolutions that a class calls with a weight of its own, where all agree."""
    found = list(itertools.islice(_all_calls(body), _MAX_CALLS))
    agree = bool(found) and all(one == found[0] for one in found)
    return found[0] if agree and not str(found[0].get("weight")).startswith("CONSTANTS.") else {}


def _all_calls(code: str) -> Iterator[Constants]:
    starts = [match.start() for match in _FUNCTION.finditer(code)] + [len(code)]
    for start, end in itertools.pairwise(starts):
        yield from _calls(code[start:end])


def _calls(function: str) -> Iterator[Constants]:
    head = _FUNCTION.match(function)
    own = head[1] if head else "self"
    variables = dict(_VARIABLE.findall(function))
    left = _MAX_SCANNED * len(function)
    for match in _CALL.finditer(function):
        arguments, end = _scanned(function, match.end())
        left -= end - match.end()
        if left < 0:  # calls in calls in calls
            return
        names = _TRANSPOSED if "transpose" in match[1] else _GENERAL if match[1].endswith("convolution") else _FORWARD
        given = dict(zip(names, arguments, strict=False))
        weight = variables.get(given.get("weight", ""), given.get("weight", ""))
        owner, _, attribute = weight.partition(".")
        if owner not in (own, "CONSTANTS") or not re.fullmatch(r"\w+", attribute):
            # A weight of another module, or one that is computed: what is said of it is not about this class.
            yield {}
            continue
        constants: Constants = {"weight": weight, "transposed": "transpose" in match[1]}
        for key in names[3:]:
            text = given.get(key)
            value = _literal(variables.get(text, text)) if text is not None else _default(key)
            constants[key] = value
        constants.setdefault("output_padding", 0)
        constants["padding_mode"] = "zeros"
        yield _with_padding(constants, variables.get(given.get("input", ""), ""))


def _with_padding(constants: Constants, made: str) -> Constants:
    """Return the constants with the padding that the class itself does before it convolves."""
    pad = _PAD.match(made)
    if not pad or constants["transposed"]:
        return constants
    amounts, *others = [_literal(text) for text in _arguments(made, pad.end())[1:4]] or [None]
    # pad(x, amounts, mode, value), constant_pad_nd(x, amounts, value)
    words = others if pad[1] == "pad" else ["constant", *others]
    mode, value = _MODES.get(str(words[0] if words else "constant")), words[1] if len(words) > 1 else None
    own = constants.get("padding")
    is_alone = own == 0 or (isinstance(own, tuple) and not any(own))
    if isinstance(amounts, tuple) and amounts[::2] == amounts[1::2] and mode and is_alone and not value:
        return {**constants, "padding": amounts[::-2], "padding_mode": mode}
    return {**constants, "padding": None, "padding_mode": None}


def _arguments(text: str, start: int) -> list[str]:
    """Return the arguments of a call whose bracket opened right before ``start``; those of a long call in part."""
    return _scanned(text, start)[0]


def _scanned(text: str, start: int) -> tuple[list[str], int]:
    """Return the arguments of a call, and how far the text was looked at."""
    arguments, depth, begin, quoted = list[str](), 0, start, False
    end = min(start + _MAX_CALL, len(text))
    for found in _MARK.finditer(text, start, end):
        at, character = found.start(), found[0]
        if character == '"' and text[at - 1] != "\\":
            quoted = not quoted
        if quoted:
            continue
        if character in "([":
            depth += 1
        elif character in ")]" and depth:
            depth -= 1
        elif (character == "," and not depth) or character in ")]":
            arguments.append(text[begin:at].strip())
            begin = at + 1
            if character != ",":
                return arguments, at
    return arguments, end


def _literal(text: str) -> object:
    """Return a literal as a value: a tuple of integers, an integer, a float, a word, a truth value; else None.

    What is longer than any of these is None: a variable may be an argument of every call.
    """
    if len(text) > _MAX_LITERAL:
        return None
    integers = _INTEGERS.fullmatch(text)
    if integers:
        return tuple(int(number) for number in integers[1].split(", "))
    if re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if re.fullmatch(r'"\w*"', text):
        return text[1:-1]
    return {"True": True, "False": False}.get(text)


def _default(key: str) -> object:
    return {"padding": 0, "output_padding": 0, "transposed": False}.get(key, 1)

"""The words that options are written in: sizes, shapes, amounts of memory, devices, names of methods."""

from __future__ import annotations

import re
from pathlib import Path

import typer

__all__ = [
    "checked_device",
    "checked_inputs",
    "checked_memory",
    "checked_size",
    "checked_tolerance",
    "known_methods",
    "method_names",
    "parse_input",
    "parse_memory",
    "parse_size",
    "readable_paths",
]

_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{letter}B": factor for letter, factor in list(_UNITS.items()) if letter in "KMGT" and letter}
_UNITS |= {f"{letter}I{b}": 1 << 10 * (power + 1) for power, letter in enumerate("KMGT") for b in ("", "B")}
_LEAST_MEMORY = 1 << 20
_INPUT_DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "bool")


def parse_size(text: str) -> tuple[int, ...]:
    """Return ``"56"`` as ``(56,)`` and ``"56x48"`` as ``(56, 48)``.

    Raises:
        typer.BadParameter: it is neither.
    """
    numbers = re.split("[x×]", text.strip().lower())
    if not all(number.isascii() and number.isdigit() and 0 < int(number) < 1 << 31 for number in numbers):
        raise typer.BadParameter(f"{text!r} is not a size; write one number (56) or one an axis (56x48)")
    return tuple(int(number) for number in numbers)


def parse_input(text: str) -> tuple[tuple[int, ...], str | None]:
    """Return ``"3x224x224"`` as ``((3, 224, 224), None)`` and ``"77:int64"`` as ``((77,), "int64")``.

    Raises:
        typer.BadParameter: it is neither.
    """
    shape, _, dtype = text.strip().partition(":")
    if (":" in text and dtype not in _INPUT_DTYPES) or not re.fullmatch(r"[0-9]+([x×][0-9]+)*", shape.lower()):
        known = ", ".join(_INPUT_DTYPES)
        raise typer.BadParameter(f"{text!r} is no input; write 3x224x224 without the batch, or 77:int64 ({known})")
    return parse_size(shape), dtype or None


def parse_memory(text: str) -> int:
    """Return ``"2GiB"``, ``"500MB"`` or a plain number as bytes.

    Raises:
        typer.BadParameter: it is none of these, or less than 1 MiB.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if not match or match[2].upper() not in _UNITS:
        raise typer.BadParameter(f"{text!r} is not an amount of memory; write 2GiB, 500MB or bytes")
    amount = int(float(match[1]) * _UNITS[match[2].upper()])
    if amount < _LEAST_MEMORY:
        raise typer.BadParameter(f"{text!r} is too little; give at least 1MiB")
    return amount


def checked_size(text: str | None) -> str | None:
    if text is not None:
        parse_size(text)
    return text


def checked_inputs(texts: list[str]) -> list[str]:
    for text in texts:
        parse_input(text)
    return texts


def checked_memory(text: str) -> str:
    parse_memory(text)
    return text


def checked_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise typer.BadParameter(f"{text!r} is no device; use auto, cpu, cuda or cuda:1")
    return text


def checked_tolerance(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"{value} is no tolerance; give a number that is not negative, for instance 1e-3")
    return value


def method_names() -> tuple[str, ...]:
    """Return what ``--method`` may be: the files of ``convsv/spectra``, bounds, symbol_min. Imports none of them."""
    folder = Path(__file__).resolve().parent.parent / "spectra"
    return (*sorted(path.stem for path in folder.glob("[a-z]*.py")), "bounds", "symbol_min")


def known_methods(names: list[str]) -> list[str]:
    """Return the names of methods as they are.

    Raises:
        typer.BadParameter: one is not known.
    """
    known = method_names()
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not a method; use one of {', '.join(known)}")
    return names


def readable_paths(paths: list[str]) -> list[str]:
    if "" in paths:
        raise typer.BadParameter("'' is not a path")
    return paths

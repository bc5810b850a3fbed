"""The sidecar: a TOML file in which the user states the geometry of layers.

::

    [defaults]
    size = [32, 32]

    [layers."layer2.*.conv1"]      # a glob on layer names
    stride = 2                     # an integer, or one a spatial axis

``[defaults]`` comes first wherever it stands; of the ``[layers]`` tables the later wins, field by field. A default
with one number an axis holds for layers with that many axes and says nothing about others; in a ``[layers]`` table a
wrong number of axes is an error.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from convsv.errors import GeometryError, error_context
from convsv.geometry import PADDINGS, GeometryFacts
from convsv.tomlfile import near_miss, read_toml, shown

__all__ = ["Sidecar", "Table", "read_sidecar"]

_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Table:
    """One table of a sidecar.

    Attributes:
        glob: the glob on layer names, ``"*"`` for the defaults.
        facts: what it states, in values that are possible in themselves.
        max_norm: the largest norm wanted, if stated.
    """

    glob: str
    facts: GeometryFacts = field(default_factory=GeometryFacts)
    max_norm: float | None = None


@dataclass(frozen=True)
class Sidecar:
    """A geometry file, read and checked.

    Attributes:
        path: as the user named it.
        defaults: the ``[defaults]`` table.
        tables: the ``[layers."glob"]`` tables, in the file's order.
    """

    path: str
    defaults: Table = field(default_factory=lambda: Table("*"))
    tables: tuple[Table, ...] = ()

    def facts(self, name: str, dims: int) -> GeometryFacts:
        """Return what the file states about one layer.

        Args:
            name: the layer's name.
            dims: its number of spatial axes.

        Raises:
            GeometryError: a ``[layers]`` table that matches it has values for another number of axes.
        """
        stated = {key: said for key, said in _said(self.defaults.facts).items() if _axes(said) in (None, dims)}
        for table in self._matching(name):
            for key, said in _said(table.facts).items():
                if _axes(said) not in (None, dims):
                    raise GeometryError(
                        f"{key} in [layers.{_quoted(table.glob)}] must be one value or {dims}",
                        path=self.path,
                        tensor=name,
                        found=repr(said),
                    )
                stated[key] = said
        return replace(GeometryFacts(), **stated)

    def max_norm(self, name: str) -> float | None:
        """Return the largest norm the file allows a layer, or ``None``."""
        wanted = self.defaults.max_norm
        for table in self._matching(name):
            wanted = wanted if table.max_norm is None else table.max_norm
        return wanted

    @property
    def states_norms(self) -> bool:
        """Whether it states a largest norm for any layer."""
        return any(table.max_norm is not None for table in (self.defaults, *self.tables))

    def unmatched(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the globs that match none of these layer names."""
        known = frozenset(names)
        return tuple(table.glob for table in self.tables if not _any_matches(known, table.glob))

    def _matching(self, name: str) -> list[Table]:
        wild = (place for place in self._wild if fnmatchcase(name, self.tables[place].glob))
        return [self.tables[place] for place in sorted((*wild, *self._literal.get(name, ())))]

    # A file that states every layer by its own name has thousands of tables: those are looked up, not tried.

    @cached_property
    def _literal(self) -> Mapping[str, list[int]]:
        places: dict[str, list[int]] = {}
        for place, table in enumerate(self.tables):
            name = _only_name(table.glob)
            if name is not None:
                places.setdefault(name, []).append(place)
        return places

    @cached_property
    def _wild(self) -> tuple[int, ...]:
        return tuple(place for place, table in enumerate(self.tables) if _only_name(table.glob) is None)


def read_sidecar(path: str | os.PathLike[str]) -> Sidecar:
    """Read a geometry file.

    Args:
        path: a TOML file of at most 16 MiB.

    Raises:
        UsageError: it is not there, not a regular file, too large, or not TOML.
        GeometryError: it names an unknown table or key, or a value that is of the wrong type or impossible.
    """
    with error_context(path=str(path)):
        document = read_toml(path, "a geometry file")
        _refuse_unknown(document, ("defaults", "layers"), "table")
        layers = document.get("layers", {})
        if not isinstance(layers, dict):
            raise GeometryError("layers must hold tables", found=shown(layers), advice='write [layers."name"]')
        defaults = _table("[defaults]", "*", document.get("defaults", {}))
        tables = tuple(_table(f"[layers.{_quoted(glob)}]", glob, body) for glob, body in layers.items())
    return Sidecar(str(path), defaults, tables)


def _table(where: str, glob: str, body: object) -> Table:
    if not isinstance(body, dict):
        raise GeometryError(f"{where} must be a table", found=shown(body))
    _refuse_unknown(body, tuple(_CHECKS), "key", where)
    values = {key: _checked(f"{key} in {where}", _CHECKS[key], value) for key, value in body.items()}
    max_norm = values.pop("max_norm", None)
    return Table(glob, replace(GeometryFacts(), **values), max_norm)


def _refuse_unknown(body: Mapping[str, object], known: tuple[str, ...], what: str, where: str = "") -> None:
    for key in body:
        if key in known:
            continue
        where = f" in {where}" if where else ""
        raise GeometryError(f"unknown {what}{where}", found=shown(key), advice=near_miss(key, known))


# ------------------------------------------------------------------------------------------------------------- values
# A check returns the value as GeometryFacts wants it, or raises ValueError with what is expected.


def _checked(where: str, check: Callable[[object], Any], value: object) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise GeometryError(f"{where} must be {error}", found=shown(value)) from None


def _integer(value: object, least: int) -> int:
    # bool is an int in Python, not in TOML.
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
        raise ValueError(f"an integer of at least {least}")
    return value


def _per_axis(least: int) -> Callable[[object], int | tuple[int, ...]]:
    def check(value: object) -> int | tuple[int, ...]:
        try:
            if not isinstance(value, list):
                return _integer(value, least)
            if 1 <= len(value) <= 3:
                return tuple(_integer(item, least) for item in value)
        except ValueError:
            pass
        raise ValueError(f"an integer of at least {least}, or a list of one such a spatial axis")

    return check


def _padding(value: object) -> object:
    if value in ("same", "valid"):
        return value
    try:
        if isinstance(value, list) and value and all(isinstance(item, list) and len(item) == 2 for item in value):
            return tuple((_integer(before, 0), _integer(after, 0)) for before, after in value)
        return _per_axis(0)(value)
    except ValueError:
        raise ValueError('"same", "valid", an amount, or one amount or [before, after] a spatial axis') from None


def _padding_mode(value: object) -> str:
    if isinstance(value, str) and value in PADDINGS:
        return value
    raise ValueError(f"one of {', '.join(PADDINGS)}")


def _groups(value: object) -> int:
    return _integer(value, 1)


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def _norm(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError("a positive number")


_CHECKS: Mapping[str, Callable[[object], Any]] = {
    "size": _per_axis(1),
    "stride": _per_axis(1),
    "padding": _padding,
    "padding_mode": _padding_mode,
    "dilation": _per_axis(1),
    "groups": _groups,
    "transposed": _flag,
    "output_padding": _per_axis(0),
    "max_norm": _norm,
}


def _only_name(glob: str) -> str | None:
    """Return the one name that a glob matches, or None if it has a wildcard; ``[*]`` is a literal star."""
    name = re.sub(r"\[([*?\[])\]", r"\1", glob)
    wildcards = re.sub(r"\[[*?\[]\]", "", glob)
    return None if any(character in wildcards for character in "*?[") else name


def _any_matches(names: frozenset[str], glob: str) -> bool:
    name = _only_name(glob)
    return any(fnmatchcase(name, glob) for name in names) if name is None else name in names


def _said(facts: GeometryFacts) -> dict[str, Any]:
    return {name: said for name, said in vars(facts).items() if said is not None}


def _axes(value: object) -> int | None:
    """Return the number of axes a value speaks of; ``None`` where it holds for any."""
    return len(value) if isinstance(value, tuple) else None


def _quoted(glob: str) -> str:
    return '"' + glob.replace("\\", "\\\\").replace('"', '\\"') + '"'

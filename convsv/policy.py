"""What a gate demands of layers: limits by options, and by the TOML table ``[tool.convsv.check]``.

::

    [tool.convsv.check]
    max_norm = 1.0
    max_product = 100.0

    [tool.convsv.check.layers."layer4.*"]     # a glob on layer names; of several tables the later wins, key by key
    max_norm = 2.0
    severity = "warn"                         # off: not checked; warn: reported, the exit code stays; error

In a file of its own the tables may also stand without the ``tool.convsv.check`` in front.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from convsv.errors import UsageError, error_context
from convsv.results import Severity
from convsv.tomlfile import near_miss, read_toml, shown

__all__ = ["CRITERIA", "Limits", "Policy", "default_policy", "read_policy"]

CRITERIA = ("max_norm", "min_norm", "max_condition")
"""What may be demanded of one layer."""
_SEVERITIES: tuple[str, ...] = get_args(Severity)
_TABLE = ("tool", "convsv", "check")
_NAME = "[tool.convsv.check]"


@dataclass(frozen=True)
class Limits:
    """What is demanded of one layer; None demands nothing.

    Attributes:
        max_norm: most that its size-free norm may be.
        min_norm: least that its smallest singular value may be.
        max_condition: most that its largest singular value may be of its smallest.
        severity: what follows when it does not keep to them.
    """

    max_norm: float | None = None
    min_norm: float | None = None
    max_condition: float | None = None
    severity: Severity = "error"

    @property
    def wanted(self) -> Mapping[str, float]:
        """The limits there are, by criterion."""
        stated = {name: getattr(self, name) for name in CRITERIA}
        return {name: limit for name, limit in stated.items() if limit is not None}


@dataclass(frozen=True)
class Policy:
    """What is demanded of every layer.

    Attributes:
        defaults: of a layer about which nothing else is said.
        tables: glob on layer names -> fields of :class:`Limits`, in order; the later wins, key by key.
        max_product: most that the product of the norms of all layers of a checkpoint may be.
        norms: the largest norm that a geometry file states for a layer: over the defaults, under the tables.
        path: the file it was read from.
    """

    defaults: Limits = field(default_factory=Limits)
    tables: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    max_product: float | None = None
    norms: Callable[[str], float | None] | None = None
    path: str | None = None

    def limits(self, name: str) -> Limits:
        """Return what is demanded of a layer."""
        found = self.defaults
        stated = self.norms(name) if self.norms else None
        if stated is not None:
            found = replace(found, max_norm=stated)
        for glob, values in self.tables:
            if fnmatchcase(name, glob):
                found = replace(found, **values)
        return found

    @property
    def is_empty(self) -> bool:
        """Whether it demands nothing of any layer, whatever a geometry file may say."""
        stated = any(key in CRITERIA for _, values in self.tables for key in values)
        return not (self.defaults.wanted or self.max_product or stated)

    def unmatched(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the globs that match none of these layer names."""
        known = tuple(names)
        return tuple(glob for glob, _ in self.tables if not any(fnmatchcase(name, glob) for name in known))

    def overruled(self, options: Mapping[str, Any]) -> Policy:
        """Return the policy with options in the place of its defaults; options that are None say nothing.

        Args:
            options: fields of :class:`Limits`, and ``max_product``.
        """
        said = {name: value for name, value in options.items() if value is not None}
        product = said.pop("max_product", self.max_product)
        return replace(self, defaults=replace(self.defaults, **said), max_product=product)


def default_policy(folder: str | os.PathLike[str] = ".") -> Policy:
    """Return the policy in the ``pyproject.toml`` of a folder; an empty one where there is none.

    Raises:
        UsageError: the file is not TOML, or its table is not as it must be.
    """
    path = Path(folder) / "pyproject.toml"
    if not path.is_file():
        return Policy()
    with error_context(path=str(path)):
        table = _inner(read_toml(path, "a project file"))
        return Policy() if table is None else _policy(table, str(path), _NAME)


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """Return the policy in a TOML file: in its table ``[tool.convsv.check]``, or without one at its top.

    Raises:
        UsageError: it is not there or not TOML, or it has a key or a value that is not as it must be.
    """
    with error_context(path=str(path)):
        document = read_toml(path, "a file of limits")
        if "tool" not in document:
            return _policy(document, str(path), "the file")
        table = _inner(document)
        if table is None:
            raise UsageError(f"has no table {_NAME}")
        return _policy(table, str(path), _NAME)


def _inner(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the table of this program, if the file has it.

    Raises:
        UsageError: something else has its name.
    """
    found: Any = document
    for key in _TABLE:
        if not isinstance(found, dict):
            raise UsageError(f"{_NAME} must be a table", found=shown(found))
        if key not in found:
            return None
        found = found[key]
    if not isinstance(found, dict):
        raise UsageError(f"{_NAME} must be a table", found=shown(found))
    return found


def _policy(table: Mapping[str, Any], path: str, where: str) -> Policy:
    own = {key: value for key, value in table.items() if key not in ("layers", "max_product")}
    defaults = Limits(**_checked(own, where, (*CRITERIA, "severity", "max_product", "layers")))
    product = table.get("max_product")
    layers = table.get("layers", {})
    if not isinstance(layers, dict):
        raise UsageError(
            "layers must hold tables", found=shown(layers), advice='write [tool.convsv.check.layers."name"]'
        )
    tables = []
    for glob, body in layers.items():
        place = f'layers."{glob}"'
        if not isinstance(body, dict):
            raise UsageError(f"{place} must be a table", found=shown(body))
        tables.append((glob, _checked(body, place, (*CRITERIA, "severity"))))
    limit = None if product is None else _positive(f"max_product in {where}", product)
    return Policy(defaults, tuple(tables), limit, path=path)


def _checked(body: Mapping[str, Any], where: str, known: tuple[str, ...]) -> dict[str, Any]:
    for key in body:
        if key not in known:
            raise UsageError(f"unknown key in {where}", found=shown(key), advice=near_miss(key, known))
    return {
        key: _severity(f"{key} in {where}", value) if key == "severity" else _positive(f"{key} in {where}", value)
        for key, value in body.items()
    }


def _severity(where: str, value: object) -> str:
    if isinstance(value, str) and value in _SEVERITIES:
        return value
    raise UsageError(f"{where} must be one of {', '.join(_SEVERITIES)}", found=shown(value))


def _positive(where: str, value: object) -> float:
    # bool is an int in Python, not in TOML.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= sys.float_info.max:
        return float(value)
    raise UsageError(f"{where} must be a positive number", found=shown(value))

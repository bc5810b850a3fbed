"""What a result depends on, as a name: equal names, equal results.

Everything that can change a number is in it: the kernel's bytes as they are read, the geometry with what of it is
guessed, every option of the computation, the libraries that compute, and this program's own code.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from blake3 import blake3

from convsv import __version__
from convsv.geometry import Geometry
from convsv.layer import ConvLayer

__all__ = ["Computation", "digest", "layer_key"]

_SCHEMA = 6
"""Of what is kept; another number makes all that was kept before foreign."""
_INDIFFERENT = ("jobs", "device", "sharers")
"""Fields of options that change the time; of the device its kind counts, which is stated apart."""
_GEOMETRIES = 1024
"""Most geometries whose digests are at hand; few occur in a run, each in many layers."""
_ELSEWHERE = ("cli", "reports", "cache")
"""Parts of this program that no result depends on; the schema speaks for the last."""


@dataclass(frozen=True)
class Computation:
    """How results are computed: everything they depend on beside the layer.

    Attributes:
        options: dataclasses and plain values, by name.
        device: kind of device: ``cpu`` or ``cuda``.
        memory: budget in bytes; layers whose kernel exceeds it are not even read.
    """

    options: Mapping[str, Any]
    device: str
    memory: int = field(default=1 << 62)

    @cached_property
    def name(self) -> str:
        """The same for computations that come to the same results."""
        libraries = {name: metadata.version(name) for name in ("numpy", "torch")}
        whole = {
            "schema": _SCHEMA,
            "version": __version__,
            "code": _code(),
            "libraries": libraries,
            "device": self.device,
            "memory": self.memory,
            "options": self.options,
        }
        return digest(whole)


def digest(value: Any) -> str:
    """Return a hash of dataclasses, mappings, sequences, strings and numbers, in hexadecimal.

    Raises:
        TypeError: there is something else in it.
    """
    return hashlib.sha256(_WRITER.encode(value).encode("ascii")).hexdigest()


def _plain(value: Any) -> Any:
    """Return a dataclass or mapping as JSON can hold it; what is in it comes here by itself.

    Raises:
        TypeError: it is neither.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {name: getattr(value, name) for name in _names(type(value))}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} has no name")


@lru_cache(maxsize=64)
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind) if f.name not in _INDIFFERENT)


_WRITER = json.JSONEncoder(sort_keys=True, default=_plain)


def layer_key(layer: ConvLayer, computation: Computation, more: str | None = None) -> str | None:
    """Return the name of a layer's results; None where none are kept: it is not computed, not read, or has no name.

    The layer's own name is no part of it: of tied layers the results are the same.

    Args:
        layer: the layer. Its tensor is read.
        computation: how the results are computed.
        more: what else they depend on, as text.
    """
    if layer.problem or 8 * math.prod(layer.shape) > computation.memory:
        return None
    try:
        name = computation.name
        kernel = layer.read()
    except Exception:  # noqa: BLE001 - whoever computes meets it again, and says what it is
        return None
    folded = layer.folded
    facts = (
        (name, more, _geometry_digest(layer.geometry)),
        (layer.shape, layer.dtype, layer.layout, None if folded is None else (float(folded.epsilon), folded.known)),
        (kernel.shape, _dtype_name(kernel.dtype), kernel.dtype.byteorder),
    )
    whole = blake3(msgspec.msgpack.encode(facts))
    content: Any = np.ascontiguousarray(kernel).reshape(-1).view(np.uint8)
    whole.update(content)  # MessagePack tells where it ends itself
    return whole.hexdigest()


_geometries: dict[int, tuple[Geometry, str]] = {}
"""Geometries and their digests, by ``id``: alike checkpoints share them."""


def _geometry_digest(geometry: Geometry) -> str:
    known = _geometries.get(id(geometry))
    if known is not None:
        return known[1]
    if len(_geometries) >= _GEOMETRIES:
        _geometries.clear()
    # It is held, so that no other one has its id meanwhile.
    _, found = _geometries[id(geometry)] = geometry, digest(geometry)
    return found


@lru_cache(maxsize=64)
def _dtype_name(dtype: np.dtype[Any]) -> str:
    return str(dtype.name)


@lru_cache(maxsize=1)
def _code() -> str:
    """Return a hash of this program, so that an edited one never reports what it would no longer compute."""
    whole = hashlib.sha256()
    for name, content in _sources(Path(__file__).resolve().parents[1]):
        whole.update(f"{name} {len(content)}\n".encode())
        whole.update(content)
    return whole.hexdigest()


def _sources(package: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in _ELSEWHERE:
            yield name.as_posix(), path.read_bytes()

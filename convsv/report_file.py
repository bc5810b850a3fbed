"""Reading a JSON report back: the inverse of the JSON writer, as far as other commands need it.

What later versions add is ignored. What this version needs and does not find, or finds with another type, makes the
file unreadable: nothing is guessed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from convsv.errors import CorruptCheckpointError, GeometryError, UsageError, error_context
from convsv.files import beginning
from convsv.geometry import ORIGINS, Geometry
from convsv.results import (
    Check,
    CheckpointReport,
    Finding,
    Guarantee,
    Histogram,
    Interval,
    LayerReport,
    Report,
    Severity,
    Spectrum,
    Verdict,
)

__all__ = ["looks_like_report", "read_report"]

SCHEMA = "convsv/1"
_MAX_BYTES = 1 << 30
_HEAD = 4096

Object = Mapping[str, Any]


def looks_like_report(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file begins as a report does: an object whose first key is ``schema``."""
    try:
        head = beginning(path, _HEAD)
    except UsageError:
        return False
    return b"".join(head.split()).startswith(b'{"schema":')


def read_report(path: str | os.PathLike[str]) -> Report:
    """Return a report that ``-o FILE.json`` wrote: everything but published bounds and what clipping did.

    Args:
        path: a JSON file of at most 1 GiB.

    Raises:
        UsageError: it is not there.
        CorruptCheckpointError: it is no report, or not a whole one.
    """
    with error_context(path=str(path)):
        whole = _parsed(path)
        if not isinstance(whole, dict) or whole.get("schema") != SCHEMA:
            found = whole.get("schema") if isinstance(whole, dict) else type(whole).__name__
            raise CorruptCheckpointError(f"is no report of the schema {SCHEMA}", found=repr(found))
        try:
            return Report(
                command=_word(whole["command"]),
                settings=dict(_object(whole["settings"])),
                checkpoints=tuple(_checkpoint(_object(entry)) for entry in whole["checkpoints"]),
                partial=whole["partial"] is True,
            )
        except GeometryError as error:
            raise CorruptCheckpointError("is not a whole report", found=str(error)) from None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise CorruptCheckpointError("is not a whole report", found=what, advice="write it again") from None


def _parsed(path: str | os.PathLike[str]) -> Any:
    content = beginning(path, _MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise CorruptCheckpointError(f"a report may have at most {_MAX_BYTES} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError("is not JSON", found=str(error) or "too deeply nested") from None


# --------------------------------------------------------------------------------------------------------------- parts


def _checkpoint(entry: Object) -> CheckpointReport:
    sha256 = entry.get("sha256")
    return CheckpointReport(
        path=_text(entry["path"]),
        format=_word(entry["format"]),
        sha256=None if sha256 is None else _text(sha256),
        problems=_texts(entry["problems"]),
        layers=tuple(_layer(_object(layer)) for layer in entry["layers"]),
        check=_check(entry.get("check")),
    )


def _layer(entry: Object) -> LayerReport:
    results = {
        _word(name): _spectrum(_word(name), _object(found))
        for name, found in _object(entry["results"]).items()
        if name != "bounds"
    }
    folded = entry.get("folded")
    return LayerReport(
        name=_text(entry["name"]),
        weight=_text(entry["weight"]),
        kind=_word(entry["kind"]),
        shape=_integers(entry["shape"]),
        dtype=_word(entry["dtype"]),
        geometry=_geometry(_object(entry["geometry"])),
        norm=_interval(entry["norm"]),
        norm_at_size=_interval(entry["norm_at_size"]),
        symbol_min=_interval(entry.get("symbol_min")),
        results=results,
        unavailable={_word(name): _text(why) for name, why in _object(entry["unavailable"]).items()},
        notes=_texts(entry.get("notes", [])),
        folded=None if folded is None else _text(folded),
        check=_check(entry.get("check")),
    )


def _geometry(entry: Object) -> Geometry:
    return Geometry(
        size=_integers(entry["size"]),
        stride=_integers(entry["stride"]),
        padding=tuple(_pair(pair) for pair in entry["padding"]),
        padding_mode=_word(entry["padding_mode"]),
        dilation=_integers(entry["dilation"]),
        groups=_integer(entry["groups"]),
        transposed=entry["transposed"] is True,
        output_padding=_integers(entry["output_padding"]),
        origin={_word(fact): _one_of(source, ORIGINS) for fact, source in _object(entry["origin"]).items()},
    )


def _interval(entry: Any) -> Interval | None:
    if entry is None:
        return None
    found = _object(entry)
    assumes = _object(found["assumes"])
    return Interval(
        lower=_number(found["lower"], 0.0),
        upper=_number(found["upper"], math.inf),
        of=_word(found["of"]),
        guarantee=_guarantee(found["guarantee"]),
        assumes={end: _words(assumes[end]) for end in ("lower", "upper")},
    )


def _spectrum(method: str, entry: Object) -> Spectrum:
    histogram, values = entry.get("histogram"), entry.get("values")
    return Spectrum(
        method=method,
        of=_word(entry["of"]),
        guarantee=_guarantee(entry["guarantee"]),
        count=_integer(entry["count"]),
        max=_number(entry["max"], math.nan),
        min=_number(entry["min"], math.nan),
        frobenius=_number(entry["frobenius"], math.nan),
        stable_rank=_optional(entry["stable_rank"]),
        effective_rank=_optional(entry["effective_rank"]),
        condition=_optional(entry["condition"]),
        quantiles={_word(p): _number(value, math.nan) for p, value in _object(entry["quantiles"]).items()},
        error=_optional(entry.get("error")),
        kind=_word(entry["kind"]),
        assumes=_words(entry.get("assumes", [])),
        values=None if values is None else np.array([_number(value, math.nan) for value in values], dtype=np.float64),
        histogram=None if histogram is None else _histogram(_object(histogram)),
        quantile_error=_number(entry.get("quantile_error", 0.0), math.inf),
    )


def _histogram(entry: Object) -> Histogram:
    return Histogram(_number(entry["top"], math.inf), _integers(entry["counts"]))


def _check(entry: Any) -> Check | None:
    if entry is None:
        return None
    found = _object(entry)
    findings = tuple(_finding(_word(name), _object(each)) for name, each in _object(found["criteria"]).items())
    return Check(_one_of(found["severity"], get_args(Severity)), findings)


def _finding(criterion: str, entry: Object) -> Finding:
    return Finding(
        criterion=criterion,
        limit=_number(entry["limit"], math.inf),
        verdict=_one_of(entry["verdict"], get_args(Verdict)),
        interval=_interval(entry["interval"]),
        reason=_text(entry["reason"]),
        accepted=entry["accepted"] is True,
    )


# --------------------------------------------------------------------------------------------------------------- values


def _object(value: Any) -> Object:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} where an object belongs")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where text belongs")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(item) for item in value)


def _word(value: Any) -> str:
    """Return a word of ours: nothing that writers would have to escape, as they do the names of strangers.

    Raises:
        ValueError: it cannot be one.
    """
    if not (text := _text(value)).isprintable():
        raise ValueError(f"{value!r} is no word")
    return text


def _words(value: Any) -> tuple[str, ...]:
    return tuple(_word(item) for item in value)


def _number(value: Any, missing: float) -> float:
    """Return a number; ``missing`` for null, which stands for one that is not finite.

    Raises:
        TypeError: it is neither.
    """
    if value is None:
        return missing
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{type(value).__name__} where a number belongs")
    return float(value)


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value, math.nan)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} where an integer belongs")
    return value


def _integers(value: Any) -> tuple[int, ...]:
    return tuple(_integer(item) for item in value)


def _pair(value: Any) -> tuple[int, int]:
    before, after = _integers(value)
    return before, after


def _guarantee(value: Any) -> Guarantee:
    found: Guarantee = _one_of(value, get_args(Guarantee))
    return found


def _one_of(value: Any, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return value

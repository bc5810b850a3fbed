"""The JSON Schema of reports as Markdown: a table an object, so that a reader need not know JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from tables import escaped, table

Schema = Mapping[str, Any]


def json_keys() -> str:
    """Return a table a kind of object: its keys, what they hold, whether they are always there."""
    text = resources.files("convsv.reports").joinpath("report.schema.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    objects = {"report": schema} | {name: found for name, found in schema["$defs"].items() if "properties" in found}
    return "\n\n".join(_section(name, found, schema["$defs"]) for name, found in objects.items())


def _section(name: str, found: Schema, shared: Schema) -> str:
    said = found.get("description", "")
    said = f"{said[:1].upper()}{said[1:].removesuffix('.')}." if said else ""
    parts = [_words(part, shared) for part in found.get("allOf", ())]
    also = f"All keys of {', '.join(parts)}, and:" if parts else ""
    rows = table(["key", "value", "always", "meaning"], _rows(found, shared, ""))
    return "\n\n".join(filter(None, [f"### {name}", escaped(" ".join(filter(None, [said, also]))), rows]))


def _rows(found: Schema, shared: Schema, prefix: str) -> Iterator[list[str]]:
    """Yield a row a key, and below a key whose object has no name of its own that object's keys."""
    for key, value in found["properties"].items():
        always = "yes" if key in found.get("required", ()) else ""
        meaning = value.get("description") or shared.get(_name(value), {}).get("description", "")
        if _is_section(value, shared):
            meaning = value.get("description", "")
        yield [f"`{prefix}{key}`", _words(value, shared), always, escaped(meaning)]
        inner = value.get("items", value)
        if "properties" in inner:
            yield from _rows(inner, shared, f"{prefix}{key}{'[]' if inner is not value else ''}.")


def _name(value: Schema) -> str:
    return str(value.get("$ref", "")).rpartition("/")[2]


def _is_section(value: Schema, shared: Schema) -> bool:
    return "properties" in shared.get(_name(value), {})


def _words(value: Schema, shared: Schema) -> str:
    """Return what a value is, as a table cell."""
    name = _name(value)
    if name:
        return f"[{name}](#{name})" if _is_section(value, shared) else _words(shared[name], shared)
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in value["enum"])
    kinds = value.get("type", "object")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    return " or ".join(_kind(kind, value, shared) for kind in kinds)


def _kind(kind: str, value: Schema, shared: Schema) -> str:
    if kind == "array" and "items" in value:
        return f"array of {_words(value['items'], shared)}"
    held = value.get("additionalProperties")
    return f"object of {_words(held, shared)}" if kind == "object" and isinstance(held, Mapping) else kind

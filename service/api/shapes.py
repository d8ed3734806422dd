"""JSON schemas in a reader's words: the fields of an object in a table, the type of a field in a phrase."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.api.html import Html, code, join, prose, table, tag, text

Object = dict[str, Any]


def fields(api: Object, schema: Object, fold: str = "") -> Html | None:
    """The fields of an object, in a table; None for what is no object of the document."""
    if "$ref" not in schema:
        return None
    listed = table(("field", "type", "what"), _rows(api, schema["$ref"], ""))
    return tag("details", tag("summary", fold), listed) if fold else listed


def _rows(api: Object, ref: str, prefix: str) -> Iterator[tuple[Html, Html, Html]]:
    """A row for each field, and below it one for each field of the object that it holds."""
    found = api["components"]["schemas"][ref.rsplit("/", 1)[1]]
    required = found.get("required", [])
    for name, field in found.get("properties", {}).items():
        # Only of a request: that a reply always has a field needs no word
        needed = "required. " if name in required and "additionalProperties" in found else ""
        what = join((needed, prose(field.get("description", ""))))
        yield code(prefix + name), kind(field), what
        for held, mark in _held(field):
            yield from _rows(api, held, f"{prefix}{name}{mark}.")


def _held(schema: Object, mark: str = "") -> Iterator[tuple[str, str]]:
    """The references in a field to other objects, with [] for each list around them."""
    if "$ref" in schema:
        yield schema["$ref"], mark
    for option in schema.get("anyOf", []):
        yield from _held(option, mark)
    if isinstance(schema.get("items"), dict):
        yield from _held(schema["items"], mark + "[]")


LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minItems": "{} or more",
    "maxItems": "at most {}",
    "pattern": "{}",
}


def kind(schema: Object) -> Html:
    """A schema in a few words; null is not told, as it is no more than absent."""
    if "$ref" in schema:
        return text("object")
    if "anyOf" in schema:
        first, *rest = (kind(s) for s in schema["anyOf"] if s.get("type") != "null")
        return join((first, *(part for other in rest for part in (" or ", other))))
    if "enum" in schema or "const" in schema:
        return join(part for v in schema.get("enum", [schema.get("const")]) for part in (code(v), " "))
    name = schema.get("type", "any")
    if name == "array":
        return join(("[", kind(schema.get("items", {})), "]", _limits(schema)))
    return join((name, _limits(schema)))


def _limits(schema: Object) -> Html:
    told = [code(form.format(schema[key])) for key, form in LIMITS.items() if key in schema]
    return join(part for limit in told for part in (" ", limit))

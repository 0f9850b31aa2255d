"""Reads JSON Schemas as far as the grammar library needs help: what to leave out, and where a fault lies.

Knows which keywords hold schemas (drafts 4 to 2020-12), nothing of grammars or tokens. Called by `grammar`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

ENFORCED_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
"""Formats the library turns into grammar. Others are annotations, as draft 2020-12 has it, section 7.2.1."""

ONE = (
    "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames",
    "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
LIST = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
MAP = ("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties")
SHARED = ("$defs", "$id", "$schema", "definitions", "id")
"""Keywords of a whole schema that its parts refer to."""

SEARCH_SECONDS = 0.5
MAX_PATH_CHARS = 200


def without_annotations(schema: Any) -> Any:
    """The schema without formats that nobody enforces; instances are valid by one as by the other."""
    if not isinstance(schema, Mapping):
        return schema
    kept = {key: _part(key, value) for key, value in schema.items()}
    if isinstance(found := kept.get("format"), str) and found not in ENFORCED_FORMATS:
        del kept["format"]
    return kept


def _part(key: str, value: Any) -> Any:
    if key in MAP and isinstance(value, Mapping):
        return {name: without_annotations(each) for name, each in value.items()}
    if key in LIST and isinstance(value, list):
        return [without_annotations(each) for each in value]
    return without_annotations(value) if key in ONE else value


def fault_path(schema: Any, error: str, error_of: Callable[[Any], str | None]) -> str:
    """JSON Pointer, as a URI fragment, of the innermost part that has the same `error` by itself.

    `error_of` says what is wrong with a schema. Looks for half a second, then names the part found so far.
    """
    deadline = time.monotonic() + SEARCH_SECONDS
    path, part = "#", schema
    seen: set[str] = set()
    while isinstance(part, Mapping) and path not in seen:
        seen.add(path)
        for step, child in _steps(schema, path, part):
            if time.monotonic() > deadline:
                return _shown(path)
            if isinstance(child, Mapping) and error_of(_alone(schema, child)) == error:
                path, part = step, child
                break
        else:
            break
    return _shown(path)


def _alone(schema: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """A part as a schema by itself, with the definitions it may refer to."""
    return {key: schema[key] for key in SHARED if key in schema} | dict(part)


def _steps(schema: Any, path: str, part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas directly inside one, with their paths; where a reference leads comes first."""
    reference = part.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        yield reference, _resolve(schema, reference)
    for key, value in part.items():
        here = f"{path}/{_escaped(key)}"
        if key in MAP and isinstance(value, Mapping):
            yield from ((f"{here}/{_escaped(name)}", each) for name, each in value.items())
        elif key in LIST and isinstance(value, list):
            yield from ((f"{here}/{index}", each) for index, each in enumerate(value))
        elif key in ONE:
            yield here, value


def _resolve(schema: Any, reference: str) -> Any:
    found = schema
    for step in reference[2:].split("/"):
        key = step.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _shown(path: str) -> str:
    return path if len(path) <= MAX_PATH_CHARS else f"{path[:MAX_PATH_CHARS]}..."

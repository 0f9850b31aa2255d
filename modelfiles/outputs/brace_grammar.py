"""JSON Schema as Lark rules of the brace syntax in which Gemma 4 and FunctionGemma write arguments.

Keys stand bare and sorted, strings between two quote markers; numbers are written as in JSON. What of a
schema has no counterpart (patterns, formats, `not`) is left to the model; `$ref` is followed inside it.
Used by `toolcall_grammar`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 12
"""Nesting of a schema after which anything is admitted; also ends schemas that refer to themselves."""

COMMON_RULES = (
    'bool: "true" | "false"',
    "integer: /-?(0|[1-9][0-9]{0,17})/",
    "number: /-?(0|[1-9][0-9]{0,17})(\\.[0-9]{1,17})?([eE][+-]?[0-9]{1,3})?/",
    'any: string | number | bool | "null" | any_list | any_object',
    'any_list: "[" (any ("," any)*)? "]"',
    'any_object: "{" (any_pair ("," any_pair)*)? "}"',
    'any_pair: /[A-Za-z_][A-Za-z0-9_]*/ ":" any',
)
_BARE_KEY = re.compile(r"[^\s{}\[\],:\"<>]+")
RANGE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
MOST_COUNTED = 10_000
"""A longer string or list than this is not counted."""

_SIMPLE = {"string": "string", "integer": "integer", "number": "number", "boolean": "bool", "null": '"null"'}


class BraceRules:
    """Collects rules; `add` gives the name of the rule for a schema. `quote` is the marker's symbol."""

    def __init__(self, quote: str, quote_is_text: bool = False) -> None:
        self._quote = quote
        self._inside = "[^<]" if quote_is_text else "(.|\\n)"
        self.rules = [
            f"string: {quote} STRING_TEXT {quote}",
            f"STRING_TEXT: /{self._inside}*/",
            *COMMON_RULES,
        ]
        self._root: Mapping[str, Any] = {}
        self._count = 0

    def add(self, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
        """The rule for the arguments of one function; `root` is where `$ref`s lead into."""
        self._root = root
        return self._symbol(schema, 0)

    def _rule(self, body: str) -> str:
        self._count += 1
        name = f"value_{self._count}"
        self.rules.append(f"{name}: {body}")
        return name

    def _symbol(self, schema: Any, depth: int) -> str:
        """A symbol that admits the values of a schema."""
        schema = self._resolve(schema)
        if depth > MAX_DEPTH or not isinstance(schema, Mapping):
            return "any"
        if "const" in schema or "enum" in schema:
            choices = schema.get("enum", [schema.get("const")])
            return self._rule(" | ".join(self._constant(value) for value in choices) or "any")
        for key in ("anyOf", "oneOf"):
            if schema.get(key):
                return self._rule(" | ".join(self._symbol(choice, depth + 1) for choice in schema[key]))
        kinds = schema.get("type")
        if isinstance(kinds, list):
            return self._rule(
                " | ".join(self._symbol({**schema, "type": k}, depth + 1) for k in kinds) or "any"
            )
        if kinds == "array":
            return self._array(schema, depth)
        if kinds == "string" and _bounds(schema, "Length") != (0, None):
            return self._string(schema)
        if kinds in ("integer", "number") and any(key in schema for key in RANGE):
            kept = {key: schema[key] for key in ("type", *RANGE) if key in schema}
            return self._rule(f"%json {json.dumps(kept)}")
        if kinds == "object" or "properties" in schema:
            return self._object(schema, depth)
        return _SIMPLE.get(str(kinds), "any")

    def _resolve(self, schema: Any) -> Any:
        """Follows local references."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, Mapping) or "$ref" not in schema:
                return schema
            found: Any = self._root
            for part in str(schema["$ref"]).removeprefix("#").strip("/").split("/"):
                found = found.get(part, True) if part and isinstance(found, Mapping) else found
            schema = found
        return True

    def _constant(self, value: Any) -> str:
        """One value as the parser reads it back."""
        if isinstance(value, str):
            return (
                f"{self._quote} {json.dumps(value, ensure_ascii=False)} {self._quote}"
                if value
                else (f"{self._quote} {self._quote}")
            )
        if isinstance(value, list):
            return " ".join(['"["', ' "," '.join(map(self._constant, value)), '"]"'])
        if isinstance(value, Mapping):
            pairs = (f"{json.dumps(key + ':')} {self._constant(item)}" for key, item in sorted(value.items()))
            return " ".join(['"{"', ' "," '.join(pairs), '"}"'])
        return json.dumps(json.dumps(value))

    def _string(self, schema: Mapping[str, Any]) -> str:
        least, most = _bounds(schema, "Length")
        self._count += 1
        text = f"STRING_TEXT_{self._count}"
        self.rules.append(f"{text}: /{self._inside}{{{least},{'' if most is None else most}}}/")
        return self._rule(f"{self._quote} {text} {self._quote}")

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        least, most = _bounds(schema, "Items")
        if most == 0:
            return self._rule('"[" "]"')
        item = self._symbol(schema.get("items", True), depth + 1)
        more = f'{item} ("," {item}){{{max(0, least - 1)},{"" if most is None else most - 1}}}'
        return self._rule(f'"[" {more} "]"' if least else f'"[" ({more})? "]"')

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        """Properties in the order of their names; each optional one may be missing."""
        properties = schema.get("properties") or {}
        names = sorted((name for name in properties if _BARE_KEY.fullmatch(name)), key=str.lower)
        if not names:
            return "any_object" if schema.get("additionalProperties", True) else self._rule('"{" "}"')
        required = set(schema.get("required") or ())
        after, first = '""', '""'
        for name in reversed(names):
            pair = f"{json.dumps(name + ':', ensure_ascii=False)} {self._symbol(properties[name], depth + 1)}"
            if name in required:
                after, first = self._rule(f'"," {pair} {after}'), self._rule(f"{pair} {after}")
            else:
                after, first = (
                    self._rule(f'("," {pair})? {after}'),
                    self._rule(f"{pair} {after} | {first}"),
                )
        return self._rule(f'"{{" {first} "}}"')


def _bounds(schema: Mapping[str, Any], of: str) -> tuple[int, int | None]:
    """`minX` and `maxX` of a schema, those that are sensible."""
    least, most = schema.get(f"min{of}"), schema.get(f"max{of}")
    low = least if isinstance(least, int) and 0 < least <= MOST_COUNTED else 0
    high = most if isinstance(most, int) and low <= most <= MOST_COUNTED else None
    return low, high

"""What is left out of schemas, and where their faults lie."""

from __future__ import annotations

import json
import time

import pytest

from engines.base import Grammar, InvalidRequest
from engines.grammar import check_grammar
from engines.json_schema import fault_path, without_annotations


def test_only_formats_that_nobody_enforces_are_left_out() -> None:
    schema = {
        "type": "object",
        "properties": {
            "format": {"type": "string", "format": "path"},
            "when": {"type": "string", "format": "date"},
            "many": {"type": "array", "items": {"anyOf": [{"format": "byte"}, {"type": "null"}]}},
        },
        "const": {"format": "path"},
        "$defs": {"x": {"format": "x"}},
    }
    assert without_annotations(schema) == {
        "type": "object",
        "properties": {
            "format": {"type": "string"},
            "when": {"type": "string", "format": "date"},
            "many": {"type": "array", "items": {"anyOf": [{}, {"type": "null"}]}},
        },
        "const": {"format": "path"},
        "$defs": {"x": {}},
    }


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"not": {"type": "string"}}, "#"),
        ({"properties": {"a": {"items": {"not": {}}}}}, "#/properties/a/items"),
        ({"properties": {"a/b~c": {"type": "wrong"}}}, "#/properties/a~1b~0c"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}], "$defs": {"x": {"not": {}}}}, "#/$defs/x"),
        ({"properties": {"a": {"pattern": "("}}}, "#/properties/a"),
    ],
)
def test_the_part_at_fault_is_named(schema: object, path: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_grammar(Grammar("json_schema", json.dumps(schema)))
    assert f"(at {path})" in str(refused.value)


def test_the_search_for_the_part_ends_soon() -> None:
    def slow(_: object) -> str:
        time.sleep(0.1)
        return "always"

    schema: dict[str, object] = {"not": {}}
    for _ in range(200):
        schema = {"properties": {"x": schema, "y": schema}}
    started = time.monotonic()
    assert fault_path(schema, "always", slow).startswith("#/properties/x")
    assert time.monotonic() - started < 1

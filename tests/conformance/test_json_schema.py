"""A sample of the schemas that `make conformance` walks whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.base import Grammar
from engines.grammar import byte_tokenizer, compile_matcher
from tests.conformance.json_schema import accepts, differences, listed, run

SCHEMA = '{"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a", "b"]}'


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        ({"a": 1, "b": "x"}, True),
        ({"b": "x", "a": 1}, True),
        ({"b": "x", "more": [{"c": None}], "a": 1}, True),
        ({"a": "1", "b": "x"}, False),
        ({"b": "x"}, False),
    ],
)
def test_an_instance_is_tried_in_every_order_of_its_keys(value: object, valid: bool) -> None:
    matcher = compile_matcher(byte_tokenizer(), Grammar("json_schema", SCHEMA))
    assert accepts(matcher, value, {}) is valid


@pytest.mark.slow
def test_grammars_hold_schemas_as_listed(shared_data: Path) -> None:
    outcomes = run(shared_data, every=25)
    assert len(outcomes) > 60
    assert list(differences(outcomes, listed())) == []

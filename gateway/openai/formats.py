"""What a reply must look like: `response_format` and our peers' `guided_*`, to one grammar.

Pure; compiles nothing. Called by the `convert` of each dialect.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from engines.base import Grammar
from gateway.errors import BadRequest
from gateway.openai.schema import FormatBody, SamplingBody


def grammar(body: SamplingBody) -> Grammar | None:
    """The one constraint a body asks for; two different ones are refused."""
    found = [g for g in (_format(body.response_format), *_guides(body)) if g is not None]
    if len(found) > 1:
        raise BadRequest("ask for one of response_format and guided_*, not several", param="response_format")
    return found[0] if found else None


def _format(given: FormatBody | None) -> Grammar | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return schema_grammar(given.schema_) if given.schema_ else Grammar("json", "")
    if given.type == "json_schema":
        schema = given.json_schema.schema_ if given.json_schema else given.schema_
        if schema is None:
            raise BadRequest(
                "response_format.json_schema.schema is required", param="response_format.json_schema.schema"
            )
        return schema_grammar(schema)
    raise BadRequest(
        f"response_format.type is {given.type!r}; it can be text, json_object or json_schema",
        param="response_format.type",
    )


def schema_grammar(schema: Mapping[str, Any]) -> Grammar:
    """A JSON Schema as the engine takes it."""
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False, separators=(",", ":")))


def _guides(body: SamplingBody) -> Iterable[Grammar]:
    inner = body.structured_outputs or {}
    schema = body.guided_json or inner.get("json")
    if schema is not None:
        yield Grammar("json_schema", schema) if isinstance(schema, str) else schema_grammar(schema)
    if regex := body.guided_regex or inner.get("regex"):
        yield Grammar("regex", str(regex))
    if choices := body.guided_choice or inner.get("choice"):
        yield Grammar("choice", json.dumps(choices, ensure_ascii=False))
    if lark := body.guided_grammar or inner.get("grammar"):
        yield Grammar("lark", str(lark))

"""The reader of the tagged syntax in which Qwen3-Coder writes calls.

`<tool_call><function=NAME><parameter=KEY>` value `</parameter></function></tool_call>`; values stand bare, so
what they are is the schema's to say. A generator like those of `call_readers`; text of a string argument is
passed on while it comes. The tags are markers of the convention, which is why each arrives whole. Used by
`parser`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Mapping
from typing import Any

from modelfiles.outputs.call_readers import ANY_TEXT, NotACall, Reader, Sink, Symbols, Wanted, skip_space

FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
CALL_END = "</tool_call>"
TAGS = frozenset((FUNCTION, FUNCTION_END, PARAMETER, PARAMETER_END))
LONGEST_NAME = 256
DEEPEST_REFERENCE = 8
WORDS = {"true": True, "false": False, "null": None, "none": None}
"""What models write for these values, in whatever case."""

KINDS: Mapping[type, str] = {str: "string", list: "array", dict: "object"}


def read_tagged_calls(sink: Sink, closing: str | None = None) -> Reader:
    """The calls up to `closing`; without one, a single call whose `<function=` was read already."""
    symbol = FUNCTION if closing is None else (yield from skip_space())
    if symbol != FUNCTION:
        raise NotACall
    while symbol == FUNCTION:
        sink.name((yield from _read_name()))
        symbol = yield from _read_parameters(sink)
        sink.end_call()
        if symbol == FUNCTION_END:
            symbol = yield from skip_space()
    return None if symbol == CALL_END else symbol


def _read_name() -> Symbols:
    """A name up to the end of its tag."""
    name = ""
    while (symbol := (yield None)) != ">":
        name += symbol
        if len(symbol) > 1 or len(name) > LONGEST_NAME:
            raise NotACall
    return name.strip()


def _read_parameters(sink: Sink) -> Symbols:
    """All parameters as one JSON object; the symbol after the last."""
    sink.arguments("{")
    count = 0
    while (symbol := (yield from skip_space())) == PARAMETER:
        key = yield from _read_name()
        sink.arguments((", " if count else "") + json.dumps(key, ensure_ascii=False) + ": ")
        kinds = sink.kinds(key)
        if set(kinds) <= {"string"}:
            yield from _stream_text(sink)
        else:
            sink.arguments(value_of((yield from _read_text()), kinds))
        count += 1
    sink.arguments("}")
    return symbol


def _stream_text(sink: Sink) -> Generator[Wanted, str, None]:
    """A string while it comes, less the line breaks beside its tags."""
    sink.arguments('"')
    held, first = "", True
    while (symbol := (yield ANY_TEXT)) != PARAMETER_END:
        text = held + (symbol.removeprefix("\n") if first else symbol)
        first = False
        kept = text.removesuffix("\n")
        held = text[len(kept) :]
        sink.arguments(json.dumps(kept, ensure_ascii=False)[1:-1])
    sink.arguments('"')


def _read_text() -> Symbols:
    text = ""
    while (symbol := (yield ANY_TEXT)) != PARAMETER_END:
        text += symbol
    return text.removeprefix("\n").removesuffix("\n")


def value_of(text: str, kinds: Collection[str]) -> str:
    """JSON for a bare value of one of the schema's `kinds`; a string where it is none of them."""
    word = text.strip()
    try:
        value: Any = (
            WORDS[word.lower()] if word.lower() in WORDS else json.loads(word, parse_constant=_refuse)
        )
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    if not kinds_of_value(value) & set(kinds):
        return json.dumps(text, ensure_ascii=False)
    return word if word.lower() not in WORDS else json.dumps(value)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def kinds_of_value(value: Any) -> set[str]:
    """The names JSON Schema has for what a value is."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        whole = isinstance(value, int) or value.is_integer()
        return {"number", "integer"} if whole else {"number"}
    return {KINDS.get(type(value), "null")}


def kinds_of_schema(schema: Any, root: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    """The kinds a schema admits by `type`, `enum` or its alternatives; none when it does not say.

    `root` is where its references lead into; one that leads round in a circle says nothing.
    """
    if not isinstance(schema, Mapping) or depth > DEEPEST_REFERENCE:
        return frozenset()
    if isinstance(schema.get("$ref"), str):
        return kinds_of_schema(_target(schema["$ref"], root), root, depth + 1)
    given = schema.get("type")
    found = {given} if isinstance(given, str) else set(given) if isinstance(given, list) else set()
    if not found and isinstance(schema.get("enum"), list):
        found = set().union(*map(kinds_of_value, schema["enum"]))
    for choice in (*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())):
        found |= kinds_of_schema(choice, root, depth + 1)
    return frozenset(found)


def _target(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found

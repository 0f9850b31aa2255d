"""The functions a Go template may call: Go's builtins and those Ollama adds, in one table.

Knows values, not syntax; `and` and `or`, which do not evaluate all their arguments, are the evaluator's.
Faults are `TemplateError`s without line. Used by `golang_eval`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from modelfiles.templates.errors import Budget, TemplateError
from modelfiles.templates.go_printf import printf
from modelfiles.templates.go_values import (
    INVALID,
    Byte,
    Invalid,
    JsonMap,
    Struct,
    escape_html,
    escape_js,
    escape_url,
    format_value,
    from_bytes,
    to_bytes,
    to_json,
    type_name,
)
from modelfiles.templates.jinja_bounds import deep_size


def is_nil(value: Any) -> bool:
    """No value or a nil interface."""
    return value is None or isinstance(value, Invalid)


def is_true(value: Any) -> bool:
    """Go's truth: not the zero of its type; structs are always true."""
    return isinstance(value, Struct) or (not is_nil(value) and bool(value))


def _basic_kind(value: Any) -> str:
    """What comparisons tell apart; nothing for values that have no order."""
    for kind, name in ((bool, "bool"), (Byte, "uint"), (int, "int"), (float, "float"), (str, "string")):
        if isinstance(value, kind):
            return name
    return ""


def _incompatible(first: Any, second: Any) -> TemplateError:
    return TemplateError(f"incompatible types for comparison: {type_name(first)} and {type_name(second)}")


_INTEGERS = frozenset(("int", "uint"))


def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise TemplateError("missing argument for comparison")
    return any(_equal(first, other) for other in others)


def _equal(first: Any, second: Any) -> bool:
    one, two = _basic_kind(first), _basic_kind(second)
    if one != two and not {one, two} <= _INTEGERS:
        if is_nil(first) or is_nil(second):
            return False
        raise _incompatible(first, second)
    if one:
        return bool(first == second)
    if is_nil(first) or is_nil(second):
        return is_nil(first) and is_nil(second)
    raise TemplateError(f"non-comparable type {type_name(first)}")


def _lt(first: Any, second: Any) -> bool:
    one, two = _basic_kind(first), _basic_kind(second)
    if not one or not two:
        raise TemplateError("invalid type for comparison")
    if one != two and not {one, two} <= _INTEGERS:
        raise _incompatible(first, second)
    if one == "bool":
        raise TemplateError("invalid type for comparison")
    if one == "string":
        return to_bytes(first) < to_bytes(second)
    return bool(first < second)


def _le(first: Any, second: Any) -> bool:
    return _lt(first, second) or _equal(first, second)


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(to_bytes(value))
    if isinstance(value, list | dict):
        return len(value)
    raise TemplateError("len of nil pointer" if is_nil(value) else f"len of type {type_name(value)}")


def _position(index: Any, capacity: int) -> int:
    """An index checked against 0..capacity."""
    if isinstance(index, bool) or not isinstance(index, int):
        what = "nil" if is_nil(index) else f"type {type_name(index)}"
        raise TemplateError(f"cannot index slice/array with {what}")
    if not 0 <= index <= capacity:
        raise TemplateError(f"index out of range: {index}")
    return int(index)


def _index(value: Any, *indexes: Any) -> Any:
    if is_nil(value):
        raise TemplateError("index of untyped nil")
    for index in indexes:
        if is_nil(value):
            raise TemplateError("index of nil pointer")
        if isinstance(value, dict):
            if not isinstance(index, str):
                what = "value is nil" if is_nil(index) else f"value has type {type_name(index)}"
                raise TemplateError(f"{what}; should be string")
            value = value.get(index)
        elif isinstance(value, str | list):
            sequence = to_bytes(value) if isinstance(value, str) else value
            position = _position(index, len(sequence))
            if position == len(sequence):
                raise TemplateError(f"index out of range: {position}")
            value = Byte(sequence[position]) if isinstance(sequence, bytes) else sequence[position]
        else:
            raise TemplateError(f"can't index item of type {type_name(value)}")
    return value


def _slice(value: Any, *indexes: Any) -> Any:
    if is_nil(value):
        raise TemplateError("slice of untyped nil")
    if len(indexes) > 3:
        raise TemplateError(f"too many slice indexes: {len(indexes)}")
    if not isinstance(value, str | list):
        raise TemplateError(f"can't slice item of type {type_name(value)}")
    if isinstance(value, str) and len(indexes) == 3:
        raise TemplateError("cannot 3-index slice a string")
    sequence = to_bytes(value) if isinstance(value, str) else value
    bounds = [_position(index, len(sequence)) for index in indexes]
    start, end = (*bounds, *(0, len(sequence))[len(bounds) :])[:2]
    if start > end or (len(bounds) == 3 and end > bounds[2]):
        raise TemplateError(f"invalid slice index: {start} > {end}")
    part = sequence[start:end]
    return from_bytes(part) if isinstance(part, bytes) else type(value)(part)


def _print(*values: Any) -> str:
    """fmt.Sprint: a space between two values that are both no strings."""
    pieces: list[str] = []
    for position, value in enumerate(values):
        if position and not isinstance(value, str) and not isinstance(values[position - 1], str):
            pieces.append(" ")
        pieces.append(format_value(value))
    return "".join(pieces)


def _println(*values: Any) -> str:
    return " ".join(map(format_value, values)) + "\n"


def _printf(pattern: Any, *values: Any) -> str:
    if not isinstance(pattern, str):
        raise TemplateError(f"wrong type for value; expected string; got {type_name(pattern)}")
    return printf(pattern, list(values))


def _escaper(escape: Callable[[str], str]) -> Callable[..., str]:
    """A function that escapes its arguments as an action would print them."""

    def function(*values: Any) -> str:
        return escape(_print(*("<no value>" if is_nil(value) else value for value in values)))

    return function


def _json(value: Any) -> str:
    """Ollama's `json`: what cannot be said in JSON gives nothing."""
    try:
        return to_json(value)
    except ValueError:
        return ""


def _call(function: Any, *values: Any) -> Any:
    raise TemplateError("call of nil" if is_nil(function) else f"non-function of type {type_name(function)}")


def _current_date(*ignored: Any) -> str:
    return datetime.date.today().isoformat()


def _yesterday_date(*ignored: Any) -> str:
    return (datetime.date.today() - datetime.timedelta(days=1)).isoformat()


_TYPESCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


def _typescript_type(value: Any) -> str:
    """The TypeScript type of a schema property: a union over its types and those of `anyOf`."""
    fields = value.fields if isinstance(value, Struct) else value
    if not isinstance(fields, Mapping):
        return "any"
    choices = fields.get("AnyOf") or fields.get("anyOf") or []
    if choices:
        return " | ".join(_typescript_type(choice) for choice in choices)
    kinds = fields.get("Type") or fields.get("type") or []
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    return " | ".join(_TYPESCRIPT.get(name, "any") for name in names) or "any"


@dataclass(frozen=True, slots=True)
class GoFunction:
    """A function and how many arguments it takes, None for any number."""

    function: Callable[..., Any]
    arity: tuple[int, int | None]


FUNCTIONS: Mapping[str, GoFunction] = MappingProxyType(
    {
        "and": GoFunction(lambda *values: INVALID, (1, None)),
        "or": GoFunction(lambda *values: INVALID, (1, None)),
        "not": GoFunction(lambda value: not is_true(value), (1, 1)),
        "eq": GoFunction(_eq, (1, None)),
        "ne": GoFunction(lambda first, second: not _equal(first, second), (2, 2)),
        "lt": GoFunction(_lt, (2, 2)),
        "le": GoFunction(_le, (2, 2)),
        "gt": GoFunction(lambda first, second: not _le(first, second), (2, 2)),
        "ge": GoFunction(lambda first, second: not _lt(first, second), (2, 2)),
        "len": GoFunction(_length, (1, 1)),
        "index": GoFunction(_index, (1, None)),
        "slice": GoFunction(_slice, (1, None)),
        "print": GoFunction(_print, (0, None)),
        "println": GoFunction(_println, (0, None)),
        "printf": GoFunction(_printf, (1, None)),
        "html": GoFunction(_escaper(escape_html), (0, None)),
        "js": GoFunction(_escaper(escape_js), (0, None)),
        "urlquery": GoFunction(_escaper(escape_url), (0, None)),
        "call": GoFunction(_call, (1, None)),
        "json": GoFunction(_json, (1, 1)),
        "currentDate": GoFunction(_current_date, (0, None)),
        "yesterdayDate": GoFunction(_yesterday_date, (0, None)),
        "toTypeScriptType": GoFunction(_typescript_type, (1, 1)),
    }
)
_MAKES_TEXT = frozenset(("print", "println", "printf", "html", "js", "urlquery", "json"))


def call_function(name: str, arguments: list[Any], budget: Budget) -> Any:
    """Calls a function, charging the size of what it reads and of the text it makes."""
    if name in _MAKES_TEXT:
        budget.make(sum(deep_size(_unwrapped(argument)) for argument in arguments))
    result = FUNCTIONS[name].function(*arguments)
    if isinstance(result, str):
        budget.make(len(result))
    return result


def _unwrapped(value: Any) -> Any:
    return dict(value.fields) if isinstance(value, Struct) else value


__all__ = ["FUNCTIONS", "GoFunction", "JsonMap", "call_function", "is_nil", "is_true"]

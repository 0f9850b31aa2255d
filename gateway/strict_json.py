"""Reads a request body as JSON the strict way: one object, no NaN, no duplicate keys, bounded depth.

What the standard decoder lets through (NaN, the last of two equal keys, lone surrogates) has crashed
engines; what it refuses with RecursionError must be a plain 400. Called by every dialect's routes.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from gateway.errors import BadRequest

MAX_DEPTH = 64
MAX_DIGITS = 400


class InvalidJSON(BadRequest):
    code = "invalid_json"


def parse_object(body: bytes) -> dict[str, Any]:
    """The object in `body`; raises `InvalidJSON` with what is wrong and where."""
    if not body.strip():
        raise InvalidJSON("missing request body; send a JSON object")
    try:
        value = _DECODER.decode(body.decode("utf-8"))
    except InvalidJSON:
        raise
    except UnicodeDecodeError as fault:
        raise InvalidJSON(f"invalid request: the body is not UTF-8 at byte {fault.start}") from None
    except json.JSONDecodeError as fault:
        raise InvalidJSON(
            f"invalid request: malformed JSON at line {fault.lineno} column {fault.colno}: {fault.msg}"
        ) from None
    except (RecursionError, ValueError):
        raise InvalidJSON(
            "invalid request: the JSON is nested too deeply or has an oversized number"
        ) from None
    if not isinstance(value, dict):
        raise InvalidJSON("invalid request: the body must be a JSON object")
    _check(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidJSON(f"invalid request: {name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidJSON(f"invalid request: key {twice[:64]!r} appears twice in one object")
    return found


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise InvalidJSON(f"invalid request: number {text[:32]} is out of range")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise InvalidJSON(f"invalid request: a number has {len(text)} digits; the limit is {MAX_DIGITS}")
    return int(text)


def _check(value: dict[str, Any]) -> None:
    """Refuses what nests deeper than `MAX_DEPTH` and strings that are no Unicode text."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                _check_strings(item)
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, str):
                _check_text(item)
        if not deeper:
            return
        level = deeper
    raise InvalidJSON(f"invalid request: the JSON is nested deeper than {MAX_DEPTH} levels")


def _check_strings(item: dict[str, Any]) -> None:
    for key in item:
        _check_text(key)


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidJSON("invalid request: a string holds half of a surrogate pair") from None


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_float, parse_int=_int
)

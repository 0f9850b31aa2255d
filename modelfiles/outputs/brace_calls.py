"""The reader of the brace syntax in which Gemma 4 and FunctionGemma write calls.

A generator fed symbol by symbol, like those of `call_readers`, with which it shares small readers; it turns
arguments into JSON while they come. Used by `parser`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator

from modelfiles.outputs.call_readers import (
    ANY_TEXT,
    MAX_DEPTH,
    NotACall,
    Reader,
    Sink,
    Symbols,
    Wanted,
    read_string,
    skip_space,
)


class BraceCalls:
    """`call:NAME{key:value,...}` of Gemma 4 and FunctionGemma, turned into JSON while it comes.

    Strings stand between two `quote` markers, keys stand bare; numbers, booleans, lists and objects are as in
    JSON, and a bare word is a string.
    """

    def __init__(self, quote: str) -> None:
        self._quote = quote

    def __call__(self, sink: Sink, closing: str | None = None) -> Reader:
        for expected in "call:":
            if (yield from skip_space() if expected == "c" else _next()) != expected:
                raise NotACall
        name = ""
        while (symbol := (yield None)) != "{":
            name += symbol
            if len(symbol) > 1 or len(name) > 256:
                raise NotACall
        sink.name(name.strip())
        yield from self._object(sink.arguments, 1)
        sink.end_call()
        symbol = yield from skip_space()
        return None if symbol == closing else symbol

    def _object(self, emit: Callable[[str], None], depth: int) -> Generator[Wanted, str, None]:
        emit("{")
        symbol = yield from skip_space()
        first = True
        while symbol != "}":
            if not first:
                emit(",")
            first = False
            emit(json.dumps((yield from self._key(symbol)), ensure_ascii=False) + ":")
            after = yield from self._value((yield from skip_space()), emit, depth)
            symbol = yield from skip_space(after)
            if symbol == ",":
                symbol = yield from skip_space()
            elif symbol != "}":
                raise NotACall
        emit("}")

    def _list(self, emit: Callable[[str], None], depth: int) -> Generator[Wanted, str, None]:
        emit("[")
        symbol = yield from skip_space()
        first = True
        while symbol != "]":
            if not first:
                emit(",")
            first = False
            after = yield from self._value(symbol, emit, depth)
            symbol = yield from skip_space(after)
            if symbol == ",":
                symbol = yield from skip_space()
            elif symbol != "]":
                raise NotACall
        emit("]")

    def _key(self, symbol: str) -> Symbols:
        """A key up to its colon."""
        key = ""
        if symbol == self._quote:
            while (symbol := (yield None)) != self._quote:
                key += symbol
            symbol = yield from skip_space()
        elif symbol == '"':
            key = yield from read_string()
            symbol = yield from skip_space()
        else:
            while symbol != ":":
                if symbol in ("{", "}", "[", "]", ",") or len(symbol) > 1:
                    raise NotACall
                key += symbol
                symbol = yield None
        if symbol != ":":
            raise NotACall
        return key.strip()

    def _value(self, symbol: str, emit: Callable[[str], None], depth: int) -> Reader:
        if depth > MAX_DEPTH:
            raise NotACall
        if symbol == self._quote:
            emit('"')
            while (symbol := (yield ANY_TEXT)) != self._quote:
                emit(json.dumps(symbol, ensure_ascii=False)[1:-1])
            emit('"')
            return None
        if symbol == '"':
            emit(json.dumps((yield from read_string()), ensure_ascii=False))
            return None
        if symbol == "{":
            yield from self._object(emit, depth + 1)
            return None
        if symbol == "[":
            yield from self._list(emit, depth + 1)
            return None
        return (yield from self._bare(symbol, emit))

    def _bare(self, symbol: str, emit: Callable[[str], None]) -> Symbols:
        word = ""
        while symbol not in (",", "}", "]"):
            if len(symbol) > 1:
                raise NotACall
            word += symbol
            symbol = yield None
        emit(_bare_value(word.strip()))
        return symbol


def _next() -> Symbols:
    return (yield None)


def _bare_value(word: str) -> str:
    """JSON for a word without quotes: itself when it is JSON, null for None, else a string."""
    if word in ("None", "null"):
        return "null"
    if word in ("True", "False"):
        return word.lower()
    try:
        value = json.loads(word, parse_constant=lambda name: name)
    except ValueError:
        value = None
    return word if isinstance(value, int | float) else json.dumps(word, ensure_ascii=False)

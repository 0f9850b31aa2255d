"""Readers of tool calls: one generator per syntax, fed symbol by symbol.

A symbol is a character or a whole marker (`<|"|>`). A reader yields to get the next symbol, tells its sink
the name as soon as it is known and the arguments as JSON text while they are generated, and returns when the
calls are over; a symbol it read but that belongs to the answer is returned. `NotACall` says that what was
read is no call. Knows nothing of tokens or of the tools on offer. Used by `tools`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Generator
from typing import Protocol

MAX_DEPTH = 64
SPACE = " \t\r\n"

Wanted = re.Pattern[str] | None
"""What a reader yields: a pattern of text it takes in one piece, or None for one symbol at a time."""
IN_STRING = re.compile(r'[^"\\\x00-\x1f]+')
ANY_TEXT = re.compile(r".+", re.DOTALL)

Symbols = Generator[Wanted, str, str]
Reader = Generator[Wanted, str, str | None]


class NotACall(Exception):
    """What was read is not a call of this syntax."""


class Sink(Protocol):
    """Who is told about calls. `name` raises `NotACall` for a function that is not on offer."""

    def name(self, name: str) -> None: ...

    def arguments(self, text: str) -> None: ...

    def end_call(self) -> None: ...

    def kinds(self, parameter: str) -> Collection[str]:
        """What the schema lets a parameter of the call be; nothing when it does not say."""


def skip_space(symbol: str | None = None) -> Symbols:
    """The next symbol that is no white space; `symbol` is looked at first."""
    while symbol is None or symbol in SPACE:
        symbol = yield None
    return symbol


def read_string() -> Symbols:
    """A JSON string after its opening quote, decoded."""
    raw = ""
    while True:
        symbol = yield None
        if symbol == '"':
            break
        if symbol == "\\":
            symbol += yield None
        raw += symbol
    try:
        text: str = json.loads(f'"{raw}"', strict=False)
    except ValueError:
        raise NotACall from None
    return text


def _stream_value(first: str, emit: Callable[[str], None]) -> Generator[Wanted, str, str | None]:
    """Passes one JSON value on as it comes; returns the symbol after it when that was read (scalars)."""
    if first == '"':
        emit(first)
        yield from _stream_string(emit)
        return None
    if first not in "{[":
        return (yield from _stream_scalar(first, emit))
    stack = ["}" if first == "{" else "]"]
    emit(first)
    while stack:
        symbol = yield None
        emit(symbol)
        if symbol == '"':
            yield from _stream_string(emit)
        elif symbol in ("{", "["):
            stack.append("}" if symbol == "{" else "]")
            if len(stack) > MAX_DEPTH:
                raise NotACall
        elif symbol in ("}", "]") and symbol != stack.pop():
            raise NotACall
    return None


def _stream_string(emit: Callable[[str], None]) -> Generator[Wanted, str, None]:
    """The rest of a JSON string; line breaks a model left bare in it are escaped."""
    while True:
        symbol = yield IN_STRING
        if symbol == "\\":
            emit(symbol + (yield None))
            continue
        emit(symbol if symbol >= " " else json.dumps(symbol)[1:-1])
        if symbol == '"':
            return


def _stream_scalar(first: str, emit: Callable[[str], None]) -> Symbols:
    """A number, true, false or null."""
    text = first
    while True:
        symbol = yield None
        if symbol in SPACE or symbol in ",}]":
            break
        text += symbol
    try:
        json.loads(text)
    except ValueError:
        raise NotACall from None
    emit(text)
    return symbol


ARGUMENT_KEYS = ("arguments", "parameters", "args")
NAME_KEYS = ("name", "tool_name", "function")
IGNORED_KEYS = ("id", "type", "index")


class _JsonCall:
    """One `{"name": ..., "arguments": {...}}` object after its `{`, keys in any order.

    Arguments are passed on while they come when the name is known already, else kept until it is.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.named = False
        self.kept = ""
        self.argued = False

    def read(self) -> Generator[Wanted, str, None]:
        symbol = yield from skip_space()
        while symbol != "}":
            if symbol != '"':
                raise NotACall
            key = yield from read_string()
            if (yield from skip_space()) != ":":
                raise NotACall
            after = yield from self._member(key, (yield from skip_space()))
            symbol = yield from skip_space(after)
            if symbol == ",":
                symbol = yield from skip_space()
            elif symbol != "}":
                raise NotACall
        self._end()

    def _member(self, key: str, first: str) -> Reader:
        if key == "function" and first == "{":
            inner = _JsonCall(self.sink)
            inner._end = lambda: None  # type: ignore[method-assign]
            yield from inner.read()
            self.named, self.kept, self.argued = inner.named, inner.kept, inner.argued
            return None
        if key in NAME_KEYS and first == '"' and not self.named:
            self.sink.name((yield from read_string()))
            self.named = True
            self._flush()
            return None
        if key in ARGUMENT_KEYS and not self.argued:
            return (yield from self._arguments(first))
        if key in IGNORED_KEYS:
            return (yield from _stream_value(first, lambda text: None))
        raise NotACall

    def _arguments(self, first: str) -> Reader:
        """An object, or one inside a string, or null for none."""
        self.argued = True
        if first == "{":
            return (yield from _stream_value(first, self._argument_text))
        if first == '"':
            text = yield from read_string()
            _check_object(text)
            self._argument_text(text)
            return None
        pieces: list[str] = []
        after = yield from _stream_value(first, pieces.append)
        if pieces != ["null"]:
            raise NotACall
        self._argument_text("{}")
        return after

    def _argument_text(self, text: str) -> None:
        if self.named:
            self.sink.arguments(text)
        else:
            self.kept += text

    def _flush(self) -> None:
        if self.kept:
            self.sink.arguments(self.kept)
            self.kept = ""

    def _end(self) -> None:
        if not self.named:
            raise NotACall
        if not self.argued:
            self.sink.arguments("{}")
        self.sink.end_call()


def _check_object(text: str) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        raise NotACall from None
    if not isinstance(value, dict):
        raise NotACall


def read_json_calls(sink: Sink, closing: str | None = None) -> Reader:
    """JSON objects, alone, in an array, or separated by `,`, `;` and white space; ends at `closing`."""
    symbol = yield from skip_space()
    in_array = symbol == "["
    if in_array:
        symbol = yield from skip_space()
    while True:
        if symbol != "{":
            raise NotACall
        yield from _JsonCall(sink).read()
        symbol = yield from skip_space()
        if symbol in (",", ";") or (symbol == "{" and not in_array):
            symbol = symbol if symbol == "{" else (yield from skip_space())
            continue
        if in_array:
            if symbol != "]":
                raise NotACall
            symbol = yield from skip_space()
        return None if symbol == closing else symbol


def read_leading_json_calls(sink: Sink, closing: str | None = None) -> Reader:
    """Calls that are the whole answer: bare, or inside a Markdown code fence."""
    symbol = yield from skip_space()
    if symbol != "`":
        reader = read_json_calls(sink)
        next(reader)
        return (yield from _delegate(reader, symbol))
    fence = symbol
    while not fence.endswith("\n"):
        fence += yield None
        if len(fence) > 16:
            raise NotACall
    if fence.strip() not in ("```", "```json", "```tool_code", "```tool_call"):
        raise NotACall
    symbol_after = yield from read_json_calls(sink)
    for expected in "```":
        if symbol_after != expected:
            raise NotACall
        symbol_after = yield None
    return symbol_after


def _delegate(reader: Reader, first: str) -> Reader:
    """Runs a started reader whose first symbol was read already."""
    try:
        wanted = reader.send(first)
        while True:
            wanted = reader.send((yield wanted))
    except StopIteration as end:
        result: str | None = end.value
        return result


def read_named_json_calls(sink: Sink, closing: str | None = None) -> Reader:
    """Mistral: a JSON array of calls, or `name[ARGS]{...}` as newer models write it."""
    symbol = yield from skip_space()
    if symbol == "[":
        reader = read_json_calls(sink)
        next(reader)
        return (yield from _delegate(reader, symbol))
    name = ""
    while symbol not in ("[ARGS]", "{"):
        if len(symbol) > 1 or len(name) > 256:
            raise NotACall
        name += symbol
        symbol = yield None
    sink.name(name.strip())
    if symbol == "[ARGS]":
        symbol = yield from skip_space()
    if symbol != "{":
        raise NotACall
    yield from _stream_value(symbol, sink.arguments)
    sink.end_call()
    return None

"""Separates tool calls from the answer, over lexemes: the machine that drives a call reader.

Text that turns out not to be a call of a function on offer is given back as content, whole. White space
beside a call is dropped. Knows no syntax; `call_readers`, `brace_calls` and `xml_calls` have those. Used by
`parser`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from modelfiles.outputs.call_readers import NotACall, Reader, Sink, Wanted
from modelfiles.outputs.lexer import Lexeme
from modelfiles.outputs.types import (
    Content,
    Segment,
    TextChunk,
    TokenMark,
    ToolCallArguments,
    ToolCallStart,
)
from modelfiles.outputs.xml_calls import kinds_of_schema

StartReader = Callable[[Sink, str | None], Reader]


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """`openers` maps each marker that begins calls to the marker that ends them, or None.

    `leading` reads calls that begin with the first character of the answer.
    """

    reader: StartReader
    openers: Mapping[str, str | None]
    leading: StartReader | None = None
    ignored: frozenset[str] = frozenset()
    """Markers that say nothing outside a call (an end marker that came twice)."""


class ToolSplitter:
    """Turns the lexemes of an answer into content and tool calls. It is the sink of its own reader."""

    def __init__(self, syntax: ToolSyntax, functions: Mapping[str, Mapping[str, Any]]) -> None:
        self._syntax = syntax
        self._functions = functions
        self._called = ""
        self._reader: Reader | None = None
        self._wanted: Wanted = None
        self._raw = ""  # read by the reader and not yet certain to be a call
        self._calls = self._calls_before = 0
        self._in_call = False
        self._arguments = ""
        self._space = ""  # white space that ends the content so far
        self._after_call = False
        self._at_start = True
        self._tokens: tuple[TokenMark, ...] = ()
        self._out: list[Segment] = []

    def name(self, name: str) -> None:
        """A call begins; its text so far is no content any more."""
        if name not in self._functions:
            raise NotACall
        self._called = name
        self._out.append(ToolCallStart(self._calls, name))
        self._in_call = self._after_call = True
        self._space = self._raw = ""

    def arguments(self, text: str) -> None:
        """More JSON of the call's arguments."""
        self._arguments += text
        self._raw = ""

    def end_call(self) -> None:
        """The call is complete."""
        self._flush_arguments()
        self._calls += self._in_call
        self._in_call = False
        self._raw = ""

    def kinds(self, parameter: str) -> Collection[str]:
        """What the schema lets a parameter of the call be."""
        schema = self._functions[self._called]
        properties = schema.get("properties")
        return kinds_of_schema(properties.get(parameter), schema) if isinstance(properties, Mapping) else ()

    def push(self, lexeme: Lexeme) -> list[Segment]:
        """Segments that are certain now. Tokens ride with the last segment their lexeme gave."""
        self._tokens += lexeme.tokens
        if lexeme.is_marker:
            self._marker(lexeme.text)
        else:
            self._text(lexeme.text)
        self._flush_arguments()
        return self._take()

    def finish(self) -> list[Segment]:
        """Gives back what was begun and is no call; a call cut short stays as it is."""
        if self._reader is not None and not self._in_call:
            is_end = self._calls > self._calls_before and not self._raw.strip(" \t\r\n],;`")
            self._give_back("" if is_end else self._raw)
        if self._space:
            self._out.append(Content(TextChunk(self._space)))
        return self._take()

    def _marker(self, marker: str) -> None:
        if self._reader is not None:
            self._feed(marker)
        elif marker in self._syntax.openers:
            self._start(self._syntax.reader, self._syntax.openers[marker])
            self._raw = marker
        elif marker not in self._syntax.ignored:
            self._content(marker)

    def _text(self, text: str) -> None:
        if self._reader is None and self._at_start and self._syntax.leading and not text.isspace():
            self._at_start = False
            if self._functions and text.lstrip()[0] in "{[`":
                self._start(self._syntax.leading, None)
        position = 0
        while self._reader is not None and position < len(text):
            run = self._wanted.match(text, position) if self._wanted else None
            symbol = run[0] if run else text[position]
            self._feed(symbol)
            position += len(symbol)
        self._content(text[position:])

    def _start(self, reader: StartReader, closing: str | None) -> None:
        self._at_start = False
        self._calls_before = self._calls
        self._reader = reader(self, closing)
        self._wanted = next(self._reader)

    def _feed(self, symbol: str) -> None:
        assert self._reader is not None
        self._raw += symbol
        try:
            self._wanted = self._reader.send(symbol)
        except StopIteration as end:
            self._reader, self._raw = None, ""
            if end.value is not None:
                (self._marker if len(end.value) > 1 else self._content)(end.value)
        except NotACall:
            self._give_back(self._raw)

    def _give_back(self, raw: str) -> None:
        """The text read since the last certain part of a call is content after all."""
        self.end_call()
        self._reader = None
        self._content(raw)

    def _content(self, text: str) -> None:
        """Content without the white space it ends with, which is kept until more content comes."""
        if self._after_call:
            text = text.lstrip()
        if not text:
            return
        self._at_start = self._at_start and text.isspace()
        self._after_call = False
        text = self._space + text
        kept = text.rstrip() if self._functions else text
        self._space = text[len(kept) :]
        if kept:
            self._out.append(Content(TextChunk(kept)))

    def _flush_arguments(self) -> None:
        if self._arguments:
            self._out.append(ToolCallArguments(self._calls, self._arguments))
            self._arguments = ""

    def _take(self) -> list[Segment]:
        """The segments made; the tokens so far go to the last one that can carry them."""
        out, self._out = self._out, []
        for index in range(len(out) - 1, -1, -1):
            segment = out[index]
            if isinstance(segment, ToolCallStart):
                continue
            if isinstance(segment, Content):
                out[index] = Content(TextChunk(segment.chunk.text, self._tokens))
            elif isinstance(segment, ToolCallArguments):
                out[index] = ToolCallArguments(segment.call_index, segment.text, self._tokens)
            self._tokens = ()
            break
        return out

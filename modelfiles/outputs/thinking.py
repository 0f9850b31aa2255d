"""Separates reasoning from the answer, over lexemes.

Tag pairs count at the beginning of the answer only, as with Ollama (text that merely mentions a tag later is
text); channels, which are control tokens, count anywhere. Knows nothing of tools. Used by `parser`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from modelfiles.outputs.lexer import Lexeme
from modelfiles.outputs.types import TextChunk, Thinking, TokenMark


@dataclass(frozen=True, slots=True)
class ThinkingSyntax:
    """`pairs` maps each opening marker to its closing one.

    With `channel`, the opening marker is followed by a channel name and a newline; only the channel of that
    name is reasoning, and the block may come anywhere. `breaks` end an open block without being part of it.
    """

    pairs: Mapping[str, str]
    channel: str | None = None
    breaks: frozenset[str] = frozenset()


class ThinkingSplitter:
    """Turns lexemes into `Thinking` segments and the lexemes that are left for the answer."""

    def __init__(self, syntax: ThinkingSyntax, prompt: str) -> None:
        self._syntax = syntax
        self._state: Literal["start", "name", "lead", "inside", "after", "answer"] = "start"
        self._close = ""
        self._name = ""
        self._space = ""
        self._held: list[Lexeme] = []
        self._resume(prompt)

    def _resume(self, prompt: str) -> None:
        """A prompt may end with the opening marker: generation begins inside the block."""
        end = prompt.rstrip()
        for opening, closing in self._syntax.pairs.items():
            if end.endswith(opening + (self._syntax.channel or "")):
                self._close, self._state = closing, "lead"

    def push(self, lexeme: Lexeme) -> list[Lexeme | Thinking]:
        """The lexeme as reasoning, as answer, or nothing yet."""
        if lexeme.is_marker and self._opens(lexeme.text):
            self._close = self._syntax.pairs[lexeme.text]
            self._state, self._name = ("name" if self._syntax.channel else "lead"), ""
            return self._drop_held()
        if self._state in ("name", "lead", "inside"):
            return self._push_inside(lexeme)
        return self._push_outside(lexeme)

    def finish(self) -> list[Lexeme | Thinking]:
        """White space held at the start of an answer that never came."""
        if self._state == "name" and self._name:
            return [Thinking(TextChunk(self._name))]
        return self._release()

    def _opens(self, marker: str) -> bool:
        if marker not in self._syntax.pairs:
            return False
        return self._state == "start" or (
            self._syntax.channel is not None and self._state in ("answer", "after")
        )

    def _push_inside(self, lexeme: Lexeme) -> list[Lexeme | Thinking]:
        if lexeme.is_marker and (lexeme.text == self._close or lexeme.text in self._syntax.breaks):
            return self._end(lexeme)
        text = lexeme.text
        if self._state == "name":
            self._name, newline, text = (self._name + text).partition("\n")
            if not newline:
                return []
            if self._name.strip() != self._syntax.channel:
                self._state = "answer"
                return [Lexeme(text, lexeme.tokens)] if text else []
            self._state = "lead"
        if self._state == "lead":
            text = text.lstrip()
        return self._think(text, lexeme.tokens)

    def _think(self, text: str, tokens: tuple[TokenMark, ...]) -> list[Lexeme | Thinking]:
        """Reasoning without the white space it ends with, which is kept until more comes."""
        kept = (self._space + text).rstrip()
        self._space = (self._space + text)[len(kept) :]
        if not kept:
            return []
        self._state = "inside"
        return [Thinking(TextChunk(kept, tokens))]

    def _end(self, lexeme: Lexeme) -> list[Lexeme | Thinking]:
        unnamed = self._name if self._state == "name" else ""
        self._state, self._name, self._space = "after", "", ""
        left = [Lexeme(unnamed)] if unnamed.strip() not in ("", self._syntax.channel) else []
        return [*left, *(self._push_outside(lexeme) if lexeme.text != self._close else [])]

    def _push_outside(self, lexeme: Lexeme) -> list[Lexeme | Thinking]:
        if self._state == "answer":
            stray = self._syntax.channel is not None and lexeme.text in self._syntax.pairs.values()
            return [] if lexeme.is_marker and stray else [lexeme]
        text = lexeme.text if lexeme.is_marker else lexeme.text.lstrip()
        if not text:
            if self._state == "start":
                self._held.append(lexeme)
            return []
        released = self._release()
        after = self._state == "after"
        self._state = "answer"
        return [Lexeme(text, lexeme.tokens, lexeme.is_marker)] if after else [*released, lexeme]

    def _release(self) -> list[Lexeme | Thinking]:
        held, self._held = self._held, []
        return list(held)

    def _drop_held(self) -> list[Lexeme | Thinking]:
        self._held = []
        return []

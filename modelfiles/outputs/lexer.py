"""Cuts generated text into markers and runs of plain text; the first stage of every output parser.

A marker is a string a convention gives meaning to (`<think>`, `<|tool_call>`). Where the vocabulary has it as
a control token it is matched by token id and look-alike text stays text; otherwise it is matched as text,
held back while it may still be one. Knows no convention. Used by `parser`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from modelfiles.outputs.types import TextChunk, TokenMark


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A marker, or a run of text; `tokens` are those whose last byte lies in it."""

    text: str
    tokens: tuple[TokenMark, ...] = ()
    is_marker: bool = False


class Lexer:
    """`by_text` markers are found in the text, `by_id` ones by the id of their control token."""

    def __init__(self, by_text: Collection[str], by_id: Mapping[int, str]) -> None:
        self._by_text = sorted(by_text, key=len, reverse=True)
        self._by_id = dict(by_id)
        self._firsts = {marker[0] for marker in by_text}
        self._held = ""
        self._tokens: list[tuple[int, TokenMark]] = []

    def push(self, chunk: TextChunk) -> list[Lexeme]:
        """Lexemes that are certain now."""
        if chunk.special is not None:
            name = self._by_id.get(chunk.special)
            marker = [Lexeme(name, chunk.tokens, True)] if name is not None else []
            return [*self.finish(), *marker]
        self._held += chunk.text
        self._tokens += [(len(self._held), token) for token in chunk.tokens]
        return self._cut(final=False)

    def finish(self) -> list[Lexeme]:
        """What was held back."""
        return self._cut(final=True)

    def _cut(self, *, final: bool) -> list[Lexeme]:
        lexemes: list[Lexeme] = []
        text, start, position = self._held, 0, 0
        while position < len(text):
            if text[position] not in self._firsts:
                position += 1
                continue
            marker = next((m for m in self._by_text if text.startswith(m, position)), None)
            if marker is not None:
                lexemes += [
                    self._lexeme(start, position),
                    self._lexeme(position, position + len(marker), True),
                ]
                start = position = position + len(marker)
            elif not final and self._may_become_marker(text, position):
                break
            else:
                position += 1
        lexemes.append(self._lexeme(start, position))
        self._held = text[position:]
        self._tokens = [(end - position, token) for end, token in self._tokens]
        return [lexeme for lexeme in lexemes if lexeme.text]

    def _may_become_marker(self, text: str, position: int) -> bool:
        rest = len(text) - position
        return any(len(m) > rest and m.startswith(text[position:]) for m in self._by_text)

    def _lexeme(self, start: int, end: int, is_marker: bool = False) -> Lexeme:
        tokens: tuple[TokenMark, ...] = ()
        if end > start:
            tokens = tuple(token for at, token in self._tokens if at <= end)
            self._tokens = self._tokens[len(tokens) :]
        return Lexeme(self._held[start:end], tokens, is_marker)

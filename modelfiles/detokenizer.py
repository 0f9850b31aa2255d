"""Turns generated tokens into text, piece by piece, never splitting a character.

Sans-IO: `push` a token, get chunks; `finish` at the end. Works from the plain `Vocabulary`, so it runs where
no tokenizer is loaded. Bad UTF-8 becomes U+FFFD exactly as decoding each stretch between control tokens whole
would make it. Called by the gateway's service.
"""

from __future__ import annotations

import codecs
from collections import deque

from modelfiles.outputs.types import TextChunk, TokenMark
from modelfiles.vocabulary import Vocabulary

__all__ = ["Detokenizer"]


class Detokenizer:
    """One per answer. `continues`: the text goes on from a prompt, so a first space is meant and stays."""

    def __init__(self, vocabulary: Vocabulary, *, continues: bool = False) -> None:
        self._bytes = vocabulary.token_bytes
        self._control = vocabulary.control_token_ids
        self._strip = vocabulary.strip_leading_space and not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: deque[tuple[int, TokenMark]] = deque()
        """Tokens not given out, with the count of bytes received up to their end."""
        self._received = 0

    def push(self, mark: TokenMark) -> list[TextChunk]:
        """The text that this token completes; a control token becomes a chunk of its own."""
        token_id = mark.token_id
        if token_id in self._control:
            return [*self.finish(), TextChunk("", (mark,), special=token_id)]
        data = self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""
        self._received += len(data)
        self._held.append((self._received, mark))
        text = self._decoder.decode(data)
        return self._emit(text, self._received - len(self._decoder.getstate()[0]))

    def finish(self) -> list[TextChunk]:
        """What is held: an unfinished character becomes U+FFFD."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return self._emit(text, self._received)

    def _emit(self, text: str, decoded: int) -> list[TextChunk]:
        """A chunk of `text` with the tokens whose last byte is among the first `decoded` bytes."""
        marks: list[TokenMark] = []
        while self._held and self._held[0][0] <= decoded:
            marks.append(self._held.popleft()[1])
        if self._strip and text:
            self._strip = False
            text = text.removeprefix(" ")
        return [TextChunk(text, tuple(marks))] if text or marks else []

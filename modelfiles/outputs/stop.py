"""Cuts the answer at the first stop string, wherever token borders fall.

Sans-IO: `push` chunks, get chunks; `finish` at the end. Holds back only text that may yet turn out to begin a
stop string. Knows nothing of tokens but that they ride with chunks. Called by the gateway's service.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from modelfiles.outputs.types import TextChunk

__all__ = ["StopMatcher"]


class StopMatcher:
    """One per answer. `matched` is the stop string found, or None.

    The match that ends first wins; of those ending together, the longest. Control tokens neither end nor
    break a match: the text around them is what the user sees.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self.matched: str | None = None
        self._patterns = [_Pattern(stop) for stop in dict.fromkeys(stops) if stop]
        self._held: deque[TextChunk] = deque()
        self._length = 0
        """Characters in `_held`."""
        self._touched = False
        """Whether the first held chunk has given out some of its text already."""

    def push(self, chunk: TextChunk) -> list[TextChunk]:
        """The chunks, in order, that no stop string can swallow any more; nothing after a match."""
        if self.matched is not None:
            return []
        self._held.append(chunk)
        for position, character in enumerate(chunk.text):
            ended = [pattern for pattern in self._patterns if pattern.advance(character)]
            if ended:
                longest = max(ended, key=lambda pattern: len(pattern.text))
                visible = self._length + position + 1 - len(longest.text)
                return self._cut(visible, longest.text)
        self._length += len(chunk.text)
        return self._release(self._length - max((pattern.state for pattern in self._patterns), default=0))

    def finish(self) -> list[TextChunk]:
        """What was held back: no stop string came of it."""
        rest = self._release(self._length)
        self._held.clear()
        return rest

    def _release(self, count: int) -> list[TextChunk]:
        """Give out `count` characters, and every chunk that ends within them."""
        released: list[TextChunk] = []
        while self._held and len(self._held[0].text) <= count:
            chunk = self._held.popleft()
            count -= len(chunk.text)
            self._length -= len(chunk.text)
            self._touched = False
            released.append(chunk)
        if count and self._held:
            chunk = self._held.popleft()
            released.append(TextChunk(chunk.text[:count]))
            self._held.appendleft(replace(chunk, text=chunk.text[count:]))
            self._length -= count
            self._touched = True
        return released

    def _cut(self, visible: int, stop: str) -> list[TextChunk]:
        """Give out `visible` characters; the tokens of a chunk of which some text is out go out with it."""
        self.matched = stop
        released: list[TextChunk] = []
        while self._held:
            chunk = self._held.popleft()
            if len(chunk.text) > visible:
                if visible or self._touched:
                    released.append(replace(chunk, text=chunk.text[:visible]))
                break
            visible -= len(chunk.text)
            self._touched = False
            released.append(chunk)
        self._held.clear()
        self._length = 0
        return released


class _Pattern:
    """One stop string, matched a character at a time (Knuth, Morris and Pratt)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.state = 0
        self._borders = [0] * len(text)
        for index in range(1, len(text)):
            state = self._borders[index - 1]
            while state and text[index] != text[state]:
                state = self._borders[state - 1]
            self._borders[index] = state + (text[index] == text[state])

    def advance(self, character: str) -> bool:
        """Take one character; true when the stop string is complete with it."""
        while self.state and character != self.text[self.state]:
            self.state = self._borders[self.state - 1]
        self.state += character == self.text[self.state]
        if self.state < len(self.text):
            return False
        self.state = self._borders[-1]
        return True

"""What flows through the output filters: Detokenizer -> OutputParser -> StopMatcher.

Every generated token rides, as a `TokenMark`, with the chunk that holds its last byte, so log-probabilities
survive holding text back. All filters have the same two verbs: `push(x) -> list[y]`, `finish() -> list[y]`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenMark:
    """A generated token; `logprob` is NaN and `top` empty when log-probabilities were not asked for."""

    token_id: int
    logprob: float = float("nan")
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TextChunk:
    """Text and the tokens it came from. `special` is set, and `text` empty, for a control token."""

    text: str
    tokens: tuple[TokenMark, ...] = ()
    special: int | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """Part of the visible answer."""

    chunk: TextChunk


@dataclass(frozen=True, slots=True)
class Thinking:
    """Part of the reasoning before the answer."""

    chunk: TextChunk


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """Tool call number `call_index` (dense from 0) of this answer begins."""

    call_index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More JSON text of the arguments of call `call_index`; fragments joined are one JSON object."""

    call_index: int
    text: str
    tokens: tuple[TokenMark, ...] = ()


Segment = Content | Thinking | ToolCallStart | ToolCallArguments

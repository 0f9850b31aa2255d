"""Events to legacy completions: stream and fold. Sans-IO; called by the routes of this dialect."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from gateway.errors import Fault
from gateway.faults import openai_body
from gateway.openai.chat import Heading, finite, usage
from gateway.streaming import DONE, split_text, sse
from gateway.types import Event, Failed, Finished, TextDelta, ThinkingDelta, TokenText


class CompletionStream:
    """An `Encoder` for a streamed completion; choices are numbered across all prompts of the request."""

    def __init__(self, heading: Heading, *, include_usage: bool, n: int = 1) -> None:
        self._heading = heading
        self._n = n
        self._include_usage = include_usage
        self._offsets: dict[int, int] = {}
        self._finished: list[Finished] = []

    def push(self, event: Event) -> bytes:
        match event:
            case TextDelta(index, text, logprobs) | ThinkingDelta(index, text, logprobs):
                chunks = []
                for position, piece in enumerate(split_text(text)):
                    tokens = logprobs if position == 0 else ()
                    chunks.append(self._chunk(index, piece, self._logprobs(index, tokens)))
                return b"".join(chunks)
            case Finished():
                self._finished.append(event)
                return self._chunk(event.index, "", None, event.reason)
            case _:
                return b""

    def finish(self) -> bytes:
        if not self._include_usage:
            return DONE
        last = self._heading.fields("text_completion") | {
            "choices": [],
            "usage": usage_of(self._finished, self._n),
        }
        return sse(last) + DONE

    def fail(self, fault: Fault) -> bytes:
        return sse(openai_body(fault))

    def _logprobs(self, index: int, tokens: tuple[TokenText, ...]) -> dict[str, Any] | None:
        if not tokens:
            return None
        start = self._offsets.get(index, 0)
        self._offsets[index] = start + sum(len(token.text) for token in tokens)
        return legacy_logprobs(tokens, start)

    def _chunk(self, index: int, text: str, logprobs: Any, reason: str | None = None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        chunk = self._heading.fields("text_completion") | {"choices": [choice]}
        return sse(chunk | ({"usage": None} if self._include_usage else {}))


async def collect(events: AsyncIterator[Event], heading: Heading, n: int = 1) -> dict[str, Any]:
    """The whole reply; raises what a `Failed` carries."""
    texts: dict[int, list[str]] = {}
    tokens: dict[int, list[TokenText]] = {}
    finished: dict[int, Finished] = {}
    async with contextlib.aclosing(events):  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            texts.setdefault(event.index, [])
            if isinstance(event, TextDelta | ThinkingDelta):
                texts[event.index].append(event.text)
                tokens.setdefault(event.index, []).extend(event.logprobs)
            elif isinstance(event, Finished):
                finished[event.index] = event
    return heading.fields("text_completion") | {
        "choices": [
            {
                "index": index,
                "text": "".join(pieces),
                "logprobs": legacy_logprobs(tuple(tokens[index]), 0) if tokens.get(index) else None,
                "finish_reason": finished[index].reason if index in finished else "stop",
            }
            for index, pieces in sorted(texts.items())
        ],
        "usage": usage_of(list(finished.values()), n),
    }


def keep_best(reply: dict[str, Any], n: int, best_of: int, with_logprobs: bool) -> dict[str, Any]:
    """The reply with the `n` likeliest of every `best_of` choices, by mean log-probability."""
    kept: list[dict[str, Any]] = []
    choices = reply["choices"]
    for start in range(0, len(choices), best_of):
        group = sorted(choices[start : start + best_of], key=_likelihood, reverse=True)
        kept += group[:n]
    for index, choice in enumerate(kept):
        choice["index"] = index
        choice["logprobs"] = choice["logprobs"] if with_logprobs else None
    return reply | {"choices": kept}


def _likelihood(choice: dict[str, Any]) -> float:
    values = [value for value in (choice["logprobs"] or {}).get("token_logprobs", ()) if value is not None]
    return sum(values) / len(values) if values else float("-inf")


def legacy_logprobs(tokens: tuple[TokenText, ...], start: int) -> dict[str, Any]:
    """Four parallel lists; offsets count characters of the text. A NaN (the first prompt token) is null."""
    offsets, position = [], start
    for token in tokens:
        offsets.append(position)
        position += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [
            None if token.logprob != token.logprob else finite(token.logprob) for token in tokens
        ],
        "top_logprobs": [
            {text: finite(logprob) for text, _, logprob in token.top} if token.top else None
            for token in tokens
        ],
        "text_offset": offsets,
    }


def usage_of(finished: list[Finished], n: int) -> dict[str, Any]:
    """Usage of a request with several prompts: each counts once, whatever its number `n` of choices."""
    firsts = [event.usage.engine for event in finished if event.index % n == 0]
    whole = usage(finished)
    prompt = sum(engine.prompt for engine in firsts)
    whole["prompt_tokens"] = prompt
    whole["total_tokens"] = prompt + whole["completion_tokens"]
    whole["prompt_tokens_details"]["cached_tokens"] = sum(engine.cached for engine in firsts)
    return whole

"""Events to chat completions: the chunks of a stream, and the fold that makes one reply of them.

Sans-IO. The frequent chunk (a piece of text, no log-probabilities) is put together from bytes prepared once
a stream, because it is what the gateway does most. Called by the routes of this dialect.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from gateway import __version__
from gateway.errors import Fault
from gateway.faults import openai_body
from gateway.streaming import DONE, encode_json, split_text, sse
from gateway.types import (
    Event,
    Failed,
    Finished,
    GenerationUsage,
    TextDelta,
    ThinkingDelta,
    TokenText,
    ToolCallDelta,
)

FINGERPRINT = f"gemmule-{__version__}"
LOWEST = -9999.0
"""JSON has no infinity; this is what OpenAI writes for a token that cannot occur."""


@dataclass(frozen=True, slots=True)
class Heading:
    """What every chunk and the reply have in common."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, prefix: str, model: str) -> Heading:
        return cls(f"{prefix}{secrets.token_hex(12)}", int(time.time()), model)

    def fields(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }


class ChatStream:
    """An `Encoder` for one streamed chat. `legacy` speaks of `function_call` instead of `tool_calls`."""

    def __init__(self, heading: Heading, *, include_usage: bool, legacy: bool = False) -> None:
        self._heading = heading
        self._include_usage = include_usage
        self._legacy = legacy
        self._started: set[int] = set()
        self._finished: list[Finished] = []
        head = encode_json(heading.fields("chat.completion.chunk"))[:-1]
        self._head = b"data: " + head + b',"choices":[{"index":'
        tail = b',"logprobs":null,"finish_reason":null}]'
        self._tail = tail + (b',"usage":null}\n\n' if include_usage else b"}\n\n")

    def push(self, event: Event) -> bytes:
        match event:
            case TextDelta(index, text, ()):
                return self._opening(index) + b"".join(
                    b"%s%d%s%s}%s"
                    % (self._head, index, b',"delta":{"content":', encode_json(piece), self._tail)
                    for piece in split_text(text)
                )
            case TextDelta(index, text, logprobs):
                return self._opening(index) + self._with_logprobs(index, "content", text, logprobs)
            case ThinkingDelta(index, text, logprobs):
                return self._opening(index) + b"".join(
                    self._chunk(index, {"reasoning": piece, "reasoning_content": piece})
                    for piece in split_text(text)
                )
            case ToolCallDelta():
                return self._opening(event.index) + self._call(event)
            case Finished():
                self._finished.append(event)
                reason = _reason(event, self._legacy)
                return self._opening(event.index) + self._chunk(event.index, {}, reason=reason)
            case Failed():
                raise TypeError("a failure is reported by `fail`")

    def finish(self) -> bytes:
        if not self._include_usage:
            return DONE
        last = self._heading.fields("chat.completion.chunk")
        return sse(last | {"choices": [], "usage": usage(self._finished)}) + DONE

    def fail(self, fault: Fault) -> bytes:
        return sse(openai_body(fault))

    def _opening(self, index: int) -> bytes:
        """The first chunk of a choice says who speaks; it is the only one that does."""
        if index in self._started:
            return b""
        self._started.add(index)
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = self._heading.fields("chat.completion.chunk") | {"choices": [choice]}
        return sse(chunk | ({"usage": None} if self._include_usage else {}))

    def _with_logprobs(self, index: int, key: str, text: str, tokens: tuple[TokenText, ...]) -> bytes:
        """Text with its tokens, few enough in each chunk to stay below the line limit."""
        chunks = []
        pieces = list(split_text(text))
        groups = [tokens[start : start + 16] for start in range(0, len(tokens), 16)] or [()]
        for position in range(max(len(pieces), len(groups))):
            piece = pieces[position] if position < len(pieces) else ""
            group = groups[position] if position < len(groups) else ()
            chunks.append(self._chunk(index, {key: piece}, logprobs_object(group)))
        return b"".join(chunks)

    def _call(self, event: ToolCallDelta) -> bytes:
        chunks = []
        if event.id is not None:
            opening: dict[str, Any] = {"name": event.name, "arguments": ""}
            whole = {"index": event.call_index, "id": event.id, "type": "function", "function": opening}
            chunks.append(self._chunk(event.index, self._call_delta(whole)))
        for piece in split_text(event.arguments) if event.arguments else ():
            more = {"index": event.call_index, "function": {"arguments": piece}}
            chunks.append(self._chunk(event.index, self._call_delta(more)))
        return b"".join(chunks)

    def _call_delta(self, call: dict[str, Any]) -> dict[str, Any]:
        return {"function_call": call["function"]} if self._legacy else {"tool_calls": [call]}


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    logprobs: list[TokenText] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    finished: Finished | None = None

    def push(self, event: Event) -> None:
        match event:
            case TextDelta(_, text, logprobs):
                self.text.append(text)
                self.logprobs += logprobs
            case ThinkingDelta(_, text, _):
                self.thinking.append(text)
            case ToolCallDelta(_, _, str(call_id), name, arguments):
                function = {"name": name, "arguments": arguments}
                self.calls.append({"id": call_id, "type": "function", "function": function})
            case ToolCallDelta():
                self.calls[-1]["function"]["arguments"] += event.arguments
            case Finished():
                self.finished = event
            case Failed(error):
                raise error

    def message(self, legacy: bool) -> dict[str, Any]:
        text = "".join(self.text)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if thinking := "".join(self.thinking):
            message |= {"reasoning": thinking, "reasoning_content": thinking}
        if self.calls:
            message["content"] = text or None
            calls = {"function_call": self.calls[0]["function"]} if legacy else {"tool_calls": self.calls}
            message |= calls
        return message


class ChatReply:
    """The whole reply: a fold over the same events a stream is made of."""

    def __init__(self, heading: Heading, *, with_logprobs: bool, legacy: bool = False) -> None:
        self._heading = heading
        self._with_logprobs = with_logprobs
        self._legacy = legacy
        self._choices: dict[int, _Choice] = {}

    def push(self, event: Event) -> None:
        """Adds an event; raises what a `Failed` carries."""
        if isinstance(event, Failed):
            raise event.error
        self._choices.setdefault(event.index, _Choice()).push(event)

    def reply(self) -> dict[str, Any]:
        """The chat completion."""
        finished = [choice.finished for choice in self._choices.values() if choice.finished]
        choices = [self._choice(index, choice) for index, choice in sorted(self._choices.items())]
        return self._heading.fields("chat.completion") | {"choices": choices, "usage": usage(finished)}

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        logprobs = logprobs_object(tuple(choice.logprobs), empty=[]) if self._with_logprobs else None
        return {
            "index": index,
            "message": choice.message(self._legacy),
            "logprobs": logprobs,
            "finish_reason": _reason(choice.finished, self._legacy),
        }


async def collect(events: AsyncIterator[Event], reply: ChatReply) -> dict[str, Any]:
    """Folds all events into `reply`; closes them however it ends."""
    async with contextlib.aclosing(events):  # type: ignore[type-var]
        async for event in events:
            reply.push(event)
    return reply.reply()


async def watched(events: AsyncIterator[Event], reply: ChatReply) -> AsyncIterator[Event]:
    """The same events, folded into `reply` on their way."""
    async with contextlib.aclosing(events):  # type: ignore[type-var]
        async for event in events:
            if not isinstance(event, Failed):
                reply.push(event)
            yield event


def usage(finished: list[Finished]) -> dict[str, Any]:
    """Token counts: the prompt of several choices is one prompt."""
    totals = total(finished)
    return {
        "prompt_tokens": totals.engine.prompt,
        "completion_tokens": totals.engine.generated,
        "total_tokens": totals.engine.prompt + totals.engine.generated,
        "prompt_tokens_details": {"cached_tokens": totals.engine.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": totals.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def total(finished: list[Finished]) -> GenerationUsage:
    """One usage for all choices of a request."""
    from engines.base import Usage

    if not finished:
        return GenerationUsage(Usage())
    first = min(finished, key=lambda event: event.index).usage.engine
    engine = Usage(
        prompt=first.prompt,
        cached=first.cached,
        generated=sum(event.usage.engine.generated for event in finished),
    )
    return GenerationUsage(engine, reasoning_tokens=sum(event.usage.reasoning_tokens for event in finished))


def logprobs_object(tokens: tuple[TokenText, ...], empty: Any = None) -> Any:
    """`logprobs` of a choice; null when there are no tokens to speak of."""
    if not tokens and empty is None:
        return None
    return {"content": [token_entry(token) for token in tokens], "refusal": None}


def token_entry(token: TokenText) -> dict[str, Any]:
    """One token as every OpenAI endpoint lists it."""
    return {
        "token": token.text,
        "logprob": finite(token.logprob),
        "bytes": list(token.data),
        "top_logprobs": [
            {"token": text, "logprob": finite(logprob), "bytes": list(data)}
            for text, data, logprob in token.top
        ],
    }


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST


def _reason(finished: Finished | None, legacy: bool) -> str:
    reason = finished.reason if finished else "stop"
    return "function_call" if legacy and reason == "tool_calls" else reason

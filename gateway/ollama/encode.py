"""Canonical events to the lines of a native reply, and the fold that makes a whole reply of them.

Sans-IO: `push(event)` gives the JSON objects to send now. Knows no clock but the one it is given and no
transport. Called by routes, for streamed and whole replies alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Literal

from gateway.errors import EngineFailure
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

Shape = Literal["chat", "generate"]
Line = dict[str, Any]
DONE_REASONS = {"stop": "stop", "length": "length", "tool_calls": "stop"}


class BrokenToolCall(EngineFailure):
    """The model's arguments are not a JSON object, which this dialect cannot carry."""


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with six fraction digits: more break Python clients, none at all breaks nobody."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def now() -> datetime:
    return datetime.now(UTC)


class ReplyEncoder:
    """Events of one choice to lines. Tool calls are held until complete: here they travel whole."""

    def __init__(
        self, shape: Shape, model: str, *, context: bool = False, clock: Callable[[], datetime] = now
    ) -> None:
        """`context` adds the token ids of the whole exchange to the last line (generate, not raw)."""
        self._shape: Shape = shape
        self._model = model
        self._context = context
        self._clock = clock
        self._call: ToolCallDelta | None = None
        self._arguments: list[str] = []

    def push(self, event: Event) -> list[Line]:
        """Lines to send for an event. Raises BrokenToolCall; a `Failed` event is the caller's business."""
        match event:
            case ToolCallDelta():
                return self._tool_call(event)
            case TextDelta():
                return [*self._complete_call(), self._delta(text=event.text, logprobs=event.logprobs)]
            case ThinkingDelta():
                return [*self._complete_call(), self._delta(thinking=event.text, logprobs=event.logprobs)]
            case Finished():
                return [*self._complete_call(), self._last(event)]
            case Failed():
                raise TypeError("a failure has no line of its own; report event.error instead")

    def done(self, reason: str) -> Line:
        """The whole reply to a request that only loads or unloads."""
        line = self._delta(text="")
        return line | {"done": True, "done_reason": reason}

    def rendered(self, text: str, images: int = 0) -> Line:
        """The whole reply to a request that asked for its prompt only."""
        debug: Line = {"rendered_template": text}
        if images:
            debug["image_count"] = images
        return self._delta(text="") | {"_debug_info": debug}

    def _tool_call(self, delta: ToolCallDelta) -> list[Line]:
        lines: list[Line] = []
        if self._call is None or delta.call_index != self._call.call_index:
            lines = self._complete_call()
            self._call = delta
        self._arguments.append(delta.arguments)
        return lines

    def _complete_call(self) -> list[Line]:
        call, text = self._call, "".join(self._arguments)
        if call is None:
            return []
        self._call, self._arguments = None, []
        try:
            arguments = json.loads(text or "{}")
        except json.JSONDecodeError as error:
            raise BrokenToolCall(f'the model called "{call.name}" with invalid JSON: {error}') from None
        if not isinstance(arguments, dict):
            raise BrokenToolCall(f'the model called "{call.name}" with arguments that are no JSON object')
        function = {"index": call.call_index, "name": call.name, "arguments": arguments}
        return [self._delta(calls=[{"id": call.id, "function": function}])]

    def _delta(
        self,
        text: str = "",
        thinking: str = "",
        calls: list[Line] | None = None,
        logprobs: tuple[TokenText, ...] = (),
    ) -> Line:
        said: Line = {"thinking": thinking} if thinking else {}
        if calls:
            said["tool_calls"] = calls
        line: Line = {"model": self._model, "created_at": timestamp(self._clock())}
        if self._shape == "chat":
            line["message"] = {"role": "assistant", "content": text} | said
        else:
            line |= {"response": text} | said
        line["done"] = False
        if logprobs:
            line["logprobs"] = [_logprob(token) for token in logprobs]
        return line

    def _last(self, event: Finished) -> Line:
        line = self._delta() | {"done": True, "done_reason": DONE_REASONS[event.reason]}
        if self._context and event.context:
            line["context"] = list(event.context)
        return line | metrics(event.usage)


def metrics(usage: GenerationUsage) -> Line:
    """Counts, and durations in whole nanoseconds; zeros are left out as Go's encoder leaves them."""
    engine = usage.engine
    values = {
        "total_duration": usage.total_ns,
        "load_duration": usage.load_ns,
        "prompt_eval_count": engine.prompt,
        "prompt_eval_duration": engine.prefill_ns,
        "eval_count": engine.generated,
        "eval_duration": engine.decode_ns,
    }
    return {name: int(value) for name, value in values.items() if value}


def _logprob(token: TokenText) -> Line:
    line: Line = {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.data)}
    if token.top:
        line["top_logprobs"] = [
            {"token": text, "logprob": _finite(logprob), "bytes": list(data)}
            for text, data, logprob in token.top
        ]
    return line


def _finite(logprob: float) -> float:
    """JSON has no infinity; a token that cannot occur gets the lowest float32, as Go clients can read."""
    return logprob if math.isfinite(logprob) else -3.4028235e38


def collect(lines: Iterable[Line]) -> Line:
    """One reply out of all lines: texts joined, calls and log-probabilities appended, the rest from the last.

    Raises ValueError when there is no line at all.
    """
    texts: dict[str, list[str]] = {"content": [], "response": [], "thinking": []}
    calls: list[Line] = []
    logprobs: list[Line] = []
    last: Line = {}
    for last in lines:
        said = last.get("message", last)
        for key, pieces in texts.items():
            pieces.append(said.get(key, ""))
        calls += said.get("tool_calls", [])
        logprobs += last.get("logprobs", [])
    if not last:
        raise ValueError("no lines to collect")
    chat = "message" in last
    text = "content" if chat else "response"
    whole: Line = {text: "".join(texts[text])}
    if thinking := "".join(texts["thinking"]):
        whole["thinking"] = thinking
    if calls:
        whole["tool_calls"] = calls
    reply = last | ({"message": {"role": "assistant"} | whole} if chat else whole)
    return reply | {"logprobs": logprobs} if logprobs else reply

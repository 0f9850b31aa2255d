"""Events to an Anthropic message: its stream of events, and the message itself.

Sans-IO. `MessageStream` is an `Encoder`; a whole message is the same encoder with its bytes thrown away.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from gateway.errors import Fault
from gateway.faults import anthropic_body
from gateway.streaming import split_text, sse_named
from gateway.types import Event, Failed, Finished, TextDelta, ThinkingDelta, ToolCallDelta

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageStream:
    """Builds one message; `message()` is its state at any time. `input_tokens` is known before it starts."""

    def __init__(self, model: str, input_tokens: int = 0) -> None:
        self._model = model
        self._id = f"msg_{secrets.token_hex(12)}"
        self._input_tokens = input_tokens
        self._blocks: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._arguments = ""
        self._finished: Finished | None = None
        self._begun = False

    def push(self, event: Event) -> bytes:
        opening = self._begin()
        match event:
            case TextDelta(_, text, _):
                return opening + (self._delta("text", "text_delta", "text", text) if text else b"")
            case ThinkingDelta(_, text, _):
                return opening + self._delta("thinking", "thinking_delta", "thinking", text)
            case ToolCallDelta():
                return opening + self._call(event)
            case Finished():
                self._finished = event
                return opening + self._close()
            case Failed():
                raise TypeError("a failure is reported by `fail`")

    def finish(self) -> bytes:
        message = self.message()
        delta = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
        usage = message["usage"]
        end = sse_named("message_delta", {"type": "message_delta", "delta": delta, "usage": usage})
        return self._begin() + end + sse_named("message_stop", {"type": "message_stop"})

    def fail(self, fault: Fault) -> bytes:
        return sse_named("error", anthropic_body(fault))

    def message(self) -> dict[str, Any]:
        """The message object."""
        finished = self._finished
        stop = finished.stop_string if finished else None
        reason = STOP_REASONS[finished.reason] if finished else None
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": self._blocks,
            "stop_reason": "stop_sequence" if stop is not None and reason == "end_turn" else reason,
            "stop_sequence": stop,
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        engine = self._finished.usage.engine if self._finished else None
        cached = engine.cached if engine else 0
        return {
            "input_tokens": (engine.prompt if engine else self._input_tokens) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": engine.generated if engine else 0,
        }

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        message = self.message() | {"content": [], "stop_reason": None, "stop_sequence": None}
        start = sse_named("message_start", {"type": "message_start", "message": message})
        return start + sse_named("ping", {"type": "ping"})

    def _delta(self, kind: str, delta_kind: str, key: str, text: str) -> bytes:
        chunks = []
        if self._open is None or self._open["type"] != kind:
            block = {"type": kind, key: ""} | ({"signature": ""} if kind == "thinking" else {})
            chunks.append(self._start(block))
        assert self._open is not None
        for piece in split_text(text):
            self._open[key] += piece
            chunks.append(self._block_delta({"type": delta_kind, key: piece}))
        return b"".join(chunks)

    def _call(self, event: ToolCallDelta) -> bytes:
        chunks = []
        if event.id is not None:
            call_id = f"toolu_{event.id.removeprefix('call_')}"
            chunks.append(self._start({"type": "tool_use", "id": call_id, "name": event.name, "input": {}}))
        for piece in split_text(event.arguments) if event.arguments else ():
            self._arguments += piece
            chunks.append(self._block_delta({"type": "input_json_delta", "partial_json": piece}))
        return b"".join(chunks)

    def _start(self, block: dict[str, Any]) -> bytes:
        closing = self._close()
        self._blocks.append(block)
        self._open = block
        start = {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block}
        return closing + sse_named("content_block_start", start)

    def _block_delta(self, delta: dict[str, Any]) -> bytes:
        index = len(self._blocks) - 1
        event = {"type": "content_block_delta", "index": index, "delta": delta}
        return sse_named("content_block_delta", event)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        if self._open["type"] == "tool_use":
            self._open["input"] = _input(self._arguments)
            self._arguments = ""
        self._open = None
        index = len(self._blocks) - 1
        return sse_named("content_block_stop", {"type": "content_block_stop", "index": index})


def _input(arguments: str) -> dict[str, Any]:
    """The arguments as an object; what is none (a call cut off by the limit) is kept as it came."""
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        return {"_unparsed": arguments}
    return value if isinstance(value, dict) else {"_unparsed": arguments}

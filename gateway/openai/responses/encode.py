"""Events to a response: the items it is made of, and the stream of events that tells how they came to be.

Sans-IO. `ResponseStream` is an `Encoder`; a whole response is the same encoder with its bytes thrown away.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from gateway.errors import Fault
from gateway.openai.chat import token_entry, total
from gateway.openai.responses.schema import ResponseBody
from gateway.streaming import split_text, sse_named
from gateway.types import Event, Failed, Finished, TextDelta, ThinkingDelta, TokenText, ToolCallDelta


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"


class ResponseStream:
    """Builds one response. `response()` is its state at any time."""

    def __init__(self, body: ResponseBody, tools: list[dict[str, Any]]) -> None:
        self.id = new_id("resp")
        self._body = body
        self._tools = tools
        self._created = int(time.time())
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._logprobs: list[dict[str, Any]] = []
        self._finished: Finished | None = None
        self._status = "in_progress"
        self._error: dict[str, Any] | None = None
        self._sequence = 0
        self._begun = False

    # -- Encoder --------------------------------------------------------------------------------------

    def push(self, event: Event) -> bytes:
        opening = self._begin()
        match event:
            case TextDelta(_, text, logprobs):
                return opening + self._text(text, logprobs)
            case ThinkingDelta(_, text, _):
                return opening + self._thought(text)
            case ToolCallDelta():
                return opening + self._call(event)
            case Finished():
                self._finished = event
                closing = self._close("incomplete" if event.reason == "length" else "completed")
                self._status = "incomplete" if event.reason == "length" else "completed"
                return opening + closing
            case Failed():
                raise TypeError("a failure is reported by `fail`")

    def finish(self) -> bytes:
        return self._begin() + self._event(f"response.{self._status}", {"response": self.response()})

    def fail(self, fault: Fault) -> bytes:
        self.break_off(fault)
        failed = self._begin() + self._event("response.failed", {"response": self.response()})
        said = {"code": fault.code, "message": fault.message, "param": fault.param}
        return failed + self._event("error", said)

    def break_off(self, fault: Fault) -> None:
        """The response ends here with an error; what was written so far stays in it, incomplete."""
        if self._open is not None:
            self._open["status"] = "incomplete"
            self._open = None
        self._status = "failed"
        code = "rate_limit_exceeded" if fault.status == 429 else "server_error"
        self._error = {"code": code, "message": fault.message}

    def cancel(self) -> None:
        """Ends a background response that nobody wants any more."""
        self._status, self._open = "cancelled", None

    # -- the response ---------------------------------------------------------------------------------

    def response(self) -> dict[str, Any]:
        """The response object."""
        body, incomplete = self._body, self._status == "incomplete"
        done = self._status in ("completed", "incomplete", "failed", "cancelled")
        reasoning = body.reasoning
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "completed_at": int(time.time()) if self._status == "completed" else None,
            "background": bool(body.background),
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "model": body.model,
            "output": self._output if done else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {
                "effort": reasoning.effort if reasoning else None,
                "summary": reasoning.summary if reasoning else None,
            },
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": body.temperature if body.temperature is not None else 1.0,
            "text": {
                "format": (body.text.format if body.text else None) or {"type": "text"},
                "verbosity": (body.text.verbosity if body.text else None) or "medium",
            },
            "tool_choice": body.tool_choice if body.tool_choice is not None else "auto",
            "tools": self._tools,
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p if body.top_p is not None else 1.0,
            "truncation": body.truncation or "disabled",
            **self._usage(),
            "metadata": body.metadata or {},
            "safety_identifier": body.safety_identifier,
            "prompt_cache_key": body.prompt_cache_key,
        }

    def _usage(self) -> dict[str, Any]:
        """The `usage` key once it is known: the specification has no null there."""
        if self._finished is None:
            return {}
        whole = total([self._finished])
        usage = {
            "input_tokens": whole.engine.prompt,
            "input_tokens_details": {"cached_tokens": whole.engine.cached, "cache_write_tokens": 0},
            "output_tokens": whole.engine.generated,
            "output_tokens_details": {"reasoning_tokens": whole.reasoning_tokens},
            "total_tokens": whole.engine.prompt + whole.engine.generated,
        }
        return {"usage": usage}

    # -- items ------------------------------------------------------------------------------------------

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._event("response.created", {"response": self.response()}) + self._event(
            "response.in_progress", {"response": self.response()}
        )

    def _text(self, text: str, tokens: tuple[TokenText, ...]) -> bytes:
        opening = b""
        if self._open is None or self._open["type"] != "message":
            if not text:
                return b""
            opening = self._close() + self._open_message()
        logprobs = [token_entry(token) for token in tokens]
        self._logprobs += logprobs
        part = self._part()
        chunks = [opening]
        for position, piece in enumerate(split_text(text)):
            part["text"] += piece
            more = {"delta": piece, "logprobs": logprobs if position == 0 else []}
            chunks.append(self._part_event("response.output_text.delta", more))
        return b"".join(chunks)

    def _thought(self, text: str) -> bytes:
        opening = b""
        if self._open is None or self._open["type"] != "reasoning":
            opening = self._close() + self._open_reasoning()
        part = self._part()
        chunks = [opening]
        for piece in split_text(text):
            part["text"] += piece
            chunks.append(self._part_event("response.reasoning_text.delta", {"delta": piece}))
        return b"".join(chunks)

    def _call(self, event: ToolCallDelta) -> bytes:
        opening = b""
        if event.id is not None:
            item = {"id": new_id("fc"), "type": "function_call", "status": "in_progress"}
            item |= {"call_id": event.id, "name": event.name or "", "arguments": ""}
            opening = self._close() + self._open_item(item)
        assert self._open is not None
        chunks = [opening]
        for piece in split_text(event.arguments) if event.arguments else ():
            self._open["arguments"] += piece
            more = {"item_id": self._open["id"], "output_index": self._index, "delta": piece}
            chunks.append(self._event("response.function_call_arguments.delta", more))
        return b"".join(chunks)

    def _open_message(self) -> bytes:
        item: dict[str, Any] = {"id": new_id("msg"), "type": "message", "status": "in_progress"}
        opening = self._open_item(item | {"role": "assistant", "content": []})
        self._logprobs = []
        return opening + self._open_part(
            {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        )

    def _open_reasoning(self) -> bytes:
        item: dict[str, Any] = {"id": new_id("rs"), "type": "reasoning", "status": "in_progress"}
        opening = self._open_item(item | {"summary": [], "content": []})
        return opening + self._open_part({"type": "reasoning_text", "text": ""})

    def _open_item(self, item: dict[str, Any]) -> bytes:
        self._output.append(item)
        self._open = item
        return self._event("response.output_item.added", {"output_index": self._index, "item": item})

    def _open_part(self, part: dict[str, Any]) -> bytes:
        assert self._open is not None
        added = self._place() | {"part": part}
        encoded = self._event("response.content_part.added", added)
        self._open["content"].append(part)
        return encoded

    def _close(self, status: str = "completed") -> bytes:
        """Ends the open item: its part's text once more and whole, then the item."""
        item = self._open
        if item is None:
            return b""
        chunks = []
        if item["type"] == "function_call":
            done = {"item_id": item["id"], "output_index": self._index, "name": item["name"]}
            done["arguments"] = item["arguments"]
            chunks.append(self._event("response.function_call_arguments.done", done))
        else:
            part = self._part()
            said: dict[str, Any] = {"text": part["text"]}
            name = "response.reasoning_text.done"
            if item["type"] == "message":
                part["logprobs"] = self._logprobs
                said["logprobs"] = self._logprobs
                name = "response.output_text.done"
            chunks.append(self._part_event(name, said))
            chunks.append(self._part_event("response.content_part.done", {"part": part}))
        item["status"] = status
        chunks.append(self._event("response.output_item.done", {"output_index": self._index, "item": item}))
        self._open = None
        return b"".join(chunks)

    # -- framing ----------------------------------------------------------------------------------------

    @property
    def _index(self) -> int:
        return len(self._output) - 1

    def _part(self) -> dict[str, Any]:
        assert self._open is not None
        part: dict[str, Any] = self._open["content"][0]
        return part

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": self._index, "content_index": 0}

    def _part_event(self, name: str, fields: dict[str, Any]) -> bytes:
        return self._event(name, self._place() | fields)

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        event = {"type": name, "sequence_number": self._sequence} | fields
        self._sequence += 1
        return sse_named(name, event)

"""Anthropic bodies to canonical chats. Pure; called by the routes beside it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any

from engines.base import Grammar
from gateway.anthropic.schema import CountBody, MessageBody, MessagesBody
from gateway.errors import BadRequest
from gateway.openai.formats import schema_grammar
from gateway.openai.tools import checked_choice
from gateway.types import ChatRequest, GenerationOptions, SamplingOverrides, ToolChoice
from modelfiles.messages import MediaPart, Message, Part, TextPart, ToolCall, ToolSpec

CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max"}


def message_request(body: CountBody) -> ChatRequest:
    """The canonical form of POST /v1/messages, and of a body whose tokens are to be counted."""
    turns: list[Message] = []
    if system := _system(body.system):
        turns.append(Message.of("system", system))
    names: dict[str, str] = {}
    for position, turn in enumerate(body.messages):
        turns += _turns(turn, f"messages.{position}", names)
    tools = [_tool(tool) for tool in body.tools or [] if _is_ours(tool)]
    choice = body.tool_choice or {}
    return ChatRequest(
        model=body.model,
        messages=tuple(turns),
        tools=tuple(tools),
        tool_choice=checked_choice(_choice(choice), tools),
        parallel_tool_calls=choice.get("disable_parallel_tool_use") is not True,
        format=_format(body),
        think=_think(body),
        options=_options(body) if isinstance(body, MessagesBody) else GenerationOptions(),
    )


def _options(body: MessagesBody) -> GenerationOptions:
    sampling = SamplingOverrides(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k)
    stops = tuple(stop for stop in body.stop_sequences or () if stop)
    return GenerationOptions(
        sampling=sampling, num_predict=body.max_tokens, stop=stops or None, script=body.script
    )


def _system(given: str | list[dict[str, Any]] | None) -> str:
    if given is None or isinstance(given, str):
        return given or ""
    return "\n\n".join(str(block.get("text", "")) for block in given if block.get("type") == "text")


def _turns(turn: MessageBody, place: str, names: dict[str, str]) -> Iterable[Message]:
    """The turns of one message: a user message with tool results becomes several."""
    if turn.role not in ("user", "assistant", "system"):
        raise BadRequest(f"{place}.role must be user or assistant", param=f"{place}.role")
    blocks = [{"type": "text", "text": turn.content}] if isinstance(turn.content, str) else turn.content
    if turn.role == "assistant":
        yield _assistant(blocks, place, names)
        return
    parts: list[Part] = []
    for index, block in enumerate(blocks):
        where = f"{place}.content.{index}"
        if block.get("type") == "tool_result":
            yield _tool_result(block, where, names)
        else:
            parts.append(_part(block, where))
    if parts:
        yield Message("system" if turn.role == "system" else "user", tuple(parts))


def _assistant(blocks: list[dict[str, Any]], place: str, names: dict[str, str]) -> Message:
    parts: list[Part] = []
    calls: list[ToolCall] = []
    thinking = ""
    for index, block in enumerate(blocks):
        kind = block.get("type")
        if kind == "tool_use":
            call = _tool_use(block, f"{place}.content.{index}")
            names[call.id] = call.name
            calls.append(call)
        elif kind == "thinking":
            thinking += str(block.get("thinking", ""))
        elif kind != "redacted_thinking":
            parts.append(_part(block, f"{place}.content.{index}"))
    return Message("assistant", tuple(parts), tuple(calls), thinking=thinking or None)


def _tool_use(block: Mapping[str, Any], place: str) -> ToolCall:
    for name in ("id", "name"):
        if not isinstance(block.get(name), str):
            raise BadRequest(f"{place}.{name} is required in a tool_use block", param=f"{place}.{name}")
    return ToolCall(block["id"], block["name"], json.dumps(block.get("input") or {}, ensure_ascii=False))


def _tool_result(block: Mapping[str, Any], place: str, names: Mapping[str, str]) -> Message:
    call_id = block.get("tool_use_id")
    if not isinstance(call_id, str):
        raise BadRequest(f"{place}.tool_use_id is required in a tool_result block", param=place)
    content = block.get("content") or ""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts = tuple(_part(inner, f"{place}.content.{index}") for index, inner in enumerate(blocks))
    if block.get("is_error"):
        parts = (TextPart("error: "), *parts)
    return Message("tool", parts, tool_call_id=call_id, name=names.get(call_id))


def _part(block: Mapping[str, Any], place: str) -> Part:
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        return TextPart(block["text"])
    if kind == "image":
        source = block.get("source") or {}
        if source.get("type") != "base64":
            raise BadRequest(f"{place}.source must be base64; nothing is fetched", param=place)
        try:
            data = base64.b64decode(str(source.get("data", "")), validate=True)
        except (binascii.Error, ValueError):
            raise BadRequest(f"{place}.source.data is not base64", param=place) from None
        return MediaPart("image", str(source.get("media_type", "image/png")), data)
    raise BadRequest(
        f"{place}.type is {str(kind)[:64]!r}; text, tool_use and tool_result are read", param=place
    )


def _is_ours(tool: Mapping[str, Any]) -> bool:
    """Whether a tool is one the caller runs; web search and the like run at Anthropic."""
    return tool.get("type") in (None, "custom") and isinstance(tool.get("name"), str)


def _tool(tool: Mapping[str, Any]) -> ToolSpec:
    schema = tool.get("input_schema")
    return ToolSpec(
        tool["name"], str(tool.get("description") or ""), schema if isinstance(schema, dict) else {}
    )


def _choice(given: Mapping[str, Any]) -> ToolChoice:
    kind = str(given.get("type", "auto"))
    if kind not in CHOICES:
        raise BadRequest(f"tool_choice.type must be one of {', '.join(CHOICES)}", param="tool_choice.type")
    if kind == "tool":
        if not isinstance(given.get("name"), str):
            raise BadRequest("tool_choice.name is required", param="tool_choice.name")
        return ToolChoice("named", (given["name"],))
    return ToolChoice(CHOICES[kind])  # type: ignore[arg-type]


def _think(body: CountBody) -> bool | str | None:
    effort = (body.output_config or {}).get("effort")
    kind = (body.thinking or {}).get("type")
    if kind == "disabled":
        return False
    if kind in ("enabled", "adaptive"):
        return EFFORTS.get(str(effort), True)
    return None


def _format(body: CountBody) -> Grammar | None:
    given = (body.output_config or {}).get("format")
    if isinstance(given, Mapping) and given.get("type") == "json_schema" and given.get("schema"):
        return schema_grammar(given["schema"])
    return None

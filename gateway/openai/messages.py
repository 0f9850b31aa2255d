"""Messages and their parts, as Chat Completions writes them, to turns.

Pure; raises `BadRequest` with the place. Called by `convert` and `/tokenize`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.errors import BadRequest
from gateway.openai.schema import MessageBody, ToolCallBody
from modelfiles.messages import MediaPart, Message, Part, Role, TextPart, ToolCall

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
TEXT_PARTS = {"text": "text", "refusal": "refusal", "input_text": "text", "output_text": "text"}
MEDIA_PARTS = {"image_url", "input_audio", "binary", "file", "video_url", "input_video"}


def messages(given: list[MessageBody]) -> tuple[Message, ...]:
    """The turns; a tool turn without a name gets the name of the call it answers."""
    names: dict[str, str] = {}
    found = []
    for index, turn in enumerate(given):
        message = _message(turn, index, names)
        names |= {call.id: call.name for call in message.tool_calls}
        found.append(message)
    return tuple(found)


def _message(turn: MessageBody, index: int, names: dict[str, str]) -> Message:
    role = ROLES.get(turn.role)
    if role is None:
        raise BadRequest(
            f"messages.{index}.role is {turn.role[:64]!r}; the roles are {', '.join(ROLES)}",
            param=f"messages.{index}.role",
        )
    calls = tuple(_call(call, position) for position, call in enumerate(turn.tool_calls or []))
    if turn.function_call:
        calls += (ToolCall("call_0", turn.function_call.name, turn.function_call.arguments),)
    if turn.content is None and not calls and role != "assistant":
        raise BadRequest(f"messages.{index}.content is required", param=f"messages.{index}.content")
    name = turn.name
    if role == "tool" and name is None and turn.tool_call_id is not None:
        name = names.get(turn.tool_call_id)
    return Message(
        role=role,
        parts=tuple(_parts(turn.content, f"messages.{index}.content")),
        tool_calls=calls,
        tool_call_id=turn.tool_call_id,
        name=name,
        thinking=turn.reasoning_content or turn.reasoning,
    )


def _parts(content: object, place: str) -> Iterable[Part]:
    if isinstance(content, str):
        if content:
            yield TextPart(content)
        return
    if content is None:
        return
    assert isinstance(content, list | dict)
    for index, part in enumerate([content] if isinstance(content, dict) else content):
        yield _part(part, f"{place}.{index}")


def _part(part: Mapping[str, Any], place: str) -> Part:
    kind = part.get("type")
    if kind in TEXT_PARTS:
        text = part.get(TEXT_PARTS[kind])
        if not isinstance(text, str):
            raise BadRequest(f"{place}.{TEXT_PARTS[kind]} must be a string", param=place)
        return TextPart(text)
    if kind in MEDIA_PARTS:
        return _media(str(kind), part, place)
    raise BadRequest(
        f"{place}.type is {str(kind)[:64]!r}; the types are text, refusal, image_url and input_audio",
        param=f"{place}.type",
    )


def _media(kind: str, part: Mapping[str, Any], place: str) -> MediaPart:
    inner = part.get(kind)
    if kind == "image_url":
        url = inner.get("url") if isinstance(inner, Mapping) else inner
        if not isinstance(url, str) or not url.startswith("data:"):
            raise BadRequest(
                f"{place}: only data: URLs are read, nothing is fetched; send the bytes in base64",
                param=place,
            )
        head, _, data = url.partition(",")
        return MediaPart("image", head[5:].partition(";")[0] or "image/png", _bytes(data, place))
    fields: Mapping[str, Any] = inner if isinstance(inner, Mapping) else {}
    mime = str(fields.get("mime_type") or f"audio/{fields.get('format', 'wav')}")
    return MediaPart("audio" if "audio" in mime else "image", mime, _bytes(fields.get("data"), place))


def _bytes(data: object, place: str) -> bytes:
    try:
        return base64.b64decode(data if isinstance(data, str) else "", validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{place} is not base64", param=place) from None


def _call(call: ToolCallBody, position: int) -> ToolCall:
    return ToolCall(call.id or f"call_{position}", call.function.name, call.function.arguments or "{}")

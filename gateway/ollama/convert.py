"""Native bodies to canonical requests: the one place that knows Ollama's names for settings.

Pure functions; no model is looked up and no text is encoded. Called by routes. Raises BadRequest for
what can be refused without knowing the model.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engines.base import Grammar
from gateway.errors import BadRequest
from gateway.ollama.options import generation_options
from gateway.ollama.schema import (
    THINK_LEVELS,
    ChatBody,
    EmbedBody,
    EmbeddingsBody,
    GenerateBody,
    GenerationBody,
    MessageBody,
    ToolBody,
    ToolCallBody,
)
from gateway.types import ChatRequest, CompletionRequest, EmbedRequest, GenerationOptions, ToolChoice
from modelfiles.messages import MediaPart, Message, Part, Role, TextPart, ToolCall, ToolSpec

MAX_TOP_LOGPROBS = 20
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
MEDIA_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image", "image/png"),
    (b"\xff\xd8\xff", "image", "image/jpeg"),
    (b"GIF8", "image", "image/gif"),
    (b"RIFF", "audio", "audio/wav"),
)


def chat_request(body: ChatBody, model: str) -> ChatRequest:
    """The canonical form of POST /api/chat; `model` is the name as the caller wrote it."""
    return ChatRequest(
        model=model,
        messages=messages(body.messages or []),
        tools=tuple(map(_tool, body.tools or [])),
        tool_choice=_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        format=grammar(body.format),
        think=_think(body),
        options=_options(body),
    )


def completion_request(body: GenerateBody, model: str) -> CompletionRequest:
    """The canonical form of POST /api/generate. Raises BadRequest for images: no model we run can see."""
    if body.images:
        raise BadRequest(f'"{model}" does not support images; send the prompt without them')
    raw = bool(body.raw)
    if raw and (body.template or body.system or body.context):
        raise BadRequest("raw mode does not support template, system, or context")
    if any(token_id < 0 for token_id in body.context or ()):
        raise BadRequest(
            "context holds token ids, which are never negative; send back what the last reply gave"
        )
    return CompletionRequest(
        model=model,
        prompt=body.prompt or "",
        raw=raw,
        suffix=body.suffix or None,
        system=body.system or None,
        template=body.template or None,
        context=tuple(body.context or ()),
        format=grammar(body.format),
        think=_think(body),
        options=_options(body),
    )


def embed_request(body: EmbedBody, model: str) -> EmbedRequest:
    """The canonical form of POST /api/embed; absent or empty input gives no inputs (the model is loaded)."""
    given = body.input
    if given is None or given == "":
        inputs: tuple[str, ...] = ()
    elif isinstance(given, str):
        inputs = (given,)
    elif isinstance(given, list) and all(isinstance(text, str) for text in given):
        inputs = tuple(given)
    else:
        raise BadRequest("invalid input type; input is a string or a list of strings")
    if body.dimensions is not None and body.dimensions < 0:
        raise BadRequest(f"dimensions is {body.dimensions}; it must be positive, or 0 for all of them")
    generation_options(body.options or {})
    return EmbedRequest(
        model=model,
        inputs=inputs,
        dimensions=body.dimensions or None,
        truncate=body.truncate is not False,
        keep_alive=body.keep_alive,
    )


def embeddings_request(body: EmbeddingsBody, model: str) -> EmbedRequest:
    """The canonical form of POST /api/embeddings."""
    generation_options(body.options or {})
    inputs = (body.prompt,) if body.prompt else ()
    return EmbedRequest(model=model, inputs=inputs, truncate=True, keep_alive=body.keep_alive)


def grammar(given: str | Mapping[str, Any] | None) -> Grammar | None:
    """`format`: "json" for any JSON object, an object for a JSON Schema, null or "" for free text."""
    if given is None or given == "":
        return None
    if given == "json":
        return Grammar("json", "")
    if isinstance(given, Mapping):
        return Grammar("json_schema", json.dumps(given, ensure_ascii=False, separators=(",", ":")))
    raise BadRequest(f'invalid format: "{given}"; expected "json" or a valid JSON Schema object')


def messages(given: list[MessageBody]) -> tuple[Message, ...]:
    """The turns of a chat or of a create request.

    Calls without an id get one, of nine letters and digits as Mistral's templates want it. A tool turn says
    which call it answers by the function's name, by the call's id or both: what it leaves out is filled in
    from the calls before it, so that templates that print either find it.
    """
    open_calls: list[ToolCall] = []
    names: dict[str, str] = {}
    found = []
    for position, turn in enumerate(given):
        message = _message(turn, position, len(names))
        open_calls += message.tool_calls
        names |= {call.id: call.name for call in message.tool_calls}
        if message.role == "tool":
            message = _answering(message, open_calls, names)
        found.append(message)
    return tuple(found)


def _answering(message: Message, open_calls: list[ToolCall], names: Mapping[str, str]) -> Message:
    """The tool turn with both name and id; the call it answers is taken off `open_calls`."""
    for call in open_calls:
        if message.tool_call_id in (None, call.id) and message.name in (None, call.name):
            open_calls.remove(call)
            return replace(message, tool_call_id=call.id, name=call.name)
    return replace(message, name=message.name or names.get(message.tool_call_id or ""))


def _message(turn: MessageBody, position: int, calls_before: int) -> Message:
    role = ROLES.get(turn.role.lower())
    if role is None:
        raise BadRequest(f'messages.{position}.role is "{turn.role}"; the roles are {", ".join(ROLES)}')
    parts: list[Part] = [TextPart(turn.content)] if turn.content else []
    parts += [
        _media(image, f"messages.{position}.images.{index}") for index, image in enumerate(turn.images or [])
    ]
    return Message(
        role=role,
        parts=tuple(parts),
        tool_calls=tuple(
            _tool_call(call, calls_before + index) for index, call in enumerate(turn.tool_calls or [])
        ),
        tool_call_id=turn.tool_call_id or None,
        name=turn.tool_name or None,
        thinking=turn.thinking or None,
    )


def _media(encoded: str, place: str) -> MediaPart:
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(
            f"{place} is not base64; send the file's bytes encoded, not a path or an address"
        ) from None
    for signature, kind, mime_type in MEDIA_SIGNATURES:
        if data.startswith(signature):
            if data[8:12] == b"WEBP":
                return MediaPart("image", "image/webp", data)
            return MediaPart("audio" if kind == "audio" else "image", mime_type, data)
    raise BadRequest(f"{place} is neither PNG, JPEG, GIF, WebP nor WAV")


def _tool_call(call: ToolCallBody, index: int) -> ToolCall:
    arguments = call.function.arguments
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    return ToolCall(call.id or f"call{index:05}", call.function.name, arguments)


def _tool(tool: ToolBody) -> ToolSpec:
    if tool.type not in (None, "", "function"):
        raise BadRequest(f'tools of type "{tool.type}" cannot be called; the only type is "function"')
    function = tool.function
    return ToolSpec(
        function.name, function.description or "", function.parameters or {}, bool(function.strict)
    )


def _tool_choice(given: str | Mapping[str, Any] | None) -> ToolChoice:
    """OpenAI's forms: a word, or an object naming one function."""
    if given is None or given == "auto":
        return ToolChoice()
    if given == "none":
        return ToolChoice("none")
    if given in ("required", "any"):
        return ToolChoice("required")
    if isinstance(given, Mapping):
        function = given.get("function")
        name = function.get("name") if isinstance(function, Mapping) else given.get("name")
        if isinstance(name, str) and name:
            return ToolChoice("named", (name,))
    raise BadRequest(
        'tool_choice must be "auto", "none", "required" or {"type":"function","function":{"name":"..."}}'
    )


def _think(body: GenerationBody) -> bool | str | None:
    """`think`, or `options.think` where langchaingo puts it."""
    inner = (body.options or {}).get("think")
    if body.think is not None or inner is None or inner == "":
        return body.think
    if isinstance(inner, bool) or inner in THINK_LEVELS:
        return inner  # type: ignore[no-any-return]  # narrowed by the table above
    raise BadRequest(
        f'invalid think value: "{inner}" (must be "high", "medium", "low", "max", true, or false)'
    )


def _options(body: GenerationBody) -> GenerationOptions:
    top = body.top_logprobs or 0
    if not 0 <= top <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
    return generation_options(
        body.options or {},
        logprobs=top if body.logprobs else -1,
        keep_alive=body.keep_alive,
        truncate=bool(body.truncate),
        shift=bool(body.shift),
        script=body.script,
    )

"""OpenAI bodies to canonical requests. Pure; no model is looked up. Called by the routes of this dialect.

Raises `BadRequest` with `param` for everything that can be refused without knowing the model.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from engines.base import Grammar
from gateway.duration import parse_duration
from gateway.errors import BadRequest, UnsupportedParameter
from gateway.openai.schema import (
    ChatBody,
    CompletionBody,
    FormatBody,
    FunctionBody,
    MessageBody,
    SamplingBody,
    ToolBody,
    ToolCallBody,
)
from gateway.types import (
    ChatRequest,
    CompletionRequest,
    GenerationOptions,
    SamplingOverrides,
    ToolChoice,
)
from modelfiles.messages import MediaPart, Message, Part, Role, TextPart, ToolCall, ToolSpec

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}
TEXT_PARTS = {"text": "text", "refusal": "refusal", "input_text": "text", "output_text": "text"}
MEDIA_PARTS = {"image_url", "input_audio", "binary", "file", "video_url", "input_video"}


def chat_request(body: ChatBody) -> ChatRequest:
    """The canonical form of POST /v1/chat/completions."""
    _refuse(body)
    tools = [_tool(tool, index) for index, tool in enumerate(body.tools or [])]
    tools += [_function(function) for function in body.functions or []]
    choice = tool_choice(body.tool_choice) if body.tool_choice is not None else _legacy(body.function_call)
    return ChatRequest(
        model=body.model,
        messages=messages(body.messages),
        tools=tuple(tools),
        tool_choice=checked_choice(choice, tools),
        parallel_tool_calls=body.parallel_tool_calls is not False and not body.functions,
        format=grammar(body),
        think=_think(body),
        options=options(body, body.max_completion_tokens or body.max_tokens, _chat_logprobs(body)),
        template_kwargs=body.chat_template_kwargs or {},
    )


def completion_requests(body: CompletionBody) -> list[CompletionRequest]:
    """The canonical forms of POST /v1/completions, one for each prompt."""
    prompts = list(_prompts(body.prompt))
    if len(prompts) > 128:
        raise BadRequest(f"prompt: {len(prompts)} prompts in one request; the limit is 128", param="prompt")
    logprobs = -1 if body.logprobs is None else body.logprobs
    count = chosen_from(body)
    limit = 16 if body.max_tokens is None else body.max_tokens
    return [
        CompletionRequest(
            model=body.model,
            prompt=prompt,
            raw=True,
            suffix=body.suffix or None,
            format=grammar(body),
            echo=bool(body.echo),
            options=replace(
                options(body, limit, logprobs, zero_allowed=bool(body.echo)),
                n=count,
                logprobs=max(logprobs, 0) if count > (body.n or 1) else logprobs,
            ),
        )
        for prompt in prompts
    ]


def chosen_from(body: CompletionBody) -> int:
    """How many choices to generate for each prompt: `best_of`, of which `n` are kept."""
    n, best_of = body.n or 1, body.best_of or body.n or 1
    if best_of < n:
        raise BadRequest(f"best_of is {best_of}, less than n, which is {n}", param="best_of")
    if best_of > n and body.stream:
        raise BadRequest("best_of cannot be streamed: all choices must be complete", param="best_of")
    return best_of


def options(
    body: SamplingBody, max_tokens: int | None, logprobs: int, zero_allowed: bool = False
) -> GenerationOptions:
    """Everything about how to generate; what the caller did not say stays None, for the model to decide.

    `options`, in Ollama's names, is the weaker word: a field of its own overrides it.
    """
    if max_tokens == 0 and not zero_allowed:
        raise BadRequest("max_tokens must be at least 1", param="max_tokens")
    given = _inner_options(body.options)
    repeat = body.repeat_penalty if body.repeat_penalty is not None else body.repetition_penalty
    said = SamplingOverrides(
        temperature=body.temperature,
        top_k=None if body.top_k is None else max(0, body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        typical_p=body.typical_p,
        repeat_penalty=repeat,
        repeat_last_n=body.repeat_last_n,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_biases(body.logit_bias),
        seed=body.seed,
    )
    return GenerationOptions(
        sampling=_over(said, given.sampling),
        num_predict=given.num_predict if max_tokens is None else max_tokens,
        stop=_stops(body.stop) if body.stop is not None else given.stop,
        n=body.n or 1,
        logprobs=logprobs,
        num_ctx=body.num_ctx or given.num_ctx,
        keep_alive=keep_alive(body.keep_alive),
        ignore_eos=bool(body.ignore_eos),
        cache_salt=body.cache_salt or "",
        script=body.script,
    )


def _inner_options(given: dict[str, Any] | None) -> GenerationOptions:
    """Ollama's `options`, read by that dialect's own table."""
    if not given:
        return GenerationOptions()
    from gateway.ollama.options import generation_options

    return generation_options(given)


def _over(said: SamplingOverrides, weaker: SamplingOverrides) -> SamplingOverrides:
    names = SamplingOverrides.__dataclass_fields__
    return SamplingOverrides(
        **{
            name: getattr(weaker, name) if getattr(said, name) is None else getattr(said, name)
            for name in names
        }
    )


def keep_alive(given: float | str | None) -> float | None:
    """Seconds; negative for ever; None and "" for the default."""
    if given is None or given == "":
        return None
    try:
        return float(given) if not isinstance(given, str) else parse_duration(given)
    except ValueError as fault:
        raise BadRequest(f"keep_alive: {fault}", param="keep_alive") from None


def grammar(body: SamplingBody) -> Grammar | None:
    """The one constraint a body asks for; two different ones are refused."""
    found = [g for g in (_format(body.response_format), *_guides(body)) if g is not None]
    if len(found) > 1:
        raise BadRequest("ask for one of response_format and guided_*, not several", param="response_format")
    return found[0] if found else None


def _format(given: FormatBody | None) -> Grammar | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return schema_grammar(given.schema_) if given.schema_ else Grammar("json", "")
    if given.type == "json_schema":
        schema = given.json_schema.schema_ if given.json_schema else given.schema_
        if schema is None:
            raise BadRequest(
                "response_format.json_schema.schema is required", param="response_format.json_schema.schema"
            )
        return schema_grammar(schema)
    raise BadRequest(
        f"response_format.type is {given.type!r}; it can be text, json_object or json_schema",
        param="response_format.type",
    )


def schema_grammar(schema: Mapping[str, Any]) -> Grammar:
    """A JSON Schema as the engine takes it."""
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False, separators=(",", ":")))


def _guides(body: SamplingBody) -> Iterable[Grammar]:
    inner = body.structured_outputs or {}
    schema = body.guided_json or inner.get("json")
    if schema is not None:
        yield Grammar("json_schema", schema) if isinstance(schema, str) else schema_grammar(schema)
    if regex := body.guided_regex or inner.get("regex"):
        yield Grammar("regex", str(regex))
    if choices := body.guided_choice or inner.get("choice"):
        yield Grammar("choice", json.dumps(choices, ensure_ascii=False))
    if lark := body.guided_grammar or inner.get("grammar"):
        yield Grammar("lark", str(lark))


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


def _tool(tool: ToolBody, index: int) -> ToolSpec:
    if tool.type != "function" or tool.function is None:
        raise UnsupportedParameter(
            f"tools.{index}.type is {tool.type[:64]!r}; only function tools can be called here",
            param=f"tools.{index}.type",
        )
    return _function(tool.function)


def _function(function: FunctionBody) -> ToolSpec:
    return ToolSpec(
        function.name, function.description or "", function.parameters or {}, bool(function.strict)
    )


def tool_choice(given: str | Mapping[str, Any] | None) -> ToolChoice:
    """OpenAI's forms of `tool_choice`, Chat's and Responses' alike."""
    if given is None or given == "auto":
        return ToolChoice()
    if given in ("none", "required"):
        return ToolChoice("none" if given == "none" else "required")
    if given == "any":
        return ToolChoice("required")
    if isinstance(given, Mapping):
        kind = given.get("type")
        if kind == "function":
            function = given.get("function")
            name = function.get("name") if isinstance(function, Mapping) else given.get("name")
            if isinstance(name, str) and name:
                return ToolChoice("named", (name,))
        if kind == "allowed_tools":
            return _allowed(given.get("allowed_tools") if "allowed_tools" in given else given)
    raise BadRequest(
        'tool_choice must be "none", "auto", "required", {"type":"function","function":{"name":...}} or '
        '{"type":"allowed_tools",...}',
        param="tool_choice",
    )


def _allowed(given: object) -> ToolChoice:
    """Some of the tools: `auto` may call one of them, `required` must."""
    fields: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    entries = [entry for entry in fields.get("tools") or [] if isinstance(entry, Mapping)]
    names = [
        inner.get("name") if isinstance(inner := entry.get("function"), Mapping) else entry.get("name")
        for entry in entries
    ]
    kept = tuple(name for name in names if isinstance(name, str))
    if not kept:
        raise BadRequest("tool_choice.allowed_tools.tools names no function", param="tool_choice")
    return ToolChoice("named" if fields.get("mode") == "required" else "auto", kept)


def _legacy(function_call: str | Mapping[str, Any] | None) -> ToolChoice:
    """`function_call` of the API before tools."""
    if isinstance(function_call, Mapping):
        return ToolChoice("named", (str(function_call.get("name", "")),))
    if function_call not in (None, "auto", "none"):
        raise BadRequest('function_call must be "none", "auto" or {"name":...}', param="function_call")
    return ToolChoice("none" if function_call == "none" else "auto")


def checked_choice(choice: ToolChoice, tools: list[ToolSpec]) -> ToolChoice:
    """`choice`, if the tools it speaks of are there."""
    known = {tool.name for tool in tools}
    missing = [name for name in choice.names if name not in known]
    if missing:
        raise BadRequest(f"tool_choice names {missing[0]!r}, which is not among tools", param="tool_choice")
    if choice.mode in ("required", "named") and not tools:
        raise BadRequest(f"tool_choice {choice.mode!r} needs tools", param="tool_choice")
    return choice


def _think(body: ChatBody) -> bool | str | None:
    if body.think is not None:
        return body.think
    effort = body.reasoning_effort or (body.reasoning.effort if body.reasoning else None)
    if effort is None:
        return body.reasoning.enabled if body.reasoning else None
    if effort not in EFFORTS:
        raise BadRequest(
            f"reasoning_effort is {effort[:64]!r}; it can be {', '.join(EFFORTS)}", param="reasoning_effort"
        )
    return EFFORTS[effort]


def _chat_logprobs(body: ChatBody) -> int:
    if not body.logprobs:
        if body.top_logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        return -1
    return body.top_logprobs or 0


def _biases(given: Mapping[str, float] | None) -> tuple[tuple[int, float], ...] | None:
    if given is None:
        return None
    for key in given:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise BadRequest(f"logit_bias: {key[:32]!r} is no token id", param="logit_bias")
    return tuple((int(key), float(bias)) for key, bias in given.items())


def _stops(given: str | list[str]) -> tuple[str, ...]:
    return tuple(stop for stop in ([given] if isinstance(given, str) else given) if stop)


def _prompts(given: object) -> Iterable[str | tuple[int, ...]]:
    if given is None:
        return [""]
    if isinstance(given, str):
        return [given]
    assert isinstance(given, list)
    if not given:
        raise BadRequest("prompt is empty", param="prompt")
    if isinstance(given[0], int):
        return [tuple(given)]
    return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in given]


def _refuse(body: ChatBody) -> None:
    """Known fields that cannot be obeyed and must not be ignored either."""
    if body.modalities and set(body.modalities) != {"text"}:
        raise UnsupportedParameter(
            f"{body.model} answers in text only; modalities must be ['text']", param="modalities"
        )
    if body.audio is not None:
        raise UnsupportedParameter(f"{body.model} answers in text only; leave audio out", param="audio")
    if body.web_search_options is not None:
        raise UnsupportedParameter(
            "nothing here searches the web; leave web_search_options out", param="web_search_options"
        )
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options needs stream: true", param="stream_options")

"""Items of the Responses API to a canonical chat. Pure; called by the routes beside it.

Kinds of tools and items that mean nothing here (web search, computer use, ...) are skipped, not refused:
coding agents send them to every server. Media and files, which would change the answer, are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from engines.base import Grammar
from gateway.errors import BadRequest, UnsupportedParameter
from gateway.openai.convert import EFFORTS, keep_alive
from gateway.openai.formats import schema_grammar
from gateway.openai.responses.schema import ResponseBody
from gateway.openai.tools import checked_choice, tool_choice
from gateway.types import ChatRequest, GenerationOptions, SamplingOverrides
from modelfiles.messages import MediaPart, Message, Part, Role, TextPart, ToolCall, ToolSpec

TEXT_TYPES = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
ROLES: dict[str, Role] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
}
Item = Mapping[str, Any]


def response_request(body: ResponseBody, history: Iterable[Item]) -> ChatRequest:
    """The chat that continues `history` (input and output items of the responses before) with this input."""
    _refuse(body)
    turns = messages([*history, *input_items(body)])
    if body.instructions:
        turns = (Message.of("developer", body.instructions), *turns)
    if not turns:
        raise BadRequest("input is required", param="input", code="missing_required_parameter")
    tools = tool_specs(body.tools or [])
    wanted = tool_choice(body.tool_choice) if _is_known(body.tool_choice) else tool_choice("auto")
    wants_logprobs = "message.output_text.logprobs" in (body.include or [])
    return ChatRequest(
        model=body.model,
        messages=turns,
        tools=tuple(tools),
        tool_choice=checked_choice(wanted, tools),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        format=_format(body),
        think=_think(body),
        options=GenerationOptions(
            sampling=SamplingOverrides(temperature=body.temperature, top_p=body.top_p),
            num_predict=body.max_output_tokens,
            logprobs=(body.top_logprobs or 0) if wants_logprobs else -1,
            num_ctx=body.num_ctx,
            keep_alive=keep_alive(body.keep_alive),
            truncate=body.truncation == "auto",
            script=body.script,
        ),
    )


def input_items(body: ResponseBody) -> list[dict[str, Any]]:
    """The input as items; a text is one user message."""
    if body.input is None:
        return []
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": body.input}]}]
    return body.input


def messages(items: Iterable[Item]) -> tuple[Message, ...]:
    """Turns of a list of items: calls and reasoning join the assistant turn they belong to."""
    turns: list[Message] = []
    names: dict[str, str] = {}
    thinking = ""
    for position, item in enumerate(items):
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            turns.append(_message(item, f"input.{position}", thinking))
            thinking = ""
        elif kind == "function_call":
            call = _call(item, f"input.{position}")
            names[call.id] = call.name
            _add_call(turns, call, thinking)
            thinking = ""
        elif kind == "function_call_output":
            turns.append(_call_output(item, f"input.{position}", names))
        elif kind == "reasoning":
            thinking = _reasoning_text(item)
    return tuple(turns)


def _message(item: Item, place: str, thinking: str) -> Message:
    role = ROLES.get(str(item.get("role")))
    if role is None:
        raise BadRequest(f"{place}.role must be one of {', '.join(ROLES)}", param=f"{place}.role")
    parts = tuple(_parts(item.get("content"), f"{place}.content"))
    return Message(role, parts, thinking=thinking or None if role == "assistant" else None)


def _parts(content: object, place: str) -> Iterable[Part]:
    if isinstance(content, str):
        yield TextPart(content)
        return
    if not isinstance(content, list):
        raise BadRequest(f"{place} must be a string or a list of parts", param=place)
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in TEXT_TYPES:
            text = part.get(TEXT_TYPES[kind])
            if not isinstance(text, str):
                raise BadRequest(f"{place}.{index}.text must be a string", param=f"{place}.{index}")
            yield TextPart(text)
        elif kind in ("input_image", "input_audio"):
            yield MediaPart("image" if kind == "input_image" else "audio", "", b"")
        else:
            raise BadRequest(
                f"{place}.{index}.type is {str(kind)[:64]!r}; send input_text", param=f"{place}.{index}.type"
            )


def _call(item: Item, place: str) -> ToolCall:
    fields = [item.get("call_id"), item.get("name"), item.get("arguments", "{}")]
    if not all(isinstance(field, str) for field in fields):
        raise BadRequest(f"{place} needs call_id, name and arguments, all strings", param=place)
    return ToolCall(str(fields[0]), str(fields[1]), str(fields[2]) or "{}")


def _add_call(turns: list[Message], call: ToolCall, thinking: str) -> None:
    if turns and turns[-1].role == "assistant":
        last = turns.pop()
        turns.append(
            replace(last, tool_calls=(*last.tool_calls, call), thinking=last.thinking or thinking or None)
        )
    else:
        turns.append(Message("assistant", tool_calls=(call,), thinking=thinking or None))


def _call_output(item: Item, place: str, names: Mapping[str, str]) -> Message:
    call_id, output = item.get("call_id"), item.get("output")
    if not isinstance(call_id, str):
        raise BadRequest(f"{place}.call_id is required", param=f"{place}.call_id")
    parts = tuple(_parts(output if output is not None else "", f"{place}.output"))
    return Message("tool", parts, tool_call_id=call_id, name=names.get(call_id))


def _reasoning_text(item: Item) -> str:
    parts = [*(item.get("content") or []), *(item.get("summary") or [])]
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


def tool_specs(given: Iterable[Item]) -> list[ToolSpec]:
    """The function tools, those inside namespaces too; other kinds are nothing we could call."""
    found = []
    for tool in given:
        if tool.get("type") == "namespace":
            found += tool_specs(inner for inner in tool.get("tools") or [] if isinstance(inner, Mapping))
        elif tool.get("type") == "function" and isinstance(tool.get("name"), str):
            parameters = tool.get("parameters")
            found.append(
                ToolSpec(
                    str(tool["name"]),
                    str(tool.get("description") or ""),
                    parameters if isinstance(parameters, dict) else {},
                    tool.get("strict") is True,
                )
            )
    return found


def _is_known(choice: object) -> bool:
    return not isinstance(choice, Mapping) or choice.get("type") in ("function", "allowed_tools")


def _format(body: ResponseBody) -> Grammar | None:
    given = (body.text.format if body.text else None) or {}
    kind = given.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json", "")
    if kind == "json_schema" and isinstance(given.get("schema"), Mapping):
        return schema_grammar(given["schema"])
    raise BadRequest(
        "text.format must be text, json_object or json_schema with a schema", param="text.format"
    )


def _think(body: ResponseBody) -> bool | str | None:
    effort = body.reasoning.effort if body.reasoning else None
    if effort is None:
        return None
    if effort not in EFFORTS:
        raise BadRequest(f"reasoning.effort can be {', '.join(EFFORTS)}", param="reasoning.effort")
    return EFFORTS[effort]


def _refuse(body: ResponseBody) -> None:
    if body.conversation is not None:
        raise UnsupportedParameter(
            "conversations are not kept here; chain with previous_response_id", param="conversation"
        )
    if body.prompt is not None:
        raise UnsupportedParameter("prompt templates are not kept here; send input", param="prompt")
    if body.background and body.stream:
        raise UnsupportedParameter("a background response cannot be streamed; poll it", param="background")
    if body.background and body.store is False:
        raise BadRequest("a background response needs store", param="store")

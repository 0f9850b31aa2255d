"""Conversations every chat template is tried with: roles, white space, tools, calls, results, reasoning."""

from __future__ import annotations

import json
from typing import Any

from modelfiles.messages import Message, TextPart, ToolCall, ToolSpec

WEATHER = ToolSpec(
    "get_weather",
    "Weather at a place",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where"},
            "unit": {"type": "string", "enum": ["C", "F"]},
            "days": {"type": "array", "items": {"type": "integer"}, "description": "Which days"},
        },
        "required": ["city"],
    },
)
NESTED = ToolSpec(
    "book",
    "Books a <trip> & hotel",
    {
        "type": "object",
        "properties": {
            "trip": {
                "type": "object",
                "description": "The trip",
                "properties": {"from": {"type": "string"}, "to": {"type": "string", "nullable": True}},
                "required": ["from", "to"],
            },
            "guests": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "age": {"type": "number"}},
                    "required": ["name"],
                },
            },
            "free": {"type": "object"},
            "flag": {"type": "boolean", "description": "Really?"},
        },
        "required": ["trip"],
    },
)
NO_ARGUMENTS = ToolSpec("now", "The time", {"type": "object", "properties": {}})
CALL = ToolCall("call00001", "get_weather", '{"city": "Köln", "days": [1, 2], "unit": "C"}')
SECOND_CALL = ToolCall(
    "call00002", "book", '{"trip": {"from": "a \\"b\\"", "to": null}, "flag": true, "free": {}}'
)
NO_ARGUMENTS_CALL = ToolCall("call00003", "now", "{}")


def user(text: str) -> Message:
    return Message.of("user", text)


def assistant(text: str, *calls: ToolCall, thinking: str | None = None) -> Message:
    return Message("assistant", (TextPart(text),) if text else (), calls, thinking=thinking)


def result(call: ToolCall, text: str) -> Message:
    return Message("tool", (TextPart(text),), tool_call_id=call.id, name=call.name)


SYSTEM = Message.of("system", " Be brief. ")
PLAIN: dict[str, tuple[Message, ...]] = {
    "user": (user("Hello"),),
    "spaces": (user("  Hello\n\n"),),
    "two turns": (user("Hello"), assistant("Hi!"), user("Bye\nnow")),
    "spaces in answer": (user("Hello"), assistant("  Hi!\n"), user("Bye")),
    "unicode": (user("Grüße 你好 😀 \u2028 end"),),
    "markup": (user("<b>&amp;</b> {{ x }} {% if %}"),),
}
WITH_SYSTEM = {f"system, {name}": (SYSTEM, *turns) for name, turns in PLAIN.items()}
ONE_CALL = {
    "call": (user("Weather?"), assistant("", CALL)),
    "call and text": (user("Weather?"), assistant("Let me see.", CALL)),
    "call, result": (user("Weather?"), assistant("", CALL), result(CALL, '{"t": 5}')),
    "call, result, answer": (
        user("Weather?"),
        assistant("", CALL),
        result(CALL, "5 degrees"),
        assistant("It is 5."),
        user("Thanks"),
    ),
    "two rounds": (
        user("Weather?"),
        assistant("", CALL),
        result(CALL, "5"),
        assistant("", NO_ARGUMENTS_CALL),
        result(NO_ARGUMENTS_CALL, "noon"),
    ),
}
TWO_CALLS = {
    "two calls": (
        user("Both"),
        assistant("", CALL, SECOND_CALL),
        result(CALL, "5"),
        result(SECOND_CALL, "ok"),
    ),
}
REASONING = {
    "reasoning": (user("Why?"), assistant("So.", thinking="Hm.\nWell."), user("And?")),
    "reasoning, call": (
        user("Weather?"),
        assistant("", CALL, thinking="I must look."),
        result(CALL, "5"),
    ),
    "reasoning, old call": (
        user("Weather?"),
        assistant("", CALL, thinking="I must look."),
        result(CALL, "5"),
        assistant("5", thinking="Done."),
        user("More"),
    ),
}
TOOLS = (WEATHER, NESTED, NO_ARGUMENTS)
CONVERSATIONS = {**PLAIN, **WITH_SYSTEM, **ONE_CALL, **TWO_CALLS, **REASONING}


def as_variables(messages: tuple[Message, ...], tools: tuple[ToolSpec, ...]) -> dict[str, Any]:
    """`messages` and `tools` as Hugging Face passes them to a template, written out independently of ours."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.thinking:
            turn |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), message.thinking)
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.role == "tool":
            turn |= {"tool_call_id": message.tool_call_id, "name": message.name}
        turns.append(turn)
    functions = [
        {"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in tools
    ]
    return {
        "messages": turns,
        "tools": [{"type": "function", "function": function} for function in functions] or None,
    }

"""From a conversation to the text of a prompt: the one door to both template languages.

Guards what users, tools and systems wrote, prepares the variables each language expects and renders. What
comes out is guarded text for `guard.split_rendered` or `guard.encode_rendered`. Knows no model, no token ids
and no limits but those of `errors`. Called in a sandbox worker by the gateway.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from modelfiles.messages import MediaPart, Message, ToolCall, ToolSpec
from modelfiles.templates.errors import (
    TemplateError,
    TemplateLimitExceeded,
    TemplateRefused,
    TemplateSyntaxError,
    UnsupportedMedia,
)
from modelfiles.templates.guard import guard, guard_value, unguard
from modelfiles.templates.jinja import check_jinja, render_jinja
from modelfiles.templates.source import ChatPrompt, TemplateSource

RESERVED_VARIABLES = frozenset(
    (
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "bos_token",
        "eos_token",
    )
)
"""What `kwargs` may not replace."""

THINKING_TAGS = ("<think>", "</think>")
"""Left whole in assistant turns: clients send reasoning back inside the text, and templates cut it out."""


def render_chat(prompt: ChatPrompt) -> str:
    """The prompt's text, guarded. Raises a `TemplateError` that says what is wrong and in which line."""
    _refuse_media(prompt.messages)
    _refuse_reserved(prompt.kwargs)
    if prompt.template.kind == "go":
        from modelfiles.templates.go_chat import render_go_chat

        return render_go_chat(prompt)
    try:
        return _render_jinja_chat(prompt, prompt.messages)
    except (TemplateSyntaxError, TemplateLimitExceeded):
        raise
    except TemplateRefused:
        lenient = fold_turns(prompt.messages)
        if lenient == prompt.messages:
            raise
        return _render_jinja_chat(prompt, lenient)
    except TemplateError as error:
        return _render_older(prompt, error)


def _render_older(prompt: ChatPrompt, error: TemplateError) -> str:
    """Templates older than Hugging Face's conventions want arguments as text and a list of no tools."""
    try:
        return _render_jinja_chat(prompt, prompt.messages, older=True)
    except TemplateError:
        raise error from None


def render_completion(
    template: TemplateSource,
    system: str,
    prompt: str,
    suffix: str = "",
    *,
    think: bool | str | None = None,
    bos_token: str = "",
    eos_token: str = "",
    control_strings: Collection[str] = (),
) -> str:
    """One user turn with an optional system turn; with `suffix`, the text to fill in between the two.

    Raises `TemplateError` for a suffix when the template has no place for one.
    """
    if template.kind == "go" and suffix:
        from modelfiles.templates.go_chat import render_go_infill

        return render_go_infill(template, prompt, suffix, think, control_strings)
    if suffix:
        raise TemplateError("has no place for a suffix; this model does not support insert")
    turns = [Message.of("system", system)] if system else []
    return render_chat(
        ChatPrompt(
            template,
            (*turns, Message.of("user", prompt)),
            think=think,
            bos_token=bos_token,
            eos_token=eos_token,
            control_strings=tuple(control_strings),
        )
    )


def check_template(template: TemplateSource) -> None:
    """Raises `TemplateSyntaxError` with the line when the source cannot be parsed."""
    if template.kind == "jinja":
        check_jinja(template.text)
    else:
        from modelfiles.templates.golang import parse_go

        parse_go(template.text)


def fold_turns(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation as strict templates want it: no system turn, user and assistant alternating.

    System text goes in front of the first user turn; neighbours of the same role are joined by a blank line.
    """
    system = "\n\n".join(m.text for m in messages if m.role in ("system", "developer") and m.text)
    turns: list[Message] = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        if system and message.role == "user":
            message = Message.of("user", f"{system}\n\n{message.text}")
            system = ""
        if turns and _may_join(turns[-1], message):
            message = Message.of(message.role, f"{turns.pop().text}\n\n{message.text}")
        turns.append(message)
    return (Message.of("user", system), *turns) if system else tuple(turns)


def _may_join(first: Message, second: Message) -> bool:
    plain = not first.tool_calls and not second.tool_calls
    return first.role == second.role and first.role in ("user", "assistant") and plain


def _refuse_media(messages: tuple[Message, ...]) -> None:
    for message in messages:
        for part in message.parts:
            if isinstance(part, MediaPart):
                raise UnsupportedMedia(f"this model takes no {part.kind}; send text only")


def _refuse_reserved(kwargs: dict[str, Any]) -> None:
    taken = sorted(RESERVED_VARIABLES & kwargs.keys())
    if taken:
        raise TemplateError(
            f"argument {taken[0]!r} is set by the server; remove it from chat_template_kwargs"
        )


def _render_jinja_chat(prompt: ChatPrompt, messages: tuple[Message, ...], older: bool = False) -> str:
    developer = "developer" in prompt.template.text
    passed = [_jinja_message(message, prompt.control_strings, developer, older) for message in messages]
    variables: dict[str, Any] = {
        **guard_value(prompt.kwargs, prompt.control_strings),
        **_thinking_variables(prompt),
        "messages": passed,
        "tools": [_jinja_tool(tool, prompt.control_strings) for tool in prompt.tools]
        or ([] if older else None),
        "documents": None,
        "add_generation_prompt": not prompt.continue_final,
        "continue_final_message": prompt.continue_final,
        "bos_token": prompt.bos_token,
        "eos_token": prompt.eos_token,
    }
    rendered = render_jinja(prompt.template.text, variables)
    return _cut_after_final(rendered, passed) if prompt.continue_final else rendered


def _thinking_variables(prompt: ChatPrompt) -> dict[str, Any]:
    """The names templates of different families read; absent when the caller did not choose."""
    if prompt.think is None:
        return {}
    wanted = prompt.think not in (False, "none")
    effort = {"reasoning_effort": prompt.think} if isinstance(prompt.think, str) else {}
    return {"enable_thinking": wanted, "thinking": wanted, **effort}


def _jinja_message(
    message: Message, control_strings: Collection[str], developer: bool, older: bool = False
) -> dict[str, Any]:
    """A message as Hugging Face passes it: keys are there only when they say something, content always."""
    role = "system" if message.role == "developer" and not developer else message.role
    if role == "assistant":
        control_strings = [string for string in control_strings if string not in THINKING_TAGS]
    result: dict[str, Any] = {"role": role, "content": guard(message.text, control_strings)}
    if message.thinking:
        thinking = guard(message.thinking, control_strings)
        result |= {"reasoning_content": thinking, "reasoning": thinking, "thinking": thinking}
    if message.tool_calls:
        result["tool_calls"] = [_jinja_call(call, control_strings, older) for call in message.tool_calls]
    if message.tool_call_id is not None:
        result["tool_call_id"] = guard(message.tool_call_id, control_strings)
    if message.name is not None:
        result["name"] = guard(message.name, control_strings)
    return result


def _jinja_call(call: ToolCall, control_strings: Collection[str], older: bool) -> dict[str, Any]:
    arguments = call.arguments if older else parsed_arguments(call.arguments)
    return {
        "id": guard(call.id, control_strings),
        "type": "function",
        "function": {
            "name": guard(call.name, control_strings),
            "arguments": guard_value(arguments, control_strings),
        },
    }


def parsed_arguments(arguments: str) -> Any:
    """The arguments as an object when they are one, else their text as it came."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _jinja_tool(tool: ToolSpec, control_strings: Collection[str]) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    guarded: dict[str, Any] = guard_value(function, control_strings)
    return {"type": "function", "function": guarded}


def _cut_after_final(rendered: str, messages: list[dict[str, Any]]) -> str:
    """The prompt up to the end of the last turn's text, so that the model goes on writing it."""
    final = messages[-1]["content"] if messages else ""
    text = final.strip()
    if not text:
        return rendered
    start = rendered.rfind(text)
    if start < 0:
        raise TemplateError("changes the last message, so it cannot be continued")
    kept = final.lstrip()
    end = start + len(kept if rendered.startswith(kept, start) else text)
    return rendered[:end]


__all__ = [
    "ChatPrompt",
    "TemplateError",
    "TemplateLimitExceeded",
    "TemplateRefused",
    "TemplateSource",
    "TemplateSyntaxError",
    "UnsupportedMedia",
    "check_template",
    "fold_turns",
    "render_chat",
    "render_completion",
    "unguard",
]

"""Renders a conversation through a Go template the way Ollama does.

Knows the variables Ollama gives to templates, how it merges turns, and its three ways to run a template: once
over `.Messages`, turn by turn over `.System`, `.Prompt` and `.Response`, or over `.Prompt` and `.Suffix`.
Called by `chat`, which has refused media already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

from modelfiles.messages import Message, ToolCall, ToolSpec
from modelfiles.templates.errors import TemplateError
from modelfiles.templates.go_nodes import (
    Action,
    Body,
    Branch,
    Call,
    Chain,
    Field,
    GoTemplate,
    Operand,
    Pipeline,
    Statement,
    Variable,
)
from modelfiles.templates.go_values import JsonList, JsonMap, Struct, TypeList
from modelfiles.templates.golang import parse_go
from modelfiles.templates.golang_eval import execute
from modelfiles.templates.guard import guard, guard_value
from modelfiles.templates.source import ChatPrompt, TemplateSource


def render_go_chat(prompt: ChatPrompt) -> str:
    """The guarded prompt. A last assistant turn is left open by templates that end with `.Response`."""
    template = load(prompt.template.text)
    system, messages = collate(prompt.messages, prompt.control_strings)
    think = thinking_values(prompt.think)
    if "messages" in identifiers(template):
        return execute(
            template,
            {
                "System": system,
                "Messages": [_message(message, prompt.control_strings) for message in messages],
                "Tools": JsonList(_tool(tool, prompt.control_strings) for tool in prompt.tools),
                "Response": "",
                **think,
            },
        )
    return _render_turns(template, messages, prompt.control_strings, think)


def render_go_infill(
    template: TemplateSource,
    prompt: str,
    suffix: str,
    think: bool | str | None,
    control_strings: Collection[str],
) -> str:
    """The guarded prompt for text between `prompt` and `suffix`. Raises where there is no `.Suffix`."""
    tree = load(template.text)
    if "suffix" not in identifiers(tree):
        raise TemplateError("has no place for a suffix; this model does not support insert")
    return execute(
        tree,
        {
            "Prompt": guard(prompt, control_strings),
            "Suffix": guard(suffix, control_strings),
            "Response": "",
            **thinking_values(think),
        },
    )


def thinking_values(think: bool | str | None) -> dict[str, Any]:
    """`.Think`, `.ThinkLevel` and `.IsThinkSet`."""
    return {
        "Think": think is not None and think not in (False, "none"),
        "ThinkLevel": think if isinstance(think, str) else "",
        "IsThinkSet": think is not None,
    }


def load(source: str) -> GoTemplate:
    """The parsed template, ending with `.Response` where it names neither that nor `.Messages`."""
    template = parse_go(source)
    if identifiers(template) & {"messages", "response"}:
        return template
    response = Action(Pipeline(((Field(("Response",), 0),),), (), False, 0), 0)
    return GoTemplate((*template.body, response), template.defined)


def collate(messages: tuple[Message, ...], control_strings: Collection[str]) -> tuple[str, list[Message]]:
    """All system text, and the turns with neighbours of one role (tools' aside) joined by a blank line.

    The texts are guarded one by one, before they are joined.
    """
    system: list[str] = []
    turns: list[Message] = []
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        text = guard(message.text, control_strings)
        if role == "system":
            system.append(text)
        if turns and turns[-1].role == role and role != "tool":
            last = turns.pop()
            text = f"{last.text}\n\n{text}"
            message = dataclasses.replace(last, tool_calls=last.tool_calls + message.tool_calls)
        turns.append(dataclasses.replace(message, role=role, parts=Message.of(role, text).parts))
    return "\n\n".join(system), turns


def _message(message: Message, control_strings: Collection[str]) -> Struct:
    """A turn whose text is guarded already."""

    def plain(text: str | None) -> str:
        return guard(text or "", control_strings)

    return _struct(
        Role=message.role,
        Content=message.text,
        Thinking=plain(message.thinking),
        Images=[],
        ToolCalls=[_call(call, index, control_strings) for index, call in enumerate(message.tool_calls)],
        ToolName=plain(message.name),
        ToolCallID=plain(message.tool_call_id),
    )


def _struct(**fields: Any) -> Struct:
    return Struct(fields, {name: name for name in fields})


def _call(call: ToolCall, index: int, control_strings: Collection[str]) -> Struct:
    from modelfiles.templates.chat import parsed_arguments

    arguments = parsed_arguments(call.arguments)
    values = guard_value(arguments if isinstance(arguments, dict) else {}, control_strings)
    return _struct(
        ID=guard(call.id, control_strings),
        Function=_struct(
            Index=index,
            Name=guard(call.name, control_strings),
            Arguments=JsonMap(as_go(values)),
        ),
    )


def as_go(value: Any) -> Any:
    """A JSON value as Go decodes it: every number is a float64."""
    if isinstance(value, dict):
        return {key: as_go(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_go(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return 0.0
    return value


def _tool(tool: ToolSpec, control_strings: Collection[str]) -> Struct:
    schema = as_go(guard_value(tool.parameters, control_strings))
    properties = schema.get("properties")
    parameters = Struct(
        {
            "Type": _text(schema.get("type", "object")),
            "Defs": schema.get("$defs"),
            "Items": schema.get("items"),
            "Required": [_text(name) for name in schema.get("required") or []],
            "Properties": _properties(properties),
        },
        {
            "Type": "type",
            "Defs": "$defs",
            "Items": "items",
            "Required": "required",
            "Properties": "properties",
        },
        frozenset(("Defs", "Items", "Required")),
    )
    function = Struct(
        {
            "Name": guard(tool.name, control_strings),
            "Description": guard(tool.description, control_strings),
            "Parameters": parameters,
        },
        {"Name": "name", "Description": "description", "Parameters": "parameters"},
    )
    return Struct(
        {"Type": "function", "Items": None, "Function": function},
        {"Type": "type", "Items": "items", "Function": "function"},
        frozenset(("Items",)),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _properties(properties: Any) -> JsonMap:
    found = properties if isinstance(properties, dict) else {}
    return JsonMap((name, _property(schema)) for name, schema in found.items())


def _property(schema: Any) -> Struct:
    """One parameter; what is no object says nothing."""
    known = schema if isinstance(schema, dict) else {}
    kinds = known.get("type") or []
    names = {
        "AnyOf": "anyOf",
        "Type": "type",
        "Items": "items",
        "Description": "description",
        "Enum": "enum",
        "Properties": "properties",
        "Required": "required",
    }
    fields = {
        "AnyOf": [_property(choice) for choice in known.get("anyOf") or []],
        "Type": TypeList([kinds] if isinstance(kinds, str) else [_text(kind) for kind in kinds]),
        "Items": known.get("items"),
        "Description": _text(known.get("description")),
        "Enum": known.get("enum") or [],
        "Properties": _properties(known["properties"]) if known.get("properties") else None,
        "Required": [_text(name) for name in known.get("required") or []],
    }
    return Struct(fields, names, frozenset(names))


def _render_turns(
    template: GoTemplate, messages: list[Message], control_strings: Collection[str], think: dict[str, Any]
) -> str:
    """The older form: the template once for every exchange, the last time cut after `.Response`."""
    pieces: list[str] = []
    turn = {"System": "", "Prompt": "", "Response": ""}
    for message in messages:
        name = _TURN_NAMES.get(message.role)
        if name is None:
            continue
        later = ("Prompt", "Response") if name == "System" else ("Response",)
        if name != "Response" and any(turn[other] for other in later):
            pieces.append(execute(template, {**turn, **think}))
            turn = {"System": "", "Prompt": "", "Response": ""}
        turn[name] = message.text
    cut = GoTemplate(_cut_after_response(template.body)[0], template.defined)
    pieces.append(execute(cut, {**turn, **think}))
    return "".join(pieces)


_TURN_NAMES = {"system": "System", "user": "Prompt", "assistant": "Response"}


def identifiers(template: GoTemplate) -> set[str]:
    """Lower-case names of all fields and variables a template mentions."""
    bodies = (template.body, *template.defined.values())
    return {name.lower() for body in bodies for name in _names_in(body)}


def _names_in(body: Body) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, Action | Branch | Call) and statement.pipeline is not None:
            yield from _names_of(statement.pipeline)
        if isinstance(statement, Branch):
            yield from _names_in(statement.body)
            yield from _names_in(statement.otherwise or ())


def _names_of(operand: Operand) -> Iterator[str]:
    if isinstance(operand, Field | Variable):
        yield from operand.names
    elif isinstance(operand, Chain):
        yield from operand.names
        yield from _names_of(operand.operand)
    elif isinstance(operand, Pipeline):
        for command in operand.commands:
            for argument in command:
                yield from _names_of(argument)


def _cut_after_response(body: Body) -> tuple[Body, bool]:
    """The statements up to the first that prints `.Response`, at whatever depth, and whether one does."""
    kept: list[Statement] = []
    for statement in body:
        cut, found = _cut_statement(statement)
        kept.append(cut)
        if found:
            return tuple(kept), True
    return body, False


def _cut_statement(statement: Statement) -> tuple[Statement, bool]:
    if isinstance(statement, Action):
        return statement, _mentions_response(statement.pipeline)
    if isinstance(statement, Branch):
        body, found = _cut_after_response(statement.body)
        if found:
            return dataclasses.replace(statement, body=body, otherwise=None), True
        otherwise, found = _cut_after_response(statement.otherwise or ())
        if found:
            return dataclasses.replace(statement, otherwise=otherwise), True
    return statement, False


def _mentions_response(operand: Operand) -> bool:
    if isinstance(operand, Field):
        return "Response" in operand.names
    if isinstance(operand, Pipeline):
        return any(_mentions_response(argument) for command in operand.commands for argument in command)
    return False

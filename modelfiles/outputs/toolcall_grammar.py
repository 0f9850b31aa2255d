"""Grammars that make a reply a call of a function on offer, written the way each convention writes calls.

Knows JSON Schema as far as it shapes arguments, and llguidance's Lark dialect (`%json`, `<token>`); whatever
a grammar admits, the convention's parser reads. Compiles nothing. Called by the gateway's service for
`tool_choice`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelfiles.messages import ToolSpec
from modelfiles.outputs.brace_grammar import BraceRules
from modelfiles.outputs.xml_calls import kinds_of_schema


class NoSuchFunction(ValueError):
    """A tool choice names a function that is not on offer."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"tool choice names {name!r}, but the tools are {', '.join(known) or 'none'}")


@dataclass(frozen=True, slots=True)
class _JsonForm:
    """A call as a JSON object between `before` and `after`, calls between `opening` and `closing`.

    `opening` and `closing` surround several calls; with `always` a single one too.
    """

    arguments: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    opening: tuple[str, ...] = ()
    closing: tuple[str, ...] = ()
    separator: str = ", "
    always: bool = False


@dataclass(frozen=True, slots=True)
class _BraceForm:
    """`call:NAME{...}` between two markers, strings between two `quote` markers."""

    opening: str
    closing: str
    quote: str


@dataclass(frozen=True, slots=True)
class _TagForm:
    """Qwen3-Coder's tags, the parameters in the order of the schema."""

    opening: str
    closing: str


_ARRAY = _JsonForm("parameters", opening=("[",), closing=("]",))
_FORMS: Mapping[str, _JsonForm | _BraceForm | _TagForm] = {
    "plain": _JsonForm("arguments", opening=("[",), closing=("]",)),
    "think_tags": _JsonForm("arguments", opening=("[",), closing=("]",)),
    "json": _JsonForm("arguments", opening=("[",), closing=("]",)),
    "gemma3_tools": _ARRAY,
    "llama3": _JsonForm("parameters", separator="; "),
    "qwen": _JsonForm("arguments", ("<tool_call>", "\n"), ("\n", "</tool_call>"), separator="\n"),
    "qwen3_coder": _TagForm("<tool_call>", "</tool_call>"),
    "mistral": _JsonForm("arguments", opening=("[TOOL_CALLS]", "["), closing=("]",), always=True),
    "gemma4": _BraceForm("<|tool_call>", "<tool_call|>", '<|"|>'),
    "functiongemma": _BraceForm("<start_function_call>", "<end_function_call>", "<escape>"),
}


def tool_grammar(
    convention: str,
    tools: tuple[ToolSpec, ...],
    required: bool,
    names: tuple[str, ...] = (),
    parallel: bool = True,
    token_ids: Mapping[str, int] | None = None,
) -> tuple[str, str]:
    """Kind and source of a grammar for one reply.

    `names` limits the functions (none: all of `tools`); with `required` the reply is one call, or several
    with `parallel`; without it, it may be text instead. `token_ids` are the vocabulary's special strings:
    markers among them are asked for by id, others as text. Raises `NoSuchFunction`, and
    KeyError for an unknown convention.
    """
    chosen = _choose(tools, names)
    form = _FORMS[convention]
    write = _Writer(token_ids)
    if isinstance(form, _JsonForm):
        rules = _json_rules(form, chosen, parallel, write)
    elif isinstance(form, _TagForm):
        rules = _tag_rules(form, chosen, parallel, write)
    else:
        rules = _brace_rules(form, chosen, parallel, write)
    start = "start: calls" if required else "start: calls | text"
    text = [] if required else ["text: TEXT", "TEXT: /(.|\\n)*/"]
    return "lark", "\n".join([start, *text, *rules]) + "\n"


def _choose(tools: tuple[ToolSpec, ...], names: tuple[str, ...]) -> tuple[ToolSpec, ...]:
    by_name = {tool.name: tool for tool in tools}
    for name in names:
        if name not in by_name:
            raise NoSuchFunction(name, list(by_name))
    chosen = tuple(by_name[name] for name in names) if names else tuple(by_name.values())
    if not chosen:
        raise NoSuchFunction("", [])
    return chosen


class _Writer:
    """Writes markers and texts as grammar symbols."""

    def __init__(self, token_ids: Mapping[str, int] | None) -> None:
        self._ids = token_ids or {}

    def __call__(self, text: str) -> str:
        return f"<[{self._ids[text]}]>" if text in self._ids else literal(text)


def literal(text: str) -> str:
    """A text as a Lark string."""
    return json.dumps(text, ensure_ascii=False)


def _json_rules(form: _JsonForm, tools: tuple[ToolSpec, ...], parallel: bool, write: _Writer) -> list[str]:
    before, after = (" ".join(map(write, part)) for part in (form.before, form.after))
    opening, closing = (" ".join(map(write, part)) for part in (form.opening, form.closing))
    many = f"{opening} call ({write(form.separator)} call)* {closing}"
    if form.always:
        calls = many if parallel else f"{opening} call {closing}"
    elif parallel:
        calls = f"call | {many}" if form.opening else f"call ({write(form.separator)} call)*"
    else:
        calls = "call"
    rules = [f"calls: {calls}", f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
    for index, tool in enumerate(tools):
        head = literal(f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{form.arguments}": ')
        rules.append(f"call_{index}: {before} {head} arguments_{index} {literal('}')} {after}")
        rules.append(f"arguments_{index}: {_json_rule(_object_schema(tool.parameters))}")
    return rules


def _json_rule(schema: Mapping[str, Any]) -> str:
    """JSON of a schema, on one line: a small model that may write more white space writes nothing else."""
    options = {"whitespace_pattern": r"(\x20)?", "coerce_one_of": True}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def _object_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of the arguments, which are an object whatever it says."""
    return {**parameters, "type": "object"}


def _brace_rules(form: _BraceForm, tools: tuple[ToolSpec, ...], parallel: bool, write: _Writer) -> list[str]:
    braces = BraceRules(write(form.quote), quote_is_text=write(form.quote).startswith('"'))
    choices = " | ".join(f"call_{index}" for index in range(len(tools)))
    rules = [
        f"calls: call{'+' if parallel else ''}",
        f"call: {write(form.opening)} ({choices}) {write(form.closing)}",
    ]
    for index, tool in enumerate(tools):
        rule = braces.add(_object_schema(tool.parameters), tool.parameters)
        rules.append(f"call_{index}: {literal(f'call:{tool.name}')} {rule}")
    return rules + braces.rules


def _tag_rules(form: _TagForm, tools: tuple[ToolSpec, ...], parallel: bool, write: _Writer) -> list[str]:
    """Strings run to the end of their tag; other values are JSON."""
    choices = " | ".join(f"call_{index}" for index in range(len(tools)))
    line, end = literal("\n"), literal("</function>\n")
    rules = [
        f"calls: call {f'({line} call)*' if parallel else ''}",
        f"call: {write(form.opening)} {line} ({choices}) {end} {write(form.closing)}",
        f"text_value[lazy]: /(.|\\n)*/ {TAG_END}",
    ]
    for index, tool in enumerate(tools):
        names = []
        required = tool.parameters.get("required") or ()
        for number, (key, schema) in enumerate((tool.parameters.get("properties") or {}).items()):
            rule = f"parameter_{index}_{number}"
            names.append(rule if key in required else f"{rule}?")
            rules.append(f"{rule}: {literal(f'<parameter={key}>' + chr(10))} {_tag_value(schema, tool)}")
        rules.append(f"call_{index}: {literal(f'<function={tool.name}>' + chr(10))} {' '.join(names)}")
    return rules


TAG_END = literal("\n</parameter>\n")


def _tag_value(schema: Any, tool: ToolSpec) -> str:
    """What may stand for a value, with the end of its tag. Definitions come along for what refers to them."""
    if not kinds_of_schema(schema, tool.parameters) <= {"string"}:
        definitions: dict[str, Any] = {
            key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters
        }
        return f"{_json_rule({**schema, **definitions})} {TAG_END}"
    choices = schema.get("enum") if isinstance(schema, Mapping) else None
    if not choices:
        return "text_value"
    return f"({' | '.join(literal(str(choice)) for choice in choices)}) {TAG_END}"

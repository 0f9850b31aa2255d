"""One output parser per convention: from generated chunks to answer, reasoning and tool calls.

Joins lexer, thinking splitter and tool splitter; knows which convention a model follows and which markers and
syntaxes that is, in one table. Sans-IO, fed by the gateway's service between detokenizer and stop matcher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from modelfiles.messages import ToolSpec
from modelfiles.outputs.brace_calls import BraceCalls
from modelfiles.outputs.call_readers import (
    read_json_calls,
    read_leading_json_calls,
    read_named_json_calls,
)
from modelfiles.outputs.lexer import Lexer
from modelfiles.outputs.thinking import ThinkingSplitter, ThinkingSyntax
from modelfiles.outputs.tools import ToolSplitter, ToolSyntax
from modelfiles.outputs.types import Content, Segment, TextChunk, Thinking
from modelfiles.outputs.xml_calls import CALL_END, FUNCTION, TAGS, read_tagged_calls


class OutputParser(Protocol):
    """Separates what a model generates. Chunks pushed byte by byte or whole give the same text."""

    def push(self, chunk: TextChunk) -> list[Segment]: ...

    def finish(self) -> list[Segment]: ...


@dataclass(frozen=True, slots=True)
class Convention:
    """How a family marks reasoning and tool calls. `others` are markers that appear inside calls."""

    thinking: ThinkingSyntax | None = None
    tools: ToolSyntax | None = None
    others: frozenset[str] = frozenset()

    @property
    def markers(self) -> frozenset[str]:
        """Every string with a meaning."""
        thinking = self.thinking.pairs if self.thinking else {}
        openers = self.tools.openers if self.tools else {}
        closers = {closer for closer in openers.values() if closer}
        return frozenset((*thinking, *thinking.values(), *openers, *closers, *self.others))


_TAGS = ThinkingSyntax({"<think>": "</think>", "<thinking>": "</thinking>"})
_JSON = ToolSyntax(read_json_calls, {}, leading=read_leading_json_calls)

TEXT_MARKERS = frozenset(("<think>", "</think>", "<thinking>", "</thinking>", "<tool_call>", "</tool_call>"))
"""Tags that vocabularies hold as ordinary tokens, shown as text: matched as text even with an id."""

CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        "plain": Convention(),
        "think_tags": Convention(_TAGS),
        "json": Convention(_TAGS, _JSON),
        "gemma3_tools": Convention(None, _JSON),
        "functiongemma": Convention(
            None,
            ToolSyntax(BraceCalls("<escape>"), {"<start_function_call>": "<end_function_call>"}),
            frozenset(("<escape>",)),
        ),
        "gemma4": Convention(
            ThinkingSyntax({"<|channel>": "<channel|>"}, "thought", frozenset(("<|tool_call>",))),
            ToolSyntax(
                BraceCalls('<|"|>'), {"<|tool_call>": "<tool_call|>"}, ignored=frozenset(("<tool_call|>",))
            ),
            frozenset(('<|"|>',)),
        ),
        "llama3": Convention(
            _TAGS, ToolSyntax(read_json_calls, {"<|python_tag|>": None}, leading=read_leading_json_calls)
        ),
        "qwen": Convention(_TAGS, ToolSyntax(read_json_calls, {"<tool_call>": "</tool_call>"})),
        "qwen3_coder": Convention(
            None, ToolSyntax(read_tagged_calls, {"<tool_call>": CALL_END, FUNCTION: None}), TAGS
        ),
        "mistral": Convention(
            ThinkingSyntax({"[THINK]": "[/THINK]", "<think>": "</think>"}),
            ToolSyntax(read_named_json_calls, {"[TOOL_CALLS]": None}),
            frozenset(("[ARGS]",)),
        ),
    }
)

MARKER_CONVENTIONS: tuple[tuple[str, str], ...] = (
    ("<|tool_call>", "gemma4"),
    ("<start_function_call>", "functiongemma"),
    ("[TOOL_CALLS]", "mistral"),
    ("<parameter=", "qwen3_coder"),
    ("<tool_call>", "qwen"),
    ("<|python_tag|>", "llama3"),
    ("<|start_header_id|>", "llama3"),
)
"""What in a template's text tells its convention, the most telling first."""

ARCHITECTURE_CONVENTIONS: Mapping[str, str] = MappingProxyType(
    {
        "gemma": "gemma3_tools",
        "gemma2": "gemma3_tools",
        "gemma3": "gemma3_tools",
        "gemma3_text": "gemma3_tools",
        "gemma3n": "gemma3_tools",
        "gemma4": "gemma4",
    }
)


def convention_for(template_text: str, architecture: str) -> str:
    """The convention of a model, read from what its template writes, else from its family."""
    for marker, convention in MARKER_CONVENTIONS:
        if marker in template_text:
            return convention
    if architecture in ARCHITECTURE_CONVENTIONS:
        return ARCHITECTURE_CONVENTIONS[architecture]
    if any(word in template_text for word in (".ToolCalls", ".Tools", "tool_calls")):
        return "json"
    return "think_tags" if "</think>" in template_text else "plain"


class UnknownConvention(ValueError):
    """A convention that is not in the table."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown output convention {name!r}; known are {', '.join(CONVENTIONS)}")


def make_parser(
    convention: str,
    *,
    names: Mapping[str, int],
    tools: tuple[ToolSpec, ...] = (),
    think: bool = False,
    prompt: str = "",
) -> OutputParser:
    """A parser for one answer. Raises `UnknownConvention`.

    `names` are the vocabulary's special strings: markers among them that arrive as control tokens are matched
    by id. `tools` are the functions on offer. `prompt` may end inside an open think block. `think` asks for
    tags to be separated even where the convention has none.
    """
    if convention not in CONVENTIONS:
        raise UnknownConvention(convention)
    chosen = CONVENTIONS[convention]
    if think and chosen.thinking is None:
        chosen = Convention(_TAGS, chosen.tools, chosen.others)
    if chosen.thinking is None and chosen.tools is None:
        return _Plain()
    return _Parser(chosen, names, tools, prompt)


class _Plain:
    """Everything is content; control tokens are nothing."""

    def push(self, chunk: TextChunk) -> list[Segment]:
        return [Content(chunk)] if chunk.special is None else []

    def finish(self) -> list[Segment]:
        return []


class _Parser:
    """Lexer, thinking splitter and tool splitter in a row."""

    def __init__(
        self, convention: Convention, names: Mapping[str, int], tools: tuple[ToolSpec, ...], prompt: str
    ) -> None:
        by_id = {names[marker]: marker for marker in convention.markers if marker in names}
        by_text = {marker for marker in convention.markers if marker not in names or marker in TEXT_MARKERS}
        self._lexer = Lexer(by_text, by_id)
        self._thinking = ThinkingSplitter(convention.thinking or ThinkingSyntax({}), prompt)
        self._tools = ToolSplitter(
            convention.tools or ToolSyntax(read_json_calls, {}),
            {tool.name: tool.parameters for tool in tools},
        )

    def push(self, chunk: TextChunk) -> list[Segment]:
        segments: list[Segment] = []
        for lexeme in self._lexer.push(chunk):
            for part in self._thinking.push(lexeme):
                segments += [part] if isinstance(part, Thinking) else self._tools.push(part)
        return segments

    def finish(self) -> list[Segment]:
        segments: list[Segment] = []
        for lexeme in self._lexer.finish():
            for part in self._thinking.push(lexeme):
                segments += [part] if isinstance(part, Thinking) else self._tools.push(part)
        for part in self._thinking.finish():
            segments += [part] if isinstance(part, Thinking) else self._tools.push(part)
        return segments + self._tools.finish()

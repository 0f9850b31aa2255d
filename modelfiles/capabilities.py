"""What a model can do, read from its weights, its template and its parser: the words of `show` and `tags`.

The rules are Ollama's, so that clients which register models by capability see what they expect. Claims
nothing that the engine refuses: vision and audio are never listed here. Called inside a sandbox worker.
"""

from __future__ import annotations

from collections.abc import Collection

from modelfiles.description import ModelDescription
from modelfiles.outputs.parser import CONVENTIONS
from modelfiles.templates.builtin import parser_convention
from modelfiles.templates.go_chat import identifiers, load
from modelfiles.templates.source import TemplateSource

ORDER = ("completion", "tools", "insert", "embedding", "thinking")
"""Every capability we may claim, in the order they are listed."""

_JINJA_TOOLS = ("tools", "tool_call")
_THINK_TAGS = ("<think>", "</think>")


def capabilities(
    description: ModelDescription,
    template: TemplateSource,
    claimed: Collection[str] = (),
    parser: str | None = None,
) -> tuple[str, ...]:
    """Capabilities in `ORDER`: of the weights, the template's variables or tags, and the named parser.

    `claimed` are those a manifest's own config lists; what the engine cannot do is left out of them. Raises
    `TemplateError` for a template that does not parse or a parser nobody knows.
    """
    found = {*description.capabilities, *claimed}
    found |= _of_go(template.text) if template.kind == "go" else _of_jinja(template.text)
    if parser is not None:
        convention = CONVENTIONS[parser_convention(parser)]
        found |= {"tools"} if convention.tools else set()
        found |= {"thinking"} if convention.thinking else set()
    if "embedding" in found and "embedding" in description.capabilities:
        found -= {"completion", "tools", "insert", "thinking"}  # encoders have no head to speak with
    return tuple(name for name in ORDER if name in found)


def _of_go(text: str) -> set[str]:
    names = identifiers(load(text))
    found = {"tools"} if "tools" in names else set()
    found |= {"insert"} if "suffix" in names else set()
    if "thinking" in names or all(tag in text for tag in _THINK_TAGS):
        found.add("thinking")
    return found


def _of_jinja(text: str) -> set[str]:
    found = {"tools"} if any(word in text for word in _JINJA_TOOLS) else set()
    if all(tag in text for tag in _THINK_TAGS) or "<|channel>" in text:
        found.add("thinking")
    return found

"""What a model can be asked for: Ollama's capability names, from its description, template and parser.

Knows no engine; vision and audio are never claimed, whatever the files say, until there is one that sees and
hears. Called by `show`, `tags` and the checks before a request. Rules: `server/images.go` of Ollama.
"""

from __future__ import annotations

from modelfiles.description import ModelDescription
from modelfiles.outputs.parser import CONVENTIONS
from modelfiles.templates.builtin import PARSERS
from modelfiles.templates.errors import TemplateError
from modelfiles.templates.go_chat import identifiers
from modelfiles.templates.golang import parse_go
from modelfiles.templates.source import TemplateSource

ORDER = ("completion", "tools", "insert", "embedding", "thinking")

JINJA_SIGNS = (
    ("tools", ("tools", "tool_call")),
    ("thinking", ("</think>", "enable_thinking", "<|channel>")),
)
"""What in a Jinja template's text tells a capability; any of the words is enough."""

GO_SIGNS = (("tools", "tools"), ("insert", "suffix"), ("thinking", "thinking"))
"""A capability and the variable of a Go template that tells it."""


def capabilities(
    description: ModelDescription, template: TemplateSource, parser_name: str | None = None
) -> tuple[str, ...]:
    """Names in Ollama's order. `parser_name` is a PARSER of a Modelfile; an unknown one says nothing."""
    found = set(description.capabilities)
    if "classification" in found:
        return ("classification",)
    embeds = any(key.endswith(".pooling_type") for key in description.model_info)
    found.add("embedding" if embeds or "embedding" in found else "completion")
    if "completion" in found:
        found |= _of_jinja(template.text) if template.kind == "jinja" else _of_go(template.text)
        found |= _of_parser(parser_name)
    return tuple(name for name in ORDER if name in found)


def _of_jinja(text: str) -> set[str]:
    return {name for name, signs in JINJA_SIGNS if any(sign in text for sign in signs)}


def _of_go(text: str) -> set[str]:
    try:
        variables = identifiers(parse_go(text))
    except TemplateError:
        return set()
    return {name for name, variable in GO_SIGNS if variable in variables}


def _of_parser(name: str | None) -> set[str]:
    if name is None or name not in PARSERS:
        return set()
    convention = CONVENTIONS[PARSERS[name]]
    found = {"tools"} if convention.tools else set()
    return found | ({"thinking"} if convention.thinking and name != "gemma4-no-thinking" else set())

"""The templates we carry: chosen when a model brings none, and standing in for Ollama's renderer names.

Knows architectures and names, renders nothing. The Jinja sources lie beside this file, written from the
published formats. Adding a family is one file and one row of a table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from modelfiles.templates.errors import TemplateError
from modelfiles.templates.source import TemplateSource

DEFAULT_GO_TEMPLATE = "{{ .Prompt }}"

TEMPLATE_FOR_ARCHITECTURE: Mapping[str, str] = MappingProxyType(
    {
        "gemma": "gemma",
        "gemma2": "gemma",
        "gemma3": "gemma",
        "gemma3_text": "gemma",
        "gemma3n": "gemma",
        "gemma4": "gemma4",
        "llama": "plain",
        "mistral": "mistral",
        "mistral3": "mistral",
        "qwen2": "chatml",
        "qwen3": "qwen3",
    }
)

TEMPLATE_FOR_MARKER: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "gemma3": {"<start_function_call>": "functiongemma"},
        "gemma3_text": {"<start_function_call>": "functiongemma"},
        "llama": {"<|start_header_id|>": "llama3", "[INST]": "mistral", "<|im_start|>": "chatml"},
    }
)
"""Architectures shared by several formats: what the vocabulary's special strings tell apart."""

RENDERERS: Mapping[str, str] = MappingProxyType(
    {
        "functiongemma": "functiongemma",
        "gemma4": "gemma4",
        "gemma4-large": "gemma4",
        "gemma4-small": "gemma4-small",
        "qwen3-coder": "qwen3-coder",
    }
)
"""Ollama's RENDERER names of the families we run, and our template for each."""

PARSERS: Mapping[str, str] = MappingProxyType(
    {
        "functiongemma": "functiongemma",
        "gemma4": "gemma4",
        "gemma4-no-thinking": "gemma4",
        "ministral": "mistral",
        "passthrough": "plain",
        "qwen3": "qwen",
        "qwen3-coder": "qwen3_coder",
        "qwen3-thinking": "qwen",
    }
)
"""Ollama's PARSER names of the families we run, and our convention for each."""

PRELUDES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"gemma4-small": ("gemma4", "{%- set empty_thought_block = false -%}")}
)
"""Variants of a template: the file and what is set before it."""


class UnknownName(TemplateError):
    """A RENDERER or PARSER name of a family we do not run."""

    def __init__(self, kind: str, name: str, known: Collection[str]) -> None:
        self.sentence = f"unknown {kind} {name!r}; known are {', '.join(sorted(known))}"
        super().__init__(self.sentence)


@cache
def load_builtin(name: str) -> TemplateSource:
    """One of the templates of this folder, by its name in the tables above."""
    file, prelude = PRELUDES.get(name, (name, ""))
    text = files(__package__).joinpath(f"{file}.jinja").read_text(encoding="utf-8")
    return TemplateSource("jinja", prelude + text)


def builtin_template(architecture: str, names: Collection[str] = ()) -> TemplateSource | None:
    """Our template for a family, or None. `names` are the vocabulary's special strings."""
    for marker, template in TEMPLATE_FOR_MARKER.get(architecture, {}).items():
        if marker in names:
            return load_builtin(template)
    found = TEMPLATE_FOR_ARCHITECTURE.get(architecture)
    return load_builtin(found) if found else None


def choose_template(
    description_template: str | None,
    modelfile_template: str | None,
    architecture: str,
    names: Collection[str] = (),
) -> TemplateSource:
    """A Modelfile's Go TEMPLATE, else the weights' Jinja, else ours, else Ollama's default.

    Gemma 1 to 3 come with a template that gives our bytes but knows neither functions nor, in part, system
    text: ours stands in for it.
    """
    if modelfile_template:
        return TemplateSource("go", modelfile_template)
    if description_template:
        if TEMPLATE_FOR_ARCHITECTURE.get(architecture) == "gemma" and _is_plain_gemma(description_template):
            return load_builtin("gemma")
        return TemplateSource("jinja", description_template)
    return builtin_template(architecture, names) or TemplateSource("go", DEFAULT_GO_TEMPLATE)


def _is_plain_gemma(template: str) -> bool:
    return "<start_of_turn>" in template and "tool" not in template and "function" not in template


def renderer_template(name: str) -> TemplateSource:
    """The template that stands for Ollama's RENDERER `name`. Raises `UnknownName`."""
    if name not in RENDERERS:
        raise UnknownName("renderer", name, RENDERERS)
    return load_builtin(RENDERERS[name])


def parser_convention(name: str) -> str:
    """The output convention that stands for Ollama's PARSER `name`. Raises `UnknownName`."""
    if name not in PARSERS:
        raise UnknownName("parser", name, PARSERS)
    return PARSERS[name]


def check_names(renderer: str | None, parser: str | None) -> None:
    """Raises `UnknownName` for a RENDERER or PARSER that nothing here stands for; "" and None are none."""
    if renderer:
        renderer_template(renderer)
    if parser:
        parser_convention(parser)

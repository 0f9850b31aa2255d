"""What a model can be asked for, told from its template, its parser and its weights."""

from __future__ import annotations

from typing import Any

import pytest

from modelfiles.capabilities import capabilities
from modelfiles.description import ModelDescription
from modelfiles.templates.builtin import builtin_template
from modelfiles.templates.source import TemplateSource


def description(*claimed: str, **info: Any) -> ModelDescription:
    return ModelDescription(
        "gguf", "gemma3", 1, "Q8_0", 1, 1, 1, None, claimed, {f"x.{k}": v for k, v in info.items()}
    )


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("go", "{{ .Prompt }}", "completion"),
        ("go", "{{ .Tools }}{{ .Response }}", "completion tools"),
        ("go", "{{ .Suffix }}", "completion insert"),
        ("go", "{{ range .Messages }}<think>{{ .Thinking }}</think>{{ end }}", "completion thinking"),
        ("go", "{{ broken", "completion"),
        ("jinja", "{{ messages }}", "completion"),
        ("jinja", "{{ tools }}{{ '</think>' }}", "completion tools thinking"),
        ("jinja", "{{ enable_thinking }}", "completion thinking"),
    ],
)
def test_templates_tell(kind: Any, text: str, expected: str) -> None:
    assert " ".join(capabilities(description(), TemplateSource(kind, text))) == expected


def test_parsers_tell() -> None:
    plain = TemplateSource("go", "{{ .Prompt }}")
    assert capabilities(description(), plain, "qwen3") == ("completion", "tools", "thinking")
    assert capabilities(description(), plain, "gemma4-no-thinking") == ("completion", "tools")
    assert capabilities(description(), plain, "passthrough") == ("completion",)


def test_embedding_models_complete_nothing() -> None:
    tools = TemplateSource("jinja", "{{ tools }}")
    assert capabilities(description(pooling_type=1), tools) == ("embedding",)
    assert capabilities(description("embedding"), tools) == ("embedding",)


def test_no_model_sees_or_hears() -> None:
    assert capabilities(description("completion", "vision", "audio"), TemplateSource("go", "x")) == (
        "completion",
    )


def test_families() -> None:
    for architecture, expected in (("gemma3", "tools"), ("gemma4", "thinking"), ("qwen3", "thinking")):
        template = builtin_template(architecture)
        assert template is not None
        assert expected in capabilities(description(), template)

"""Our own templates: golden prompts of every family, and byte-equal to the families' canonical templates."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from modelfiles.messages import Message, ToolSpec
from modelfiles.templates.builtin import (
    PARSERS,
    RENDERERS,
    TEMPLATE_FOR_ARCHITECTURE,
    UnknownName,
    builtin_template,
    choose_template,
    parser_convention,
    renderer_template,
)
from modelfiles.templates.chat import (
    ChatPrompt,
    TemplateError,
    TemplateRefused,
    TemplateSource,
    check_template,
    render_chat,
)
from tests.modelfiles.templates.conversations import CONVERSATIONS, PLAIN, REASONING, TOOLS

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "templates"
GOLDEN_CONVERSATIONS = (
    "spaces",
    "two turns",
    "markup",
    "system, two turns",
    "call and text",
    "two calls",
    *REASONING,
)
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
FAMILIES: dict[str, TemplateSource | None] = {
    "gemma3": builtin_template("gemma3"),
    "functiongemma": builtin_template("gemma3", ["<start_function_call>"]),
    "gemma4": builtin_template("gemma4"),
    "gemma4-small": renderer_template("gemma4-small"),
    "llama3": builtin_template("llama", ["<|start_header_id|>"]),
    "plain": builtin_template("llama"),
    "mistral": builtin_template("mistral"),
    "chatml": builtin_template("qwen2"),
    "qwen3": builtin_template("qwen3"),
    "qwen3-coder": renderer_template("qwen3-coder"),
}


def prompt(
    template: TemplateSource,
    messages: tuple[Message, ...],
    tools: tuple[ToolSpec, ...] = (),
    think: bool | None = None,
    **kwargs: str,
) -> str:
    return render_chat(
        ChatPrompt(template, messages, tools, think, bos_token="<bos>", eos_token="</s>", kwargs=dict(kwargs))
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_prompts(family: str) -> None:
    """One file a family. GEMMULE_GOLDEN=1 rewrites them; the diff is the review."""
    template = FAMILIES[family]
    assert template is not None
    pieces = []
    chosen = {name: CONVERSATIONS[name] for name in GOLDEN_CONVERSATIONS}
    for (name, messages), tools in itertools.product(chosen.items(), ((), TOOLS[:1])):
        pieces.append(f"=== {name}{', tools' if tools else ''}\n{prompt(template, messages, tools)}\n")
    text = "".join(pieces)
    path = GOLDEN / f"{family}.txt"
    if os.environ.get("GEMMULE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


CANONICAL = {
    "gemma3": "google-gemma-2-2b-it",
    "gemma4": "google-gemma-4-31B-it",
    "llama3": "meta-llama-Llama-3.1-8B-Instruct",
    "qwen3": "Qwen-Qwen3-0.6B",
    "qwen3-coder": "Qwen3-Coder",
    "chatml": "Qwen-Qwen2.5-7B-Instruct",
    "mistral": "mistralai-Mistral-Nemo-Instruct-2407",
}


@pytest.mark.parametrize("family", CANONICAL)
def test_prompts_are_those_of_the_canonical_template(family: str, shared_data: Path) -> None:
    """On every conversation the canonical template takes (Gemma 2's knows no tools and no system text)."""
    path = shared_data / "templates" / "jinja" / f"{CANONICAL[family]}.jinja"
    canonical = TemplateSource("jinja", path.read_text(encoding="utf-8"))
    ours = FAMILIES[family]
    assert ours is not None
    conversations = PLAIN if family == "gemma3" else CONVERSATIONS
    compared = 0
    for messages, tools, think in itertools.product(
        conversations.values(), ((),) if family == "gemma3" else ((), TOOLS), (None, True, False)
    ):
        extra = {"default_system": QWEN_SYSTEM} if family == "chatml" else {}
        try:
            expected = prompt(canonical, messages, tools, think)
        except TemplateRefused:
            continue
        assert prompt(ours, messages, tools, think, **extra) == expected
        compared += 1
    assert compared >= 18


TAKES_NO_EMPTY_TOOLS = ("CohereForAI-c4ai-command-r-plus-tool_use", "fireworks-ai-llama-3-firefunction-v2")
"""Templates of engines of their own: they ask for variables or descriptions nobody else gives."""


@pytest.mark.slow
def test_every_published_template_renders_the_standard_conversations(shared_data: Path) -> None:
    failures = []
    found = sorted((shared_data / "templates" / "jinja").glob("*.jinja"))
    assert len(found) >= 39
    for path in found:
        template = TemplateSource("jinja", path.read_text(encoding="utf-8"))
        check_template(template)
        for (name, messages), tools in itertools.product(CONVERSATIONS.items(), ((), TOOLS)):
            try:
                prompt(template, messages, tools)
            except TemplateRefused:
                continue
            except TemplateError as error:
                if path.stem not in TAKES_NO_EMPTY_TOOLS:
                    failures.append(f"{path.stem}, {name}: {error}")
    # Kimi's template changes a list in place, which Hugging Face's sandbox refuses as ours does.
    assert [failure for failure in failures if "Kimi-K2-Thinking" not in failure] == []


def test_neighbours_of_one_role_share_a_turn_in_gemma() -> None:
    template = builtin_template("gemma3")
    assert template is not None
    turns = (Message.of("developer", "S"), Message.of("user", "a"), Message.of("user", "b"))
    assert prompt(template, turns) == (
        "<bos><start_of_turn>user\nS\n\na\n\nb<end_of_turn>\n<start_of_turn>model\n"
    )
    assert prompt(template, turns[:1]) == "<bos><start_of_turn>user\nS<end_of_turn>\n<start_of_turn>model\n"


def test_small_gemma4_needs_no_empty_thought() -> None:
    turns = (Message.of("user", "a"),)
    assert prompt(renderer_template("gemma4-large"), turns, think=False).endswith(
        "<|channel>thought\n<channel|>"
    )
    assert prompt(renderer_template("gemma4-small"), turns, think=False).endswith("<|turn>model\n")


def test_the_choice_of_template() -> None:
    assert choose_template("j", "g", "gemma3") == TemplateSource("go", "g")
    assert choose_template("j", None, "gemma3") == TemplateSource("jinja", "j")
    assert choose_template(None, None, "gemma3") == builtin_template("gemma3")
    assert choose_template(None, None, "unknown") == TemplateSource("go", "{{ .Prompt }}")
    plain_gemma = "{% for m in messages %}<start_of_turn>{{ m.content }}{% endfor %}"
    assert choose_template(plain_gemma, None, "gemma3") == builtin_template("gemma3")
    assert choose_template(plain_gemma + "{{ tools }}", None, "gemma3").text.endswith("{{ tools }}")


def test_every_row_names_a_template_that_parses() -> None:
    for architecture in TEMPLATE_FOR_ARCHITECTURE:
        found = builtin_template(architecture)
        assert found is not None
        check_template(found)
    assert builtin_template("nothing") is None


def test_ollamas_names_are_mapped_or_refused() -> None:
    for name in RENDERERS:
        check_template(renderer_template(name))
    assert parser_convention("gemma4") == "gemma4"
    assert set(PARSERS) >= {"gemma4", "functiongemma", "qwen3", "passthrough"}
    with pytest.raises(UnknownName, match="unknown renderer 'laguna'; known are functiongemma, gemma4"):
        renderer_template("laguna")
    with pytest.raises(UnknownName, match="unknown parser 'laguna'"):
        parser_convention("laguna")

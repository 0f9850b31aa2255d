"""One conversation, four dialects, one prompt: what the render-only switch shows is equal to the byte.

Conversations are made up by hypothesis and written out here in each dialect's own words, for every template
we carry, for Go templates, and for the published templates of the families we run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from gateway.app import create_app
from modelfiles.messages import Message, TextPart, ToolCall, ToolSpec
from modelfiles.templates.builtin import (
    DEFAULT_GO_TEMPLATE,
    RENDERERS,
    TEMPLATE_FOR_ARCHITECTURE,
    load_builtin,
)
from modelfiles.templates.source import TemplateSource
from tests.gateway.scripted_model import gateway_with, scripted_model
from tests.modelfiles.templates.conversations import NESTED, NO_ARGUMENTS, WEATHER

BUILT_IN = sorted({*TEMPLATE_FOR_ARCHITECTURE.values(), *RENDERERS.values(), "llama3"})
GO_TEMPLATES = {
    "go default": DEFAULT_GO_TEMPLATE,
    "go turns": "{{ if .System }}S:{{ .System }}\n{{ end }}U:{{ .Prompt }}\nA:{{ .Response }}\n",
    "go messages": (
        "{{ .System }}{{ range .Tools }}{{ json . }}\n{{ end }}"
        "{{ if and .IsThinkSet .Think }}/think {{ .ThinkLevel }}{{ else if .IsThinkSet }}/no_think{{ end }}"
        "{{ range .Messages }}<{{ .Role }}>{{ .Thinking }}|{{ .Content }}|{{ .ToolName }}|{{ .ToolCallID }}"
        "{{ range .ToolCalls }}{{ .ID }} {{ .Function.Index }} {{ .Function.Name }} "
        "{{ json .Function.Arguments }}{{ end }}</>{{ end }}{{ .Response }}"
    ),
}
PUBLISHED = (
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen3-Coder",
    "google-gemma-2-2b-it",
    "google-gemma-4-31B-it",
    "meta-llama-Llama-3.1-8B-Instruct",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "HuggingFaceTB-SmolLM3-3B",
    "openai-gpt-oss-120b",
)
TOOLS = (WEATHER, NESTED, NO_ARGUMENTS)
ROUTES = ("/api/chat", "/v1/chat/completions", "/v1/responses", "/v1/messages")


@dataclass(frozen=True)
class Conversation:
    """What is said, what is offered, and whether the model is to think (None: as it likes)."""

    turns: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    think: str | bool | None


texts = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufdd0\ufdd1")
    | st.sampled_from("\n\t <|>"),
    min_size=1,
    max_size=12,
).filter(str.strip)
"""Something a person might send: never blank, as dialects differ in what they take for no message at all."""

arguments = st.dictionaries(
    st.sampled_from(("city", "days", "unit")),
    st.none()
    | st.booleans()
    | st.integers(-5, 2**40)
    | st.floats(-1e6, 1e6)
    | texts
    | st.lists(texts, max_size=2),
    max_size=3,
)
ids = st.integers(0, 10**9 - 1).map("{:09}".format)


@st.composite
def rounds(draw: st.DrawFn) -> list[Message]:
    """A question, perhaps calls with their results, and perhaps an answer."""
    turns = [Message.of("user", draw(texts))]
    thinking = draw(st.none() | texts)
    if draw(st.booleans()):
        names = draw(st.lists(st.sampled_from(TOOLS), min_size=1, max_size=2))
        identities = draw(st.lists(ids, min_size=2, max_size=2, unique=True))
        calls = tuple(
            ToolCall(identity, tool.name, json.dumps(draw(arguments), ensure_ascii=draw(st.booleans())))
            for identity, tool in zip(identities, names, strict=False)
        )
        said = draw(st.just("") | texts)
        turns.append(Message("assistant", Message.of("assistant", said).parts, calls, thinking=thinking))
        turns += [
            Message("tool", (TextPart(draw(texts)),), tool_call_id=call.id, name=call.name) for call in calls
        ]
        thinking = None
    if draw(st.booleans()):
        turns.append(Message("assistant", (TextPart(draw(texts)),), thinking=thinking))
    return turns


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns = [turn for each in draw(st.lists(rounds(), min_size=1, max_size=3)) for turn in each]
    if turns[-1].role == "assistant":
        turns.append(Message.of("user", draw(texts)))
    if draw(st.booleans()):
        turns.insert(0, Message.of("system", draw(texts)))
    calls = any(turn.tool_calls for turn in turns)
    tools = TOOLS if calls or draw(st.booleans()) else ()
    return Conversation(tuple(turns), tools, draw(st.sampled_from((None, False, "low", "high"))))


def native(talk: Conversation) -> dict[str, Any]:
    """POST /api/chat."""

    def turn(message: Message) -> dict[str, Any]:
        calls = [
            {"id": call.id, "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in message.tool_calls
        ]
        fields = {"thinking": message.thinking, "tool_calls": calls}
        fields |= {"tool_name": message.name, "tool_call_id": message.tool_call_id}
        return {"role": message.role, "content": message.text} | {k: v for k, v in fields.items() if v}

    return {"messages": list(map(turn, talk.turns)), "tools": functions(talk)} | said(think=talk.think)


def openai_chat(talk: Conversation) -> dict[str, Any]:
    """POST /v1/chat/completions."""

    def turn(message: Message) -> dict[str, Any]:
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
        fields = {"reasoning_content": message.thinking, "tool_calls": calls}
        fields |= {"tool_call_id": message.tool_call_id}
        content = message.text or (None if calls else "")
        return {"role": message.role, "content": content} | {k: v for k, v in fields.items() if v}

    effort = "none" if talk.think is False else talk.think
    return {"messages": list(map(turn, talk.turns)), "tools": functions(talk)} | said(reasoning_effort=effort)


def openai_response(talk: Conversation) -> dict[str, Any]:
    """POST /v1/responses."""
    items: list[dict[str, Any]] = []
    for message in talk.turns:
        if message.role == "tool":
            output = {"call_id": message.tool_call_id, "output": message.text}
            items.append({"type": "function_call_output"} | output)
            continue
        if message.thinking:
            reasoning = [{"type": "reasoning_text", "text": message.thinking}]
            items.append({"type": "reasoning", "content": reasoning, "summary": []})
        if message.text and message.role != "system":
            kind = "output_text" if message.role == "assistant" else "input_text"
            content = [{"type": kind, "text": message.text}]
            items.append({"type": "message", "role": message.role, "content": content})
        for call in message.tool_calls:
            fields = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
            items.append({"type": "function_call"} | fields)
    tools = [{"type": "function"} | tool["function"] for tool in functions(talk)]
    system = next((turn.text for turn in talk.turns if turn.role == "system"), None)
    effort = "none" if talk.think is False else talk.think
    reasoning_options = None if effort is None else {"effort": effort}
    return {"input": items, "tools": tools} | said(instructions=system, reasoning=reasoning_options)


def anthropic_message(talk: Conversation) -> dict[str, Any]:
    """POST /v1/messages: results of calls go into the user turn that follows them."""
    turns: list[dict[str, Any]] = []
    for message in talk.turns:
        blocks: list[dict[str, Any]] = []
        if message.thinking:
            blocks.append({"type": "thinking", "thinking": message.thinking, "signature": ""})
        if message.role == "tool":
            result = {"tool_use_id": message.tool_call_id, "content": message.text}
            blocks.append({"type": "tool_result"} | result)
        elif message.text:
            blocks.append({"type": "text", "text": message.text})
        for call in message.tool_calls:
            fields = {"id": call.id, "name": call.name, "input": json.loads(call.arguments)}
            blocks.append({"type": "tool_use"} | fields)
        role = "assistant" if message.role == "assistant" else "user"
        if message.role == "system":
            continue
        if turns and role == "user" and turns[-1]["content"][-1]["type"] == "tool_result":
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    tools = [
        {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
        for tool in talk.tools
    ]
    system = next((turn.text for turn in talk.turns if turn.role == "system"), None)
    thinking: dict[str, Any] | None = None
    if talk.think is not None:
        thinking = {"type": "enabled", "budget_tokens": 1024} if talk.think else {"type": "disabled"}
    effort = {"effort": talk.think} if isinstance(talk.think, str) else None
    body = {"max_tokens": 16, "messages": turns, "tools": tools}
    return body | said(system=system, thinking=thinking, output_config=effort)


def functions(talk: Conversation) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in talk.tools
    ]


def said(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


BODIES = dict(zip(ROUTES, (native, openai_chat, openai_response, anthropic_message), strict=True))


def prompt(client: TestClient, route: str, model: str, talk: Conversation) -> tuple[int, str]:
    """What the model would be asked, or the status of the refusal."""
    reply = client.post(route, json={"model": model, "_debug_render_only": True} | BODIES[route](talk))
    found = reply.json()
    return reply.status_code, found["_debug_info"]["rendered_template"] if reply.is_success else ""


def templates(shared: Path | None) -> Mapping[str, TemplateSource]:
    """By the name a model gets."""
    found = {name: load_builtin(name) for name in BUILT_IN}
    found |= {name.replace(" ", "-"): TemplateSource("go", text) for name, text in GO_TEMPLATES.items()}
    if shared is not None:
        folder = shared / "templates"
        found |= {
            name.lower(): TemplateSource("jinja", (folder / "jinja" / f"{name}.jinja").read_text())
            for name in PUBLISHED
        }
        found |= {
            f"ollama-{path.stem}": TemplateSource("go", path.read_text())
            for path in sorted((folder / "ollama").glob("*.gotmpl"))
        }
    return found


def served(folder: Path, shared: Path | None) -> Iterator[TestClient]:
    made = {
        name: scripted_model(folder, name, template=source, messages=(), system=None)
        for name, source in templates(shared).items()
    }
    with TestClient(create_app(gateway_with(folder, made)), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A gateway with a model for each template of ours."""
    yield from served(tmp_path_factory.mktemp("same-prompt"), None)


@pytest.fixture(scope="module")
def wide_client(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[TestClient]:
    """And one for each published template too."""
    yield from served(tmp_path_factory.mktemp("same-prompt-wide"), shared_data)


def check(client: TestClient, name: str, talk: Conversation) -> bool:
    """Whether there was a prompt; that it was the same everywhere is asserted."""
    found = {route: prompt(client, route, name, talk) for route in ROUTES}
    assert len(set(found.values())) == 1, found
    return next(iter(found.values()))[0] == 200


@pytest.mark.parametrize("name", templates(None))
def test_our_templates_give_one_prompt_in_all_dialects(client: TestClient, name: str) -> None:
    rendered: list[bool] = []

    @settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(conversations())
    def compare(talk: Conversation) -> None:
        rendered.append(check(client, name, talk))

    compare()
    assert any(rendered), "every conversation was refused"


@pytest.mark.slow
def test_published_templates_give_one_prompt_in_all_dialects(
    wide_client: TestClient, shared_data: Path
) -> None:
    names = [name for name in templates(shared_data) if name not in templates(None)]
    rendered: dict[str, int] = dict.fromkeys(names, 0)

    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(conversations())
    def compare(talk: Conversation) -> None:
        for name in names:
            rendered[name] += check(wide_client, name, talk)

    compare()
    assert all(rendered.values()), rendered


@pytest.mark.parametrize(
    ("name", "prompt_begins"), [("go-messages", "/think"), ("qwen3", "<|im_start|>user")]
)
def test_models_made_for_ollama_think_unless_told_not_to(
    client: TestClient, name: str, prompt_begins: str
) -> None:
    talk = Conversation((Message.of("user", "Hi"),), (), None)
    assert check(client, name, talk)
    _, shown = prompt(client, "/api/chat", name, talk)
    assert shown.startswith(prompt_begins)
    body = {"model": name, "prompt": "Hi", "_debug_render_only": True}
    generated = client.post("/api/generate", json=body).json()
    assert generated["_debug_info"]["rendered_template"] == shown
    formed = client.post("/api/generate", json=body | {"format": "json"}).json()
    assert not formed["_debug_info"]["rendered_template"].startswith("/think")

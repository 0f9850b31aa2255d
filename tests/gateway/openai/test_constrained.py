"""Grammars on a real model: the bundled one, also told to write calls the way other families do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from modelfiles.templates.builtin import PARSERS
from tests.gateway.live import LiveServer, live_server

pytestmark = pytest.mark.slow

PARSER_OF = {convention: parser for parser, convention in sorted(PARSERS.items()) if convention != "plain"}
"""One of Ollama's PARSER names for each convention."""

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
CLOCK: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}
    for name, schema in (("weather", WEATHER), ("clock", CLOCK))
]
SCHEMAS = {"weather": WEATHER, "clock": CLOCK}
ASK: list[Any] = [{"role": "user", "content": "What is the weather like in Gent?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("constrained")) as running:
        for convention, parser in PARSER_OF.items():
            body = {"model": f"bud-{convention}", "from": "bud", "parser": parser, "stream": False}
            httpx.post(f"{running.url}/api/create", json=body, timeout=60).raise_for_status()
        yield running


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120) as made:
        yield made


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


@pytest.mark.parametrize("convention", PARSER_OF)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}])
def test_a_demanded_call_is_a_call_whatever_the_model(
    client: openai.OpenAI, convention: str, choice: Any
) -> None:
    for seed in (1,):
        asked: dict[str, Any] = {
            "model": f"bud-{convention}", "messages": ASK, "tools": TOOLS, "tool_choice": choice,
            "seed": seed, "temperature": 1, "max_tokens": 300, "parallel_tool_calls": False,
        }  # fmt: skip
        whole = client.chat.completions.create(**asked).choices[0]
        assert whole.finish_reason == "tool_calls", whole
        ((name, arguments),) = calls_of(whole.message)
        jsonschema.validate(arguments, SCHEMAS[name])
        assert choice == "required" or name == "clock"
        assert not (whole.message.content or "").strip()
        with client.chat.completions.stream(**asked) as stream:
            streamed = stream.get_final_completion().choices[0]
        assert calls_of(streamed.message) == [(name, arguments)]


def test_a_reply_that_ended_by_itself_obeys_its_schema(client: openai.OpenAI) -> None:
    shape: Any = {"type": "json_schema", "json_schema": {"name": "it", "schema": WEATHER, "strict": True}}
    for seed in range(4):
        reply = client.chat.completions.create(
            model="bud", messages=ASK, response_format=shape, seed=seed, temperature=1, max_tokens=200
        ).choices[0]
        assert reply.finish_reason == "stop"
        jsonschema.validate(json.loads(reply.message.content or ""), WEATHER)


SLOW_SCHEMA = {"allOf": [{"type": "string", "pattern": f"(a|b){{1,{n}}}.*c{{{n}}}"} for n in range(1, 30)]}
"""Finding out whether any string matches takes the library a minute."""


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "properties": {"a": {"items": {"not": {"type": "null"}}}}}}}}, "response_format",
         "#/properties/a/items"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SLOW_SCHEMA}}},
         "response_format", "more than 2 seconds"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {
            "properties": {"a": {"not": {}}}}}}], "tool_choice": "required"}, "tools",
         r"the parameters of 'f': .*#/properties/a"),
        ({"guided_regex": "("}, "response_format", "regular expression"),
        ({"guided_grammar": "start: nothing"}, "response_format", "nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_by_name_soon(
    server: LiveServer, client: openai.OpenAI, change: dict[str, Any], param: str, words: str
) -> None:
    body = {"model": "bud-qwen", "messages": ASK, "max_tokens": 1} | change
    started = time.monotonic()
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.post("/chat/completions", body=body, cast_to=object)
    assert refused.value.param == param
    assert time.monotonic() - started < 6  # two for the schema, the rest for a machine that has other work


def test_a_response_names_the_format_in_its_own_words(client: openai.OpenAI) -> None:
    shape: Any = {"format": {"type": "json_schema", "name": "it", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="at #") as refused:
        client.responses.create(model="bud", input="x", text=shape)
    assert refused.value.param == "text.format"

"""Every kind of reply, validated against OpenAI's own OpenAPI document."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.gateway.conftest import MODEL, script
from tests.gateway.openai.test_chat_contract import TOOL, call_steps

ASK = [{"role": "user", "content": "Hi"}]
THOUGHT = [{"tokens": [261]}, "hm", {"tokens": [262]}]
RESPONSE_TOOL = {"type": "function"} | TOOL["function"]  # type: ignore[operator]
pytestmark = pytest.mark.slow  # the document has 3 MB
Check = Callable[[str, Any], None]


def as_json_schema(node: Any) -> Any:
    """The document mixes OpenAPI 3.0's `nullable` into 3.1: written out for a plain validator."""
    if isinstance(node, list):
        return [as_json_schema(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {
        key: as_json_schema(value) for key, value in node.items() if key not in ("nullable", "discriminator")
    }
    return {"anyOf": [made, {"type": "null"}]} if node.get("nullable") is True else made


@pytest.fixture(scope="module")
def check(shared_data: Path) -> Check:
    """Validates a value against a component schema by name."""
    document = json.loads(lzma.decompress((shared_data / "specs" / "openai-openapi.json.xz").read_bytes()))
    components = {"components": {"schemas": as_json_schema(document["components"]["schemas"])}}

    kinds = {}
    for member in document["components"]["schemas"]["ResponseStreamEvent"]["anyOf"]:
        name = member["$ref"].rsplit("/", 1)[1]
        for kind in document["components"]["schemas"][name]["properties"]["type"].get("enum", ()):
            kinds[kind] = name

    def validate(name: str, value: Any) -> None:
        name = kinds[value["type"]] if name == "ResponseStreamEvent" else name
        schema = components | {"$ref": f"#/components/schemas/{name}"}
        errors = list(jsonschema.Draft202012Validator(schema).iter_errors(value))
        best = jsonschema.exceptions.best_match(errors)
        assert best is None, f"{name} at {best.json_path}: {best.message[:400]}"

    return validate


def events(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


LOGPROBS = {"text": "hi", "logprobs": [-0.1, {"logprob": -0.2, "top": [[4, -0.2], [5, -3.0]]}]}
CHATS: list[dict[str, Any]] = [
    {"messages": ASK},
    {"messages": ASK, "n": 3, "max_tokens": 2},
    {"messages": ASK, "logprobs": True, "top_logprobs": 2} | script(LOGPROBS),
    {"messages": ASK, "tools": [TOOL]} | script(*THOUGHT, *call_steps("get_weather", {"city": "Oslo"})),
    {"messages": ASK, "functions": [TOOL["function"]]} | script(*call_steps("get_weather", {"city": "Oslo"})),
]


@pytest.mark.parametrize("body", CHATS)
def test_chats(http: httpx.Client, check: Check, body: dict[str, Any]) -> None:
    reply = http.post("/v1/chat/completions", json={"model": MODEL} | body)
    assert reply.status_code == 200, reply.text
    check("CreateChatCompletionResponse", reply.json())
    streamed = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}} | body
    chunks = list(events(http.post("/v1/chat/completions", json=streamed).text))
    assert len(chunks) > 3
    for chunk in chunks:
        check("CreateChatCompletionStreamResponse", chunk)
        assert "error" not in chunk


def test_completions_and_embeddings(http: httpx.Client, check: Check) -> None:
    body = {"model": MODEL, "prompt": ["ab", "cd"], "logprobs": 2} | script(LOGPROBS)
    check("CreateCompletionResponse", http.post("/v1/completions", json=body).json())
    chunks = list(events(http.post("/v1/completions", json=body | {"stream": True}).text))
    assert chunks
    for chunk in chunks:
        for choice in chunk["choices"]:  # the document describes whole replies: there it is never null
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        check("CreateCompletionResponse", chunk)
    check(
        "CreateEmbeddingResponse",
        http.post("/v1/embeddings", json={"model": MODEL, "input": ["a", "b"]}).json(),
    )


def test_models_and_errors(http: httpx.Client, check: Check) -> None:
    check("ListModelsResponse", http.get("/v1/models").json())
    check("Model", http.get("/v1/models/scripted").json())
    for reply in (
        http.get("/v1/models/none"),
        http.get("/v1/none"),
        http.post("/v1/chat/completions", json={"model": MODEL}),
        http.post("/v1/chat/completions", json={"model": "none", "messages": ASK}),
        http.post("/v1/embeddings", json={"model": MODEL, "input": [1]}),
    ):
        check("ErrorResponse", reply.json())


def test_responses(http: httpx.Client, check: Check) -> None:
    for more in (
        script("Hello"),
        {"tools": [RESPONSE_TOOL]} | script(*THOUGHT, "It is ", *call_steps("get_weather", {"city": "Oslo"})),
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2} | script(LOGPROBS),
        {"max_output_tokens": 16} | script("x" * 40),
    ):
        body = {"model": MODEL, "input": "Hi"} | more
        reply = http.post("/v1/responses", json=body)
        assert reply.status_code == 200, reply.text
        check("Response", reply.json())
        streamed = list(events(http.post("/v1/responses", json=body | {"stream": True}).text))
        assert len(streamed) > 5
        for event in streamed:
            check("ResponseStreamEvent", event)


def test_stored_chats(http: httpx.Client, check: Check) -> None:
    body = {"model": MODEL, "messages": ASK, "store": True, "metadata": {"a": "b"}}
    made = http.post("/v1/chat/completions", json=body).json()
    check("CreateChatCompletionResponse", http.get(f"/v1/chat/completions/{made['id']}").json())
    check("ChatCompletionList", http.get("/v1/chat/completions").json())
    listed = http.get(f"/v1/chat/completions/{made['id']}/messages").json()
    assert [message["role"] for message in listed["data"]] == ["user"]
    for message in listed["data"]:  # the document's schema knows assistants only, its example has a user
        message["role"] = "assistant"
    check("ChatCompletionMessageList", listed)
    check("ChatCompletionDeleted", http.delete(f"/v1/chat/completions/{made['id']}").json())

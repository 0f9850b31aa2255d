"""The tables of gateway/README.md are the users' truth: this walks them."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from gateway.anthropic.schema import MessagesBody
from gateway.openai.responses.schema import ResponseBody
from gateway.openai.schema import ChatBody, CompletionBody, EmbeddingBody
from tests.gateway.conftest import MODEL

README = Path(__file__).resolve().parents[2] / "gateway" / "README.md"
ENDPOINTS: dict[str, tuple[type[BaseModel], str | None, dict[str, Any]]] = {
    "/v1/chat/completions": (
        ChatBody,
        "CreateChatCompletionRequest",
        {"messages": [{"role": "user", "content": "Hi"}]},
    ),
    "/v1/completions": (CompletionBody, "CreateCompletionRequest", {"prompt": "Hi"}),
    "/v1/embeddings": (EmbeddingBody, "CreateEmbeddingRequest", {"input": "Hi"}),
    "/v1/responses": (ResponseBody, "CreateResponse", {"input": "Hi"}),
    "/v1/messages": (MessagesBody, None, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}),
}
REFUSED_SAMPLES: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["text", "audio"],
    "web_search_options": {},
    "conversation": "conv_1",
    "prompt": {"id": "pmpt_1"},
}
IGNORED_SAMPLES: dict[str, Any] = {
    "max_tool_calls": 3,
    "metadata": {"user_id": "u"},
    "prediction": {"type": "content", "content": "x"},
    "stream_options": {"include_obfuscation": False},
    "context_management": [],
    "prompt_cache_options": {"mode": "implicit"},
    "moderation": {"model": "x"},
    "verbosity": "low",
}


def table(path: str) -> dict[str, str]:
    """Field to status, as the README says."""
    text = README.read_text(encoding="utf-8").split(f"### Fields of POST {path}\n")[1].split("\n#")[0]
    found: dict[str, str] = {}
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) > 3 and "`" in cells[1]:
            for name in re.findall(r"`([^`]+)`", cells[1]):
                assert name not in found, f"{name} is listed twice for {path}"
                found[name] = cells[2].strip()
    assert set(found.values()) <= {"supported", "ignored", "refused"}
    return found


def fields(schema: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in schema.model_fields.items()}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_field_we_read_is_listed(path: str) -> None:
    listed = table(path)
    schema = ENDPOINTS[path][0]
    assert fields(schema) <= set(listed)
    supported = {name for name, status in listed.items() if status != "ignored"}
    assert supported <= fields(schema), "listed as obeyed or refused, but never read"


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in ENDPOINTS if ENDPOINTS[path][1]])
def test_every_field_of_the_specification_is_listed(path: str, shared_data: Path) -> None:
    document = json.loads(lzma.decompress((shared_data / "specs" / "openai-openapi.json.xz").read_bytes()))
    schemas = document["components"]["schemas"]

    def properties(name: str) -> set[str]:
        found = set(schemas[name].get("properties", ()))
        for part in schemas[name].get("allOf", ()):
            found |= properties(part["$ref"].rsplit("/", 1)[1]) if "$ref" in part else set(part["properties"])
        return found

    assert properties(str(ENDPOINTS[path][1])) <= set(table(path))


@pytest.mark.parametrize("path", ENDPOINTS)
def test_what_is_listed_as_refused_is_and_what_is_ignored_passes(http: httpx.Client, path: str) -> None:
    base = {"model": MODEL} | ENDPOINTS[path][2]
    for name, status in table(path).items():
        if status == "refused":
            reply = http.post(path, json=base | {name: REFUSED_SAMPLES[name]})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, name)
        elif status == "ignored":
            reply = http.post(path, json=base | {name: IGNORED_SAMPLES.get(name, "x")})
            assert reply.status_code == 200, (name, reply.text)


def test_every_route_is_in_the_readme() -> None:
    from gateway.openai import routes

    text = README.read_text(encoding="utf-8")
    for route in routes.router.routes:
        assert route.path in text  # type: ignore[attr-defined]

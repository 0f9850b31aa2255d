"""OpenAI's and Anthropic's Python packages against a live server: half a minute of silence, and retries."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest

from tests.contract.ollama_support import Server, script, serving

pytestmark = pytest.mark.contract

MODEL = "scripted"
ASK: list[Any] = [{"role": "user", "content": "Hi"}]
SILENT_SECONDS = 30
PATIENCE = 15
"""Seconds a client waits for the next byte: keep-alives must fill the silence."""

SILENT = {"script": script({"text": "late", "delay_ms": SILENT_SECONDS * 1000})}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("openai-python")) as running:
        yield running


def streamed_chat(url: str) -> str:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", timeout=PATIENCE, max_retries=0) as client:
        stream = client.chat.completions.create(model=MODEL, messages=ASK, stream=True, extra_body=SILENT)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def helped_chat(url: str) -> str:
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", timeout=PATIENCE, max_retries=0) as client,
        client.chat.completions.stream(model=MODEL, messages=ASK, extra_body=SILENT) as stream,
    ):
        return stream.get_final_completion().choices[0].message.content or ""


def streamed_response(url: str) -> str:
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", timeout=PATIENCE, max_retries=0) as client,
        client.responses.stream(model=MODEL, input="Hi", extra_body=SILENT) as stream,
    ):
        return stream.get_final_response().output_text


def streamed_completion(url: str) -> str:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", timeout=PATIENCE, max_retries=0) as client:
        stream = client.completions.create(model=MODEL, prompt="Hi", stream=True, extra_body=SILENT)
        return "".join(chunk.choices[0].text for chunk in stream)


def streamed_message(url: str) -> str:
    with (
        anthropic.Anthropic(base_url=url, api_key="any", timeout=PATIENCE, max_retries=0) as client,
        client.messages.stream(model=MODEL, messages=ASK, max_tokens=9, extra_body=SILENT) as stream,
    ):
        return stream.get_final_text()


def whole_chat(url: str) -> str:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", timeout=4 * PATIENCE, max_retries=0) as client:
        reply = client.chat.completions.create(model=MODEL, messages=ASK, extra_body=SILENT)
        return reply.choices[0].message.content or ""


def test_half_a_minute_of_silence_is_waited_out_by_every_client(server: Server) -> None:
    ways: list[Callable[[str], str]] = [
        streamed_chat, helped_chat, streamed_response, streamed_completion, streamed_message, whole_chat,
    ]  # fmt: skip
    started = time.monotonic()
    with ThreadPoolExecutor(len(ways)) as threads:
        texts = list(threads.map(lambda way: way(server.url), ways))
    assert texts == ["late"] * len(ways)
    assert time.monotonic() - started >= SILENT_SECONDS


@pytest.mark.parametrize(
    ("change", "error", "calls"),
    [
        ({"model": "nope"}, openai.NotFoundError, 1),
        ({"temperature": 3}, openai.BadRequestError, 1),
        ({"script": json.dumps([{"text": "x"}, {"fail": "error"}])}, openai.InternalServerError, 3),
        ({"script": json.dumps([{"text": "x"}, {"fail": "out_of_memory"}])}, openai.InternalServerError, 1),
    ],
)
def test_only_faults_that_may_pass_are_tried_again(
    server: Server, change: dict[str, Any], error: type[openai.APIStatusError], calls: int
) -> None:
    seen: list[str] = []
    hooks: Any = {"request": [lambda request: seen.append(request.headers["x-stainless-retry-count"])]}
    with (
        openai.DefaultHttpx2Client(event_hooks=hooks) as transport,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", http_client=transport) as client,
        pytest.raises(error) as refused,
    ):
        client.post("/chat/completions", body={"model": MODEL, "messages": ASK} | change, cast_to=object)
    assert refused.value.request_id
    assert seen == [str(number) for number in range(calls)]

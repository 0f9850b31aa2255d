"""The `ollama` Python package, unchanged, against a live server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from tests.contract.ollama_support import (
    WEATHER,
    Server,
    script,
    serving,
    thinking_then_tool_call,
    write_stories,
)
from tests.registry.fakehub import FakeHub

MODEL = "scripted"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("ollama-python")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(server.url, timeout=60) as client:
        yield client


def says(*steps: Any) -> dict[str, Any]:
    return {"script": script(*steps)}


def test_chat_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.chat(MODEL, HI, options=says("Hel", "lo"))
    assert whole.message.content == "Hello"
    assert (whole.done, whole.done_reason, whole.eval_count) == (True, "stop", 5)
    parts = list(client.chat(MODEL, HI, stream=True, options=says("Hel", "lo")))
    assert "".join(part.message.content or "" for part in parts) == "Hello"
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_generate_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.generate(MODEL, "hi", options=says("Hello"))
    assert whole.response == "Hello"
    assert whole.context
    again = client.generate(MODEL, "more", context=whole.context, options=says("x"))
    assert again.prompt_eval_count > whole.prompt_eval_count
    parts = list(client.generate(MODEL, "hi", stream=True, options=says("Hello")))
    assert "".join(part.response or "" for part in parts) == "Hello"


def test_typed_options_are_obeyed(client: ollama.Client) -> None:
    options = ollama.Options(num_predict=3, temperature=0.0, stop=["never"], seed=3, num_ctx=512)
    reply = client.chat(MODEL, [{"role": "user", "content": "a long question"}], options=options)
    assert (reply.done_reason, reply.eval_count) == ("length", 3)


def test_thinking_and_tools(client: ollama.Client) -> None:
    reply = client.chat(MODEL, HI, tools=[WEATHER], think=True, options={"script": thinking_then_tool_call()})
    assert reply.message.thinking == "hm"
    (call,) = reply.message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Gent"})
    answered = [*HI, reply.message, {"role": "tool", "content": "12 C", "tool_name": "weather"}]
    assert client.chat(MODEL, answered, tools=[WEATHER], options=says("mild")).message.content == "mild"


def test_a_python_function_as_a_tool(client: ollama.Client) -> None:
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name
        """
        return city

    reply = client.chat(MODEL, HI, tools=[weather], options={"script": thinking_then_tool_call()})
    assert reply.message.tool_calls


def test_log_probabilities(client: ollama.Client) -> None:
    reply = client.chat(MODEL, HI, logprobs=True, top_logprobs=1, options=says("ok"))
    assert [entry.token for entry in reply.logprobs or []] == ["o", "k"]
    assert all(entry.top_logprobs for entry in reply.logprobs or [])


def test_structured_output_arrives_as_it_was_made(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    assert client.chat(MODEL, HI, format=schema, options=says('{"n":1}')).message.content == '{"n":1}'
    assert client.generate(MODEL, "hi", format="json", options=says("{}")).response == "{}"


def test_vectors(client: ollama.Client) -> None:
    assert len(client.embed(MODEL, ["a", "b"]).embeddings) == 2
    assert len(client.embed(MODEL, "a", dimensions=4).embeddings[0]) == 4
    assert len(client.embeddings(MODEL, "a").embedding) == 16


def test_lists_and_show(client: ollama.Client) -> None:
    assert MODEL + ":latest" in [model.model for model in client.list().models]
    client.generate(MODEL, "", keep_alive="5m")
    (running,) = [model for model in client.ps().models if model.name == MODEL + ":latest"]
    assert running.context_length and running.expires_at
    shown = client.show(MODEL)
    assert "completion" in (shown.capabilities or [])
    assert shown.modelinfo is not None


def test_faults_are_response_errors_with_a_status(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as caught:
        client.chat("nope", HI)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="the script said so"):
        list(client.chat(MODEL, HI, stream=True, options=says("a", {"fail": "error"})))


def test_a_model_from_a_file_to_its_end(client: ollama.Client, server: Server, shared_data: Path) -> None:
    digest = client.create_blob(write_stories(shared_data, server.folder))
    statuses = [
        line.status
        for line in client.create(
            "tale",
            files={"stories.gguf": digest},
            template="{{ .Prompt }}",
            system="You tell stories.",
            parameters={"temperature": 0, "stop": ["<end>", "<stop>"]},
            license=["MIT"],
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
        )
    ]
    assert statuses[0] and statuses[-1] == "success"
    shown = client.show("tale")
    assert (shown.template, shown.license) == ("{{ .Prompt }}", "MIT")
    assert (shown.modelinfo or {})["llama.context_length"] == 512
    assert shown.details and shown.details.quantization_level == "F32"
    assert client.create("tale2", from_="tale", system="Be brief.", stream=False).status == "success"
    assert client.copy("tale2", "me/tale3").status == "success"
    assert {"tale:latest", "me/tale3:latest"} <= {model.model for model in client.list().models}
    for name in ("tale", "tale2", "me/tale3"):
        assert client.delete(name).status == "success"
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.delete("tale")


def test_push_to_a_registry_and_pull_back(client: ollama.Client, server: Server, shared_data: Path) -> None:
    with FakeHub() as hub:
        name = f"{hub.netloc}/me/tale:v1"
        digest = client.create_blob(write_stories(shared_data, server.folder))
        client.create(name, files={"stories.gguf": digest}, system="Be brief.")
        before = {model.model: model.digest for model in client.list().models}[name]
        pushed = [line.status or "" for line in client.push(name, insecure=True, stream=True)]
        assert pushed[0] == "retrieving manifest"
        assert pushed[-2:] == ["pushing manifest", "success"]
        client.delete(name)
        lines = list(client.pull(name, insecure=True, stream=True))
        assert lines[0].status == "pulling manifest"
        assert lines[-1].status == "success"
        assert any(line.digest and line.total and line.completed == line.total for line in lines)
        assert {model.model: model.digest for model in client.list().models}[name] == before
        assert client.show(name).modelfile
        with pytest.raises(ollama.ResponseError):
            client.pull(f"{hub.netloc}/me/ghost", insecure=True)
        client.delete(name)


def test_a_model_that_ships_with_us_needs_no_registry(client: ollama.Client) -> None:
    assert client.pull(MODEL).status == "success"


async def _chat(url: str) -> str:
    client = ollama.AsyncClient(url)
    stream = await client.chat(MODEL, HI, stream=True, options=says("Hello"))
    said = "".join([part.message.content or "" async for part in stream])
    await client.close()
    return said


def test_the_asynchronous_client(server: Server) -> None:
    import asyncio

    assert asyncio.run(_chat(server.url)) == "Hello"

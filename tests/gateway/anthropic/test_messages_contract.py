"""The Anthropic dialect through Anthropic's own client against a live server and the scripted engine."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import httpx
import pytest

from tests.gateway.conftest import MODEL, script
from tests.gateway.live import LiveServer
from tests.gateway.openai.test_chat_contract import call_steps

TOOL = {
    "name": "get_weather",
    "description": "the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
ASK = [{"role": "user", "content": "Hi"}]
THOUGHT = [{"tokens": [261]}, "let me see", {"tokens": [262]}]


@pytest.fixture
def claude(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    """Anthropic's client of the live server."""
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0, timeout=30) as made:
        yield made


def test_a_text_streamed_and_whole(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(model=MODEL, max_tokens=50, messages=ASK, extra_body=script("Hel", "lo"))  # type: ignore[arg-type]
    assert whole.content[0].text == "Hello"  # type: ignore[union-attr]
    assert (whole.stop_reason, whole.usage.output_tokens) == ("end_turn", 5)
    with claude.messages.stream(
        model=MODEL, max_tokens=50, messages=ASK, extra_body=script("Hel", "lo")
    ) as stream:  # type: ignore[arg-type]
        assert "".join(stream.text_stream) == "Hello"
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    assert final.usage.input_tokens == whole.usage.input_tokens


def test_the_order_of_events(http: httpx.Client) -> None:
    steps = [*THOUGHT, "It is ", *call_steps("get_weather", {"city": "Oslo"})]
    body = {"model": MODEL, "max_tokens": 500, "messages": ASK, "stream": True, "tools": [TOOL]} | script(
        *steps
    )
    lines = http.post("/v1/messages", json=body).text.split("\n")
    names = [line[7:] for line in lines if line.startswith("event: ")]
    compact = [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert compact == ["message_start", "ping", *block * 3, "message_delta", "message_stop"]


def test_thinking_tools_and_results(claude: anthropic.Anthropic) -> None:
    steps = [*THOUGHT, *call_steps("get_weather", {"city": "Oslo"})]
    with claude.messages.stream(
        model=MODEL, max_tokens=500, messages=ASK, tools=[TOOL], extra_body=script(*steps)  # type: ignore[arg-type, list-item]
    ) as stream:  # fmt: skip
        message = stream.get_final_message()
    thinking, call = message.content
    assert thinking.type == "thinking"
    assert thinking.thinking == "let me see"
    assert call.type == "tool_use"
    assert call.input == {"city": "Oslo"}
    assert message.stop_reason == "tool_use"
    answer = claude.messages.create(
        model=MODEL,
        max_tokens=500,
        system=[{"type": "text", "text": "be kind"}],
        messages=[
            *ASK,  # type: ignore[list-item]
            {"role": "assistant", "content": message.content},  # type: ignore[typeddict-item]
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": call.id, "content": "rain"},
                    {"type": "text", "text": "and?"},
                ],
            },
        ],
    )
    for piece in ("system\nbe kind", "get_weather", "tool\nrain", "user\nand?"):
        assert piece in answer.content[0].text  # type: ignore[union-attr]


def test_stop_sequences_and_length(claude: anthropic.Anthropic) -> None:
    stopped = claude.messages.create(
        model=MODEL, max_tokens=50, messages=ASK, stop_sequences=["END"], extra_body=script("one E", "ND two")  # type: ignore[arg-type]
    )  # fmt: skip
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "END")
    assert stopped.content[0].text == "one "  # type: ignore[union-attr]
    cut = claude.messages.create(model=MODEL, max_tokens=2, messages=ASK, extra_body=script("abc"))  # type: ignore[arg-type]
    assert cut.stop_reason == "max_tokens"


def test_tokens_are_counted_exactly(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model=MODEL, messages=ASK)  # type: ignore[arg-type]
    made = claude.messages.create(model=MODEL, max_tokens=1, messages=ASK)  # type: ignore[arg-type]
    assert counted.input_tokens == made.usage.input_tokens


def test_faults_have_anthropics_shape(claude: anthropic.Anthropic, http: httpx.Client) -> None:
    with pytest.raises(anthropic.NotFoundError, match="model not found"):
        claude.messages.create(model="nobody", max_tokens=1, messages=ASK)  # type: ignore[arg-type]
    with pytest.raises(anthropic.BadRequestError, match="max_tokens is required"):
        claude.post("/v1/messages", body={"model": MODEL, "messages": ASK}, cast_to=object)
    body = http.post("/v1/messages", json={"model": MODEL}).json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    choice = {"type": "tool", "name": "none_such"}
    with pytest.raises(anthropic.BadRequestError, match="none_such"):
        claude.messages.create(model=MODEL, max_tokens=1, messages=ASK, tools=[TOOL], tool_choice=choice)  # type: ignore[arg-type, list-item]


def test_a_fault_in_mid_stream_is_an_error_event(claude: anthropic.Anthropic) -> None:
    with (
        pytest.raises(anthropic.APIError),
        claude.messages.stream(
            model=MODEL, max_tokens=9, messages=ASK, extra_body=script("begun", {"fail": "error"})  # type: ignore[arg-type]
        ) as stream,
    ):  # fmt: skip
        list(stream)

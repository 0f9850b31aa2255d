"""The Responses API through OpenAI's own client against a live server and the scripted engine."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable
from typing import Any

import httpx
import openai
import pydantic
import pytest

from tests.gateway.conftest import MODEL, script
from tests.gateway.openai.test_chat_contract import call_steps

TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "the weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


def turn_of(kind: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": kind, "image_url": "data:,"}]}]


THOUGHT = [{"tokens": [261]}, "let me see", {"tokens": [262]}]


def test_a_text_streamed_and_whole(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input="Hi", extra_body=script("Hel", "lo"))
    assert whole.output_text == "Hello"
    assert whole.status == "completed"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 5
    with client.responses.stream(model=MODEL, input="Hi", extra_body=script("Hel", "lo")) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "Hello"
    assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events)


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]


def without_repeats(names: Iterable[str]) -> list[str]:
    return [name for name, _ in itertools.groupby(names)]


def test_the_whole_order_of_events(http: httpx.Client) -> None:
    steps = [*THOUGHT, "It is ", *call_steps("get_weather", {"city": "Oslo"})]
    body = {"model": MODEL, "input": "Hi", "stream": True, "tools": [TOOL]} | script(*steps)
    text = http.post("/v1/responses", json=body).text
    names = [line[7:] for line in text.split("\n") if line.startswith("event: ")]
    events = events_of(text)
    assert [event["type"] for event in events] == names
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert without_repeats(names) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
    assert {item["status"] for item in output} == {"completed"}
    assert json.loads(output[2]["arguments"]) == {"city": "Oslo"}
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "let me see"}]


def test_a_chain_of_responses_remembers(client: openai.OpenAI) -> None:
    first = client.responses.create(
        model=MODEL,
        input="weather?",
        tools=[TOOL],  # type: ignore[list-item]
        extra_body=script(*call_steps("get_weather", {"city": "Oslo"})),
    )
    call = first.output[0]
    assert call.type == "function_call"
    second = client.responses.create(
        model=MODEL,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}],
        instructions="be short",
    )
    for piece in ("system\nbe short", "weather?", "get_weather", "tool\nrain"):
        assert piece in second.output_text  # the scripted engine echoes its prompt
    items = client.responses.input_items.list(second.id, order="asc")
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model=MODEL, input="x", previous_response_id=second.id)
    assert missing.value.code == "previous_response_not_found"


def test_a_stored_response_is_streamed_again(client: openai.OpenAI, http: httpx.Client) -> None:
    steps = [*THOUGHT, "It is ", *call_steps("get_weather", {"city": "Oslo"})]
    body = {"model": MODEL, "input": "Hi", "stream": True, "tools": [TOOL]} | script(*steps)
    live = [event["type"] for event in events_of(http.post("/v1/responses", json=body).text)]
    made = client.responses.create(
        model=MODEL,
        input="Hi",
        tools=[TOOL],  # type: ignore[list-item]
        extra_body=script(*steps),
    )
    again = list(client.responses.retrieve(made.id, stream=True))
    assert without_repeats(event.type for event in again) == without_repeats(live)
    assert [event.sequence_number for event in again] == list(range(len(again)))
    assert again[-1].type == "response.completed"
    assert again[-1].response == made
    rest = list(client.responses.retrieve(made.id, stream=True, starting_after=4))
    assert rest == again[5:]


def test_the_stream_of_a_background_response_waits_for_its_end(client: openai.OpenAI) -> None:
    steps = ["a", {"text": "b", "delay_ms": 300}]
    slow = client.responses.create(model=MODEL, input="x", background=True, extra_body=script(*steps))
    *_, last = client.responses.retrieve(slow.id, stream=True)
    assert last.type == "response.completed"
    assert last.response.output_text == "ab"


def test_a_cancelled_response_is_streamed_to_where_it_came(client: openai.OpenAI) -> None:
    steps = ["a", {"text": "b", "delay_ms": 60_000}]
    slow = client.responses.create(model=MODEL, input="x", background=True, extra_body=script(*steps))
    time.sleep(0.1)
    client.responses.cancel(slow.id)
    *_, last = client.responses.retrieve(slow.id, stream=True)
    assert last.type == "response.incomplete"
    assert last.response.status == "cancelled"


@pytest.mark.parametrize("text", ["-1", "x", "²", "9" * 40])
def test_a_wrong_place_to_go_on_from_is_named(client: openai.OpenAI, http: httpx.Client, text: str) -> None:
    made = client.responses.create(model=MODEL, input="x")
    reply = http.get(f"/v1/responses/{made.id}", params={"stream": "true", "starting_after": text})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "starting_after")


def test_what_is_not_to_be_stored_is_not(client: openai.OpenAI) -> None:
    reply = client.responses.create(model=MODEL, input="Hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(reply.id)


def test_parse_and_length(client: openai.OpenAI) -> None:
    class City(pydantic.BaseModel):
        name: str

    parsed = client.responses.parse(
        model=MODEL, input="x", text_format=City, extra_body=script('{"name":"Oslo"}')
    )
    assert parsed.output_parsed == City(name="Oslo")
    cut = client.responses.create(model=MODEL, input="x", max_output_tokens=16, extra_body=script("a" * 40))
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_unknown_tools_are_skipped(client: openai.OpenAI) -> None:
    tools = [TOOL, {"type": "web_search"}, {"type": "custom", "name": "patch"}, {"type": "local_shell"}]
    reply = client.responses.create(model=MODEL, input="x", tools=tools, extra_body=script("ok"))  # type: ignore[arg-type]
    assert reply.output_text == "ok"
    assert len(reply.tools) == 1


def test_a_fault_in_mid_stream(http: httpx.Client) -> None:
    body = {"model": MODEL, "input": "x", "stream": True} | script("begun", {"fail": "error"})
    seen = b""
    with http.stream("POST", "/v1/responses", json=body) as reply, pytest.raises(httpx.RemoteProtocolError):
        for data in reply.iter_bytes():
            seen += data
    events = [json.loads(line[6:]) for line in seen.split(b"\n") if line.startswith(b"data: ")]
    assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
    assert events[-2]["response"]["status"] == "failed"
    assert events[-2]["response"]["error"]["code"] == "server_error"


def test_background_responses_are_polled_and_cancelled(client: openai.OpenAI) -> None:
    quick = client.responses.create(model=MODEL, input="x", background=True, extra_body=script("done"))
    assert quick.status == "in_progress"
    deadline = time.monotonic() + 5
    while (
        found := client.responses.retrieve(quick.id)
    ).status == "in_progress" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (found.status, found.output_text) == ("completed", "done")
    slow = client.responses.create(
        model=MODEL, input="x", background=True, extra_body=script("a", {"text": "b", "delay_ms": 60_000})
    )
    time.sleep(0.1)
    assert client.responses.cancel(slow.id).status == "cancelled"
    assert client.responses.retrieve(slow.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(client.responses.create(model=MODEL, input="x").id)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": [{"role": "king", "content": "x"}]}, "input.0.role"),
        ({"input": turn_of("input_image")}, "messages.0.content"),
        ({"input": turn_of("input_file")}, "input.0.content.0.type"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"reasoning": {"effort": "wild"}}, "reasoning.effort"),
        ({"background": True, "store": False}, "store"),
    ],
)  # fmt: skip
def test_wrong_requests_are_named(http: httpx.Client, change: dict[str, object], param: str) -> None:
    reply = http.post("/v1/responses", json={"model": MODEL, "input": "x"} | change)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


def test_input_tokens_are_counted(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input="Hi")
    assert counted.input_tokens == client.responses.create(model=MODEL, input="Hi").usage.input_tokens  # type: ignore[union-attr]


def test_stored_chat_completions(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "keep me"}],
        store=True,
        metadata={"topic": "storing"},
        extra_body=script("kept"),
    )
    streamed = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "keep me too"}],
        store=True,
        stream=True,
        extra_body=script("kept too"),
    )
    (other,) = {chunk.id for chunk in streamed}
    found = client.chat.completions.retrieve(made.id)
    assert found.choices[0].message.content == "kept"
    assert client.chat.completions.retrieve(other).choices[0].message.content == "kept too"
    ids = [each.id for each in client.chat.completions.list(metadata={"topic": "storing"})]
    assert ids == [made.id]
    assert [m.content for m in client.chat.completions.messages.list(made.id)] == ["keep me"]
    changed = client.chat.completions.update(made.id, metadata={"topic": "changed"})
    assert changed.metadata == {"topic": "changed"}
    assert client.chat.completions.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(made.id)

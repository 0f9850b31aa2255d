"""Chat completions through OpenAI's own client against a live server and the scripted engine."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import struct
import time

import httpx
import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.conftest import MODEL, script

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def image_turn(url: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


CALL_OPEN = {"tokens": [263]}
CALL_CLOSE = {"tokens": [264]}


def call_steps(name: str, arguments: object, delay_ms: int = 12) -> list[dict[str, object]]:
    """A call between its control tokens, the text cut into many steps of a thousand tokens."""
    text = json.dumps({"name": name, "arguments": arguments})
    pieces = [text[i : i + 1000] for i in range(0, len(text), 1000)]
    return [CALL_OPEN, *({"text": piece, "delay_ms": delay_ms} for piece in pieces), CALL_CLOSE]


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert "scripted:latest" in [model.id for model in client.models.list()]
    assert client.models.retrieve("scripted:latest").object == "model"
    with pytest.raises(openai.NotFoundError, match="model not found") as missing:
        client.models.retrieve("some/where/nothing:7b")
    assert missing.value.code == "model_not_found"


def test_streamed_text_equals_unstreamed(client: openai.OpenAI) -> None:
    emoji = "naïve 日本語 👩‍👩‍👧 end"
    whole = client.chat.completions.create(model=MODEL, messages=ASK, extra_body=script(emoji, " more"))
    stream = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=script(emoji, " more"),
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content == emoji + " more"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len((emoji + " more").encode())
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.role for c in chunks[1:-1] if c.choices[0].delta.role] == []
    reasons = [c.choices[0].finish_reason for c in chunks[:-1]]
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}


def test_the_stream_helper_follows_the_events(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=ASK, extra_body=script("Hel", "lo")) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Hello"
    assert "content.done" in kinds


def test_parse_gives_the_model_its_shape(client: openai.OpenAI) -> None:
    class City(pydantic.BaseModel):
        name: str
        people: int

    parsed = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=City, extra_body=script('{"name":"Oslo","people":7}')
    )
    assert parsed.choices[0].message.parsed == City(name="Oslo", people=7)


def test_length_is_reported(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=ASK, max_completion_tokens=3, extra_body=script("abcdef")
    )
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].message.content == "abc"


@pytest.mark.parametrize("size", [1_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_two_parallel_calls_with_long_arguments(client: openai.OpenAI, size: int) -> None:
    long = {"city": "x" * size, "quote": '"\\é\n'}
    delay_ms = (
        12 if size < 10_000 else 40
    )  # 25,000 tokens a second: more than a busy machine reads is an error
    steps = [*call_steps("get_weather", long, delay_ms), *call_steps("get_weather", {"city": "Rome"})]
    whole = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[TOOL], extra_body=script(*steps)  # type: ignore[list-item]
    )  # fmt: skip
    calls = whole.choices[0].message.tool_calls or []
    assert whole.choices[0].finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in calls] == [long, {"city": "Rome"}]  # type: ignore[union-attr]
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, tools=[TOOL], extra_body=script(*steps)  # type: ignore[list-item]
    ) as stream:  # fmt: skip
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    streamed = final.choices[0].message.tool_calls or []
    assert [json.loads(call.function.arguments) for call in streamed] == [long, {"city": "Rome"}]
    assert len({call.id for call in streamed}) == 2
    assert "tool_calls.function.arguments.delta" in kinds


def test_deltas_of_calls_name_the_call_once_and_fit_a_line(http: httpx.Client) -> None:
    steps = call_steps("get_weather", {"city": "ü" * 9_000})
    body = {"model": MODEL, "messages": ASK, "tools": [TOOL], "stream": True} | script(*steps)
    lines = http.post("/v1/chat/completions", json=body).text.split("\n")
    assert max(map(len, (line.encode() for line in lines))) < 48 * 1024
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [
        c["choices"][0]["delta"]["tool_calls"][0] for c in chunks if "tool_calls" in c["choices"][0]["delta"]
    ]
    assert set(deltas[0]) == {"index", "id", "type", "function"}
    assert deltas[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert all(
        set(delta) == {"index", "function"} and set(delta["function"]) == {"arguments"}
        for delta in deltas[1:]
    )


def test_stop_strings_over_token_borders_with_two_choices(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=ASK, n=2, stop=["END", "\n\n"], extra_body=script("one E", "ND two")
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert [choice.message.content for choice in reply.choices] == ["one ", "one "]
    assert {choice.finish_reason for choice in reply.choices} == {"stop"}
    stream = client.chat.completions.create(
        model=MODEL, messages=ASK, n=2, stop="END", stream=True, extra_body=script("one E", "ND two")
    )
    texts = ["", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["one ", "one "]


def test_log_probabilities_ride_with_the_text(client: openai.OpenAI) -> None:
    step = {"text": "hé", "logprobs": [-0.5, {"logprob": -1.0, "top": [[4, -1.0], [5, -2.0]]}, -0.25]}
    reply = client.chat.completions.create(
        model=MODEL, messages=ASK, logprobs=True, top_logprobs=2, extra_body=script(step)
    )
    found = reply.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert [round(token.logprob, 2) for token in found.content] == [-0.5, -1.0, -0.25]
    assert b"".join(bytes(token.bytes or []) for token in found.content) == "hé".encode()
    assert [top.logprob for top in found.content[1].top_logprobs] == [-1.0, -2.0]
    stream = client.chat.completions.create(
        model=MODEL, messages=ASK, logprobs=True, stream=True, extra_body=script(step)
    )
    streamed = [
        token.logprob
        for chunk in stream
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content or []
    ]
    assert [round(logprob, 2) for logprob in streamed] == [-0.5, -1.0, -0.25]


def test_reasoning_is_separated_and_counted(client: openai.OpenAI) -> None:
    steps = [{"tokens": [261]}, "let me see", {"tokens": [262]}, "42"]
    reply = client.chat.completions.create(model=MODEL, messages=ASK, extra_body=script(*steps))
    message = reply.choices[0].message
    assert message.content == "42"
    assert (message.model_extra or {})["reasoning_content"] == "let me see"
    assert (message.model_extra or {})["reasoning"] == "let me see"
    assert reply.usage is not None
    assert reply.usage.completion_tokens_details is not None
    assert reply.usage.completion_tokens_details.reasoning_tokens == len("let me see")


def test_legacy_functions_are_answered_in_their_own_words(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        functions=[TOOL["function"]],  # type: ignore[list-item]
        extra_body=script(*call_steps("get_weather", {"city": "Oslo"})),
    )
    assert reply.choices[0].finish_reason == "function_call"
    assert reply.choices[0].message.function_call is not None
    assert json.loads(reply.choices[0].message.function_call.arguments) == {"city": "Oslo"}


def test_embeddings_come_as_base64_and_as_floats(client: openai.OpenAI, http: httpx.Client) -> None:
    default = client.embeddings.create(model=MODEL, input=["meteor", "comet"])
    assert [row.index for row in default.data] == [0, 1]
    assert math.isclose(sum(x * x for x in default.data[0].embedding), 1, rel_tol=1e-5)
    floats = client.embeddings.create(model=MODEL, input="meteor", encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(default.data[0].embedding)
    raw = http.post(
        "/v1/embeddings", json={"model": MODEL, "input": "meteor", "encoding_format": "base64"}
    ).json()
    packed = base64.b64decode(raw["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(packed) // 4}f", packed)) == pytest.approx(default.data[0].embedding)
    short = client.embeddings.create(model=MODEL, input="meteor", dimensions=4)
    assert len(short.data[0].embedding) == 4
    assert math.isclose(sum(x * x for x in short.data[0].embedding), 1, rel_tol=1e-5)


def test_token_ids_are_refused_with_the_hint_that_fixes_langchain(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model=MODEL, input=[1, 2, 3])


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"model": "nobody"}, "model_not_found", "model"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"temperature": "warm"}, "invalid_type", "temperature"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 4096}, "invalid_value", "n"),
        ({"top_logprobs": 3}, "invalid_value", "top_logprobs"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": "hello"}, "invalid_type", "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "invalid_value", "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "invalid_value", "messages.0.content"),
        ({"logit_bias": {"99999": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"x": 1}}, "invalid_value", "logit_bias"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"response_format": {"type": "poem"}}, "invalid_value", "response_format.type"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"modalities": ["audio"]}, "unsupported_parameter", "modalities"),
        ({"reasoning_effort": "extreme"}, "invalid_value", "reasoning_effort"),
        ({"messages": image_turn("https://x/y")}, "invalid_value", "messages.0.content.0"),
        ({"messages": image_turn("data:image/png;base64,AAAA")}, "invalid_value", "messages.0.content"),
    ],
)  # fmt: skip
def test_wrong_requests_are_named(
    http: httpx.Client, change: dict[str, object], code: str, param: str
) -> None:
    reply = http.post("/v1/chat/completions", json={"model": MODEL, "messages": ASK} | change)
    error = reply.json()["error"]
    assert reply.status_code == (404 if code == "model_not_found" else 400), error
    assert (error["code"], error["param"]) == (code, param), error
    assert set(error) == {"message", "type", "param", "code"}


def test_a_prompt_beyond_the_context_says_both_numbers(client: openai.OpenAI) -> None:
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "x" * 140_000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length of 131072") as refused:
        client.chat.completions.create(model=MODEL, messages=long)
    assert refused.value.code == "context_length_exceeded"
    assert "raise num_ctx" in str(refused.value)


def test_a_fault_in_mid_stream_is_an_event_and_a_broken_connection(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": ASK, "stream": True} | script("begun", {"fail": "error"})
    seen = b""
    with (
        http.stream("POST", "/v1/chat/completions", json=body) as reply,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        for data in reply.iter_bytes():
            seen += data
    last = [line for line in seen.split(b"\n") if line.startswith(b"data: ")][-1]
    assert json.loads(last[6:])["error"]["code"] == "engine_failure"
    assert b"[DONE]" not in seen
    assert b"begun"[:1] in seen


def test_the_client_raises_on_a_fault_in_mid_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=ASK, stream=True, extra_body=script("begun", {"fail": "error"})
    )
    with pytest.raises(openai.APIError):
        list(stream)


def test_a_runner_that_dies_costs_one_request(client: openai.OpenAI) -> None:
    started = time.monotonic()
    with pytest.raises(openai.APIError):
        client.chat.completions.create(model=MODEL, messages=ASK, extra_body=script("x", {"fail": "exit"}))
    assert time.monotonic() - started < 5
    reply = client.chat.completions.create(model=MODEL, messages=ASK, extra_body=script("alive"))
    assert reply.choices[0].message.content == "alive"


def test_render_only_shows_the_prompt_and_runs_nothing(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": ASK, "_debug_render_only": True}
    reply = http.post("/v1/chat/completions", json=body).json()
    assert reply["prompt"] == "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    assert reply["token_ids"][:2] == [1, 259]


def test_control_tokens_typed_by_a_user_stay_text(http: httpx.Client) -> None:
    ask = [{"role": "user", "content": "<end_of_turn><bos>"}]
    ids = http.post(
        "/v1/chat/completions", json={"model": MODEL, "messages": ask, "_debug_render_only": True}
    ).json()["token_ids"]
    assert ids.count(260) == 1
    assert ids.count(1) == 1


def test_completions_take_text_texts_and_token_ids(client: openai.OpenAI) -> None:
    one = client.completions.create(model=MODEL, prompt="abc", max_tokens=2)
    assert one.choices[0].text == "ab"
    assert one.choices[0].finish_reason == "length"
    many = client.completions.create(model=MODEL, prompt=["abc", "def"], n=2)
    assert [choice.text for choice in many.choices] == ["abc", "abc", "def", "def"]
    assert many.usage is not None
    assert many.usage.prompt_tokens == 8  # each prompt once, three bytes and a BOS
    ids = client.completions.create(model=MODEL, prompt=[100, 101], max_tokens=5)
    assert ids.choices[0].text == "ab"
    stream = client.completions.create(model=MODEL, prompt=["abc", "def"], stream=True)
    texts = ["", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["abc", "def"]


def test_completions_echo_the_prompt(client: openai.OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt="abc", echo=True, extra_body=script("def"))
    assert reply.choices[0].text == "abcdef"
    scored = client.completions.create(model=MODEL, prompt="abc", echo=True, max_tokens=0)
    assert (scored.choices[0].text, scored.choices[0].finish_reason) == ("abc", "length")
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0


def test_tokens_of_a_text(http: httpx.Client) -> None:
    reply = http.post("/tokenize", json={"model": MODEL, "content": "hé", "with_pieces": True}).json()
    assert [token["id"] for token in reply["tokens"]] == [107, 198, 172]
    back = http.post("/detokenize", json={"model": MODEL, "tokens": [107, 198, 172]}).json()
    assert back["content"] == "hé"


def test_closing_the_connection_frees_the_slot_within_a_second(
    http: httpx.Client, client: openai.OpenAI
) -> None:
    body = {"model": MODEL, "messages": ASK, "stream": True}
    slow = script("x", {"text": "y", "delay_ms": 60_000})
    with http.stream("POST", "/v1/chat/completions", json=body | slow) as reply:
        chunks = reply.iter_bytes()  # held: dropping the iterator would close the connection
        next(chunks)
        assert users(http) == 1
    deadline = time.monotonic() + 1
    while users(http) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert users(http) == 0


def test_the_best_of_several(client: openai.OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt="abc", n=1, best_of=3)
    assert [choice.text for choice in reply.choices] == ["abc"]
    assert reply.choices[0].logprobs is None
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 9
    with pytest.raises(openai.BadRequestError, match="best_of"):
        client.completions.create(model=MODEL, prompt="abc", n=3, best_of=2)


def test_documents_are_ranked(http: httpx.Client) -> None:
    body = {"model": MODEL, "query": "fox", "documents": ["cat", "fox", {"text": "dog"}], "top_n": 2}
    results = http.post("/v1/rerank", json=body | {"return_documents": True}).json()["results"]
    assert results[0]["index"] == 1
    assert results[0]["relevance_score"] == pytest.approx(1, abs=1e-5)
    assert len(results) == 2
    assert results[0]["document"] == {"text": "fox"}


@pytest.mark.slow
def test_silence_is_filled_with_single_comment_lines(http: httpx.Client) -> None:
    slow = script("x", {"text": "y", "delay_ms": 11_000})
    body = {"model": MODEL, "messages": ASK, "stream": True}
    reply = http.post("/v1/chat/completions", json=body | slow, timeout=60)
    assert reply.text.count(": keepalive\n") >= 1
    assert "\n: keepalive\n\n" not in reply.text.replace("\n\n: keepalive\n", "\n\n<alive>")
    assert ": ping" not in reply.text
    assert reply.text.endswith("data: [DONE]\n\n")


def test_a_stream_that_is_never_read_frees_its_place(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": ASK, "stream": True} | script({"text": "a", "delay_ms": 30_000})
    for _ in range(20):
        with contextlib.suppress(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=body, timeout=0.05)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline and (left := users(http)):
        time.sleep(0.05)
    assert not left


def users(http: httpx.Client) -> float:
    """Requests that hold a place now."""
    rows = [
        row
        for row in http.get("/metrics").text.splitlines()
        if row.startswith("gemmule:num_requests_running{")
    ]
    return sum(float(row.rsplit(" ", 1)[1]) for row in rows)

"""Native bodies to canonical requests."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.base import Grammar
from gateway.errors import BadRequest
from gateway.ollama.convert import chat_request, completion_request, embed_request, embeddings_request
from gateway.ollama.schema import ChatBody, EmbedBody, EmbeddingsBody, GenerateBody, read_body
from gateway.types import ToolChoice
from modelfiles.messages import MediaPart, Message, TextPart, ToolCall, ToolSpec

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n rest").decode()


def chat(**fields: Any) -> Any:
    return chat_request(read_body(ChatBody, json.dumps({"model": "m"} | fields).encode()), "m")


def generate(**fields: Any) -> Any:
    return completion_request(read_body(GenerateBody, json.dumps({"model": "m"} | fields).encode()), "m")


def embed(**fields: Any) -> Any:
    return embed_request(read_body(EmbedBody, json.dumps({"model": "m"} | fields).encode()), "m")


def test_a_whole_conversation() -> None:
    request = chat(
        messages=[
            {"role": "System", "content": "be brief"},
            {"role": "user", "content": "weather?", "images": [PNG]},
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Gent"}}}],
            },
            {"role": "tool", "content": "12 C", "tool_name": "weather", "tool_call_id": "call_9"},
        ],
        tools=[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
    )
    assert request.messages == (
        Message("system", (TextPart("be brief"),)),
        Message("user", (TextPart("weather?"), MediaPart("image", "image/png", b"\x89PNG\r\n\x1a\n rest"))),
        Message(
            "assistant", tool_calls=(ToolCall("call00000", "weather", '{"city": "Gent"}'),), thinking="hm"
        ),
        Message("tool", (TextPart("12 C"),), tool_call_id="call_9", name="weather"),
    )
    assert request.tools == (ToolSpec("weather", "", {"type": "object"}),)
    assert request.options.truncate is False


def test_a_result_finds_its_call_by_name_or_by_id() -> None:
    def call(name: str, identity: str | None = None) -> dict[str, Any]:
        return {"id": identity, "function": {"name": name, "arguments": {}}}

    request = chat(
        messages=[
            {"role": "assistant", "tool_calls": [call("a"), call("b"), call("a"), call("c", "mine")]},
            {"role": "tool", "content": "second", "tool_name": "b"},
            {"role": "tool", "content": "first", "tool_name": "a"},
            {"role": "tool", "content": "third", "tool_name": "a"},
            {"role": "tool", "content": "fourth", "tool_call_id": "mine"},
            {"role": "tool", "content": "again", "tool_call_id": "mine"},
            {"role": "tool", "content": "of nothing"},
        ]
    )
    assert [(turn.name, turn.tool_call_id) for turn in request.messages[1:]] == [
        ("b", "call00001"),
        ("a", "call00000"),
        ("a", "call00002"),
        ("c", "mine"),
        ("c", "mine"),
        (None, None),
    ]


def test_every_option_reaches_the_request() -> None:
    options = generate(
        prompt="x",
        options={
            "temperature": 0,
            "top_k": 3.0,
            "top_p": 0.5,
            "min_p": 0.1,
            "typical_p": 0.9,
            "repeat_penalty": 1.1,
            "repeat_last_n": -1,
            "presence_penalty": 0.2,
            "frequency_penalty": 0.3,
            "seed": 7,
            "stop": ["\n", ""],
            "num_predict": -1,
            "num_ctx": 512,
            "logit_bias": {"5": -100},
            "num_gpu": 0,
            "vision": "?",
        },
        logprobs=True,
        top_logprobs=4,
        keep_alive="1m",
        truncate=True,
        shift=True,
    ).options
    sampling = options.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.0, 3, 0.5, 0.1)
    assert (sampling.typical_p, sampling.repeat_penalty, sampling.repeat_last_n) == (0.9, 1.1, -1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.seed) == (0.2, 0.3, 7)
    assert sampling.logit_bias == ((5, -100.0),)
    assert (options.stop, options.num_predict, options.num_ctx) == (("\n",), -1, 512)
    assert (options.logprobs, options.keep_alive, options.truncate, options.shift) == (4, 60.0, True, True)


def test_absent_settings_stay_absent() -> None:
    options = generate(prompt="x", options={"seed": -1, "temperature": None, "num_ctx": 0}).options
    assert options.sampling.seed is None
    assert options.sampling.temperature is None
    assert (options.num_ctx, options.stop, options.logprobs, options.num_predict) == (None, None, -1, None)


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("temperature", "hot", "of type float32"),
        ("temperature", True, "of type float32"),
        ("top_k", 1.5, "of type integer"),
        ("top_k", "3", "of type integer"),
        ("seed", 2**64, "of type integer"),
        ("stop", [1], "of type array"),
        ("stop", {"a": 1}, "of type array"),
        ("use_mmap", 1, "of type boolean"),
        ("logit_bias", {"a": 1}, "an object of token ids and numbers"),
        ("logit_bias", {"1": True}, "an object of token ids and numbers"),
        ("logit_bias", [], "an object of token ids and numbers"),
    ],
)
def test_a_wrong_type_is_refused_by_name(option: str, value: Any, kind: str) -> None:
    with pytest.raises(BadRequest, match=f'option "{option}" must be {kind}'):
        generate(prompt="x", options={option: value})


def test_one_stop_string_may_be_given_as_such() -> None:
    assert generate(prompt="x", options={"stop": "END"}).options.stop == ("END",)


def test_n_has_no_place_in_a_native_reply() -> None:
    with pytest.raises(BadRequest, match="n is 2"):
        generate(prompt="x", options={"n": 2})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("json", Grammar("json", "")),
        ("", None),
        (None, None),
        ({"type": "object"}, Grammar("json_schema", '{"type":"object"}')),
    ],
)
def test_format(given: Any, expected: Grammar | None) -> None:
    assert chat(format=given).format == expected


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(BadRequest, match='invalid format: "yaml"; expected "json"'):
        chat(format="yaml")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ToolChoice()),
        ("auto", ToolChoice()),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ("any", ToolChoice("required")),
        ({"type": "function", "function": {"name": "f"}}, ToolChoice("named", ("f",))),
    ],
)
def test_tool_choice(given: Any, expected: ToolChoice) -> None:
    assert chat(tool_choice=given).tool_choice == expected


def test_think_where_langchaingo_puts_it() -> None:
    assert chat(options={"think": True}).think is True
    assert chat(options={"think": True}, think=False).think is False
    assert chat(think="high").think == "high"
    with pytest.raises(BadRequest, match="invalid think value"):
        chat(options={"think": "very"})


def test_generate_keeps_what_the_template_needs() -> None:
    request = generate(prompt="a", suffix="b", system="s", template="t", context=[1, 2])
    assert (request.raw, request.suffix, request.system) == (False, "b", "s")
    assert (request.template, request.context) == ("t", (1, 2))


@pytest.mark.parametrize("field", [{"system": "s"}, {"template": "t"}, {"context": [1]}])
def test_raw_excludes_the_template(field: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="raw mode does not support template, system, or context"):
        generate(prompt="a", raw=True, **field)


def test_images_are_refused_by_name_where_no_model_can_see() -> None:
    with pytest.raises(BadRequest, match='"m" does not support images'):
        generate(prompt="a", images=[PNG])


@pytest.mark.parametrize("image", ["/tmp/cat.png", "https://example.org/cat.png", "AAAA"])
def test_an_image_must_be_base64_of_an_image(image: str) -> None:
    with pytest.raises(BadRequest, match=r"messages\.0\.images\.0 is "):
        chat(messages=[{"role": "user", "content": "x", "images": [image]}])


def test_an_unknown_role_lists_the_known_ones() -> None:
    with pytest.raises(BadRequest, match=r'messages\.0\.role is "bot"; the roles are system, developer'):
        chat(messages=[{"role": "bot", "content": "x"}])


@pytest.mark.parametrize("top", [-1, 21])
def test_top_logprobs_are_bounded(top: int) -> None:
    with pytest.raises(BadRequest, match="top_logprobs must be between 0 and 20"):
        chat(logprobs=True, top_logprobs=top)


@pytest.mark.parametrize(
    ("given", "inputs"), [("a", ("a",)), (["a", ""], ("a", "")), ("", ()), ([], ()), (None, ())]
)
def test_embed_inputs(given: Any, inputs: tuple[str, ...]) -> None:
    assert embed(input=given).inputs == inputs
    assert embed(input=given).truncate is True


@pytest.mark.parametrize("given", [3, [3], {"a": 1}, [["a"]]])
def test_embed_inputs_of_another_type(given: Any) -> None:
    with pytest.raises(BadRequest, match="invalid input type"):
        embed(input=given)


def test_the_older_embeddings_form() -> None:
    body = read_body(EmbeddingsBody, b'{"model":"m","prompt":"p","keep_alive":0}')
    assert embeddings_request(body, "m").inputs == ("p",)
    assert embeddings_request(body, "m").keep_alive == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(ChatBody.model_fields.keys() | GenerateBody.model_fields.keys())


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
def test_whatever_is_sent_is_a_request_or_a_bad_request(fields: dict[str, Any]) -> None:
    raw = json.dumps(fields).encode()
    for kind, convert in ((ChatBody, chat_request), (GenerateBody, completion_request)):
        try:
            convert(read_body(kind, raw), "m")  # type: ignore[operator]
        except BadRequest as error:
            assert str(error)

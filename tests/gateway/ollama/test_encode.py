"""Events to native lines, and the fold to a whole reply."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from engines.base import Usage
from gateway.ollama.encode import BrokenToolCall, ReplyEncoder, Shape, collect, timestamp
from gateway.types import (
    Event,
    Failed,
    Finished,
    GenerationUsage,
    TextDelta,
    ThinkingDelta,
    TokenText,
    ToolCallDelta,
)

MOMENT = datetime(2026, 11, 20, 14, 0, 0, tzinfo=UTC)
STAMP = "2026-11-20T14:00:00.000000Z"
USAGE = GenerationUsage(
    Usage(prompt=5, cached=2, generated=3, prefill_ns=10, decode_ns=20), load_ns=4, total_ns=99
)
METRICS = {
    "total_duration": 99,
    "load_duration": 4,
    "prompt_eval_count": 5,
    "prompt_eval_duration": 10,
    "eval_count": 3,
    "eval_duration": 20,
}


def lines(shape: Shape, *events: Event, context: bool = False) -> list[dict[str, object]]:
    encoder = ReplyEncoder(shape, "m", context=context, clock=lambda: MOMENT)
    return [line for event in events for line in encoder.push(event)]


def test_a_chat_stream_line_by_line() -> None:
    assert lines(
        "chat", ThinkingDelta(0, "hm"), TextDelta(0, "Hi"), Finished(0, "stop", USAGE, context=(1, 2))
    ) == [
        {
            "model": "m",
            "created_at": STAMP,
            "message": {"role": "assistant", "content": "", "thinking": "hm"},
            "done": False,
        },
        {
            "model": "m",
            "created_at": STAMP,
            "message": {"role": "assistant", "content": "Hi"},
            "done": False,
        },
        {
            "model": "m",
            "created_at": STAMP,
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
        }
        | METRICS,
    ]


def test_a_generate_stream_ends_with_the_context() -> None:
    found = lines("generate", TextDelta(0, "Hi"), Finished(0, "length", USAGE, context=(1, 2)), context=True)
    assert found[0] == {"model": "m", "created_at": STAMP, "response": "Hi", "done": False}
    assert found[1]["context"] == [1, 2]
    assert found[1]["done_reason"] == "length"


def test_tool_calls_travel_whole_with_an_object_for_arguments() -> None:
    found = lines(
        "chat",
        TextDelta(0, "ok"),
        ToolCallDelta(0, 0, "call_a", "f", ""),
        ToolCallDelta(0, 0, None, None, '{"x":'),
        ToolCallDelta(0, 0, None, None, "1}"),
        ToolCallDelta(0, 1, "call_b", "g", ""),
        Finished(0, "tool_calls", USAGE),
    )
    calls = [line["message"]["tool_calls"] for line in found if "tool_calls" in line["message"]]  # type: ignore[index, operator]
    assert calls == [
        [{"id": "call_a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}}],
        [{"id": "call_b", "function": {"index": 1, "name": "g", "arguments": {}}}],
    ]
    assert found[-1]["done_reason"] == "stop"
    assert [line["done"] for line in found] == [False, False, False, True]


@pytest.mark.parametrize("arguments", ["{", "[1]", "3"])
def test_arguments_that_are_no_object_are_an_error_not_a_guess(arguments: str) -> None:
    with pytest.raises(BrokenToolCall, match='the model called "f" with'):
        lines("chat", ToolCallDelta(0, 0, "a", "f", arguments), Finished(0, "stop", USAGE))


def test_logprobs_are_finite_json_with_bytes() -> None:
    token = TokenText("é", b"\xc3\xa9", -0.5, (("é", b"\xc3\xa9", -0.5), ("x", b"x", float("-inf"))))
    (line,) = lines("generate", TextDelta(0, "é", (token,)))
    assert line["logprobs"] == [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [195, 169],
            "top_logprobs": [
                {"token": "é", "logprob": -0.5, "bytes": [195, 169]},
                {"token": "x", "logprob": -3.4028235e38, "bytes": [120]},
            ],
        }
    ]
    json.dumps(line, allow_nan=False)


def test_a_whole_reply_is_the_fold_of_the_stream() -> None:
    events = (
        ThinkingDelta(0, "h"),
        ThinkingDelta(0, "m"),
        TextDelta(0, "H", (TokenText("H", b"H", -1.0),)),
        TextDelta(0, "i", (TokenText("i", b"i", -2.0),)),
        ToolCallDelta(0, 0, "a", "f", "{}"),
        Finished(0, "tool_calls", USAGE),
    )
    whole = collect(lines("chat", *events))
    assert whole["message"] == {
        "role": "assistant",
        "content": "Hi",
        "thinking": "hm",
        "tool_calls": [{"id": "a", "function": {"index": 0, "name": "f", "arguments": {}}}],
    }
    assert (whole["done"], whole["done_reason"], whole["eval_count"]) == (True, "stop", 3)
    assert [entry["token"] for entry in whole["logprobs"]] == ["H", "i"]
    assert collect(lines("generate", *events))["response"] == "Hi"


def test_an_empty_answer_still_has_its_field() -> None:
    usage = GenerationUsage(Usage())
    (line,) = lines("generate", Finished(0, "stop", usage))
    assert collect([line]) == {
        "model": "m",
        "created_at": STAMP,
        "response": "",
        "done": True,
        "done_reason": "stop",
    }


def test_a_failure_is_not_encoded_as_an_answer() -> None:
    with pytest.raises(TypeError):
        lines("chat", Failed(RuntimeError("x")))


def test_load_and_render_replies() -> None:
    encoder = ReplyEncoder("chat", "m", clock=lambda: MOMENT)
    assert encoder.done("load") == {
        "model": "m",
        "created_at": STAMP,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "load",
    }
    assert encoder.rendered("<bos>x")["_debug_info"] == {"rendered_template": "<bos>x"}


def test_times_are_utc_with_a_zone_and_six_digits() -> None:
    east = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2)))
    assert timestamp(east) == "2026-01-02T01:04:05.000006Z"

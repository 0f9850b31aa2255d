"""The `openai` npm package against a live server: one program, one JSON object of what it saw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.scripted import CONTROL_IDS
from tests.contract.ollama_support import installed_npm_packages, script, serving

pytestmark = pytest.mark.contract

HERE = Path(__file__).parent
TEXT = "naïve 日本語 👩‍👩‍👧 end"
SILENT_MS = 30_000


def call_of(city: str) -> tuple[int, str, int]:
    text = json.dumps({"name": "weather", "arguments": {"city": city}})
    return CONTROL_IDS["<tool_call>"], text, CONTROL_IDS["</tool_call>"]


SCRIPTS = {
    "unicode": json.dumps([{"tokens": [byte + 3]} for byte in TEXT.encode()]),
    "city": script('{"name": "Gent", "people": 7}'),
    "calls": script(*call_of("Gent"), *call_of("Rome")),
    "broken": script("Hel", {"fail": "error"}),
    "memory": script("Hel", {"fail": "out_of_memory"}),
    "slow": json.dumps({"steps": [{"text": "x", "delay_ms": 50}], "repeat": 1000}),
    "silent": script({"text": "late", "delay_ms": SILENT_MS}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    place = installed_npm_packages(HERE)
    shutil.copy(HERE / "program.mjs", place)
    with serving(tmp_path_factory.mktemp("openai-node")) as server:
        done = server.run(["node", "program.mjs", server.url, json.dumps(SCRIPTS)], cwd=place)
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def test_models_are_listed_and_found(results: dict[str, Any]) -> None:
    assert "scripted:latest" in results["models"]
    assert results["model"]["object"] == "model"


def test_a_chat_whole_streamed_and_by_the_helper(results: dict[str, Any]) -> None:
    assert results["whole"]["choices"][0]["message"]["content"] == TEXT
    assert results["whole"]["choices"][0]["finish_reason"] == "stop"
    assert results["streamed"]["text"] == results["helper"] == TEXT
    assert results["streamed"]["usage"] == results["whole"]["usage"]
    assert results["streamed"]["pieces"] > len(TEXT)


def test_replies_are_parsed_into_a_shape(results: dict[str, Any]) -> None:
    assert results["parsed"] == results["responseParsed"] == {"name": "Gent", "people": 7}
    assert results["cut"]["name"] == "LengthFinishReasonError"


def test_two_calls_whole_and_streamed(results: dict[str, Any]) -> None:
    for choice in (results["called"], results["calledStreamed"]["choice"]):
        arguments = [json.loads(call["function"]["arguments"]) for call in choice["message"]["tool_calls"]]
        assert arguments == [{"city": "Gent"}, {"city": "Rome"}]
        assert choice["finish_reason"] == "tool_calls"
    assert results["calledStreamed"]["argumentDeltas"] >= 2
    assert results["toolResults"] == ["Gent: 7 C", "Rome: 7 C"]


def test_vectors_are_asked_for_as_base64_and_arrive_as_numbers(results: dict[str, Any]) -> None:
    for given, floats in zip(results["embedded"]["data"], results["embeddedFloats"]["data"], strict=True):
        assert given["embedding"] == pytest.approx(floats["embedding"])
        assert len(given["embedding"]) == 16


def test_responses_whole_streamed_and_by_the_helper(results: dict[str, Any]) -> None:
    assert results["response"] == results["responseHelper"] == TEXT
    assert results["responseEvents"][:2] == ["response.created", "response.in_progress"]
    assert results["responseEvents"][-1] == "response.completed"
    assert results["responseNumbers"] == list(range(len(results["responseNumbers"])))


@pytest.mark.parametrize(
    ("case", "name", "status", "code", "calls"),
    [
        ("unknown", "NotFoundError", 404, "model_not_found", 1),
        ("wrong", "BadRequestError", 400, "invalid_value", 1),
        ("broken", "InternalServerError", 500, "engine_failure", 3),
        ("full", "InternalServerError", 503, "out_of_memory", 1),
        ("brokenStream", "APIError", None, "engine_failure", 1),
    ],
)
def test_faults_have_their_class_and_are_retried_only_when_it_may_help(
    results: dict[str, Any], case: str, name: str, status: int | None, code: str, calls: int
) -> None:
    found = results[case]
    assert (found["name"], found["status"], found["code"], found["calls"]) == (name, status, code, calls)
    assert status is None or found["requestID"]


def test_an_abort_frees_the_slot_within_a_second(results: dict[str, Any]) -> None:
    assert results["aborted"]["name"] is None, "leaving the loop by abort() is no error to this client"
    assert results["abortedWhole"]["name"] == "APIUserAbortError"
    assert results["abortedIdle"] < 1000
    assert results["abortedWholeIdle"] < 1000


def test_half_a_minute_of_silence_is_waited_out(results: dict[str, Any]) -> None:
    assert results["silent"]["text"] == "late"
    assert results["silent"]["seconds"] > SILENT_MS / 1000

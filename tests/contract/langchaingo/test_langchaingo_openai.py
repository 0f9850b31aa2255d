"""langchaingo's `llms/openai` (Go) against a live server: one program, one JSON object of what it saw."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.ollama_support import Server, built_go_program, serving

pytestmark = pytest.mark.contract

HERE = Path(__file__).parent
ECHO = "system\nBe brief.\nuser\nHello from Go.\nmodel\n"
"""What the scripted engine says: the prompt it got, without control tokens."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("langchaingo")) as running:
        yield running


@pytest.fixture(scope="module")
def outcomes(server: Server) -> dict[str, Any]:
    done = server.run([str(built_go_program(HERE)), server.url])
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", ["whole", "streamed"])
def test_a_conversation_arrives_whole(outcomes: dict[str, Any], case: str) -> None:
    assert "error" not in outcomes[case]
    assert outcomes[case]["text"] == ECHO
    assert outcomes[case]["reason"] == "stop"
    assert outcomes[case]["info"]["CompletionTokens"] == len(ECHO)


def test_a_stream_comes_in_pieces(outcomes: dict[str, Any]) -> None:
    assert outcomes["streamed"]["chunks"] >= len(ECHO)


@pytest.mark.parametrize("case", ["tools", "toolsStreamed"])
def test_two_calls_are_told_apart(outcomes: dict[str, Any], case: str) -> None:
    calls = [call.removeprefix("get_weather") for call in outcomes[case]["calls"]]
    assert [json.loads(call) for call in calls] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert outcomes[case]["reason"] == "tool_calls"


def test_json_and_length(outcomes: dict[str, Any]) -> None:
    assert json.loads(outcomes["json"]["text"]) == {"a": 1}
    assert outcomes["short"]["text"] == ECHO[:3]
    assert outcomes["short"]["reason"] == "length"


def test_errors_have_the_words_that_the_mapper_looks_for(outcomes: dict[str, Any]) -> None:
    assert "model not found" in outcomes["unknown"]["error"]
    assert outcomes["long"]["kind"] == "token limit"
    for case in ("broken", "brokenStream"):
        assert outcomes[case].get("error"), f"{case}: a fault must not look like an answer"


def test_half_a_minute_of_silence_is_waited_out(outcomes: dict[str, Any]) -> None:
    assert outcomes["silent"]["text"] == "late"


def test_vectors_come_as_floats_in_order(outcomes: dict[str, Any]) -> None:
    vectors = outcomes["embedded"]["vectors"]
    assert [len(vector) for vector in vectors] == [16, 16, 16]
    assert vectors[0] != vectors[1]


def test_langchaingos_own_suite_for_providers(server: Server) -> None:
    built_go_program(HERE)  # skips where there is no Go
    environment = {**os.environ, "GEMMULE_URL": server.url}
    done = subprocess.run(
        ["go", "test", "-buildvcs=false", "-count=1", "."],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

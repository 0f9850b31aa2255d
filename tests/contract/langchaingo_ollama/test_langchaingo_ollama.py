"""langchaingo's `llms/ollama` (Go) against a live server: one program, one JSON object of what it saw."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.ollama_support import built_go_program, serving

pytestmark = pytest.mark.contract

ECHO = "system\nBe brief.\nuser\nHello from Go.\nmodel\n"
"""What the scripted engine says: the prompt it got, without control tokens."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    program = built_go_program(Path(__file__).parent)
    with serving(tmp_path_factory.mktemp("langchaingo")) as server:
        done = server.run([str(program), server.url])
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


@pytest.mark.parametrize("case", ["whole", "streamed", "json", "pulled"])
def test_a_conversation_arrives_whole(outcomes: dict[str, Any], case: str) -> None:
    assert "error" not in outcomes[case]
    assert outcomes[case]["text"] == ECHO
    usage = outcomes[case]["info"]
    assert usage["CompletionTokens"] == len(ECHO)
    assert usage["TotalTokens"] == usage["PromptTokens"] + len(ECHO)


def test_a_stream_comes_in_pieces(outcomes: dict[str, Any]) -> None:
    assert outcomes["streamed"]["chunks"] >= len(ECHO)


def test_the_length_asked_for_is_kept(outcomes: dict[str, Any]) -> None:
    assert outcomes["short"]["text"] == ECHO[:3]


def test_an_unknown_model_is_an_error_with_our_words(outcomes: dict[str, Any]) -> None:
    assert "model 'nope' not found" in outcomes["unknown"]["error"]


def test_one_vector_for_each_text(outcomes: dict[str, Any]) -> None:
    first, second = outcomes["embedded"]["vectors"]
    assert len(first) == len(second) == 16
    assert first != second

"""What callers are told about faults, and what only the log is."""

from __future__ import annotations

import logging

import pytest

from engines import base
from gateway.errors import EngineFailure, Fault, LoadError, describe, public
from gateway.faults import anthropic_body, ollama_body, openai_body

LAST_WORDS = (
    "runner 4711 exited with code 70; its last words:\n"
    "Traceback (most recent call last):\n"
    '  File "/home/someone/gemmule/engines/serving.py", line 122, in run\n'
    "RuntimeError: <object at 0x7f3a5c0012d0>\n"
)
SECRETS = ("Traceback", "/home", "0x7f3a", "serving.py", "last words", "\n")


@pytest.mark.parametrize("kind", [base.RunnerDied, base.LoadFailed, base.OutOfMemory, EngineFailure])
def test_what_a_runner_left_behind_is_logged_and_not_told(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "gemmule.gateway"):
        fault = describe(kind(LAST_WORDS))
    assert fault.status >= 500
    for body in (openai_body, ollama_body, anthropic_body):
        assert not [secret for secret in SECRETS if secret in str(body(fault)["error"])]
    assert "serving.py" in caplog.text


def test_a_death_says_what_to_do() -> None:
    assert "next request starts a new one" in describe(base.RunnerDied(LAST_WORDS)).message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gemma9 is no known architecture; known are gemma3, llama",) * 2,
        ("blk.0/attn_q has 3 dimensions, 2 were expected",) * 2,
        ("see https://huggingface.co/a/b/c for more",) * 2,
        ("cannot read /home/my/models/blobs/sha256-00: short", "cannot read sha256-00: short"),
        ("[Errno 2] no such file: '/home/my models/x.gguf'", "[Errno 2] no such file: 'x.gguf'"),
        ("first\nsecond", "first; the server's log says more"),
    ],
)
def test_a_useful_sentence_passes_with_names_for_paths(text: str, told: str) -> None:
    assert public(text) == told


def test_our_own_words_are_told_as_they_are() -> None:
    fault = describe(LoadError("gemma made no progress; raise GEMMULE_LOAD_TIMEOUT"))
    assert fault == Fault(
        500,
        "gemma made no progress; raise GEMMULE_LOAD_TIMEOUT",
        "server_error",
        "model_load_failed",
        should_retry=False,
    )

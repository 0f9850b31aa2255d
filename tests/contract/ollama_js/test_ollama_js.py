"""The `ollama` npm package against a live server: one program, one JSON object of what it saw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.ollama_support import (
    installed_npm_packages,
    script,
    serving,
    thinking_then_tool_call,
    write_stories,
)

pytestmark = pytest.mark.contract

HERE = Path(__file__).parent
SCRIPTS = {
    "hello": script("Hel", "lo"),
    "json": script('{"n": 1}'),
    "call": thinking_then_tool_call(),
    "broken": script("Hel", {"fail": "error"}),
    "slow": json.dumps({"steps": [{"text": "x", "delay_ms": 50}], "repeat": 1000}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[dict[str, Any]]:
    place = installed_npm_packages(HERE)
    shutil.copy(HERE / "program.mjs", place)
    with serving(tmp_path_factory.mktemp("ollama-js")) as server:
        model = write_stories(shared_data, server.folder)
        done = server.run(["node", "program.mjs", server.url, json.dumps(SCRIPTS), str(model)], cwd=place)
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def test_chat_whole_and_streamed(results: dict[str, Any]) -> None:
    assert results["whole"]["message"]["content"] == "Hello"
    assert "".join(part["message"]["content"] for part in results["streamed"]) == "Hello"
    assert results["streamed"][-1]["done"] is True
    assert results["generated"]["response"] == "Hello"


def test_thinking_tools_and_structure(results: dict[str, Any]) -> None:
    message = results["called"]["message"]
    assert message["thinking"] == "hm"
    assert message["tool_calls"][0]["function"] == {
        "index": 0,
        "name": "weather",
        "arguments": {"city": "Gent"},
    }
    assert json.loads(results["structured"]["message"]["content"]) == {"n": 1}


def test_vectors_and_lists(results: dict[str, Any]) -> None:
    assert [len(vector) for vector in results["embedded"]["embeddings"]] == [16, 16]
    assert "scripted:latest" in [model["name"] for model in results["listed"]["models"]]
    assert "scripted:latest" in [model["name"] for model in results["running"]["models"]]
    assert results["version"]["version"].count(".") == 2


def test_faults_reach_the_caller(results: dict[str, Any]) -> None:
    assert "model 'nope' not found" in results["unknown"]["message"]
    assert results["unknown"]["status"] == 404
    assert "the script said so" in results["broken"]["message"]
    assert results["aborted"]["name"] == "AbortError"


def test_a_model_from_a_file_to_its_end(results: dict[str, Any]) -> None:
    statuses = [line["status"] for line in results["created"]]
    assert "parsing GGUF" in statuses
    assert statuses[-1] == "success"
    assert results["shown"]["system"] == "Brief."
    assert results["shown"]["model_info"]["general.architecture"] == "llama"
    assert results["copied"]["status"] == results["deleted"]["status"] == "success"
    assert "me/tale:latest" in [model["name"] for model in results["listed"]["models"]]

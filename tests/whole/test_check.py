"""`gemmule check` as a user runs it: on the bundled model, as JSON, and on a name that nothing has."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.whole.conftest import Served

pytestmark = pytest.mark.slow


def test_the_bundled_model_is_in_order(served: Served) -> None:
    told = served.command("check", "bud").stdout.splitlines()
    assert [line.split()[:2] for line in told] == [
        ["ok", "weights"],
        ["ok", "tokenizer"],
        ["ok", "values"],
        ["ok", "text"],
    ]
    assert "bits per byte" in told[-1]


def test_json_and_an_unknown_model(served: Served) -> None:
    found = json.loads(served.command("check", "bud", "--json").stdout)
    assert found["model"] == "bud:latest"
    assert {row["state"] for row in found["checks"]} == {"ok"}
    missing = served.command("check", "nobody", check=False)
    assert missing.returncode == 4
    assert "model 'nobody:latest' not found" in missing.stderr


@pytest.mark.skipif(
    shutil.which("llama-server") is None, reason="llama.cpp is not installed: no llama-server"
)
def test_llama_cpp_says_the_same(served: Served) -> None:
    told = served.command("check", "bud", "--compare").stdout.splitlines()
    assert [line.split()[:2] for line in told][-2:] == [["ok", "encoding"], ["ok", "greedy"]]

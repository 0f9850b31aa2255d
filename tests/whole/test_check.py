"""`gemmule check` as a user runs it: on the bundled model, as JSON, and on a name that nothing has."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.engines.decoder.llama2c import Llama2c, Tensors, write_llama2c_gguf
from tests.registry.fakehub import FakeHub
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


class Shuffled(Llama2c):
    """A checkpoint whose embeddings belong to other tokens: nothing crashes, and nothing makes sense."""

    def tensors(self) -> Tensors:
        found = super().tensors()
        found["token_embd.weight"] = found["token_embd.weight"][::-1].copy()
        return found


def test_a_new_model_is_looked_at_once_and_only_warned_about(
    serve: Callable[..., contextlib.AbstractContextManager[Served]], shared_data: Path, tmp_path: Path
) -> None:
    stories = shared_data / "models" / "stories260K"
    write_llama2c_gguf(Llama2c(stories, "stories260K"), tmp_path / "good.gguf")
    write_llama2c_gguf(Shuffled(stories, "stories260K"), tmp_path / "bad.gguf")
    with serve(GEMMULE_CHECK="60s") as served, FakeHub() as hub:
        pulled = hub.add_oci("me/bad", [("model", (tmp_path / "bad.gguf").read_bytes() + bytes(64))])
        reply = served.post("/api/pull", {"model": pulled, "insecure": True})
        again = served.post("/api/pull", {"model": pulled, "insecure": True})
        told = {name: create(served, tmp_path / f"{name}.gguf", name) for name in ("good", "bad", "again")}
        assert served.get("/api/tags").status_code == 200
        names = {row["name"] for row in served.get("/api/tags").json()["models"]}
    looking = "looking whether the model makes sense"
    assert all(lines[-1] == "success" and lines.count("success") == 1 for lines in told.values())
    assert [looking in told[name] for name in ("good", "bad", "again")] == [True, True, False]
    warnings = {
        name: [line for line in lines if line.startswith("warning: ")] for name, lines in told.items()
    }
    assert (warnings["good"], warnings["again"]) == ([], [])
    assert "bits per byte of plain text" in warnings["bad"][0]
    assert {"good:latest", "bad:latest", "again:latest"} <= names
    first, second = statuses(reply), statuses(again)
    assert [line for line in first if line.startswith("warning: text")]
    assert first[-1] == second[-1] == "success"
    assert looking not in second


def create(served: Served, path: Path, name: str) -> list[str]:
    """The status lines of a model created from an uploaded file; `again` is `good` by another name."""
    data = path.with_name(path.name.replace("again", "good")).read_bytes()
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    httpx.post(f"{served.url}/api/blobs/{digest}", content=data).raise_for_status()
    reply = served.post("/api/create", {"model": name, "files": {"model.gguf": digest}})
    return statuses(reply)


def statuses(reply: httpx.Response) -> list[str]:
    return [str(json.loads(line).get("status", line)) for line in reply.text.splitlines()]


@pytest.mark.skipif(
    shutil.which("llama-server") is None, reason="llama.cpp is not installed: no llama-server"
)
def test_llama_cpp_says_the_same(served: Served) -> None:
    told = served.command("check", "bud", "--compare").stdout.splitlines()
    assert [line.split()[:2] for line in told][-2:] == [["ok", "encoding"], ["ok", "greedy"]]

"""Processes that die and requests that are wrong: what a user sees over HTTP, with the real engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.engines.decoder.llama2c import (
    Llama2c,
    write_llama2c_folder,
    write_llama2c_gguf,
    write_llama2c_tokenizer,
)
from tests.whole.conftest import Served

pytestmark = pytest.mark.slow
Serve = Callable[..., contextlib.AbstractContextManager[Served]]


@pytest.fixture
def gguf(shared_data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "stories.gguf"
    write_llama2c_gguf(Llama2c(shared_data / "models" / "stories260K", "stories260K"), path)
    return path


def create(served: Served, gguf: Path, name: str = "stories") -> None:
    modelfile = gguf.with_name(f"{name}.Modelfile")
    modelfile.write_text(f"FROM {gguf}\nPARAMETER temperature 0\n", encoding="utf-8")
    served.command("create", name, "-f", str(modelfile))


def runners(served: Served) -> list[psutil.Process]:
    """Processes of loaded models below the server."""
    children = psutil.Process(served.process.pid).children(recursive=True)
    return [child for child in children if "engines.runner" in " ".join(child.cmdline())]


def endless(**changes: Any) -> dict[str, Any]:
    return {
        "model": "stories",
        "prompt": "Once",
        "max_tokens": 500,
        "ignore_eos": True,
        "stream": True,
    } | changes


def events(lines: Iterator[str]) -> Iterator[Any]:
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def test_killing_the_gateway_leaves_no_runner(serve: Serve, gguf: Path) -> None:
    with serve() as served:
        create(served, gguf)
        assert served.post("/v1/completions", endless(stream=False, max_tokens=2)).status_code == 200
        left = runners(served)
        assert left
        os.kill(served.process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(left, timeout=2)
        assert not alive


def test_killing_a_runner_is_told_to_the_client_and_the_next_request_works(serve: Serve, gguf: Path) -> None:
    with serve() as served:
        create(served, gguf)
        with httpx.stream("POST", f"{served.url}/v1/completions", json=endless(), timeout=100) as reply:
            assert reply.status_code == 200
            stream = events(reply.iter_lines())
            assert "choices" in next(stream)
            runners(served)[0].send_signal(signal.SIGKILL)
            killed = time.monotonic()
            with pytest.raises(httpx.RemoteProtocolError):  # the body is cut: no client takes it for the end
                for event in stream:
                    if "error" in event:
                        assert time.monotonic() - killed < 1
                        failure = event["error"]
        assert failure["type"] == "server_error"
        assert "next request starts a new one" in failure["message"]
        assert not any(word in failure["message"] for word in ("Traceback", "last words", "\n", "/"))
        assert served.post("/v1/completions", endless(stream=False, max_tokens=2)).status_code == 200


def test_a_client_that_leaves_frees_its_slot(serve: Serve, gguf: Path) -> None:
    with serve(GEMMULE_NUM_PARALLEL="1") as served:
        create(served, gguf)
        assert served.post("/v1/completions", endless(stream=False, max_tokens=2)).status_code == 200
        with httpx.stream("POST", f"{served.url}/v1/completions", json=endless(), timeout=100) as reply:
            next(reply.iter_lines())
        started = time.monotonic()
        assert served.post("/v1/completions", endless(stream=False, max_tokens=2)).status_code == 200
        assert time.monotonic() - started < 2


def test_two_models_are_loaded_at_once_and_unload_by_themselves(serve: Serve, gguf: Path) -> None:
    with serve() as served:
        create(served, gguf)
        served.command("cp", "stories", "twin")
        for name in ("bud", "stories", "twin"):
            body = endless(model=name, stream=False, max_tokens=2)
            assert served.post("/v1/completions", body).status_code == 200
        assert len(runners(served)) == 2, "a copy shares the runner of its weights"
        assert len(served.get("/api/ps").json()["models"]) >= 2
        for name in ("bud", "stories"):
            assert served.post("/api/generate", {"model": name, "keep_alive": 0}).status_code == 200
        assert served.post("/v1/completions", endless(model="twin", stream=False, max_tokens=2)).is_success
        assert len(runners(served)) == 1, "the copy's name keeps the runner"
        assert served.post("/api/generate", {"model": "twin", "keep_alive": 0}).status_code == 200
        deadline = time.monotonic() + 10
        while runners(served) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not runners(served)


def blobs(served: Served) -> set[str]:
    return {path.name for path in (Path(served.environment["GEMMULE_MODELS"]) / "blobs").iterdir()}


def test_a_model_deleted_while_it_answers_goes_on_and_leaves_nothing(serve: Serve, gguf: Path) -> None:
    with serve() as served:
        before = blobs(served)
        create(served, gguf)
        with httpx.stream("POST", f"{served.url}/v1/completions", json=endless(), timeout=100) as reply:
            stream = events(reply.iter_lines())
            next(stream)
            gone = httpx.request("DELETE", f"{served.url}/api/delete", json={"model": "stories"})
            assert gone.status_code == 200
            assert blobs(served) - before, "the runner has its weights open"
            assert sum(1 for _ in stream) > 10
        assert served.post("/v1/completions", endless(stream=False)).status_code == 404
        assert served.get("/api/ps").status_code == 200
        runners(served)[0].send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while blobs(served) - before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert blobs(served) == before


WRONG: tuple[tuple[str, Any, int, str], ...] = (
    ("/v1/chat/completions", {"model": "nope", "messages": [{"role": "user", "content": "x"}]}, 404, "nope"),
    ("/v1/chat/completions", {"model": "bud", "messages": []}, 400, "messages"),
    ("/v1/chat/completions", {"model": "bud", "messages": "x"}, 400, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, 400, "model"),
    (
        "/v1/chat/completions",
        {"model": "bud", "messages": [{"role": "user", "content": "x"}], "temperature": "hot"},
        400,
        "temperature",
    ),
    (
        "/v1/chat/completions",
        {
            "model": "bud",
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
                }
            ],
        },
        400,
        "bud",
    ),
    ("/v1/completions", {"model": "bud", "prompt": "word " * 5000}, 400, "context"),
    ("/api/chat", {"model": "nope", "messages": [{"role": "user", "content": "x"}]}, 404, "nope"),
    ("/api/generate", {"model": "bud", "prompt": "x", "options": {"temperature": "hot"}}, 400, "temperature"),
    ("/api/generate", {"model": "bud", "prompt": 5}, 400, "prompt"),
    ("/api/show", {"model": "../../etc/passwd"}, 400, "name"),
    ("/api/create", {"model": "x", "modelfile": "NONSENSE y"}, 400, "from"),
)


@pytest.mark.parametrize(("path", "body", "status", "named"), WRONG)
def test_wrong_requests_are_told_in_their_dialect(
    served: Served, path: str, body: Any, status: int, named: str
) -> None:
    reply = served.post(path, body)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    message = error["message"] if path.startswith("/v1") else error
    assert named in message.lower() or named == (error.get("param") if isinstance(error, dict) else None)


@pytest.mark.parametrize("text", ["{", "", "nul", '{"model": NaN}', "[" * 100_000])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_malformed_json_is_a_400(served: Served, path: str, text: str) -> None:
    reply = httpx.post(served.url + path, content=text, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400, reply.text
    assert "error" in reply.json()


def test_a_truncated_gguf_is_refused_and_leaves_nothing(served: Served, gguf: Path) -> None:
    gguf.write_bytes(gguf.read_bytes()[:-5000])
    modelfile = gguf.with_name("Modelfile")
    modelfile.write_text(f"FROM {gguf}\n", encoding="utf-8")
    done = served.command("create", "broken", "-f", str(modelfile), check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "broken" not in served.command("list").stdout


def test_an_unknown_instruction_is_named_with_its_line(served: Served, tmp_path: Path) -> None:
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text("FROM bud\nFLAVOUR sweet\n", encoding="utf-8")
    done = served.command("create", "broken", "-f", str(modelfile), check=False)
    assert done.returncode != 0
    assert "line 2" in done.stderr


def test_weights_that_could_not_be_served_are_refused_by_name(
    served: Served, shared_data: Path, tmp_path: Path
) -> None:
    model = Llama2c(shared_data / "models" / "stories260K", "stories260K")
    folder = tmp_path / "weights"
    write_llama2c_folder(model, folder)
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(f"FROM {folder}\n", encoding="utf-8")

    done = served.command("create", "unserved", "-f", str(modelfile), check=False)
    assert done.returncode != 0
    assert "tokenizer" in done.stderr

    write_llama2c_tokenizer(model, folder / "tokenizer.model")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = b"\xff\xff\xff\xff"  # the last weight becomes NaN
    path.write_bytes(bytes(data))
    done = served.command("create", "unserved", "-f", str(modelfile), check=False)
    assert done.returncode != 0
    assert "nan" in done.stderr.lower()
    assert "model." in done.stderr
    assert "unserved" not in served.command("list").stdout

"""The server as a process: starting, refusing to start, draining, dying."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.gateway.conftest import MODEL, script
from tests.gateway.live import ROOT, live_server

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}


def start(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected not to start."""
    return subprocess.run(
        [sys.executable, "-m", "tests.gateway.scripted_model", str(folder)],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_a_taken_port_is_named_with_its_holder_and_the_remedy(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = start(tmp_path, GEMMULE_HOST=f"127.0.0.1:{port}")
    line = one_line(done.stderr)
    assert done.returncode == 2
    assert f"port {port} is taken" in line
    assert f"(process {os.getpid()})" in line
    assert f"GEMMULE_HOST=127.0.0.1:{port + 1}" in line


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"GEMMULE_HOST": "0.0.0.0:0"}, "without an API key"),
        ({"GEMMULE_HOST": "127.0.0.1:0", "GEMMULE_API_KEY_FILE": "/nowhere"}, "GEMMULE_API_KEY_FILE"),
    ],
)
def test_settings_that_cannot_be_served_are_one_line_and_exit_2(
    tmp_path: Path, environment: dict[str, str], word: str
) -> None:
    done = start(tmp_path, **environment)
    assert done.returncode == 2
    assert word in one_line(done.stderr)


@pytest.mark.slow
def test_a_unix_socket_serves_too_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "run" / "gemmule.sock"
    with live_server(tmp_path, GEMMULE_SOCKET=str(path)) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://any.name") as client:
            assert client.get("/livez").status_code == 200
        assert httpx.get(f"{server.url}/livez").status_code == 200
        assert server.stop() == 0
        assert not path.exists()


@pytest.mark.slow
def test_running_streams_finish_while_the_server_drains(tmp_path: Path) -> None:
    with live_server(tmp_path, GEMMULE_DRAIN="20s") as server:
        body = CHAT | {"stream": True} | script("a", {"text": "b", "delay_ms": 1500})
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as reply:
            chunks = reply.iter_text()
            next(chunks)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{server.url}/livez", timeout=2)
            assert "".join(chunks).rstrip().endswith("data: [DONE]")
        assert server.process.wait(20) == 0


@pytest.mark.slow
def test_streams_that_take_too_long_end_with_an_error_event(tmp_path: Path) -> None:
    with live_server(tmp_path, GEMMULE_DRAIN="1s") as server:
        body = CHAT | {"stream": True} | script("a", {"text": "b", "delay_ms": 60_000})
        seen = ""
        with (
            httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as reply,
            contextlib.suppress(httpx.RemoteProtocolError),
        ):
            for text in reply.iter_text():
                if not seen:
                    server.process.send_signal(signal.SIGTERM)
                seen += text
        last = [line for line in seen.splitlines() if line.startswith("data: ")][-1]
        assert json.loads(last[6:])["error"]["code"] == "shutting_down"
        assert server.process.wait(20) == 0


@pytest.mark.slow
def test_killing_the_server_leaves_no_process_behind(tmp_path: Path) -> None:
    with live_server(tmp_path) as server:
        assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=30).status_code == 200
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert len(children) >= 2  # a runner and a sandbox worker
        server.stop(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=2)
        assert not alive


@pytest.mark.slow
def test_a_queue_that_is_full_says_when_to_come_back(tmp_path: Path) -> None:
    with live_server(tmp_path, GEMMULE_NUM_PARALLEL="1", GEMMULE_MAX_QUEUE="1") as server:
        slow = CHAT | script({"text": "a", "delay_ms": 1500})
        replies: list[httpx.Response] = []

        def ask() -> None:
            replies.append(httpx.post(f"{server.url}/v1/chat/completions", json=slow, timeout=30))

        assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=30).status_code == 200
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [reply for reply in replies if reply.status_code == 503]
        assert len(refused) == 2
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        assert all("service unavailable" in reply.json()["error"]["message"] for reply in refused)


def test_nothing_heavy_is_imported_to_serve() -> None:
    code = "import gateway.server, sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert not loaded & {"jax", "numpy", "tokenizers", "sentencepiece", "jinja2", "huggingface_hub", "rich"}

"""The command line's HTTP client against a live server, and against peers that misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import __version__
from gateway.client import Client, ServerRefused, ServerUnreachable, StreamCut
from tests.gateway.live import LiveServer, live_server


@contextlib.contextmanager
def peer(answer: bytes) -> Iterator[str]:
    """A program that reads one request and sends these bytes; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(5)


def http(status: str, body: str, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


def test_replies_streams_and_versions(server: LiveServer) -> None:
    client = Client(server.url)
    assert client.server_version() == __version__
    assert "models" in client.request("GET", "/api/tags")
    lines = list(client.stream("/api/generate", {"model": "scripted", "prompt": "hi"}))
    assert lines[-1]["done"] is True
    with pytest.raises(ServerRefused, match="model 'nope' not found") as caught:
        client.request("POST", "/api/show", {"model": "nope"})
    assert caught.value.status == 404


def test_event_streams_end_with_their_mark_or_an_error(server: LiveServer) -> None:
    body = {"model": "scripted", "prompt": "hi", "max_tokens": 3, "stream": True}
    events = list(Client(server.url).events("/v1/completions", body))
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    with pytest.raises(ServerRefused, match="not found"):
        list(Client(server.url).events("/v1/completions", body | {"model": "nope"}))
    kind = "Content-Type: text/event-stream"
    with peer(http("200 OK", 'data: {"choices": []}\n\n', kind)) as url, pytest.raises(StreamCut):
        list(Client(url).events("/v1/completions", body))
    failed = 'data: {"error": {"message": "the model gave up"}}\n\ndata: [DONE]\n\n'
    with peer(http("200 OK", failed, kind)) as url, pytest.raises(ServerRefused, match="gave up"):
        list(Client(url).events("/v1/completions", body))


def test_blobs_go_up_once(server: LiveServer, tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(b"client blob" * 200_000)
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    client = Client(server.url)
    assert not client.has_blob(digest)
    assert list(client.upload_blob(digest, file))[-1] == file.stat().st_size
    assert client.has_blob(digest)
    with pytest.raises(ServerRefused, match="digest mismatch"):
        list(client.upload_blob(f"sha256:{'0' * 64}", file))


def test_an_ollama_is_known_by_what_it_does_not_say() -> None:
    with peer(http("200 OK", "")) as url:
        assert Client(url).server_version() is None


def test_a_stream_without_its_end_is_cut() -> None:
    chunk = b'{"response":"a","done":false}\n'
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(chunk), chunk)
    for ending in (b"", b"0\r\n\r\n"):
        with peer(chunked + ending) as url, pytest.raises(StreamCut):
            list(Client(url).stream("/api/generate", {}))


def test_an_error_line_in_mid_stream_is_raised() -> None:
    body = '{"response":"a","done":false}\n{"error":"out of luck"}\n'
    with peer(http("200 OK", body)) as url, pytest.raises(ServerRefused, match="out of luck"):
        list(Client(url).stream("/api/generate", {}))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error":"one string"}', "one string"),
        ('{"error":{"message":"an object"}}', "an object"),
        ("<html>", "<html>"),
        ("", "502 Bad Gateway"),
    ],
)
def test_errors_of_any_shape_have_a_message(body: str, message: str) -> None:
    with peer(http("502 Bad Gateway", body)) as url, pytest.raises(ServerRefused) as caught:
        Client(url).request("GET", "/api/tags")
    assert str(caught.value) == message


def test_a_peer_that_speaks_something_else() -> None:
    with (
        peer(b"220 mail.example.org ESMTP\r\n") as url,
        pytest.raises(ServerUnreachable, match="does not speak HTTP"),
    ):
        Client(url).request("GET", "/api/tags")


def test_nobody_there() -> None:
    with pytest.raises(ServerUnreachable, match="connection refused"):
        Client("http://127.0.0.1:9").request("GET", "/")
    with pytest.raises(ServerUnreachable, match="no such file"):
        Client("unix:///nowhere/gemmule.sock").request("GET", "/")


@pytest.mark.slow
def test_a_unix_socket_and_a_key(tmp_path: Path) -> None:
    path = tmp_path / "gemmule.sock"
    with live_server(tmp_path, GEMMULE_SOCKET=str(path), GEMMULE_API_KEYS="secret"):
        assert "models" in Client(f"unix://{path}", "secret").request("GET", "/api/tags")
        with pytest.raises(ServerRefused, match="an api key is required") as caught:
            Client(f"unix://{path}").request("GET", "/api/tags")
        assert caught.value.status == 401

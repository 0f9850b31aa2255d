"""Frames over the socket of a live server, spoken by a program that knows nothing but the bytes."""

from __future__ import annotations

import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.gateway.live import LiveServer, live_server

ECHO, CLASSIFY, GENERATE, EMBED, EMBEDDED, INFO, ERROR = 0, 1, 5, 9, 10, 11, 0xFF


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, Path]]:
    folder = tmp_path_factory.mktemp("frames")
    with live_server(folder, GEMMULE_FRAMES=str(folder / "frames.sock")) as running:
        yield running, folder / "frames.sock"


class Program:
    """A client as anybody would write it."""

    def __init__(self, path: Path) -> None:
        self.end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.end.settimeout(20)
        self.end.connect(str(path))
        self.stream = self.end.makefile("rb")

    def send(self, kind: int, body: Any) -> None:
        raw = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
        self.end.sendall(struct.pack(">IB", len(raw) + 1, kind) + raw)

    def receive(self) -> tuple[int, Any]:
        length, kind = struct.unpack(">IB", self.stream.read(5))
        raw = self.stream.read(length - 1)
        return kind, raw if kind in (ECHO, CLASSIFY) else msgspec.msgpack.decode(raw)

    def ask(self, kind: int, body: Any) -> tuple[int, Any]:
        self.send(kind, body)
        return self.receive()

    def generate(self, **asked: Any) -> list[dict[str, Any]]:
        """All pieces of a reply, to the one with a reason."""
        self.send(GENERATE, asked)
        pieces: list[dict[str, Any]] = []
        while not pieces or pieces[-1]["finish_reason"] is None:
            kind, piece = self.receive()
            assert kind == GENERATE, piece
            pieces.append(piece)
        return pieces


@pytest.fixture
def program(live: tuple[LiveServer, Path]) -> Iterator[Program]:
    made = Program(live[1])
    yield made
    made.stream.close()
    made.end.close()


def text(pieces: list[dict[str, Any]]) -> str:
    return "".join(piece["text"] for piece in pieces)


def test_only_the_owner_may_connect(live: tuple[LiveServer, Path]) -> None:
    assert stat.S_IMODE(live[1].stat().st_mode) == 0o600


def test_text_is_continued_and_conversations_are_answered(program: Program) -> None:
    pieces = program.generate(model="scripted", prompt="Hello", max_tokens=4)
    assert text(pieces) == "Hell"
    assert pieces[-1]["finish_reason"] == "length"
    assert pieces[-1]["usage"]["generated"] == 4
    answered = program.generate(model="scripted", messages=[{"role": "user", "content": "Hi there"}])
    assert "Hi there" in text(answered)
    ids = program.generate(model="scripted", prompt=[1, 75, 76], stop=["I"])
    assert text(ids) == "H"


def test_vectors_are_those_of_http(program: Program, live: tuple[LiveServer, Path]) -> None:
    kind, rows = program.ask(EMBED, {"model": "scripted", "inputs": ["one", "two"]})
    assert (kind, [row["request_id"] for row in rows]) == (EMBEDDED, [0, 1])
    body = {"model": "scripted", "input": ["one", "two"]}
    wanted = httpx.post(f"{live[0].url}/v1/embeddings", json=body, timeout=20).json()["data"]
    for row, other in zip(rows, wanted, strict=True):
        numbers = struct.unpack(f"<{len(row['vector']) // 4}f", row["vector"])
        assert numbers == pytest.approx(other["embedding"], abs=1e-6)


def test_info_and_echo(program: Program) -> None:
    program.generate(model="scripted", prompt="x", max_tokens=1)
    kind, found = program.ask(INFO, None)
    assert kind == INFO
    assert "scripted:latest" in found["loaded"]
    assert program.ask(ECHO, b"bytes") == (ECHO, b"bytes")


@pytest.mark.parametrize(
    ("kind", "body", "code", "words"),
    [
        (GENERATE, {"model": "nobody", "prompt": "x"}, "model_not_found", "nobody"),
        (GENERATE, {"model": "scripted"}, "invalid_request", "give a prompt or messages"),
        (GENERATE, {"model": "scripted", "prompt": "x", "heat": 1}, "protocol_error", "heat"),
        (GENERATE, b"\xc1", "protocol_error", "LocalGenerate"),
        (
            GENERATE,
            {"model": "scripted", "prompt": [10**6]},
            "invalid_value",
            "not in the vocabulary",
        ),
        (CLASSIFY, bytes(3072), "not_found", "gemmule train"),
        (2, {}, "protocol_error", "not taken here"),
        (99, b"", "protocol_error", "unknown frame type 99"),
    ],
)
def test_faults_are_told_and_the_connection_goes_on(
    program: Program, kind: int, body: Any, code: str, words: str
) -> None:
    answered, report = program.ask(kind, body)
    assert answered == ERROR
    assert words in report["message"]
    assert report["code"] == code
    assert program.ask(ECHO, b"still here") == (ECHO, b"still here")


def test_a_program_that_leaves_frees_its_place(live: tuple[LiveServer, Path]) -> None:
    server, path = live
    made = Program(path)
    made.send(GENERATE, {"model": "scripted", "prompt": "y" * 100_000})  # echoed, for seconds
    assert made.receive()[0] == GENERATE
    made.stream.close()
    made.end.close()
    deadline = time.monotonic() + 10
    while 'num_requests_running{model="scripted:latest"} 0.0' not in httpx.get(f"{server.url}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_programs_are_answered_beside_each_other(live: tuple[LiveServer, Path]) -> None:
    said: dict[int, str] = {}

    def ask(number: int) -> None:
        made = Program(live[1])
        said[number] = text(made.generate(model="scripted", prompt=f"number {number}"))
        made.stream.close()
        made.end.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: f"number {number}" for number in range(8)}


def test_the_socket_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "frames.sock"
    with live_server(tmp_path, GEMMULE_FRAMES=str(path)) as running:
        assert path.is_socket()
        with live_server(tmp_path, GEMMULE_FRAMES=str(path)) as second:
            assert "GEMMULE_FRAMES: another process listens on" in second.lines[-1]
            assert second.process.wait(10) == 2
        assert running.stop() == 0
    assert not path.exists()

"""Heads of requests that come too slowly, or never end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from gateway.connections import MAX_HEAD, Connection

ANSWER = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Hasty(Connection):
    head_seconds = 0.2


async def slow_answer(scope: Any, receive: Any, send: Any) -> None:
    """Answers everything after half a second."""
    await receive()
    await asyncio.sleep(0.5)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    config = uvicorn.Config(slow_answer, http=Hasty, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()
        server.should_exit = True
        thread.join(10)


def told(connection: socket.socket) -> bytes:
    """All that the server says until it closes."""
    connection.settimeout(3)
    said = b""
    while data := connection.recv(65536):
        said += data
    return said


def test_a_head_that_trickles_is_turned_away(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: local")
        started = time.monotonic()
        assert told(connection).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 2


def test_a_connection_that_says_nothing_is_closed(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        assert told(connection) == b""


def test_a_head_that_never_ends_is_turned_away(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(0.05)
        line = b"a: " + b"b" * 8000 + b"\r\n"
        for _ in range(MAX_HEAD // len(line) + 2):
            connection.sendall(line)
        assert told(connection).startswith(b"HTTP/1.1 431 ")


def test_an_answer_may_take_longer_than_a_head(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(ANSWER + b"GET /next HTTP/1.1\r\nHos")
        assert told(connection).startswith(b"HTTP/1.1 200 OK\r\n")


def test_the_second_request_of_a_connection_has_a_deadline_too(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(ANSWER)
        connection.settimeout(3)
        said = b""
        while not said.endswith(b"ok"):
            said += connection.recv(65536)
        connection.sendall(b"GET / HTT")
        assert told(connection).startswith(b"HTTP/1.1 408 ")

"""A server that fails by script: what the fake hub and other pretended services are made of.

Faults are scripted by path: a list of `Fault`s, taken one per request whose path contains the key. It runs
on a thread of its own, so that blocking clients (the real ones) can talk to it. Independent of `registry`.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from tests.registry.threadserver import ThreadServer


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request.

    `status` answers with that; `headers` are added; `reset_at` tears the connection down after that many
    body bytes; `hang_at` stops sending there; `close_at` ends the connection properly there; `drip` sends
    one byte each so many seconds; `body` replaces the bytes; `ignore_range` sends 200 and everything;
    `location` redirects; `no_length` leaves Content-Length out.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    reset_at: int | None = None
    hang_at: int | None = None
    close_at: int | None = None
    drip: float = 0.0
    delay: float = 0.0
    body: bytes | None = None
    ignore_range: bool = False
    location: str = ""
    no_length: bool = False


@dataclass(slots=True)
class Request:
    """One request as it came; `sent` counts the body bytes of its answer."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    sent: int = 0


@dataclass(slots=True)
class Answer:
    """Status, headers and body; ranges are cut by the server."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class HubServer(ThreadServer):
    """Start with `with`; subclasses say in `_route` what is answered. Read `requests` afterwards."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        super().__init__(host, tls)
        self.requests: list[Request] = []
        self.faults: dict[str, list[Fault]] = {}
        self.always: dict[str, Fault] = {}

    @property
    def netloc(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """`http://host:port`."""
        return f"{'https' if self._tls else 'http'}://{self.netloc}"

    def sent(self, part: str) -> int:
        """Body bytes sent for paths that contain `part`."""
        return sum(request.sent for request in self.requests if part in request.path)

    def asked(self, part: str, method: str = "GET") -> list[Request]:
        """The requests whose path contains `part`."""
        return [each for each in self.requests if part in each.path and each.method == method]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
            with suppress(Exception, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.split("\r\n")
        method, target, _ = line.split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields if each)
        }
        body = b"".join([chunk async for chunk in _body(reader, headers)])
        parts = urlsplit(target)
        request = Request(method, unquote(parts.path), parse_qs(parts.query), headers, body)
        self.requests.append(request)
        fault = self._fault(request)
        if fault.delay:
            await asyncio.sleep(fault.delay)
        answer = self._route(request)
        if fault.location:
            answer = Answer(302, b"", {"Location": fault.location})
        if fault.status:
            answer = Answer(fault.status, b"{}" if fault.body is None else fault.body)
        if fault.body is not None and not fault.status:
            answer.body = fault.body
        answer.headers |= fault.headers
        return await self._send(writer, request, answer, fault)

    def _fault(self, request: Request) -> Fault:
        for part, faults in self.faults.items():
            if part in request.path and faults and request.method in ("GET", "POST", "PUT", "PATCH"):
                return faults.pop(0)
        return next((fault for part, fault in self.always.items() if part in request.path), Fault())

    async def _send(
        self, writer: asyncio.StreamWriter, request: Request, answer: Answer, fault: Fault
    ) -> bool:
        body, headers = answer.body, {"Accept-Ranges": "bytes", **answer.headers}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        fresh = request.headers.get("if-range") in (None, headers.get("ETag"))
        if wanted and answer.status == 200 and request.method == "GET" and fresh and not fault.ignore_range:
            start, end = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1)
            if start >= len(body):
                answer.status, body = 416, b""
            else:
                headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
                answer.status, body = 206, body[start : end + 1]
        headers |= fault.headers
        if not fault.no_length:
            headers.setdefault("Content-Length", str(len(body)))
        else:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if request.method == "HEAD":
            await writer.drain()
            return True
        for position in range(0, len(body), 1 if fault.drip else 65536):
            chunk = body[position : position + (1 if fault.drip else 65536)]
            for limit, act in ((fault.reset_at, _reset), (fault.close_at, _close), (fault.hang_at, _hang)):
                if limit is not None and position + len(chunk) > limit:
                    writer.write(chunk[: max(0, limit - position)])
                    request.sent += max(0, limit - position)
                    await writer.drain()
                    await act(writer)
                    return False
            writer.write(chunk)
            request.sent += len(chunk)
            await writer.drain()
            if fault.drip:
                await asyncio.sleep(fault.drip)
        await writer.drain()
        return not fault.no_length

    @abstractmethod
    def _route(self, request: Request) -> Answer:
        """What to answer when nothing goes wrong."""


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
    elif int(headers.get("content-length", 0)):
        yield await reader.readexactly(int(headers["content-length"]))


async def _reset(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.05)  # let what was written leave first
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)

"""A proxy to test against: it opens tunnels (CONNECT) and, whatever host is asked for, leads to one place."""

from __future__ import annotations

import asyncio
import base64
import contextlib

from tests.registry.threadserver import ThreadServer


class TunnelProxy(ThreadServer):
    """Start with `with TunnelProxy(port) as proxy`; `tunnels` are the `host:port`s that were asked for.

    All lead to that port of this machine. With `password` (`user:secret`) only who gives it gets through.
    """

    def __init__(self, target: int, password: str = "") -> None:
        super().__init__()
        self.tunnels: list[str] = []
        self._target = target
        self._wanted = f"Basic {base64.b64encode(password.encode()).decode()}" if password else ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._tunnel(reader, writer)
        self._writers.discard(writer)
        writer.transport.abort()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target, _ = head.split("\r\n")[0].split(" ")
        allowed = not self._wanted or f"proxy-authorization: {self._wanted}".lower() in head.lower()
        if method != "CONNECT" or not allowed:
            writer.write(b"HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        self.tunnels.append(target)
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.add(back)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pipe(reader, back), _pipe(there, writer))


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()

"""A proxy to test against: it opens tunnels (CONNECT) and, whatever host is asked for, leads to one place."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from typing import Self


class TunnelProxy:
    """Start with `with TunnelProxy(port) as proxy`; `tunnels` are the `host:port`s that were asked for.

    All lead to that port of this machine. With `password` (`user:secret`) only who gives it gets through.
    """

    def __init__(self, target: int, password: str = "") -> None:
        self.tunnels: list[str] = []
        self._target = target
        self._wanted = f"Basic {base64.b64encode(password.encode()).decode()}" if password else ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._tunnel(reader, writer)
        self._open.discard(writer)
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
        self._open.add(back)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pipe(reader, back), _pipe(there, writer))


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()

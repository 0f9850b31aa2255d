"""A socket for local programs that want frames instead of HTTP: ECHO, CLASSIFY, GENERATE, EMBED, INFO, ERROR.

Owns the socket file (mode 0600, so that only its owner connects), the connections and their limits. What a
request means is the handler's business: the gateway gives one that leases models. Knows no models.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from engines.base import EngineError, EngineOverloaded, InvalidRequest
from engines.protocol import (
    ErrorReport,
    Frame,
    FrameDecoder,
    FrameType,
    Malformed,
    ProtocolError,
    encode_body,
    report_error,
)

PUBLIC_TYPES = frozenset(
    {FrameType.ECHO, FrameType.CLASSIFY, FrameType.GENERATE, FrameType.EMBED, FrameType.INFO}
)
MAX_REQUEST_BYTES = 4 << 20
MAX_CONNECTIONS = 64
IDLE_SECONDS = 300.0

Handler = Callable[[Frame], AsyncGenerator[Frame, None]]
"""Answers one request with one or more frames. Raises `EngineError`; closing the generator cancels."""


class FrameListener:
    """Serves frames on a Unix socket until closed. Requests of one connection are answered in order."""

    def __init__(
        self,
        handler: Handler,
        *,
        max_connections: int = MAX_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._handler = handler
        self._max_connections = max_connections
        self._idle_seconds = idle_seconds
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._end: socket.socket | None = None

    def bind(self, path: Path) -> None:
        """Takes `path`: programs may connect from now on, and are answered once it is started.

        A dead process's file is replaced; raises `InvalidRequest` for a living one's.
        """
        self._end, self._path = bind_private(path), path

    async def start(self) -> None:
        """Answers those who connect; does nothing when no path was taken."""
        if self._end is not None:
            self._server = await asyncio.start_unix_server(self._serve, sock=self._end)

    async def close(self) -> None:
        """Stops listening, ends the connections and removes the socket file."""
        if self._server is not None:
            self._server.close()
        elif self._end is not None:
            self._end.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > self._max_connections:
                error = EngineOverloaded(
                    f"{self._max_connections} programs are connected already; try again later"
                )
                await _send(writer, error_frame(report_error(error)))
            else:
                await self._converse(reader, writer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = FrameDecoder(MAX_REQUEST_BYTES)
        while True:
            async with asyncio.timeout(self._idle_seconds):
                data = await reader.read(1 << 16)
            for item in decoder.push(data) if data else decoder.finish():
                if isinstance(item, Malformed):
                    await _send(writer, error_frame(item.report))
                    if item.fatal:
                        return
                else:
                    await self._answer(item, writer)
            if not data:
                return

    async def _answer(self, frame: Frame, writer: asyncio.StreamWriter) -> None:
        if frame.type is FrameType.ECHO:
            await _send(writer, frame)
            return
        try:
            if frame.type not in PUBLIC_TYPES:
                raise ProtocolError(f"{frame.type.name} frames are not taken here")
            async with contextlib.aclosing(self._handler(frame)) as replies:
                async for reply in replies:
                    await _send(writer, reply)
        except EngineError as error:
            await _send(writer, error_frame(report_error(error, answers=frame.type)))


def bind_private(path: Path) -> socket.socket:
    """A listening socket that only its owner may connect to, from its first moment.

    Raises `InvalidRequest` when another process listens there or the path is no socket.
    """
    if path.exists() or path.is_symlink():
        _remove_stale(path)
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # the mode is set by bind itself: no moment with a wider one
    try:
        end.bind(str(path))
    except OSError as error:
        end.close()
        raise InvalidRequest(f"cannot listen on {path}: {error.strerror or error}") from error
    finally:
        os.umask(before)
    end.listen()
    end.setblocking(False)
    return end


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        raise InvalidRequest(f"{path} exists and is not a socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise InvalidRequest(f"cannot listen on {path}: {error.strerror or error}") from error
    raise InvalidRequest(f"another process listens on {path}; stop it or choose another path")


def error_frame(report: ErrorReport) -> Frame:
    return Frame(FrameType.ERROR, encode_body(FrameType.ERROR, report))


async def _send(writer: asyncio.StreamWriter, frame: Frame) -> None:
    writer.write(frame.encode())
    await writer.drain()

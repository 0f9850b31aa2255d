"""The server's side of one HTTP connection: uvicorn's protocol, with bounds on the head of a request.

Without it a stranger who sends a header a minute holds a connection for ever, and one who never ends a header
fills the memory. Bodies are the guard's business. Given to uvicorn by `server`.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 30.0
MAX_HEAD = 128 * 1024
"""Bytes; a little over what the guard lets through, so that it can say so in the caller's dialect."""

TOO_SLOW = b"408 Request Timeout"
TOO_LARGE = b"431 Request Header Fields Too Large"


class Connection(HttpToolsProtocol):
    """Closes when a request's head is not complete in time, or grows too large."""

    head_seconds = HEAD_SECONDS
    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._deadline is not None and self._head_bytes > MAX_HEAD:
            self._turn_away(TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()
        self._head_bytes = max(self._head_bytes, 1)

    def on_headers_complete(self) -> None:
        self._head_is_here()
        super().on_headers_complete()

    def _await_head(self) -> None:
        if self._deadline is None:
            self._head_bytes = 0
            self._deadline = self.loop.call_later(self.head_seconds, self._too_late)

    def _head_is_here(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_head()  # the next request of a pipeline: the answer before it is still on its way
            return
        self._turn_away(TOO_SLOW if self._head_bytes else b"")

    def _turn_away(self, status: bytes) -> None:
        self._head_is_here()
        if self.transport.is_closing():
            return
        if status:
            self.transport.write(
                b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
        self.transport.close()

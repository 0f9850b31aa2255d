"""Frames events for the wire: SSE for `/v1`, NDJSON for `/api`; keep-alives, breaking off, line limits.

Knows bytes and connections, not dialects: a dialect brings an `Encoder`. A stream that fails says so in its
last event *and* leaves the response unterminated, because some clients notice only one of the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, Protocol, TypeVar

import msgspec
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.errors import Fault, describe
from gateway.types import Event, Failed

KEEP_ALIVE = b": keepalive\n"
"""One comment line without a blank one: clients exist that choke on `: ping` or on an empty event."""

KEEP_ALIVE_SECONDS = 10.0
DONE = b"data: [DONE]\n\n"
MAX_EVENT_TEXT = 6 * 1024
"""Characters of text in one event: six bytes each when escaped stay below the 48 KiB all clients take."""

AppStatus.enable_automatic_graceful_drain = False  # gateway.server drains streams itself, with a last event

encode_json = msgspec.json.Encoder().encode
log = logging.getLogger("gemmule.gateway")
Result = TypeVar("Result")


class StreamBroken(Exception):
    """Raised out of a response body after its error event, so that the connection ends unterminated."""


class ClientGone(Exception):
    """The caller closed the connection before its answer was ready."""


class Encoder(Protocol):
    """Turns events into bytes of one dialect; `fail` is the last thing a broken stream says."""

    def push(self, event: Event) -> bytes: ...

    def finish(self) -> bytes: ...

    def fail(self, fault: Fault) -> bytes: ...


def sse(value: Any) -> bytes:
    """One event on one `data:` line."""
    return b"data: " + encode_json(value) + b"\n\n"


def sse_named(name: str, value: Any) -> bytes:
    """One event with an `event:` line, as the Responses and Anthropic dialects have them."""
    return b"event: " + name.encode() + b"\ndata: " + encode_json(value) + b"\n\n"


def ndjson(value: Any) -> bytes:
    """One compact JSON object and a newline."""
    return bytes(encode_json(value)) + b"\n"


def split_text(text: str, limit: int = MAX_EVENT_TEXT) -> Iterable[str]:
    """`text` in pieces that each fit one event: nearly always the text itself."""
    if len(text) <= limit:
        return (text,)
    return (text[start : start + limit] for start in range(0, len(text), limit))


async def encoded(events: AsyncIterator[Event], encoder: Encoder) -> AsyncIterator[bytes]:
    """The bytes of a stream; closes `events` however it ends; raises `StreamBroken` after a failure."""
    async with contextlib.aclosing(events):  # type: ignore[type-var]
        error: Exception | None = None
        try:
            while batch := await next_batch(events):
                failed = isinstance(batch[-1], Failed)
                if data := b"".join(map(encoder.push, batch[:-1] if failed else batch)):
                    yield data
                if isinstance(batch[-1], Failed):
                    error = batch[-1].error
                    break
                await asyncio.sleep(0)  # a fast stream lets the others have their turn
        except Exception as raised:
            error = raised
        if error is None:
            yield encoder.finish()
            return
    yield encoder.fail(describe(error))
    raise StreamBroken(str(error))


async def next_batch(events: AsyncIterator[Event]) -> list[Event]:
    """The events that are ready, to be written at once; empty at the end."""
    batch = getattr(events, "batch", None)
    if batch is not None:
        found: list[Event] = await batch()
        return found
    try:
        return [await anext(events)]
    except StopAsyncIteration:
        return []


class EventStream(EventSourceResponse):
    """An SSE response over an iterator of ready-made events (bytes)."""

    def __init__(self, body: AsyncIterator[bytes], headers: dict[str, str] | None = None) -> None:
        super().__init__(
            body,
            headers=headers,
            media_type="text/event-stream; charset=utf-8",
            ping=KEEP_ALIVE_SECONDS,
            sep="\n",
            ping_message_factory=lambda: KEEP_ALIVE,  # type: ignore[arg-type, return-value]
        )


class LineStream(StreamingResponse):
    """An NDJSON response; it has no keep-alive, because a blank line breaks every client."""

    media_type = "application/x-ndjson"


class JSONReply(Response):
    """A whole JSON reply, encoded by msgspec; takes plain values and msgspec-encodable ones."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return bytes(encode_json(content))


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, cancelled at once (`ClientGone`) when the caller hangs up before it is ready."""
    waiting = asyncio.current_task()
    assert waiting is not None
    cancelling = waiting.cancelling()
    working, gone = True, False

    def hang_up(watcher: asyncio.Future[None]) -> None:
        nonlocal gone
        if working and not watcher.cancelled():
            gone = True
            watcher.exception()  # of a body that broke the rules: nobody is left to hear of it
            waiting.cancel()

    watcher = asyncio.ensure_future(_hung_up(request))
    watcher.add_done_callback(hang_up)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and waiting.uncancel() <= cancelling:
            raise ClientGone from None
        raise
    finally:
        working = False
        watcher.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""What fills the silence of a stream, and what ends the waiting for a caller who is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request

from gateway import streaming
from gateway.streaming import ClientGone, EventStream, unless_gone

SCOPE: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": []}


async def sent_by(response: EventStream) -> list[bytes]:
    """The bodies of all messages of a response to a caller who stays."""
    bodies = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            bodies.append(bytes(message["body"]))

    await response(SCOPE, receive, send)
    return bodies


def test_silence_is_filled_with_single_comment_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.05)

    async def late() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await asyncio.sleep(0.18)
        yield b"data: 2\n\n"

    first, *silence, last = [body for body in asyncio.run(sent_by(EventStream(late()))) if body]
    assert (first, last) == (b"data: 1\n\n", b"data: 2\n\n")
    assert len(silence) >= 2
    assert set(silence) == {b": keepalive\n"}


class Caller:
    """Hangs up when told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.request = Request(SCOPE, self._receive)

    async def _receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}


def test_work_is_cancelled_as_soon_as_the_caller_is_gone() -> None:
    async def check() -> None:
        caller, ended = Caller(), asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        asyncio.get_running_loop().call_later(0.05, caller.gone.set)
        with pytest.raises(ClientGone):
            await unless_gone(caller.request, work())
        assert ended.is_set()
        await asyncio.sleep(0)  # nothing of the cancellation is left over

    asyncio.run(check())


def test_a_result_is_given_to_a_caller_who_hangs_up_at_that_moment() -> None:
    async def check() -> None:
        caller = Caller()

        async def work() -> str:
            caller.gone.set()
            return "done"

        assert await unless_gone(caller.request, work()) == "done"
        await asyncio.sleep(0.01)

    asyncio.run(check())


def test_cancelling_from_outside_stays_a_cancellation() -> None:
    async def check() -> None:
        task = asyncio.ensure_future(unless_gone(Caller().request, asyncio.sleep(60)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(check())

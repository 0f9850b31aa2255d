"""The running choices of one request: their events, in batches, and freeing their places however they end.

Knows runners' streams and choices, not models or prompts. Made by `service`, read by the dialects.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import replace
from typing import TypeVar

from engines.base import GenerateRequest, StepOutput, Usage
from gateway.choice import Choice
from gateway.errors import EngineFailure, ShuttingDown
from gateway.manager import Lease
from gateway.metrics import Metrics
from gateway.types import Event, Failed, Finished, StopCause

MOST_AT_ONCE = 256
"""Tokens filtered in one go: a few milliseconds."""

Item = TypeVar("Item")


class Events(AsyncIterator[Event]):
    """The events of a request. One that is closed, or lost before it was ever asked for an event, frees its
    place all the same (a generator that never ran has no `finally`)."""

    def __init__(self, batches: AsyncGenerator[list[Event], None], lease: Lease) -> None:
        self._batches = batches
        self._lease = lease
        self._ready: deque[Event] = deque()

    async def __anext__(self) -> Event:
        while not self._ready:
            self._ready.extend(await self._batches.__anext__())
        return self._ready.popleft()

    async def batch(self) -> list[Event]:
        """The events that are there now, at least one; empty at the end."""
        if not self._ready:
            try:
                return await self._batches.__anext__()
            except StopAsyncIteration:
                return []
        ready, self._ready = list(self._ready), deque()
        return ready

    async def aclose(self) -> None:
        await self._batches.aclose()
        self._lease.release()

    def __del__(self) -> None:
        self._lease.release()


class Running:
    """The running choices of one request; `iterate` ends them however it ends."""

    def __init__(
        self,
        metrics: Metrics,
        lease: Lease,
        streams: list[AsyncIterator[StepOutput]],
        choices: list[Choice],
        model: str,
        started: int,
    ) -> None:
        self._metrics = metrics
        self._lease = lease
        self._streams = streams
        self._choices = choices
        self._model = model
        self._started = started

    async def iterate(self) -> AsyncGenerator[list[Event], None]:
        """Events in batches: what came in together goes out together."""
        error: BaseException | None = None
        try:
            async for batch in self._merged():
                if batch:
                    yield batch
        except Exception as raised:
            error = raised
            self._metrics.failed(self._model)
            yield [Failed(ShuttingDown() if self._lease.cancelled else raised)]
        finally:
            for stream in self._streams:
                await stream.aclose()  # type: ignore[attr-defined]
            self._lease.release(error)

    def _merged(self) -> AsyncIterator[list[Event]]:
        if len(self._choices) == 1:
            return self._one(0)
        return merged([self._one(index) for index in range(len(self._choices))])

    async def _one(self, index: int) -> AsyncIterator[list[Event]]:
        """The events of one choice, to its end."""
        choice, stream = self._choices[index], self._streams[index]
        reason: StopCause = "stop"
        usage: Usage | None = None
        async for output in stream:
            if output.token_ids and not choice.generated:
                self._metrics.first_token(self._model, self._started)
            for part in in_slices(output):
                yield choice.push(part)
            if output.finish_reason == "error":
                raise EngineFailure(output.error or "the engine gave up on this request")
            if output.finish_reason == "length":
                reason = "length"
            usage = output.usage or usage
            if choice.stopped or output.finish_reason is not None:
                break
        usage = usage or Usage(prompt=choice.prompt_length, generated=choice.generated)
        total = time.monotonic_ns() - self._started
        last = choice.finish(reason, usage, self._lease.load_ns, total)
        for event in last:
            if isinstance(event, Finished):
                self._metrics.finished(self._model, event.reason, event.usage)
        yield last


async def start_all(lease: Lease, requests: list[GenerateRequest]) -> list[AsyncIterator[StepOutput]]:
    """The streams of all choices, each accepted; none is left running when one is refused."""
    streams: list[AsyncIterator[StepOutput]] = []
    try:
        for request in requests:
            streams.append(await lease.runner.generate(request))
    except BaseException:
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        raise
    return streams


def in_slices(output: StepOutput) -> Iterable[StepOutput]:
    """An output that a slow reader let grow, in pieces that do not hold up everyone else."""
    if len(output.token_ids) <= MOST_AT_ONCE:
        return (output,)
    return (
        replace(
            output,
            token_ids=output.token_ids[start : start + MOST_AT_ONCE],
            logprobs=output.logprobs[start : start + MOST_AT_ONCE],
            prompt_logprobs=output.prompt_logprobs if start == 0 else (),
        )
        for start in range(0, len(output.token_ids), MOST_AT_ONCE)
    )


async def merged(sources: list[AsyncIterator[Item]]) -> AsyncIterator[Item]:
    """Items of all sources as they come; the first failure ends all."""
    queue: asyncio.Queue[Item | Exception | None] = asyncio.Queue(maxsize=64)

    async def pump(source: AsyncIterator[Item]) -> None:
        try:
            async for item in source:
                await queue.put(item)
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    pumps = [asyncio.ensure_future(pump(source)) for source in sources]
    try:
        running = len(pumps)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

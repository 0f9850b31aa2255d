"""What arrives for one sequence until it is read: inboxes a client fills, streams its callers drain.

Belongs to one event loop. Knows outputs and how many pile up; not sockets, frames or processes. Used by
`engines.client`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from engines.base import EngineError, StepOutput

MAX_BUFFERED = 65_536
"""Tokens and log-probability entries one unread stream may hold before it is cancelled."""


class Inbox:
    """What arrived for one sequence and was not read yet. Held by the client; outlives its reader."""

    def __init__(self, request_id: int) -> None:
        self.request_id = request_id
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.outputs: list[StepOutput] = []
        self.buffered = 0
        self.error: EngineError | None = None
        self.finished = False
        self.changed = asyncio.Event()

    def put(self, output: StepOutput) -> None:
        self.outputs.append(output)
        self.buffered += output_cost(output)
        self.finished = output.finish_reason is not None
        self.changed.set()

    def fail(self, error: EngineError) -> None:
        if self.finished:
            return
        self.error, self.finished = error, True
        if not self.accepted.done():
            self.accepted.set_exception(error)
        self.changed.set()

    def take(self) -> StepOutput:
        outputs, self.outputs, self.buffered = self.outputs, [], 0
        return replace(merge_outputs(outputs), request_id=self.request_id)

    @property
    def overflowing(self) -> bool:
        """One huge output (log-probabilities of a long prompt) is fine; a growing heap is not."""
        return self.buffered > MAX_BUFFERED and len(self.outputs) > 1


def output_cost(output: StepOutput) -> int:
    cost = len(output.token_ids)
    if output.logprobs or output.prompt_logprobs:
        entries = itertools.chain(output.logprobs, filter(None, output.prompt_logprobs))
        cost += sum(1 + len(entry.top) for entry in entries)
    return cost


def merge_outputs(outputs: Sequence[StepOutput]) -> StepOutput:
    """Several outputs of one sequence as one; nothing is lost and the order is kept."""
    if len(outputs) == 1:
        return outputs[0]
    last = outputs[-1]
    return replace(
        last,
        token_ids=tuple(itertools.chain.from_iterable(output.token_ids for output in outputs)),
        logprobs=tuple(itertools.chain.from_iterable(output.logprobs for output in outputs)),
        prompt_logprobs=tuple(itertools.chain.from_iterable(output.prompt_logprobs for output in outputs)),
    )


class TokenStream(AsyncIterator[StepOutput]):
    """The outputs of one sequence, several coalesced into one when the reader is slow.

    Closing it (or losing the last reference) cancels the sequence and frees its slot.
    """

    def __init__(self, inbox: Inbox, cancel: Callable[[], None]) -> None:
        self._inbox = inbox
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def __anext__(self) -> StepOutput:
        while not self._inbox.outputs:
            if self._inbox.error is not None:
                raise self._inbox.error
            if self._inbox.finished or self._closed:
                raise StopAsyncIteration
            self._inbox.changed.clear()
            await self._inbox.changed.wait()
        return self._inbox.take()

    async def aclose(self) -> None:
        self._closed = True
        self._inbox.changed.set()
        if not self._inbox.finished:
            self._cancel()

    def __del__(self) -> None:
        if not (self._closed or self._inbox.finished or self._loop.is_closed()):
            self._loop.call_soon_threadsafe(self._cancel)

"""The gateway's end of a runner: starts it, sends frames, hands each sequence its own outputs.

Implements Generator, Embedder and Classifier of `engines.base` over one end of a socketpair. Belongs to one
event loop. Knows no text and no model names; called by the gateway's manager and service.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from engines.base import (
    AdapterFiles,
    AdaptRequest,
    EncodeOutput,
    EncodeRequest,
    EngineError,
    EngineOverloaded,
    GenerateRequest,
    LabelScore,
    Limits,
    LoadFailed,
    LoadProgress,
    LoadRequest,
    Ready,
    RunnerDied,
    RunnerStatus,
    StepOutput,
)
from engines.process import RunnerProcess, runner_command, runner_environment
from engines.protocol import (
    ErrorReport,
    Frame,
    FrameDecoder,
    FrameType,
    Malformed,
    ProtocolError,
    decode_body,
    encode_frame,
    raise_report,
)
from engines.streams import Inbox, TokenStream

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

CLOSE_GRACE_SECONDS = 2.0
DEATH_GRACE_SECONDS = 0.5
WATCHDOG_SECONDS = 30.0


class RunnerClient:
    """One running runner. Made by `start`; every method raises `RunnerDied` once the process is gone.

    Request ids are the caller's own and need not be unique: on the wire each request gets a fresh one.
    """

    def __init__(self, process: RunnerProcess, on_progress: Callable[[LoadProgress], None] | None) -> None:
        loop = asyncio.get_running_loop()
        self._process = process
        self._on_progress = on_progress
        self._ids = itertools.count(1)
        self._link = _Link(self)
        self._inboxes: dict[int, Inbox] = {}
        self._embeddings: dict[int, asyncio.Future[EncodeOutput]] = {}
        self._adapting: dict[int, asyncio.Future[None]] = {}
        self._questions: deque[asyncio.Future[RunnerStatus]] = deque()
        self._images: deque[asyncio.Future[str]] = deque()
        self._scored: deque[asyncio.Future[list[LabelScore]]] = deque()
        self._loaded: asyncio.Future[Ready] = loop.create_future()
        self._closed: asyncio.Future[None] = loop.create_future()
        self._closing = False
        self._death: asyncio.Task[None] | None = None
        self._watchdog: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        load: LoadRequest,
        *,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        on_progress: Callable[[LoadProgress], None] | None = None,
        watchdog_seconds: float = WATCHDOG_SECONDS,
    ) -> RunnerClient:
        """Executes a runner and waits until it has loaded.

        `command` defaults to the decoder's runner on this machine; `environment` is added to this process's.
        `on_progress` is called on the event loop. Raises `LoadFailed` (with the runner's last words) or
        `OutOfMemory`; nothing is left running then, nor when the caller is cancelled.
        """
        ours, theirs = socket.socketpair()
        try:
            process = await _execute(command or runner_command(), environment, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        client = cls(process, on_progress)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: client._link, sock=ours)
            client._send(FrameType.LOAD, load)
            await client._loaded
        except BaseException:
            client._process.kill()
            await client.close()
            raise
        client._watchdog = asyncio.create_task(client._watch(watchdog_seconds))
        return client

    @property
    def ready(self) -> Ready:
        return self._loaded.result()

    @property
    def limits(self) -> Limits:
        return self.ready.limits

    @property
    def pid(self) -> int:
        return self._process.pid

    async def generate(self, request: GenerateRequest) -> TokenStream:
        """Sends a request; returns once the runner accepted it, raises its `EngineError` if it did not."""
        self._check_alive()
        wire_id = next(self._ids)
        inbox = self._inboxes[wire_id] = Inbox(request.request_id)
        self._send(FrameType.GENERATE, replace(request, request_id=wire_id))
        try:
            await inbox.accepted
        except asyncio.CancelledError:
            self._cancel(wire_id)
            raise
        finally:
            if inbox.error is not None:
                self._inboxes.pop(wire_id, None)
        return TokenStream(inbox, lambda: self._cancel(wire_id))

    async def embed(self, requests: Sequence[EncodeRequest]) -> list[EncodeOutput]:
        """One vector each, in order; the first failure cancels the rest and is raised."""
        self._check_alive()
        renamed = [replace(request, request_id=next(self._ids)) for request in requests]
        loop = asyncio.get_running_loop()
        waiting = {request.request_id: loop.create_future() for request in renamed}
        self._embeddings.update(waiting)
        self._send(FrameType.EMBED, renamed)
        try:
            outputs = await asyncio.gather(*waiting.values())
        finally:
            for wire_id, future in waiting.items():
                if self._embeddings.pop(wire_id, None) is not None:
                    self._send(FrameType.CANCEL, wire_id)
                if not future.cancel() and not future.cancelled():
                    future.exception()  # seen: gather reported the first
        return [
            replace(output, request_id=request.request_id)
            for output, request in zip(outputs, requests, strict=True)
        ]

    async def adapt(self, slot: int, adapter: AdapterFiles) -> None:
        """Puts an adapter into a slot that no request uses; raises `LoadFailed` or `InvalidRequest`."""
        self._check_alive()
        wire_id = next(self._ids)
        placed = self._adapting[wire_id] = asyncio.get_running_loop().create_future()
        self._send(FrameType.ADAPT, AdaptRequest(wire_id, slot, adapter))
        try:
            await placed
        finally:
            self._adapting.pop(wire_id, None)

    async def classify(self, image: bytes) -> str:
        """The likeliest label of an image in planes of bytes."""
        self._send(FrameType.CLASSIFY, image)
        return await self._queue(self._images)

    async def score(self, image: bytes) -> list[LabelScore]:
        """Every label of an image with its probability, likeliest first."""
        self._send(FrameType.SCORE, image)
        return await self._queue(self._scored)

    async def status(self) -> RunnerStatus:
        self._send(FrameType.INFO, None)
        return await self._queue(self._questions)

    async def close(self) -> None:
        """Ends the runner: it leaves at the end of its input, and is killed if it does not."""
        self._closing = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._link.close()
        await self._process.stop(CLOSE_GRACE_SECONDS)
        await self._die()

    async def wait_closed(self) -> None:
        """Returns once the runner is gone, whoever ended it."""
        await asyncio.shield(self._closed)

    async def _queue(self, waiting: deque[asyncio.Future[Answer]]) -> Answer:
        """Waits for the answer of a question whose answers come in the order of asking."""
        self._check_alive()
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting.append(future)
        return await future

    def _check_alive(self) -> None:
        if self._closing or self._death is not None:
            raise RunnerDied(self._obituary())

    def _send(self, kind: FrameType, value: Any) -> None:
        self._link.write(encode_frame(kind, value))

    def _cancel(self, wire_id: int) -> None:
        if self._inboxes.pop(wire_id, None) is not None:
            self._send(FrameType.CANCEL, wire_id)

    # Frames from the runner

    def on_frame(self, frame: Frame) -> None:
        value = decode_body(frame)
        match frame.type:
            case FrameType.STEP:
                for output in value:
                    self._on_output(output)
            case FrameType.ACCEPTED:
                inbox = self._inboxes.get(value)
                _resolve(inbox.accepted if inbox else self._adapting.get(value), None)
            case FrameType.ERROR:
                self._on_error(value)
            case FrameType.EMBEDDED:
                for vector in value:
                    _resolve(self._embeddings.pop(vector.request_id, None), vector)
            case FrameType.INFO:
                _resolve(self._questions.popleft(), value)
            case FrameType.CLASSIFY:
                _resolve(self._images.popleft(), value.decode())
            case FrameType.SCORE:
                _resolve(self._scored.popleft(), value)
            case FrameType.LOAD_PROGRESS:
                if self._on_progress is not None:
                    self._on_progress(value)
            case FrameType.READY:
                _resolve(self._loaded, value)
            case _:
                raise ProtocolError(f"a runner does not send {frame.type.name} frames")

    def _on_output(self, output: StepOutput) -> None:
        inbox = self._inboxes.get(output.request_id)
        if inbox is None:
            return  # cancelled: the runner had not heard of it yet
        inbox.put(output)
        if inbox.finished:
            del self._inboxes[output.request_id]
        elif inbox.overflowing:
            self._cancel(output.request_id)
            inbox.fail(EngineOverloaded(f"the reader fell {inbox.buffered} entries behind; read faster"))

    def _on_error(self, report: ErrorReport) -> None:
        error = raise_report(report)
        if report.request_id is not None:
            if (inbox := self._inboxes.pop(report.request_id, None)) is not None:
                inbox.fail(error)
            _reject(self._embeddings.pop(report.request_id, None), error)
            _reject(self._adapting.get(report.request_id), error)
        elif report.answers == FrameType.LOAD:
            _reject(self._loaded, error)
        elif report.answers == FrameType.CLASSIFY and self._images:
            _reject(self._images.popleft(), error)
        elif report.answers == FrameType.SCORE and self._scored:
            _reject(self._scored.popleft(), error)
        elif report.answers == FrameType.INFO and self._questions:
            _reject(self._questions.popleft(), error)
        else:
            raise ProtocolError(f"the runner reported: {report.message}")

    # The end

    def on_lost(self) -> None:
        if self._death is None:
            self._death = asyncio.create_task(self._die())

    async def _die(self) -> None:
        """Gives the process a moment to be reaped, for its exit code, then tells everyone who waits."""
        if not await self._process.wait(DEATH_GRACE_SECONDS):
            self._process.kill()
            await self._process.wait(DEATH_GRACE_SECONDS)
        error = RunnerDied(self._obituary())
        for inbox in list(self._inboxes.values()):
            inbox.fail(error)
        self._inboxes.clear()
        waiting: list[asyncio.Future[Any]] = [
            *self._embeddings.values(),
            *self._adapting.values(),
            *self._questions,
            *self._images,
            *self._scored,
        ]
        for future in waiting:
            _reject(future, error)
        _reject(self._loaded, LoadFailed(self._obituary()))
        if not self._closed.done():
            self._closed.set_result(None)

    def _obituary(self) -> str:
        text = f"runner {self.pid} {self._process.describe_end()}"
        return f"{text}; its last words:\n{self._process.tail}" if self._process.tail else text

    async def _watch(self, seconds: float) -> None:
        """Kills a runner that has work, says nothing, and does not even answer a question."""
        while seconds > 0:
            await asyncio.sleep(seconds)
            if not self._inboxes or self._link.silent_for() < seconds:
                continue
            try:
                async with asyncio.timeout(seconds):
                    await self.status()
            except TimeoutError:
                self._process.kill()
                return
            except RunnerDied:
                return


class _Link(asyncio.Protocol):
    """The socket side of a client: bytes to frames; a peer that breaks the protocol is cut off."""

    def __init__(self, client: RunnerClient) -> None:
        self._client = client
        self._decoder = FrameDecoder()
        self._transport: asyncio.WriteTransport | None = None
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one by duck type only

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            for item in self._decoder.push(data):
                if isinstance(item, Malformed):
                    raise ProtocolError(item.report.message)
                self._client.on_frame(item)
        except ProtocolError as error:
            logger.error("runner %d broke the protocol and is killed: %s", self._client.pid, error)
            self._client._process.kill()
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.on_lost()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def silent_for(self) -> float:
        return self._loop.time() - self._heard


async def _execute(
    command: Sequence[str], environment: Mapping[str, str] | None, end: socket.socket
) -> RunnerProcess:
    full = [*command, "--fd", str(end.fileno())]
    try:
        return await RunnerProcess.start(full, runner_environment(environment), end.fileno())
    except OSError as error:
        raise LoadFailed(f"the runner could not be started: {error}") from error


def _resolve(future: asyncio.Future[Any] | None, value: Any) -> None:
    if future is not None and not future.done():
        future.set_result(value)


def _reject(future: asyncio.Future[Any] | None, error: EngineError) -> None:
    if future is not None and not future.done():
        future.set_exception(error)

"""A pool of worker processes that run pure functions on strangers' bytes: the gateway's side.

A worker is exec'd (never forked) with one end of a socketpair and an empty environment, limits its own
memory and processor time, and is killed and replaced when it misses the deadline. Called by `service` and
`registry` glue; the functions themselves are named in `sandbox_worker.CALLS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import sys
from typing import Any, TypeVar

import msgspec

from gateway.errors import BadRequest, Overloaded, SandboxFailure
from gateway.sandbox_worker import CALLS, Reply, Request

DEADLINE_SECONDS = 30.0
MAX_WAITING = 2048
HEADER = struct.Struct(">I")
Value = TypeVar("Value")

log = logging.getLogger("gemmule.sandbox")


class SandboxError(BadRequest):
    """The function refused its input; `kind` is the class name of the error it raised."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind_of_error = kind


class Sandbox:
    """Runs calls on `size` workers, started when first needed; at most one call a worker at a time."""

    def __init__(self, size: int = 2) -> None:
        self._size = max(1, size)
        self._idle: asyncio.LifoQueue[_Worker | None] = asyncio.LifoQueue()
        self._workers: set[_Worker] = set()
        self._waiting = 0
        self._closed = False
        for _ in range(self._size):
            self._idle.put_nowait(None)  # a place for a worker that is not started yet

    async def call(self, call: Any, result: type[Value], deadline: float = DEADLINE_SECONDS) -> Value:
        """The result of the function registered for `type(call)`.

        Raises `SandboxError` when the function refused its input, `SandboxFailure` when the worker died or
        took longer than `deadline` seconds, `Overloaded` when too many calls wait.
        """
        if self._waiting >= MAX_WAITING:
            raise Overloaded("too many prompts wait to be encoded, please try again")
        self._waiting += 1
        try:
            worker = await self._idle.get()
        finally:
            self._waiting -= 1
        work = asyncio.ensure_future(self._use(worker, call, result, deadline))
        return await asyncio.shield(work)  # a caller that goes away leaves the worker to finish in peace

    async def warm(self) -> None:
        """Starts a worker before anybody waits for it."""
        worker = await self._idle.get()
        try:
            worker = worker or await self._replace(None)
        finally:
            self._idle.put_nowait(worker)

    async def _use(self, worker: _Worker | None, call: Any, result: type[Value], deadline: float) -> Value:
        """Runs one call on `worker`, or on a new one, and puts back what is fit for the next call."""
        try:
            if worker is None or not worker.alive:
                worker = await self._replace(worker)
            return await self._ask(worker, call, result, deadline)
        finally:
            if worker is not None and (
                worker.busy or not worker.alive
            ):  # its answer would be the next call's
                await self._discard(worker)
                worker = None
            self._idle.put_nowait(worker)

    async def _ask(self, worker: _Worker, call: Any, result: type[Value], deadline: float) -> Value:
        name = type(call).__name__
        try:
            async with asyncio.timeout(deadline):
                reply = await worker.ask(Request(name, msgspec.msgpack.encode(call), deadline))
        except TimeoutError:
            raise SandboxFailure(
                f"{_words(name)} took longer than {deadline:g} seconds and was stopped"
            ) from None
        except (OSError, EOFError, msgspec.MsgspecError):
            raise SandboxFailure(f"{_words(name)} needed more memory or time than it may have") from None
        if reply.error is not None:
            raise SandboxError(reply.error, reply.message)
        return msgspec.msgpack.decode(reply.value, type=result)

    async def _replace(self, old: _Worker | None) -> _Worker:
        if old is not None:
            await self._discard(old)
        worker = await _Worker.start()
        self._workers.add(worker)
        return worker

    async def _discard(self, worker: _Worker) -> None:
        self._workers.discard(worker)
        await worker.kill()

    async def close(self) -> None:
        """Ends all workers."""
        workers, self._workers = self._workers, set()
        await asyncio.gather(*(worker.kill() for worker in workers))


class _Worker(asyncio.Protocol):
    """One process and the connection to it. A protocol rather than streams: every request comes this way."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process
        self._transport: asyncio.WriteTransport
        self._answer: asyncio.Future[bytes] | None = None
        self._data = bytearray()
        self._lost = False

    @classmethod
    async def start(cls) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "gateway.sandbox_worker", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                env=_environment(),
                stdin=asyncio.subprocess.DEVNULL,
            )
        transport, worker = await asyncio.get_running_loop().create_unix_connection(cls, sock=ours)
        worker._process, worker._transport = process, transport
        return worker

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and not self._lost

    @property
    def busy(self) -> bool:
        return self._answer is not None

    async def ask(self, request: Request) -> Reply:
        """Raises EOFError when the process ends first."""
        self._answer = asyncio.get_running_loop().create_future()
        body = msgspec.msgpack.encode(request)
        self._transport.write(HEADER.pack(len(body)) + body)
        answer = await self._answer
        self._answer = None
        return msgspec.msgpack.decode(answer, type=Reply)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) < HEADER.size or self._answer is None or self._answer.done():
            return
        end = HEADER.size + HEADER.unpack_from(self._data)[0]
        if len(self._data) >= end:
            self._answer.set_result(bytes(self._data[HEADER.size : end]))
            del self._data[:end]

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(EOFError("the worker ended"))

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._transport.close()
        await self._process.wait()


def _environment() -> dict[str, str]:
    """Nothing of ours but what a Python needs to find its modules: no keys, no proxies, no home."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "SYSTEMROOT") if name in os.environ}
    return kept | {
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _words(name: str) -> str:
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
    return f"the step `{words}`"


__all__ = ["CALLS", "Sandbox", "SandboxError"]

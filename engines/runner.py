"""The process that owns a set of loaded weights: `python -m engines.runner --fd N --engine NAME`.

Its main thread reads and writes frames on the inherited socket; the engine runs in a second thread, behind a
queue (`engines.serving`). Says nothing to the network and opens only the files it is told to. It ends when
its socket does. JAX is imported only after LOAD was read and the device's variables are set.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from engines.base import (
    AdaptRequest,
    EngineError,
    GenerateRequest,
    InvalidRequest,
    LoadFailed,
    LoadRequest,
)
from engines.process import die_with_parent
from engines.protocol import (
    ErrorReport,
    Frame,
    FrameDecoder,
    FrameType,
    Malformed,
    ProtocolError,
    decode_body,
    encode_frame,
    report_error,
)
from engines.serving import (
    Adapt,
    AdaptableEngine,
    Cancel,
    Classify,
    Command,
    Embed,
    EngineLoop,
    Info,
    ServedEngine,
    Submit,
    as_load_error,
)

MAX_UNSENT_BYTES = 256 << 20
"""A gateway that stopped reading for this much output is taken for dead."""


def _make_decoder() -> ServedEngine:
    from engines.decoder.engine import DecoderEngine

    return DecoderEngine()


def _make_classifier() -> ServedEngine:
    from engines.classifier.engine import ClassifierEngine

    return ClassifierEngine()


def _make_scripted() -> ServedEngine:
    from engines.scripted import ScriptedEngine

    return ScriptedEngine()


ENGINES: dict[str, Callable[[], ServedEngine]] = {
    "classifier": _make_classifier,
    "decoder": _make_decoder,
    "scripted": _make_scripted,
}


def device_environment(load: LoadRequest, total_bytes: Callable[[int], int]) -> dict[str, str]:
    """The variables JAX and XLA must find when they are imported: device, memory budget, threads, cache.

    `total_bytes` tells the memory of a GPU by index, needed because XLA's limit is a fraction of it; 0 where
    the driver does not say. GPUs are numbered as `nvidia-smi` does, by bus: CUDA's own order is by speed.
    """
    found = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if load.device == "gpu":
        found |= {
            "JAX_PLATFORMS": "cuda",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": str(load.device_index),
        }
        total = total_bytes(load.device_index) if load.memory_bytes else 0
        if total:
            fraction = min(load.memory_bytes / total + 1e-6, 1.0)
            found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{fraction:.6f}"
    else:
        found["JAX_PLATFORMS"] = "cpu"
    if load.threads:
        found |= {"NPROC": str(load.threads), "OMP_NUM_THREADS": str(load.threads)}
    if load.compile_cache:
        found |= {
            "JAX_COMPILATION_CACHE_DIR": load.compile_cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    return found


def gpu_memory_bytes(index: int) -> int:
    """Total memory of an NVIDIA GPU, asked of its driver's tool; raises `LoadFailed`.

    0 where that says `[N/A]`, as on boards whose GPU uses the host's memory.
    """
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "-i", str(index)]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
        first = answer.stdout.split()[0]
        return int(first) << 20 if first.isdigit() else 0
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise LoadFailed(f"nvidia-smi does not tell the memory of GPU {index}: {error}") from error


def make_private_folder(path: str) -> None:
    """The compile cache holds programs that will be run: nobody else may write there."""
    folder = Path(path)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise LoadFailed(f"the compile cache {path} belongs to another user; choose a folder of your own")
    if status.st_mode & 0o077:
        folder.chmod(0o700)


def set_up_device(load: LoadRequest, environment: dict[str, str] | os._Environ[str]) -> None:
    environment.update(device_environment(load, gpu_memory_bytes))
    if load.compile_cache:
        make_private_folder(load.compile_cache)


class Runner(asyncio.Protocol):
    """The socket side: frames to commands for the engine's thread, and its results to frames."""

    def __init__(self, make_engine: Callable[[], ServedEngine]) -> None:
        self._make_engine = make_engine
        self._engine: ServedEngine | None = None
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._preparing: set[int] = set()
        self._preparers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="prepare")
        self._transport: asyncio.WriteTransport | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        for item in self._decoder.push(data):
            if isinstance(item, Malformed):
                self._refuse(item)
            else:
                self._answer(item)

    def post(self, kind: FrameType, value: Any) -> None:
        """Sends a frame, from any thread."""
        self._loop.call_soon_threadsafe(self._send, kind, value)

    def _send(self, kind: FrameType, value: Any) -> None:
        assert self._transport is not None
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            sys.stderr.write("the gateway stopped reading; leaving\n")
            self._transport.abort()
        elif not self._transport.is_closing():
            self._transport.write(encode_frame(kind, value))

    def _refuse(self, item: Malformed) -> None:
        self._send(FrameType.ERROR, item.report)
        if item.fatal and self._transport is not None:
            self._transport.close()

    def _answer(self, frame: Frame) -> None:
        try:
            self._dispatch(frame, decode_body(frame))
        except EngineError as error:
            self._send(FrameType.ERROR, report_error(error, answers=frame.type))

    def _dispatch(self, frame: Frame, value: Any) -> None:
        match frame.type:
            case FrameType.ECHO:
                self._send(FrameType.ECHO, value)
            case FrameType.LOAD:
                self._load(value)
            case FrameType.GENERATE:
                self._generate(value)
            case FrameType.ADAPT:
                self._adapt(value)
            case FrameType.CANCEL:
                self._preparing.discard(value)
                self._commands.put(Cancel(value))
            case FrameType.EMBED:
                self._command(Embed(value))
            case FrameType.CLASSIFY | FrameType.SCORE:
                if not isinstance(value, bytes):
                    raise ProtocolError("a SCORE frame asks with an image")
                self._command(Classify(value, frame.type))
            case FrameType.INFO:
                self._command(Info())
            case _:
                raise ProtocolError(f"a runner does not take {frame.type.name} frames")

    def _command(self, command: Command) -> None:
        if self._engine is None:
            raise InvalidRequest("nothing is loaded here; send LOAD first")
        self._commands.put(command)

    def _load(self, load: LoadRequest) -> None:
        if self._engine is not None:
            raise InvalidRequest("this runner has its weights already; start another")
        try:
            set_up_device(load, os.environ)
            self._engine = self._make_engine()
        except Exception as error:
            raise as_load_error(error) from error
        loop = EngineLoop(self._engine, self._commands, self.post)
        threading.Thread(target=loop.run, args=(load,), name="engine", daemon=True).start()

    def _generate(self, request: GenerateRequest) -> None:
        if request.grammar is None or self._engine is None:
            self._command(Submit(request))
            return
        engine = self._engine
        self._prepare(
            request.request_id, lambda: engine.prepare(request), lambda found: Submit(request, found)
        )

    def _adapt(self, request: AdaptRequest) -> None:
        engine: object = self._engine
        if not isinstance(engine, AdaptableEngine):
            raise InvalidRequest("nothing that takes adapters is loaded here")
        self._prepare(
            request.request_id,
            lambda: engine.read_adapter(request.adapter),
            lambda found: Adapt(request, found),
        )

    def _prepare(
        self, request_id: int, work: Callable[[], object], command: Callable[[object], Command]
    ) -> None:
        """Does the slow part of a request in a thread, then hands `command` of its result to the engine."""
        self._preparing.add(request_id)
        task = self._loop.run_in_executor(self._preparers, work)
        task.add_done_callback(lambda done: self._on_prepared(request_id, command, done))

    def _on_prepared(
        self, request_id: int, command: Callable[[object], Command], done: asyncio.Future[object]
    ) -> None:
        wanted = request_id in self._preparing
        self._preparing.discard(request_id)
        error = done.exception()
        if not wanted:
            return
        if error is None:
            self._commands.put(command(done.result()))
        elif isinstance(error, EngineError):
            self._send(FrameType.ERROR, report_error(error, request_id=request_id))
        else:
            report = ErrorReport(EngineError.code, f"{type(error).__name__}: {error}", request_id)
            self._send(FrameType.ERROR, report)


async def serve(fd: int, make_engine: Callable[[], ServedEngine]) -> None:
    """Serves the connection on `fd` until the other side closes it."""
    end = socket.socket(fileno=fd)
    runner = Runner(make_engine)
    await asyncio.get_running_loop().create_unix_connection(lambda: runner, sock=end)
    await runner.ended


def ignore_group_signals() -> None:
    """Ctrl-C and a service's stop reach the whole group; the gateway drains first, then ends its runners."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m engines.runner", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited end of a socketpair")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="decoder")
    chosen = parser.parse_args(arguments)
    die_with_parent()
    ignore_group_signals()
    asyncio.run(serve(chosen.fd, ENGINES[chosen.engine]))
    sys.stderr.flush()
    os._exit(0)  # a thread inside XLA cannot be joined


if __name__ == "__main__":
    main()

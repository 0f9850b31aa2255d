"""What a runner asks of an engine, and the loop that drives one.

The loop owns the engine and runs in a thread of its own: it takes commands from a queue, lets the engine
make a step, and posts what came out. It knows no socket and no model; `engines.runner` connects the two.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, Protocol, cast, runtime_checkable

from engines.base import (
    AdapterFiles,
    AdaptRequest,
    EncodeOutput,
    EncodeRequest,
    EngineError,
    GenerateRequest,
    LabelScore,
    LoadFailed,
    LoadProgress,
    LoadRequest,
    OutOfMemory,
    Ready,
    RunnerStatus,
    StepOutput,
)
from engines.protocol import FrameType, report_error

Post = Callable[[FrameType, Any], None]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one turn of an engine gave. A failure ends its request; `outputs` and `failures` are disjoint."""

    outputs: Sequence[StepOutput] = ()
    embedded: Sequence[EncodeOutput] = ()
    failures: Sequence[tuple[int, EngineError]] = ()


class ServedEngine(Protocol):
    """An engine inside a runner. Every method but `prepare` is called from the loop's thread alone."""

    def load(self, request: LoadRequest, progress: Callable[[LoadProgress], None]) -> Ready:
        """Reads the weights; raises `LoadFailed` or `OutOfMemory`."""
        ...

    def prepare(self, request: GenerateRequest) -> object:
        """The slow part of a request with a grammar, from any thread; the result is handed to `submit`."""
        ...

    def submit(self, request: GenerateRequest, prepared: object | None) -> None:
        """Takes a request over; raises `InvalidRequest` or `EngineOverloaded`."""
        ...

    def submit_embedding(self, request: EncodeRequest) -> None:
        """Takes an embedding request over; raises like `submit`."""
        ...

    def score(self, image: bytes) -> Sequence[LabelScore]:
        """Every label of an image with its probability, likeliest first; raises `InvalidRequest`."""
        ...

    def cancel(self, request_id: int) -> None:
        """Ends a sequence or embedding; unknown ids are ignored. The slot is free in the next step."""
        ...

    def status(self) -> RunnerStatus: ...

    def step(self) -> StepResult:
        """One turn: at most one device step."""
        ...

    def wait_seconds(self) -> float | None:
        """How long the loop may wait for commands before the next step; None when there is nothing to do."""
        ...


@runtime_checkable
class AdaptableEngine(Protocol):
    """What an engine with LoRA slots offers besides. Only `read_adapter` is called from other threads."""

    def read_adapter(self, adapter: AdapterFiles) -> object:
        """The slow part of placing an adapter, from any thread; the result is handed to `adapt`."""
        ...

    def adapt(self, request: AdaptRequest, prepared: object) -> None:
        """Puts an adapter into a slot that no running request uses; raises `InvalidRequest`."""
        ...


@dataclass(frozen=True, slots=True)
class Submit:
    request: GenerateRequest
    prepared: object | None = None


@dataclass(frozen=True, slots=True)
class Adapt:
    request: AdaptRequest
    prepared: object


@dataclass(frozen=True, slots=True)
class Embed:
    requests: Sequence[EncodeRequest]


@dataclass(frozen=True, slots=True)
class Classify:
    """`kind` is CLASSIFY for the likeliest label alone, SCORE for all of them."""

    image: bytes
    kind: FrameType = FrameType.CLASSIFY


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: int


@dataclass(frozen=True, slots=True)
class Info:
    pass


Command = Submit | Adapt | Embed | Classify | Cancel | Info


class EngineLoop:
    """Drives one engine from commands to frames; `run` never returns once the engine has loaded."""

    def __init__(self, engine: ServedEngine, commands: SimpleQueue[Command], post: Post) -> None:
        self._engine = engine
        self._commands = commands
        self._post = post

    def run(self, load: LoadRequest) -> None:
        """Loads, then serves for ever. An unexpected exception ends the process: its state is unknown."""
        if not self._load(load):
            return
        try:
            while True:
                self.turn()
        except BaseException:
            end_process()

    def turn(self) -> None:
        for command in self._take():
            self._handle(command)
        if self._engine.wait_seconds() != 0:
            return
        result = self._engine.step()
        if result.outputs:
            self._post(FrameType.STEP, list(result.outputs))
        if result.embedded:
            self._post(FrameType.EMBEDDED, list(result.embedded))
        for request_id, error in result.failures:
            self._post(FrameType.ERROR, report_error(error, request_id=request_id))

    def _load(self, load: LoadRequest) -> bool:
        try:
            ready = self._engine.load(load, lambda progress: self._post(FrameType.LOAD_PROGRESS, progress))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._post(FrameType.ERROR, report_error(as_load_error(error), answers=FrameType.LOAD))
            return False
        self._post(FrameType.READY, ready)
        return True

    def _take(self) -> list[Command]:
        """All commands that wait; blocks while the engine has nothing due."""
        timeout = self._engine.wait_seconds()
        found: list[Command] = []
        try:
            found.append(self._commands.get(block=timeout != 0, timeout=timeout))
            while True:
                found.append(self._commands.get_nowait())
        except Empty:
            return found

    def _handle(self, command: Command) -> None:
        match command:
            case Submit(request, prepared):
                self._take_over(request.request_id, lambda: self._engine.submit(request, prepared))
            case Adapt(wanted, filling):
                engine = cast("AdaptableEngine", self._engine)
                self._take_over(wanted.request_id, lambda: engine.adapt(wanted, filling))
            case Embed(requests):
                for each in requests:
                    self._submit_embedding(each)
            case Classify(image, kind):
                self._classify(image, kind)
            case Cancel(request_id):
                self._engine.cancel(request_id)
            case Info():
                self._post(FrameType.INFO, self._engine.status())

    def _take_over(self, request_id: int, work: Callable[[], None]) -> None:
        try:
            work()
        except EngineError as error:
            self._post(FrameType.ERROR, report_error(error, request_id=request_id))
        else:
            self._post(FrameType.ACCEPTED, request_id)

    def _submit_embedding(self, request: EncodeRequest) -> None:
        try:
            self._engine.submit_embedding(request)
        except EngineError as error:
            self._post(FrameType.ERROR, report_error(error, request_id=request.request_id))

    def _classify(self, image: bytes, kind: FrameType) -> None:
        try:
            scores = self._engine.score(image)
        except EngineError as error:
            self._post(FrameType.ERROR, report_error(error, answers=kind))
        else:
            self._post(kind, scores[0][0].encode() if kind is FrameType.CLASSIFY else list(scores))


def as_load_error(error: Exception) -> EngineError:
    """What the gateway is told when loading failed: never a bare traceback."""
    if isinstance(error, EngineError):
        return error
    if is_out_of_memory(error):
        return OutOfMemory(f"not enough memory to load the model: {first_line(error)}")
    return LoadFailed(f"{type(error).__name__}: {first_line(error)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Host or device memory ran out. XLA says so only by the status name in its message."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:500] or type(error).__name__


def end_process() -> NoReturn:
    """Prints the current exception and leaves at once: threads inside XLA cannot be joined."""
    traceback.print_exc(file=sys.stderr)
    sys.stderr.flush()
    os._exit(70)

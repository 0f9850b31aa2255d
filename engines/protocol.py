"""The frames between a gateway and a runner, and between local programs and the frame listener.

Sans-IO: bytes in, frames out, and back. A frame is a 4-byte big-endian length of what follows, one type
byte, and a body. ECHO and CLASSIFY carry raw bytes (those of the Go and Python image-server sample); every
other body is msgpack, encoded by msgspec from the dataclasses of `engines.base`. Knows no socket, no clock.

    EngineError (engines.base)
    |- ProtocolError       a body that is not what its frame type says
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgspec

from engines.base import (
    AdaptRequest,
    EncodeOutput,
    EncodeRequest,
    EngineError,
    EngineOverloaded,
    GenerateRequest,
    InvalidRequest,
    LabelScore,
    LoadFailed,
    LoadProgress,
    LoadRequest,
    OutOfMemory,
    Ready,
    RunnerDied,
    RunnerStatus,
    StepOutput,
)

HEADER = struct.Struct(">IB")
LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 64 << 20
"""Default limit of type byte and body together: a prompt of a million tokens or an image fits."""


class ProtocolError(EngineError):
    code = "protocol_error"


class FrameType(IntEnum):
    """What a body means. Types 0 and 1 are fixed by the sample; a reply to ECHO or CLASSIFY has its type."""

    ECHO = 0
    CLASSIFY = 1
    LOAD = 2
    LOAD_PROGRESS = 3
    READY = 4
    GENERATE = 5
    ACCEPTED = 6
    STEP = 7
    CANCEL = 8
    EMBED = 9
    EMBEDDED = 10
    INFO = 11
    ADAPT = 12
    SCORE = 13
    ERROR = 0xFF


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """The body of an ERROR frame: a stable `code`, a sentence, and what it answers.

    `request_id` names the sequence; without one, `answers` is the type of the frame that failed.
    """

    code: str
    message: str
    request_id: int | None = None
    answers: int | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame as it came: the body is not decoded yet."""

    type: FrameType
    body: bytes

    def encode(self) -> bytes:
        """The frame's bytes on the wire."""
        return HEADER.pack(1 + len(self.body), self.type) + self.body


@dataclass(frozen=True, slots=True)
class Malformed:
    """What could not be a frame. `fatal` means the borders are lost: answer, then close the connection."""

    report: ErrorReport
    fatal: bool


BODY_TYPES: dict[FrameType, Any] = {
    FrameType.LOAD: LoadRequest,
    FrameType.LOAD_PROGRESS: LoadProgress,
    FrameType.READY: Ready,
    FrameType.GENERATE: GenerateRequest,
    FrameType.ACCEPTED: int,
    FrameType.STEP: list[StepOutput],
    FrameType.CANCEL: int,
    FrameType.EMBED: list[EncodeRequest],
    FrameType.EMBEDDED: list[EncodeOutput],
    FrameType.INFO: RunnerStatus | None,
    FrameType.ADAPT: AdaptRequest,
    FrameType.SCORE: bytes | list[LabelScore],
    FrameType.ERROR: ErrorReport,
}
"""The value inside each msgpack body. ACCEPTED and CANCEL carry a request id; a question INFO carries nil, a
question SCORE an image."""

RAW_TYPES = frozenset({FrameType.ECHO, FrameType.CLASSIFY})

ERRORS: dict[str, type[EngineError]] = {
    error.code: error
    for error in (
        EngineError,
        InvalidRequest,
        EngineOverloaded,
        OutOfMemory,
        LoadFailed,
        RunnerDied,
        ProtocolError,
    )
}

_encoder = msgspec.msgpack.Encoder()
_decoders = {kind: msgspec.msgpack.Decoder(value) for kind, value in BODY_TYPES.items()}
_known_types = frozenset(int(kind) for kind in FrameType)


def encode_frame(kind: FrameType, value: Any) -> bytes:
    """A whole frame's bytes. `value` is bytes for ECHO and CLASSIFY, else a `BODY_TYPES[kind]`."""
    return Frame(kind, encode_body(kind, value)).encode()


def encode_body(kind: FrameType, value: Any) -> bytes:
    return bytes(value) if kind in RAW_TYPES else _encoder.encode(value)


def decode_body(frame: Frame) -> Any:
    """The value a frame carries; raises `ProtocolError` when the body does not fit its type."""
    if frame.type in RAW_TYPES:
        return frame.body
    try:
        return _decoders[frame.type].decode(frame.body)
    except (msgspec.DecodeError, RecursionError) as error:  # ValidationError is a DecodeError
        raise ProtocolError(f"the body of a {frame.type.name} frame is not readable: {error}") from error


def report_error(
    error: EngineError, *, request_id: int | None = None, answers: int | None = None
) -> ErrorReport:
    """The report of an exception, for the other side to raise again."""
    return ErrorReport(error.code, str(error), request_id, answers)


def raise_report(report: ErrorReport) -> EngineError:
    """The exception a report stands for; an unknown code becomes a plain `EngineError`."""
    return ERRORS.get(report.code, EngineError)(report.message)


class FrameDecoder:
    """Cuts a byte stream into frames: `push(data)` and `finish()`, in any chunking.

    Holds at most one frame of `limit` bytes (type byte and body). After a fatal `Malformed` everything
    that follows is ignored: a length that cannot be trusted leaves no border to start again from.
    """

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._broken = False

    def push(self, data: bytes | bytearray | memoryview) -> list[Frame | Malformed]:
        if self._broken:
            return []
        self._buffer += data
        found: list[Frame | Malformed] = []
        start = 0
        while len(self._buffer) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer, start)
            if length > self._limit:
                found.append(self._too_long(length))
                self._broken = True
                start = len(self._buffer)
                break
            end = start + LENGTH.size + length
            if len(self._buffer) < end:
                break
            found.append(_one_frame(memoryview(self._buffer)[start + LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return found

    def finish(self) -> list[Frame | Malformed]:
        """Call at the end of the stream: an unfinished frame is reported."""
        rest, self._buffer = len(self._buffer), bytearray()
        if self._broken or not rest:
            return []
        message = f"the stream ended inside a frame, {rest} bytes after its start"
        return [Malformed(ErrorReport(ProtocolError.code, message), fatal=True)]

    def _too_long(self, length: int) -> Malformed:
        message = f"a frame of {length} bytes was announced, the limit here is {self._limit}"
        return Malformed(ErrorReport(ProtocolError.code, message), fatal=True)


def _one_frame(content: memoryview) -> Frame | Malformed:
    """`content` is type byte and body."""
    if not content:
        return Malformed(ErrorReport(ProtocolError.code, "a frame without a type byte"), fatal=False)
    kind = content[0]
    if kind not in _known_types:
        message = f"unknown frame type {kind}; known types are {sorted(_known_types)}"
        return Malformed(ErrorReport(ProtocolError.code, message, answers=kind), fatal=False)
    return Frame(FrameType(kind), bytes(content[1:]))

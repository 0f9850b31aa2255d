"""Frames: bytes of the sample, any chunking, hostile input."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.base import (
    AdapterFiles,
    AdapterRoom,
    AdaptRequest,
    EncodeOutput,
    EncodeRequest,
    GenerateRequest,
    Grammar,
    Limits,
    LoadProgress,
    LoadRequest,
    OutOfMemory,
    Ready,
    RunnerStatus,
    SamplingParams,
    StepOutput,
    TokenLogprob,
    Usage,
)
from engines.protocol import (
    BODY_TYPES,
    RAW_TYPES,
    ErrorReport,
    Frame,
    FrameDecoder,
    FrameType,
    Malformed,
    ProtocolError,
    decode_body,
    encode_frame,
    raise_report,
    report_error,
)
from modelfiles.files import ModelFile

SAMPLES = {
    FrameType.ECHO: b"\x00\xffany bytes",
    FrameType.CLASSIFY: bytes(3072),
    FrameType.SCORE: [("cat", 0.75), ("dog", 0.25)],
    FrameType.ADAPT: AdaptRequest(
        7, 2, AdapterFiles("a" * 64, (ModelFile("adapter", "a.gguf", "/x", "sha256:" + "a" * 64, 9),))
    ),
    FrameType.LOAD: LoadRequest(
        files=(ModelFile("weights", "model.gguf", "/models/x", "sha256:" + "0" * 64, 12),),
        limits=Limits(slots=4, context=512),
        memory_bytes=1 << 33,
        adapter_room=AdapterRoom(4, 16, ("q", "v")),
    ),
    FrameType.LOAD_PROGRESS: LoadProgress("reading", 3, 10),
    FrameType.READY: Ready(Limits(4, 512), ("generate", "embed"), 1 << 20, "cpu", 7, "xla"),
    FrameType.GENERATE: GenerateRequest(
        request_id=9,
        prompt_token_ids=(1, 2, 262143),
        max_tokens=16,
        sampling=SamplingParams(temperature=0.5, logit_bias=((3, -1.5),), seed=1),
        grammar=Grammar("regex", "a+", (7,)),
    ),
    FrameType.ACCEPTED: 9,
    FrameType.STEP: [
        StepOutput(9, (5,), (TokenLogprob(5, -0.25, ((5, -0.25), (6, -2.0))),), (None,)),
        StepOutput(10, finish_reason="stop", usage=Usage(prompt=3, generated=2)),
    ],
    FrameType.CANCEL: 9,
    FrameType.EMBED: [EncodeRequest(1, (1, 2))],
    FrameType.EMBEDDED: [EncodeOutput(1, b"\0" * 8, Usage(prompt=2))],
    FrameType.INFO: RunnerStatus(1, 2, 3, 4, 5, 6, 7, 8),
    FrameType.ERROR: ErrorReport("overloaded", "no room", request_id=9),
}


def decode_chunks(chunks: Iterable[bytes], limit: int = 1 << 20) -> list[Frame | Malformed]:
    decoder = FrameDecoder(limit)
    found = [item for chunk in chunks for item in decoder.push(chunk)]
    return found + decoder.finish()


def random_cuts(data: bytes, seed: int) -> list[bytes]:
    chooser = random.Random(seed)
    chunks = []
    while data:
        size = chooser.randint(1, max(1, min(len(data), 700)))
        chunks.append(data[:size])
        data = data[size:]
    return chunks


def test_every_frame_type_has_a_sample() -> None:
    assert set(SAMPLES) == set(FrameType) == set(BODY_TYPES) | RAW_TYPES


@pytest.mark.parametrize("kind", list(FrameType))
def test_a_value_survives_the_wire(kind: FrameType) -> None:
    (frame,) = decode_chunks([encode_frame(kind, SAMPLES[kind])])
    assert isinstance(frame, Frame)
    assert frame.type is kind
    assert decode_body(frame) == SAMPLES[kind]


def test_any_chunking_gives_the_same_frames() -> None:
    data = b"".join(encode_frame(kind, value) for kind, value in SAMPLES.items())
    whole = decode_chunks([data])
    assert len(whole) == len(SAMPLES)
    assert decode_chunks(data[i : i + 1] for i in range(len(data))) == whole
    for seed in range(20):
        assert decode_chunks(random_cuts(data, seed)) == whole


def test_the_bytes_of_the_image_server_sample() -> None:
    assert encode_frame(FrameType.ECHO, b"hi") == b"\x00\x00\x00\x03\x00hi"
    assert encode_frame(FrameType.CLASSIFY, bytes(3072))[:5] == struct.pack(">I", 3073) + b"\x01"


def test_an_announced_length_over_the_limit_ends_the_stream_at_once() -> None:
    decoder = FrameDecoder(limit=1000)
    good = encode_frame(FrameType.ECHO, b"before")
    found = decoder.push(good + struct.pack(">I", 0xFFFFFFFF))
    assert found[0] == Frame(FrameType.ECHO, b"before")
    assert isinstance(found[1], Malformed)
    assert found[1].fatal
    assert "4294967295" in found[1].report.message
    assert "1000" in found[1].report.message
    assert decoder.push(good * 10) == []
    assert decoder.finish() == []


def test_the_limit_itself_is_allowed() -> None:
    body = bytes(999)
    assert decode_chunks([encode_frame(FrameType.ECHO, body)], limit=1000) == [Frame(FrameType.ECHO, body)]


@pytest.mark.parametrize("bad", [b"\0\0\0\0", b"\0\0\0\3\x77ab"])
def test_an_empty_frame_and_an_unknown_type_are_answered_and_the_stream_goes_on(bad: bytes) -> None:
    found = decode_chunks([bad + encode_frame(FrameType.ECHO, b"after")])
    assert isinstance(found[0], Malformed)
    assert not found[0].fatal
    assert found[1:] == [Frame(FrameType.ECHO, b"after")]


def test_a_stream_that_ends_inside_a_frame_is_reported() -> None:
    data = encode_frame(FrameType.ECHO, b"hello")
    for cut in range(1, len(data)):
        (item,) = decode_chunks([data[:cut]])
        assert isinstance(item, Malformed)
        assert item.fatal


@pytest.mark.parametrize("kind", sorted(BODY_TYPES))
def test_a_wrong_body_is_a_protocol_error(kind: FrameType) -> None:
    for body in (
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"no": "such"}),
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
    ):
        with pytest.raises(ProtocolError, match=kind.name):
            decode_body(Frame(kind, body))


@given(st.lists(st.binary(max_size=300), max_size=20))
@settings(max_examples=200, deadline=None)
def test_noise_never_raises_and_never_holds_more_than_the_limit(chunks: list[bytes]) -> None:
    decoder = FrameDecoder(limit=512)
    for chunk in chunks:
        for item in decoder.push(chunk):
            if isinstance(item, Frame) and item.type in BODY_TYPES:
                try:
                    decode_body(item)
                except ProtocolError:
                    continue
        assert len(decoder._buffer) <= 4 + 512
    decoder.finish()


def test_an_error_comes_back_as_its_own_type() -> None:
    report = report_error(OutOfMemory("8 GiB needed, 4 GiB given"), request_id=3)
    error = raise_report(report)
    assert type(error) is OutOfMemory
    assert str(error) == "8 GiB needed, 4 GiB given"
    assert type(raise_report(ErrorReport("from_the_future", "?"))).__name__ == "EngineError"

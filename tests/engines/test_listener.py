"""The frame socket for local programs, with raw sockets as a program in any language would use it."""

from __future__ import annotations

import asyncio
import socket
import stat
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.base import InvalidRequest
from engines.listener import MAX_REQUEST_BYTES, FrameListener, bind_private
from engines.protocol import ErrorReport, Frame, FrameDecoder, FrameType, decode_body, encode_frame

cancelled: list[str] = []


async def handler(frame: Frame) -> AsyncGenerator[Frame, None]:
    if frame.type is FrameType.CLASSIFY:
        if len(frame.body) != 3072:
            raise InvalidRequest(f"an image is 3072 bytes, not {len(frame.body)}")
        yield Frame(FrameType.CLASSIFY, b"ship")
        return
    try:
        for _ in range(10_000):
            yield Frame(FrameType.GENERATE, b"x" * 1000)
            await asyncio.sleep(0)
    finally:
        cancelled.append("generate")


@asynccontextmanager
async def listening(path: Path, **kwargs: Any) -> AsyncIterator[FrameListener]:
    listener = FrameListener(handler, **kwargs)
    listener.bind(path)
    await listener.start()
    try:
        yield listener
    finally:
        await listener.close()


async def exchange(path: Path, data: bytes, count: int) -> list[Any]:
    """Sends bytes, returns the first `count` frames."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    decoder, found = FrameDecoder(), []
    writer.write(data)
    while len(found) < count and (chunk := await reader.read(1 << 16)):
        found += decoder.push(chunk)
    writer.close()
    await writer.wait_closed()
    return found


def test_echo_and_classify_have_the_bytes_of_the_sample(tmp_path: Path) -> None:
    async def check() -> None:
        async with listening(tmp_path / "s"):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            writer.write(struct.pack(">IB", 6, 0) + b"hello")
            assert await reader.readexactly(10) == b"\0\0\0\x06\0hello"
            writer.write(struct.pack(">IB", 3073, 1) + bytes(3072))
            assert await reader.readexactly(9) == b"\0\0\0\x05\x01ship"
            writer.close()
            await writer.wait_closed()

    asyncio.run(check())


def test_faults_are_answered_and_the_connection_goes_on(tmp_path: Path) -> None:
    after = encode_frame(FrameType.ECHO, b"still here")
    faults = [
        b"\0\0\0\0",
        b"\0\0\0\1\x63",
        encode_frame(FrameType.CLASSIFY, b"short"),
        encode_frame(FrameType.CANCEL, 3),
        encode_frame(FrameType.STEP, []),
    ]

    async def check() -> None:
        async with listening(tmp_path / "s"):
            for fault in faults:
                first, second = await exchange(tmp_path / "s", fault + after, 2)
                assert isinstance(decode_body(first), ErrorReport)
                assert second.body == b"still here"

    asyncio.run(check())


def test_a_hostile_length_is_answered_and_the_connection_closed(tmp_path: Path) -> None:
    async def check() -> None:
        async with listening(tmp_path / "s"):
            for length in (MAX_REQUEST_BYTES + 1, 0xFFFFFFFF):
                data = struct.pack(">I", length) + encode_frame(FrameType.ECHO, b"x") * 3
                (frame,) = await exchange(tmp_path / "s", data, 2)
                assert str(length) in decode_body(frame).message

    asyncio.run(check())


def test_a_program_that_leaves_cancels_its_request(tmp_path: Path) -> None:
    async def check() -> None:
        cancelled.clear()
        async with listening(tmp_path / "s"):
            await exchange(tmp_path / "s", encode_frame(FrameType.INFO, None), 3)
            async with asyncio.timeout(5):
                while not cancelled:  # noqa: ASYNC110 - the handler has no event to wait for
                    await asyncio.sleep(0.01)

    asyncio.run(check())


def test_connections_are_bounded_and_idle_ones_end(tmp_path: Path) -> None:
    async def check() -> None:
        async with listening(tmp_path / "s", max_connections=1, idle_seconds=0.2):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            await asyncio.sleep(0.05)
            (refusal,) = await exchange(tmp_path / "s", b"", 1)
            assert decode_body(refusal).code == "overloaded"
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
            await writer.wait_closed()

    asyncio.run(check())


def test_only_the_owner_may_connect_and_nothing_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def check() -> None:
        async with listening(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(InvalidRequest, match="another process listens"):
                bind_private(path)
        assert not path.exists()

    asyncio.run(check())


def test_a_stale_socket_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    bind_private(path).close()
    plain = tmp_path / "file"
    plain.write_text("precious")
    with pytest.raises(InvalidRequest, match="not a socket"):
        bind_private(plain)
    assert plain.read_text() == "precious"

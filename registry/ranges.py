"""One small piece of a remote file, for those who need to know something about it without downloading it.

Nothing is stored. Called by the peeker, and by the downloader before it takes a copy from a cache.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from registry.errors import SourceError, Unauthorized, Unavailable
from registry.remote import RemoteFile
from registry.transport import Reply, Transport

ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file, and what was said of the whole: its `size`, and its MD5 in hex digits or ""."""

    data: bytes
    size: int
    md5: str


async def read_range(transport: Transport, remote: RemoteFile, start: int, end: int) -> Piece:
    """The bytes from `start` to `end` (exclusive), or fewer where the file ends before.

    Raises Unavailable after a few tries, Unauthorized, NotFound, SourceError.
    """
    failures, refreshed = 0, False
    while True:
        try:
            return await _request(transport, remote, start, end, refreshed)
        except Unauthorized:
            if refreshed:
                raise
            refreshed = True
        except Unavailable as error:
            failures += 1
            if failures == ATTEMPTS:
                raise
            await transport.pause(failures, error.retry_after)


async def _request(transport: Transport, remote: RemoteFile, start: int, end: int, refresh: bool) -> Piece:
    headers = {"Range": f"bytes={start}-{end - 1}"}
    if remote.body is not None:
        headers["Content-Type"] = "application/json"
    async with transport.request(
        "GET" if remote.body is None else "POST",
        remote.url,
        headers=headers,
        credentials=await remote.credentials(refresh),
        content=remote.body,
    ) as reply:
        if reply.status not in (200, 206):
            raise reply.failure("a piece of a file")
        size = remote.size if remote.size is not None else reply.total
        if size is None:
            raise SourceError("the source does not say how long the file is")
        skipped = start if reply.status == 200 else 0
        data = await _take(reply, max(0, min(end, size) - start) + skipped)
        return Piece(data[skipped:], size, google_md5(reply))


async def _take(reply: Reply, count: int) -> bytes:
    """The first `count` bytes of a body; raises Unavailable when there are fewer."""
    data = bytearray()
    async for chunk in reply.chunks():
        data += chunk
        if len(data) >= count:
            break
    if len(data) < count:
        raise Unavailable("the connection ended early")
    return bytes(data[:count])


def google_md5(reply: Reply) -> str:
    """The MD5 (hex) of the whole object in `x-goog-hash: crc32c=...,md5=<base64>`, or ""."""
    match = re.search(r"md5=([A-Za-z0-9+/]{22}==)", reply.headers.get("x-goog-hash", ""))
    return base64.b64decode(match[1]).hex() if match else ""

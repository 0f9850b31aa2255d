"""One file on its way into the blob store: ranged parts in parallel, resumed, retried, proved, published.

Nothing appears under its final name before its bytes are proved and durable. Knows transport and blobs, no
hub and no other download; called by the downloader.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator

from registry.blobs import Blob, parse_digest
from registry.errors import DigestMismatch, DiskFull, ObjectChanged, SourceError, Unauthorized, Unavailable
from registry.locks import Lease
from registry.partial import Hashes, Part, Partial, part_size
from registry.ranges import google_md5
from registry.remote import OnBytes, RemoteFile
from registry.store import Store
from registry.threads import in_thread
from registry.transport import CONTENT_RANGE, Reply, Transport

WRITE_BYTES = 1 << 19
UNKNOWN_SIZE_LIMIT = 1 << 40
_SLOWEST = 1 << 10
"""Bytes a second below which a connection counts as stalled."""


class _RangesIgnored(Exception):
    """The server gives the whole object where a part was asked for."""


class _EndedEarly(Unavailable):
    """The body ended, properly, before its time."""


class Fetch:
    """One file on its way. Nothing here is shared between threads except through awaited calls."""

    def __init__(
        self, store: Store, transport: Transport, remote: RemoteFile, lease: Lease, tell: OnBytes
    ) -> None:
        self._store = store
        self._transport = transport
        self._settings = transport.settings
        self._remote = remote
        self._lease = lease
        self._tell = tell
        self._partial = Partial(store.blobs, remote.key, remote.identity)
        self._md5 = remote.md5
        self._durable = 0
        self._saving: asyncio.Task[None] | None = None

    async def run(self) -> Blob:
        """Waits for the partial file, fills it, proves it, publishes it."""
        found = await self._open()
        if found is not None:
            return found
        try:
            self._durable = self._partial.done
            for attempt in (1, 2):
                try:
                    return await self._once()
                except (DigestMismatch, ObjectChanged):
                    await self._restart()
                    if attempt == 2:
                        raise
            raise AssertionError("unreachable")
        except BaseException:
            await self._save_the_rest()
            raise
        finally:
            self._partial.close()

    async def _open(self) -> Blob | None:
        """Locks the partial; while another process fills it, waits, and may find the work done."""
        while not await in_thread(self._partial.try_open):
            digest = self._remote.sha256
            if digest and self._store.blobs.owns(digest, self._remote.size):
                self._lease.add([digest])
                size = (self._store.blobs.find(digest) or self._partial.path).stat().st_size
                return Blob(digest, size, True)
            await asyncio.sleep(0.2)
        return None

    async def _once(self) -> Blob:
        partial, remote = self._partial, self._remote
        if partial.size < 0 and remote.size is not None:
            self._require_room(remote.size)
            await in_thread(partial.begin, remote.size, self._step(remote.size))
        elif partial.size >= 0:
            self._require_room(partial.size - partial.done)
        self._report()
        hashes = Hashes(
            max(partial.size, remote.size or 0), bool(remote.git_sha1), bool(remote.md5 or remote.google_hash)
        )
        follower = asyncio.create_task(self._follow(hashes))
        try:
            await self._fill()
        finally:
            follower.cancel()
            await asyncio.wait([follower])
        if not follower.cancelled():
            follower.result()  # it only ends by itself when it failed to read
        await self._finish_saving()
        return await in_thread(self._prove_and_publish, hashes)

    def _step(self, size: int) -> int:
        return part_size(size, self._settings.least_part)

    def _require_room(self, needed: int) -> None:
        free = self._store.disk.free_bytes(self._store.blobs.staging)
        if needed > free:
            raise DiskFull(needed, free)

    def _report(self) -> None:
        size = self._partial.size
        self._tell(self._partial.done, size if size >= 0 else None)

    # bytes

    async def _fill(self) -> None:
        """Brings every missing byte."""
        try:
            if self._partial.size < 0:
                await self._first_part()
            pending = [part for part in self._partial.parts if part.missing]
            queue = iter(pending)
            workers = min(self._settings.connections, len(pending))
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(queue))
        except (_RangesIgnored, BaseExceptionGroup) as error:
            cause = _first(error)
            if not isinstance(cause, _RangesIgnored):
                raise cause from None
            await self._whole()

    async def _work(self, queue: Iterator[Part]) -> None:
        for part in queue:
            await self._part(part)

    async def _first_part(self) -> None:
        """Learns the size from the first answer; leaves the file laid out in parts."""

        async def learn(reply: Reply) -> None:
            total = reply.total
            if reply.status != 206 or total is None:
                raise _RangesIgnored
            self._partial.validator = _validator(reply)
            self._require_room(total)
            await in_thread(self._partial.begin, total, self._step(total))

        await self._try(Part(0, 1), learn)

    async def _part(self, part: Part) -> None:
        """Fills one part, however many connections that takes."""

        async def take(reply: Reply) -> None:
            self._check_part(reply, part)
            await self._take(reply, part)

        await self._try(part, take)

    def _check_part(self, reply: Reply, part: Part) -> None:
        """Proves that this is the piece of the object that was asked for."""
        partial = self._partial
        whole = len(partial.parts) == 1 and part.position == 0
        if reply.status == 200:
            changed = self._is_other(reply)
            if changed or (reply.length is not None and reply.length != partial.size):
                raise ObjectChanged(f"{self._remote.url.partition('?')[0]} changed while it was downloaded")
            if not whole:
                raise _RangesIgnored
        else:
            match = CONTENT_RANGE.fullmatch(reply.headers.get("content-range", ""))
            if match is None or int(match[1]) != part.position:
                raise SourceError(f"{self._remote.url.partition('?')[0]} answered with a range not asked for")
            if match[3] != "*" and int(match[3]) != partial.size:
                raise ObjectChanged(f"{self._remote.url.partition('?')[0]} changed its size")
        if not partial.validator:
            partial.validator = _validator(reply)
        elif self._is_other(reply):
            raise ObjectChanged(f"{self._remote.url.partition('?')[0]} changed while it was downloaded")

    def _is_other(self, reply: Reply) -> bool:
        """Whether the server says that this is another version. Where a digest was declared it alone
        judges: mirrors and caches of one object may each have an ETag of their own."""
        known = self._partial.validator
        return bool(known) and self._remote.sha256 is None and known != _validator(reply)

    async def _take(self, reply: Reply, part: Part) -> None:
        """Writes what comes, never more than the part holds."""
        buffer = bytearray()
        most = min(WRITE_BYTES, max(1, self._part_bytes // (8 * self._settings.connections)))
        pace = _Pace(self._settings.stall_timeout, reply.url)
        try:
            async for chunk in reply.chunks():
                pace.count(len(chunk))
                buffer += chunk[: part.missing - len(buffer)]
                if len(buffer) >= most or len(buffer) >= part.missing:
                    full, buffer = buffer, bytearray()
                    await self._write(part, full)
                    if not part.missing:
                        return
        except (Unavailable, asyncio.CancelledError):
            await self._write(part, buffer)  # what came before the line broke need not come again
            raise
        if buffer:
            await self._write(part, buffer)
        if part.missing:
            raise _EndedEarly(f"{self._remote.url.partition('?')[0]} ended {part.missing:,} bytes early")

    @property
    def _part_bytes(self) -> int:
        return self._partial.parts[0].end

    async def _write(self, part: Part, buffer: bytearray) -> None:
        """Puts bytes in place.

        What a kill could cost stays below one part: 3/4 of it written since the record was saved, an eighth
        in writes that had begun by then, an eighth in what the connections hold.
        """
        await in_thread(self._partial.write, part, buffer)
        self._report()
        unsaved = self._partial.done - self._durable
        if self._saving is not None and (self._saving.done() or unsaved >= self._part_bytes * 3 // 4):
            await self._finish_saving()
        if self._saving is None and unsaved >= max(1, self._part_bytes // 2):
            self._saving = asyncio.create_task(self._save())

    async def _save(self) -> None:
        reached = self._partial.done
        await in_thread(self._partial.save)
        self._durable = reached

    async def _save_the_rest(self) -> None:
        """Before giving up: records everything that came, so that the next try repeats none of it."""
        with contextlib.suppress(Exception):
            await self._finish_saving()
            if self._partial.done > self._durable:
                await self._save()

    async def _finish_saving(self) -> None:
        """Waits for a save under way; raises what it raised. Several may wait for one."""
        saving = self._saving
        if saving is None:
            return
        try:
            await asyncio.shield(saving)
        finally:
            if saving.done() and self._saving is saving:
                self._saving = None

    async def _restart(self) -> None:
        """Forgets everything: the object changed, its bytes proved wrong, or parts cannot be had."""
        with contextlib.suppress(Exception):
            await self._finish_saving()
        await in_thread(self._partial.restart)
        self._durable = 0

    async def _whole(self) -> None:
        """The object in one piece, from a server that knows no ranges; cannot be resumed."""

        async def take(reply: Reply) -> None:
            if reply.status != 200:
                raise SourceError(f"{self._remote.url.partition('?')[0]} answered with a range not asked for")
            await self._restart()
            expected = self._remote.size if self._remote.size is not None else reply.length
            self._require_room(expected or 0)
            limit = UNKNOWN_SIZE_LIMIT if expected is None else expected
            size = expected or 0
            await in_thread(self._partial.begin, size, size)
            self._partial.parts[0].end = limit
            try:
                await self._take(reply, self._partial.parts[0])
            except _EndedEarly:
                if expected is not None or not self._partial.done:
                    raise  # else: the end of the connection is the end of the file
            self._partial.parts[0].end = self._partial.size = self._partial.done

        await self._try(Part(0, 0), take, ranged=False)

    async def _try(self, part: Part, use: Callable[[Reply], Awaitable[None]], ranged: bool = True) -> None:
        """One request after the other until one works: at most `attempts` that bring next to nothing."""
        failures, refreshed = 0, False
        while True:
            before = part.done
            try:
                return await self._request(part, use, ranged, refreshed)
            except Unauthorized:
                if refreshed:
                    raise
                refreshed = True  # tokens and signed addresses run out during a long download
                continue
            except Unavailable as error:
                failures = 1 if part.done - before >= WRITE_BYTES else failures + 1
                if failures >= self._settings.attempts:
                    raise
                await self._transport.pause(failures, error.retry_after)

    async def _request(
        self, part: Part, use: Callable[[Reply], Awaitable[None]], ranged: bool, refresh: bool
    ) -> None:
        headers = {}
        single = len(self._partial.parts) == 1 and part.position == 0
        if ranged and not single:
            headers["Range"] = f"bytes={part.position}-{part.end - 1}"
            if self._partial.validator and self._remote.sha256 is None:
                headers["If-Range"] = self._partial.validator
        credentials = await self._remote.credentials(refresh)
        url = self._remote.url
        method = "GET" if self._remote.body is None else "POST"
        if self._remote.body is not None:
            headers["Content-Type"] = "application/json"
        async with self._transport.request(
            method, url, headers=headers, credentials=credentials, content=self._remote.body
        ) as reply:
            if reply.status == 416:
                raise ObjectChanged(f"{url.partition('?')[0]} is shorter than it was")
            if reply.status not in (200, 206):
                raise reply.failure(f"the file {url.partition('?')[0].rpartition('/')[2][:100]}")
            if self._remote.google_hash:
                self._md5 = google_md5(reply) or self._md5
            await use(reply)

    # proof

    async def _follow(self, hashes: Hashes) -> None:
        """Hashes the part of the file that is already whole while the rest still comes."""
        while True:
            frontier = self._partial.frontier
            if frontier - hashes.position >= WRITE_BYTES and self._partial.parts:
                end = min(frontier, hashes.position + (32 << 20))
                await in_thread(hashes.advance, self._partial.descriptor, end)
            else:
                await asyncio.sleep(0.02)

    def _prove_and_publish(self, hashes: Hashes) -> Blob:
        partial, remote = self._partial, self._remote
        hashes.advance(partial.descriptor, partial.size)
        got = parse_digest(f"sha256:{hashes.sha256()}")
        for want, have in (
            (remote.sha256 or "", got),
            (remote.git_sha1 and f"git:{remote.git_sha1}", f"git:{hashes.git()}"),
            (self._md5 and f"md5:{self._md5}", f"md5:{hashes.md5()}"),
        ):
            if want and want != have:
                raise DigestMismatch(want, have)
        self._lease.add([got])
        existed = self._store.blobs.publish(partial.path, partial.descriptor, got, partial.size)
        partial.forget_record()
        return Blob(got, partial.size, existed)


class _Pace:
    """Notices a connection that still gives bytes, but so few that it will never end."""

    def __init__(self, window: float, url: str) -> None:
        self._window = window
        self._host = url.split("/", 3)[2] if url.count("/") > 2 else url
        self._began = time.monotonic()
        self._bytes = 0

    def count(self, size: int) -> None:
        """Notes bytes that came; raises Unavailable after a window with hardly any."""
        self._bytes += size
        now = time.monotonic()
        if now - self._began >= self._window:
            if self._bytes < _SLOWEST * self._window:
                raise Unavailable(f"{self._host} stalled: {self._bytes:,} bytes in {self._window:.0f} s")
            self._began, self._bytes = now, 0


def _validator(reply: Reply) -> str:
    """What identifies the object in later requests: a strong ETag, else its date."""
    etag = reply.headers.get("etag", "")
    return etag if etag and not etag.startswith("W/") else reply.headers.get("last-modified", "")


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

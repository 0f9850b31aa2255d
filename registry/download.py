"""Brings remote files into the blob store, each once however many want it.

Several callers who want one file share one download, which stops when the last of them leaves. What is here
already, or in another program's cache, is not fetched. Knows no hub; called by the puller.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

from registry.blobs import Blob, Digest, parse_digest
from registry.errors import DigestMismatch, Unavailable
from registry.fetch import Fetch
from registry.locks import Lease
from registry.partial import Hashes
from registry.ranges import read_range
from registry.remote import OnBytes, RemoteFile
from registry.store import Store
from registry.threads import in_thread
from registry.transport import Transport


@dataclass(slots=True)
class _Shared:
    """A running download and who waits for it."""

    task: asyncio.Task[Blob]
    watchers: list[OnBytes]
    lease: Lease


class Downloader:
    """The downloads of one store in this process."""

    def __init__(self, store: Store, transport: Transport) -> None:
        self._store = store
        self._transport = transport
        self._running: dict[str, _Shared] = {}

    async def fetch(self, remote: RemoteFile, lease: Lease, on_bytes: OnBytes) -> Blob:
        """Returns once the file is a blob under `lease`. Cancelling leaves a partial to resume from.

        Raises DigestMismatch, DiskFull, ObjectChanged, Unavailable, Unauthorized, NotFound, SourceError.
        """
        if remote.sha256 is not None:
            await in_thread(lease.add, [remote.sha256])
            if self._store.blobs.exists(remote.sha256, remote.size):
                size = self._store.blobs.find(remote.sha256).stat().st_size  # type: ignore[union-attr]
                await in_thread(self._store.blobs.adopt, remote.sha256, size)
                on_bytes(size, size)
                return Blob(remote.sha256, size, True)
        copied = await self._copied(remote, lease)
        if copied is not None:
            on_bytes(copied.size, copied.size)
            return copied
        shared = self._running.get(remote.key) or self._start(remote)
        shared.watchers.append(on_bytes)
        try:
            blob = await asyncio.shield(shared.task)
            await in_thread(lease.add, [blob.digest])
            return blob
        finally:
            shared.watchers.remove(on_bytes)
            if not shared.watchers:
                await self._stop(remote.key, shared)

    def at_hand(self, remote: RemoteFile, size: int | None) -> bool:
        """Whether nothing has to be fetched for a file of this size, as far as names and sizes tell."""
        if remote.sha256 and self._store.blobs.exists(remote.sha256, size):
            return True
        return any(_size_of(path) == size for path in remote.copies)

    async def _copied(self, remote: RemoteFile, lease: Lease) -> Blob | None:
        """The file from another program's cache, where one holds exactly these bytes."""
        copies = [path for path in remote.copies if _size_of(path) >= 0]
        if not copies:
            return None
        if remote.sha256 is not None:
            return await in_thread(self._link, copies, remote.size, remote.sha256, "", lease)
        if not remote.google_hash:
            return None
        try:
            first = await read_range(self._transport, remote, 0, 1)
        except Unavailable:
            return None  # the download tries longer
        if not first.md5:
            return None
        return await in_thread(self._link, copies, first.size, None, first.md5, lease)

    def _link(
        self, copies: list[Path], size: int | None, sha256: Digest | None, md5: str, lease: Lease
    ) -> Blob | None:
        """A link to the first that has the size and hashes to what is given of `sha256` and `md5`."""
        for path in copies:
            with contextlib.suppress(OSError, DigestMismatch):
                if _size_of(path) == size:
                    proved = sha256 or _proved_by_md5(path, md5)
                    return self._store.blobs.put_file(path, proved, link=True, lease=lease)
        return None

    def _start(self, remote: RemoteFile) -> _Shared:
        watchers: list[OnBytes] = []

        def tell(done: int, size: int | None) -> None:
            for watcher in list(watchers):
                watcher(done, size)

        lease = self._store.lease_empty()
        task = asyncio.create_task(Fetch(self._store, self._transport, remote, lease, tell).run())
        shared = self._running[remote.key] = _Shared(task, watchers, lease)
        return shared

    async def _stop(self, key: str, shared: _Shared) -> None:
        if self._running.get(key) is shared:
            del self._running[key]
        shared.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await shared.task
        shared.lease.close()


def _proved_by_md5(path: Path, md5: str) -> Digest:
    """The SHA-256 of a file whose MD5 is this; raises DigestMismatch when it is another."""
    with path.open("rb") as file:
        hashes = Hashes(0, md5=True)
        hashes.advance(file.fileno(), path.stat().st_size)
    if hashes.md5() != md5:
        raise DigestMismatch(f"md5:{md5}", f"md5:{hashes.md5()}")
    return parse_digest(f"sha256:{hashes.sha256()}")


def _size_of(path: Path) -> int:
    """Bytes of a file; -1 where there is none to be read."""
    try:
        return path.stat().st_size
    except OSError:
        return -1

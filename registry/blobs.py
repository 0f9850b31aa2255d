"""Content-addressed files: `blobs/sha256-<hex>`, published only once their bytes are proved and durable.

`blob_path` is the one function that turns a digest into a path, `parse_digest` the one that makes a
`Digest`. Knows nothing of models. Blocking; asyncio callers use threads (`put_stream` does).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import NewType

from registry.disk import Disk
from registry.errors import BlobNotFound, DigestMismatch, DiskFull, InvalidDigest, ModelCorrupt
from registry.locks import Lease, StoreLock, try_lock
from registry.threads import in_thread

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hex digits; made only by this module."""

CHUNK = 1 << 20
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


def parse_digest(text: str) -> Digest:
    """The digest that `sha256:<hex>` or `sha256-<hex>` spells; raises InvalidDigest."""
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise InvalidDigest(f"invalid digest format {text[:80]!r}: want sha256: and 64 hex digits")
    return Digest(f"sha256:{match[1].lower()}")


def digest_of(data: bytes) -> Digest:
    """The digest of these bytes."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def blob_path(root: Path, digest: Digest) -> Path:
    """Where the blob lies (or would) in the store at `root`; the only place where such a path is built."""
    return root / "blobs" / digest.replace(":", "-", 1)


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored blob; `existed` tells that it was there before."""

    digest: Digest
    size: int
    existed: bool


class BlobWriter:
    """A blob in the making: bytes go to a locked staging file and through SHA-256 at once.

    `push` any number of times, then `finish`; leaving the `with` without `finish` removes every trace.
    A collector recognises an abandoned staging file by its lock being free.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._path = store.staging / f"{secrets.token_hex(16)}.tmp"
        self._hash = hashlib.sha256()
        self.size = 0
        with store.lock.shared():
            self._descriptor = store.disk.create(self._path)
            try_lock(self._descriptor)

    def push(self, data: bytes | memoryview) -> None:
        """Appends; raises DiskFull."""
        self._store.disk.write(self._descriptor, data)
        self._hash.update(data)
        self.size += len(data)

    def copy(self, file: BufferedReader) -> None:
        """Takes a whole file: shares its blocks where the file system can, copies otherwise."""
        if self.size == 0 and self._store.disk.share_blocks(file.fileno(), self._descriptor):
            with os.fdopen(os.dup(self._descriptor), "rb") as mine:
                while chunk := mine.read(CHUNK):
                    self._hash.update(chunk)
                    self.size += len(chunk)
            return
        while chunk := file.read(CHUNK):
            self.push(chunk)

    @property
    def path(self) -> Path:
        """Where another process may write the blob into the empty file; then `reread`."""
        return self._path

    def reread(self) -> None:
        """Takes what another process wrote into `path`; raises ModelCorrupt when it replaced the file."""
        if not os.path.samestat(self._path.stat(), os.fstat(self._descriptor)):
            raise ModelCorrupt("the file that was to be written has been replaced by another")
        self._hash = hashlib.sha256()
        self.size = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as mine:
            mine.seek(0)
            while chunk := mine.read(CHUNK):
                self._hash.update(chunk)
                self.size += len(chunk)

    def finish(self, expected: Digest | None = None, lease: Lease | None = None) -> Blob:
        """Publishes; raises DigestMismatch, with nothing published, when it is not `expected`.

        A blob that enters `lease` before it is published cannot be collected before a manifest names it.
        """
        digest = Digest(f"sha256:{self._hash.hexdigest()}")
        if expected is not None and digest != expected:
            raise DigestMismatch(expected, digest)
        if lease is not None:
            lease.add([digest])
        existed = self._store.publish(self._path, self._descriptor, digest, self.size)
        return Blob(digest, self.size, existed)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError, DiskFull):
            self._store.disk.unlink(self._path)
        os.close(self._descriptor)


class BlobStore:
    """The blobs of one store and, for reading, of the read-only stores beside it."""

    def __init__(self, root: Path, disk: Disk, lock: StoreLock, extra_roots: Sequence[Path] = ()) -> None:
        self.root = root
        self.disk = disk
        self.lock = lock
        self.staging = root / "staging"
        self._roots = (root, *extra_roots)

    # reading

    def find(self, digest: Digest, size: int | None = None) -> Path | None:
        """The path of the blob, ours first; with `size`, only a file of that many bytes counts."""
        for root in self._roots:
            path = blob_path(root, digest)
            try:
                found = path.stat()
            except OSError:
                continue
            if size is None or found.st_size == size:
                return path
        return None

    def exists(self, digest: Digest, size: int | None = None) -> bool:
        """Whether a blob of that name (and size) can be read."""
        return self.find(digest, size) is not None

    def owns(self, digest: Digest, size: int | None = None) -> bool:
        """Whether the blob lies in our own store, not only in one beside it."""
        try:
            found = blob_path(self.root, digest).stat()
        except OSError:
            return False
        return size is None or found.st_size == size

    def open(self, digest: Digest) -> BufferedReader:
        """The blob for reading; raises BlobNotFound."""
        path = self.find(digest)
        if path is None:
            raise BlobNotFound(digest)
        return path.open("rb")

    def read(self, digest: Digest, size: int, limit: int = 4 << 20) -> bytes:
        """A small blob whole, its digest proved; raises ModelCorrupt, BlobNotFound."""
        if size > limit:
            raise ModelCorrupt(
                f"layer {digest} is {size:,} bytes long; at most {limit:,} are allowed", digest
            )
        with self.open(digest) as file:
            data = file.read(size + 1)
        if len(data) != size or digest_of(data) != digest:
            raise ModelCorrupt(
                f"blob {digest} is damaged: it does not hash to its name; pull or create its model again",
                digest,
            )
        return data

    def verify(self, digest: Digest) -> None:
        """Reads the whole blob; raises BlobNotFound, or ModelCorrupt when it does not hash to its name."""
        with self.open(digest) as file:
            got = Digest(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
        if got != digest:
            raise ModelCorrupt(f"blob {digest} is damaged: it hashes to {got}", digest)

    def digests(self) -> Iterator[Digest]:
        """All blobs of our own store; strange names are passed over."""
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.root / "blobs"):
                if _DIGEST.fullmatch(entry.name):
                    yield parse_digest(entry.name)

    # writing

    def publish(self, staged: Path, descriptor: int, digest: Digest, size: int) -> bool:
        """Gives a staged file, whose bytes are known to hash to `digest`, its final name.

        The order is the guarantee: bytes durable, then the name, then the name durable. Returns whether
        a blob of that size was there already; one of another size is damaged and replaced.
        """
        final = blob_path(self.root, digest)
        if self.owns(digest, size):
            self.disk.unlink(staged)
            self.disk.sync_folder(final.parent)  # whoever made it may not have come to this yet
            return True
        self.disk.sync(descriptor)
        self.disk.rename(staged, final)
        self.disk.sync_folder(final.parent)
        return False

    def writer(self) -> BlobWriter:
        """A new blob to be filled; use it in a `with`."""
        return BlobWriter(self)

    def put_bytes(self, data: bytes, lease: Lease | None = None) -> Blob:
        """Stores these bytes."""
        digest = digest_of(data)
        if lease is not None:
            lease.add([digest])
        if self.owns(digest, len(data)):
            return Blob(digest, len(data), True)
        with self.writer() as writer:
            writer.push(data)
            return writer.finish()

    async def put_stream(
        self,
        chunks: AsyncIterable[bytes],
        expected: Digest | None = None,
        limit: int | None = None,
        lease: Lease | None = None,
    ) -> Blob:
        """Stores what arrives, in steps of a MiB off the event loop.

        Raises DigestMismatch, DiskFull, and ModelCorrupt when more than `limit` bytes come.
        """
        writer = await in_thread(self.writer)
        with writer:
            pending = bytearray()
            async for chunk in chunks:
                pending += chunk
                if limit is not None and writer.size + len(pending) > limit:
                    raise ModelCorrupt(f"upload is longer than the {limit:,} bytes allowed")
                if len(pending) >= CHUNK:
                    full, pending = pending, bytearray()
                    await in_thread(writer.push, memoryview(full))
            if pending:
                await in_thread(writer.push, memoryview(pending))
            return await in_thread(writer.finish, expected, lease)

    def put_file(
        self, source: Path, expected: Digest | None = None, link: bool = False, lease: Lease | None = None
    ) -> Blob:
        """Stores a file from elsewhere; `link` where its owner never changes a file in place.

        Shares blocks where the file system can, copies otherwise; the bytes are hashed in every case.
        Raises DigestMismatch, DiskFull, OSError.
        """
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if link:
                linked = self._link(source, file, size, expected, lease)
                if linked is not None:
                    return linked
            if self.disk.free_bytes(self.staging) < size:
                raise DiskFull(size, self.disk.free_bytes(self.staging))
            with self.writer() as writer:
                writer.copy(file)
                return writer.finish(expected, lease)

    def _link(
        self, source: Path, file: BufferedReader, size: int, expected: Digest | None, lease: Lease | None
    ) -> Blob | None:
        digest = Digest(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
        file.seek(0)
        if expected is not None and digest != expected:
            raise DigestMismatch(expected, digest)
        if lease is not None:
            lease.add([digest])
        if self.owns(digest, size):
            return Blob(digest, size, True)
        staged = self.staging / f"{secrets.token_hex(16)}.tmp"
        with (
            self.lock.shared()
        ):  # the link has no lock of its own: no collector may look until it is published
            if not self.disk.link(source, staged):
                return None
            try:
                if not os.path.samestat(staged.lstat(), os.fstat(file.fileno())):
                    return None  # the name was given to another file meanwhile
                existed = self.publish(staged, file.fileno(), digest, size)
            finally:
                self.disk.unlink(staged)
        return Blob(digest, size, existed)

    def adopt(self, digest: Digest, size: int) -> None:
        """Makes our own a blob that so far only a store beside ours has; raises BlobNotFound."""
        if self.owns(digest, size):
            return
        path = self.find(digest, size)
        if path is None:
            raise BlobNotFound(digest)
        self.put_file(path, digest, link=True)

    def remove(self, digest: Digest) -> None:
        """Removes our own blob; only the collector calls this, under the exclusive lock."""
        self.disk.unlink(blob_path(self.root, digest))

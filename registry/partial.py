"""A download in progress as it lies on disk: the partial file, the record beside it, and what is missing.

The record names the object (so that bytes of two versions never mix) and how far each part got; it never
claims bytes that a power cut could still take. Blocking; knows no network.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec

from registry.blobs import BlobStore
from registry.disk import Disk
from registry.locks import try_lock


def part_size(total: int, least: int) -> int:
    """Bytes of a part of a file: a sixteenth of it, but between `least` and eight times that."""
    return max(least, min(8 * least, -(-total // 16)))


@dataclass(slots=True)
class Part:
    """The bytes `start` to `end` (exclusive); those before `start + done` are written."""

    start: int
    end: int
    done: int = 0

    @property
    def position(self) -> int:
        """Where the next byte goes."""
        return self.start + self.done

    @property
    def missing(self) -> int:
        """Bytes still to come."""
        return self.end - self.start - self.done


class _Record(msgspec.Struct):
    identity: str
    validator: str
    size: int
    parts: list[tuple[int, int, int]]
    inode: int
    """Of the partial file: a record outlives its file when a crash comes between publishing and tidying."""


class Partial:
    """An open, locked partial file. `parts` is empty until the size of the object is known."""

    def __init__(self, blobs: BlobStore, key: str, identity: str) -> None:
        self.path = blobs.staging / f"{key}.partial"
        self.descriptor = -1
        self.identity = identity
        self.validator = ""
        self.size = -1
        self.parts: list[Part] = []
        self._blobs = blobs
        self._disk: Disk = blobs.disk
        self._record = self.path.with_suffix(".json")

    @property
    def done(self) -> int:
        """Bytes written so far."""
        return sum(part.done for part in self.parts)

    @property
    def frontier(self) -> int:
        """How many bytes from the beginning on are there without a gap."""
        for part in self.parts:
            if part.missing:
                return part.position
        return max(self.size, 0)

    def try_open(self) -> bool:
        """Opens and locks the file; False while another process has it."""
        with self._blobs.lock.shared():
            descriptor = self._disk.open_or_create(self.path)
            if not try_lock(descriptor) or not _still_named(self.path, descriptor):
                os.close(descriptor)
                return False
        self.descriptor = descriptor
        self._load()
        return True

    def close(self) -> None:
        """Lets go of the file; what it holds stays for the next try."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _load(self) -> None:
        """Takes over what an earlier run left, if it was about the same object."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            record = msgspec.json.decode(self._record.read_bytes(), type=_Record)
            parts = [Part(*numbers) for numbers in record.parts]
            found = os.fstat(self.descriptor)
            same_file = (found.st_ino, found.st_size) == (record.inode, record.size)
            if same_file and record.identity == self.identity and _consistent(parts, record.size):
                self.size, self.validator, self.parts = record.size, record.validator, parts

    def begin(self, size: int, step: int) -> None:
        """Lays out an object of `size` bytes in parts of `step` bytes."""
        self._disk.unlink(self._record)
        self.size = size
        step = max(step, 1)
        self.parts = [Part(start, min(start + step, size)) for start in range(0, max(size, 1), step)]
        self._disk.truncate(self.descriptor, size)

    def restart(self) -> None:
        """Forgets everything: the object changed, or the bytes proved wrong."""
        self.size, self.validator, self.parts = -1, "", []
        self._disk.unlink(self._record)
        self._disk.truncate(self.descriptor, 0)

    def write(self, part: Part, data: bytes | bytearray) -> None:
        """Puts bytes at the part's position."""
        self._disk.write(self.descriptor, memoryview(data), part.position)
        part.done += len(data)

    def save(self) -> None:
        """Makes what is written durable and then records it, atomically."""
        parts = [(part.start, part.end, part.done) for part in self.parts]
        self._disk.sync(self.descriptor)
        inode = os.fstat(self.descriptor).st_ino
        data = msgspec.json.encode(_Record(self.identity, self.validator, self.size, parts, inode))
        staged = self.path.with_name(f"{secrets.token_hex(16)}.tmp")
        descriptor = self._disk.create(staged)
        try:
            try_lock(descriptor)
            self._disk.write(descriptor, data)
            self._disk.sync(descriptor)
            self._disk.rename(staged, self._record)
        except BaseException:
            with contextlib.suppress(Exception):
                self._disk.unlink(staged)
            raise
        finally:
            os.close(descriptor)

    def forget_record(self) -> None:
        """After publishing: there is nothing left to resume."""
        self._disk.unlink(self._record)


def recorded(staging: Path, key: str, identity: str) -> int:
    """Bytes of an object that an earlier try left to go on from; a look without a lock."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        record = msgspec.json.decode((staging / f"{key}.json").read_bytes(), type=_Record)
        if record.identity == identity and (staging / f"{key}.partial").stat().st_size == record.size:
            return sum(done for _, _, done in record.parts)
    return 0


def _consistent(parts: list[Part], size: int) -> bool:
    """Whether the parts lie end to end over exactly `size` bytes."""
    position = 0
    for part in parts:
        if part.start != position or not 0 <= part.done <= part.end - part.start:
            return False
        position = part.end
    return bool(parts) and position == size


def _still_named(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class Hashes:
    """Every checksum that a source may declare, computed in one pass from the beginning of a file on."""

    def __init__(self, size: int, git: bool = False, md5: bool = False) -> None:
        self.position = 0
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git else None
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None

    def advance(self, descriptor: int, end: int, step: int = 4 << 20) -> None:
        """Reads on up to `end`; a short read leaves the rest for later."""
        while self.position < end:
            data = os.pread(descriptor, min(step, end - self.position), self.position)
            if not data:
                return
            for each in (self._sha256, self._git, self._md5):
                if each is not None:
                    each.update(data)
            self.position += len(data)

    def sha256(self) -> str:
        """64 hex digits."""
        return self._sha256.hexdigest()

    def git(self) -> str:
        """The id git gives the file: SHA-1 over a header with the size, then the bytes."""
        return self._git.hexdigest() if self._git else ""

    def md5(self) -> str:
        """32 hex digits."""
        return self._md5.hexdigest() if self._md5 else ""

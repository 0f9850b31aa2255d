"""Locks and leases between the processes (and threads) that share one store, on `flock`.

The kernel drops a `flock` when its holder dies, however it dies, so nothing here can be left behind:
a lock file without a living holder means nothing. Knows file names and digests as text, nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from registry.disk import Disk, translated

_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def try_lock(descriptor: int) -> bool:
    """Takes the exclusive lock of an open file if nobody living holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class StoreLock:
    """One lock file. `shared` for adding things, `exclusive` for changing names and for collecting."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def _held(self, kind: int) -> Iterator[None]:
        with translated():
            descriptor = os.open(self._path, _OPEN, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def shared(self) -> contextlib.AbstractContextManager[None]:
        """Held together with other shared holders; waits for an exclusive one."""
        return self._held(fcntl.LOCK_SH)

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Held alone. Never taken twice by one thread: the second would wait for the first."""
        return self._held(fcntl.LOCK_EX)


class Lease:
    """Digests that no collection may remove while this lease (so its process) lives.

    Adding happens under the store's shared lock and collecting under its exclusive lock: a blob seen
    after it was added here stays until `close`.
    """

    def __init__(self, folder: Path, lock: StoreLock, disk: Disk) -> None:
        self._lock = lock
        self._disk = disk
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        with lock.shared():
            self._descriptor = disk.create(self._path)
            try_lock(self._descriptor)

    def add(self, digests: Iterable[str]) -> None:
        """Protects these as well."""
        text = "".join(f"{digest}\n" for digest in digests)
        if text:
            with self._lock.shared():
                self._disk.write(self._descriptor, text.encode())

    def close(self) -> None:
        """Gives the protection up; harmless when repeated."""
        if self._descriptor >= 0:
            self._disk.unlink(self._path)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _read_all(descriptor: int) -> str:
    with os.fdopen(os.dup(descriptor), "r", encoding="utf-8") as file:
        return file.read()


def leased(folder: Path, disk: Disk) -> set[str]:
    """All digests under a living lease; leases of the dead are removed. Call under the exclusive lock."""
    found: set[str] = set()
    for path in folder.iterdir():
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if try_lock(descriptor):
                disk.unlink(path)
            else:
                found.update(_read_all(descriptor).split())  # not by name: its owner may give it up just now
        finally:
            os.close(descriptor)
    return found

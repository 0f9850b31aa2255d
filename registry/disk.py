"""Every change this package makes to the file system, one method each.

Nothing else in `registry` writes, renames, links or removes: that is what lets the crash tests count,
fail and record each step by passing another `Disk`. Knows nothing of blobs or manifests.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from registry.errors import DiskFull, StoreUnwritable

FILE_MODE = 0o600
FOLDER_MODE = 0o700
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_FICLONE = 0x40049409
"""Linux `ioctl` that shares a file's blocks with another file of the same file system (ioctl_ficlone(2))."""


@contextlib.contextmanager
def translated(needed: int = 0) -> Iterator[None]:
    """Turns the system's "no room" and "not allowed" into this package's errors."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(needed, -1) from error
        if error.errno in _DENIED:
            raise StoreUnwritable(
                f"cannot write to the model store: {os.strerror(error.errno or 0)}; "
                "check who owns its folder, or point GEMMULE_MODELS elsewhere"
            ) from error
        raise


class Disk:
    """The real file system. Methods raise DiskFull, StoreUnwritable or OSError."""

    def create(self, path: Path) -> int:
        """A new empty file open for reading and writing; the name must be free."""
        with translated():
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)

    def open_or_create(self, path: Path) -> int:
        """A file open for reading and writing, kept as it is when already there."""
        with translated():
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)

    def write(self, descriptor: int, data: bytes | memoryview, offset: int | None = None) -> None:
        """All of `data`, at `offset` or at the file's position."""
        view = memoryview(data)
        with translated(len(view)):
            while view:
                if offset is None:
                    view = view[os.write(descriptor, view) :]
                else:
                    written = os.pwrite(descriptor, view, offset)
                    view, offset = view[written:], offset + written

    def truncate(self, descriptor: int, size: int) -> None:
        """Makes the file `size` bytes long; what is added is a hole."""
        with translated(size):
            os.ftruncate(descriptor, size)

    def share_blocks(self, source: int, target: int) -> bool:
        """Makes `target` a copy of `source` without copying, where the file system can; False where not."""
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError:
            return False
        return True

    def sync(self, descriptor: int) -> None:
        """Returns once the file's bytes would survive a power cut. A failure here is never retried:
        after a failed fsync the kernel may have dropped the pages and call the next one a success."""
        with translated():
            if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone stops at the drive's own cache
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            else:
                os.fsync(descriptor)

    def sync_folder(self, folder: Path) -> None:
        """Returns once the names in the folder would survive a power cut."""
        with translated():
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Atomically gives `source` the name `target`, replacing what was there."""
        with translated():
            source.rename(target)

    def link(self, source: Path, target: Path) -> bool:
        """Gives a file a second name; False where the file system or its rules forbid it.

        Of a symbolic link it is the file that gets the name: `os.link` would name the link again on Linux.
        """
        try:
            os.link(source.resolve(strict=True), target)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFull(0, -1) from error
            return False
        return True

    def unlink(self, path: Path) -> None:
        """Removes a name; no error when it is already gone."""
        with translated(), contextlib.suppress(FileNotFoundError):
            path.unlink()

    def make_folder(self, folder: Path) -> None:
        """The folder and its missing parents, 0700, each durable in its own parent."""
        missing: list[Path] = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for each in reversed(missing):
            with translated(), contextlib.suppress(FileExistsError):
                each.mkdir(FOLDER_MODE)
            self.sync_folder(each.parent)

    def remove_folder(self, folder: Path) -> bool:
        """Removes an empty folder; False when it is not empty or already gone."""
        try:
            folder.rmdir()
        except OSError:
            return False
        return True

    def free_bytes(self, folder: Path) -> int:
        """Bytes that a user without special rights can still write there."""
        return shutil.disk_usage(folder).free

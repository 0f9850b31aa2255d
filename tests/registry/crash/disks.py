"""Disks that die, fail or remember, for the crash tests: each overrides every method that changes things."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.disk import Disk, translated


class StepDisk(Disk):
    """Calls `step(name)` before each change; subclasses say what that does."""

    def step(self, name: str) -> None:
        """Before a change."""

    def create(self, path: Path) -> int:
        self.step("create")
        return super().create(path)

    def open_or_create(self, path: Path) -> int:
        self.step("open")
        return super().open_or_create(path)

    def write(self, descriptor: int, data: bytes | memoryview, offset: int | None = None) -> None:
        self.step("write")
        super().write(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        self.step("truncate")
        super().truncate(descriptor, size)

    def share_blocks(self, source: int, target: int) -> bool:
        return False  # copies are what the other steps are about

    def sync(self, descriptor: int) -> None:
        self.step("sync")
        super().sync(descriptor)

    def sync_folder(self, folder: Path) -> None:
        self.step("sync_folder")
        super().sync_folder(folder)

    def rename(self, source: Path, target: Path) -> None:
        self.step("rename")
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> bool:
        self.step("link")
        return super().link(source, target)

    def unlink(self, path: Path) -> None:
        self.step("unlink")
        super().unlink(path)

    def remove_folder(self, folder: Path) -> bool:
        self.step("rmdir")
        return super().remove_folder(folder)


class CountingDisk(StepDisk):
    """Counts the changes."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def step(self, name: str) -> None:
        self.names.append(name)


class KillingDisk(StepDisk):
    """Kills this process before change number `at`; with `torn`, a write is first done by half."""

    def __init__(self, at: int, torn: bool = False) -> None:
        self._left = at
        self._torn = torn
        self._lock = threading.Lock()

    def step(self, name: str) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0 and not (self._torn and name == "write"):
                os.kill(os.getpid(), signal.SIGKILL)

    def write(self, descriptor: int, data: bytes | memoryview, offset: int | None = None) -> None:
        self.step("write")
        if self._torn and self._left == 0:
            Disk.write(self, descriptor, memoryview(data)[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        Disk.write(self, descriptor, data, offset)


class FailingDisk(StepDisk):
    """Fails change number `at` with this error, and all later ones where `onwards`; counts what it failed."""

    def __init__(self, at: int, number: int = errno.ENOSPC, onwards: bool = False) -> None:
        self._left = at
        self._number = number
        self._onwards = onwards
        self._lock = threading.Lock()
        self.failed: list[str] = []

    def step(self, name: str) -> None:
        with self._lock:
            self._left -= 1
            due = self._left == 0 or (self._left < 0 and self._onwards)
            if not due or name in ("unlink", "rmdir", "open"):  # these need no room
                return
            self.failed.append(name)
        with translated():
            raise OSError(self._number, os.strerror(self._number))


@dataclass(frozen=True, slots=True)
class Change:
    """One recorded change; `inode` names the file, whatever it is called by now."""

    kind: str
    inode: int = -1
    path: str = ""
    target: str = ""
    data: bytes = b""
    offset: int = 0


class RecordingDisk(Disk):
    """Writes down every change, with its bytes, in the order in which they happened."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.RLock()
        self.log: list[Change] = []

    def mark(self, text: str) -> None:
        """A note in the log, like "success"."""
        self.log.append(Change("mark", path=text))

    def _path(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else ""

    def _record(self, act: Callable[[], Any], make: Callable[[Any], Change]) -> Any:
        with self._lock:
            result = act()
            self.log.append(make(result))
            return result

    def create(self, path: Path) -> int:
        return int(
            self._record(
                lambda: Disk.create(self, path),
                lambda fd: Change("create", os.fstat(fd).st_ino, self._path(path)),
            )
        )

    def open_or_create(self, path: Path) -> int:
        with self._lock:
            if path.exists():
                return super().open_or_create(path)
            return self.create(path)

    def write(self, descriptor: int, data: bytes | memoryview, offset: int | None = None) -> None:
        place = os.lseek(descriptor, 0, os.SEEK_CUR) if offset is None else offset
        self._record(
            lambda: Disk.write(self, descriptor, data, offset),
            lambda _: Change("write", os.fstat(descriptor).st_ino, data=bytes(data), offset=place),
        )

    def truncate(self, descriptor: int, size: int) -> None:
        self._record(
            lambda: Disk.truncate(self, descriptor, size),
            lambda _: Change("truncate", os.fstat(descriptor).st_ino, offset=size),
        )

    def share_blocks(self, source: int, target: int) -> bool:
        return False

    def sync(self, descriptor: int) -> None:
        self._record(
            lambda: Disk.sync(self, descriptor), lambda _: Change("sync", os.fstat(descriptor).st_ino)
        )

    def sync_folder(self, folder: Path) -> None:
        self._record(
            lambda: Disk.sync_folder(self, folder), lambda _: Change("sync_folder", path=self._path(folder))
        )

    def rename(self, source: Path, target: Path) -> None:
        self._record(
            lambda: Disk.rename(self, source, target),
            lambda _: Change("rename", target.stat().st_ino, self._path(source), self._path(target)),
        )

    def link(self, source: Path, target: Path) -> bool:
        linked = self._record(
            lambda: Disk.link(self, source, target),
            lambda done: Change(
                "link", target.stat().st_ino if done else -1, target=self._path(target),
                data=source.read_bytes() if done and not self._path(source) else b"",
            ),
        )  # fmt: skip
        return bool(linked)

    def unlink(self, path: Path) -> None:
        self._record(lambda: Disk.unlink(self, path), lambda _: Change("unlink", path=self._path(path)))

    def make_folder(self, folder: Path) -> None:
        with self._lock:
            missing = []
            while not folder.is_dir():
                missing.append(folder)
                folder = folder.parent
            for each in reversed(missing):
                each.mkdir(0o700)
                self.log.append(Change("mkdir", path=self._path(each)))
                self.sync_folder(each.parent)

    def remove_folder(self, folder: Path) -> bool:
        return bool(
            self._record(
                lambda: Disk.remove_folder(self, folder),
                lambda done: Change("rmdir" if done else "mark", path=self._path(folder)),
            )
        )

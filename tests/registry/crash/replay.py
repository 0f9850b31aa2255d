"""Power loss: replays recorded changes with those dropped that no fsync had made durable, and examines.

Bytes of a file are durable once that file was synced; names once their folder was. At a cut after any
change, everything durable is there, and of the rest any subset: here none, all, or all but one. That is
more pessimistic than any file system in use. Run as a program: `python -m tests.registry.crash.replay`.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from registry.disk import Disk
from tests.registry.conftest import fast_folder
from tests.registry.crash.disks import Change, RecordingDisk
from tests.registry.crash.operations import OPERATIONS, PULLED, World
from tests.registry.crash.oracle import examine
from tests.registry.fakehub import FakeHub


@dataclass(slots=True)
class File:
    """A file: the bytes that are safe, and the changes that are not yet."""

    durable: bytes = b""
    pending: list[Change] = field(default_factory=list)

    def bytes(self, dropped: set[int]) -> bytes:
        """Its content when the pending changes of these numbers (ids of the objects) were lost."""
        data = bytearray(self.durable)
        for change in self.pending:
            if id(change) in dropped:
                continue
            if change.kind == "truncate":
                data = data[: change.offset] + bytearray(max(0, change.offset - len(data)))
            else:
                end = change.offset + len(change.data)
                data += bytearray(max(0, end - len(data)))
                data[change.offset : end] = change.data
        return bytes(data)


class Volume:
    """A disk as a power cut would find it."""

    def __init__(self, root: Path) -> None:
        self.files: dict[int, File] = {}
        self.names: dict[str, int] = {}
        self.folders: set[str] = set()
        self.pending: list[Change] = []
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_dir():
                self.folders.add(name)
            else:
                inode = path.stat().st_ino
                self.files[inode] = File(path.read_bytes())
                self.names[name] = inode

    def apply(self, change: Change) -> None:
        """Takes one recorded change."""
        if change.kind in ("write", "truncate"):
            self.files.setdefault(change.inode, File()).pending.append(change)
        elif change.kind == "sync":
            file = self.files.setdefault(change.inode, File())
            file.durable, file.pending = file.bytes(set()), []
        elif change.kind == "sync_folder":
            for each in list(self.pending):
                if _settled(each, change.path):
                    self._settle(each, self.names, self.folders)
                    self.pending.remove(each)
        elif change.kind != "mark":
            if change.kind == "create":
                self.files[change.inode] = File()
            if change.kind == "link" and change.data:
                self.files[change.inode] = File(change.data)
            self.pending.append(change)

    @staticmethod
    def _settle(change: Change, names: dict[str, int], folders: set[str]) -> None:
        if change.kind == "mkdir":
            folders.add(change.path)
        elif change.kind == "rmdir":
            folders.discard(change.path)
        elif change.kind == "create":
            names[change.path] = change.inode
        elif change.kind == "unlink":
            names.pop(change.path, None)
        else:
            names[change.target] = change.inode
            if change.kind == "rename":
                names.pop(change.path, None)

    def cuts(self) -> Iterator[set[int]]:
        """The sets of changes that a cut now may lose."""
        loose = [id(change) for change in self.pending]
        loose += [id(change) for file in self.files.values() for change in file.pending]
        yield set(loose)
        if loose:
            yield set()
        if len(loose) > 1:
            for each in loose:
                yield {each}
                yield set(loose) - {each}

    def write(self, target: Path, dropped: set[int]) -> None:
        """Makes the state on a real disk."""
        names, folders = dict(self.names), set(self.folders)
        for change in self.pending:
            if id(change) not in dropped:
                self._settle(change, names, folders)
        for folder in sorted(folders):
            if all(parent.as_posix() in folders for parent in list(PurePosixPath(folder).parents)[:-1]):
                (target / folder).mkdir(parents=True, exist_ok=True)
        for name, inode in names.items():
            if (target / name).parent.is_dir():
                (target / name).write_bytes(self.files[inode].bytes(dropped))


def _settled(change: Change, folder: str) -> bool:
    """Whether syncing `folder` makes this change durable: a rename counts by where it leads."""
    name = change.target or change.path
    parent = PurePosixPath(name).parent.as_posix()
    return parent == (folder or ".") or (parent == "." and folder in ("", "."))


def replay(name: str, hub: str, scratch: Path, limit: int, forget: str = "none") -> tuple[int, list[str]]:
    """Cuts one operation after every change, at most `limit` states spread evenly over all there are.

    Returns how many states were examined and what was wrong with them. Changes of the kind `forget` are
    taken as never made: without its fsyncs the product must be found wanting, or this finds nothing.
    """
    operation = OPERATIONS[name]
    world = World(scratch / "models", scratch / "files", hub)
    world.root.mkdir(parents=True)
    operation.prepare(world, Disk())
    old = examine(world.root)
    before = Volume(world.root)
    disk = RecordingDisk(world.root)
    operation.act(world, disk)
    disk.log = [change for change in disk.log if change.kind != forget]
    disk.mark("success")
    new = examine(world.root)
    total = sum(1 for _ in _states(before, disk.log))
    step = max(1, total // limit)
    count, failures = 0, []
    for number, (position, volume, dropped) in enumerate(_states(before, disk.log)):
        if number % step:
            continue
        count += 1
        place = scratch / "cut"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        volume.write(place, dropped)
        found = examine(place)
        wrong = [problem for problem in found.problems if problem not in old.problems]
        finished = position == len(disk.log)
        if found.view not in ([new.view] if finished else [old.view, new.view]):
            wrong.append(f"names are {sorted(found.view)}")
        failures += [f"{name} cut after change {position} of {len(disk.log)}: {problem}" for problem in wrong]
    return count, failures


def _states(before: Volume, log: list[Change]) -> Iterator[tuple[int, Volume, set[int]]]:
    """Every prefix of the log with every set of losses; the volume is only good until the next step."""
    volume = copy.deepcopy(before)
    for position, change in enumerate(log, 1):
        volume.apply(change)
        for dropped in volume.cuts():
            yield position, volume, dropped


def replay_all(limit: int, only: str = "") -> dict[str, object]:
    """All operations, at most `limit` states of each."""
    began = time.monotonic()
    states, failures = 0, []
    with FakeHub() as hub, tempfile.TemporaryDirectory(dir=fast_folder()) as place:
        hub.add_oci("me/fox", PULLED)
        for name in OPERATIONS:
            if only in name:
                count, wrong = replay(name, hub.netloc, Path(place) / name.replace(" ", "-"), limit)
                states += count
                failures += wrong
    return {"states": states, "failures": failures, "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    """The long version."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=400, help="states of each operation")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    result = replay_all(arguments.limit, arguments.only)
    print(json.dumps(result))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())

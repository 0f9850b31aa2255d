"""Kills every operation before each of its changes to the disk, and examines what is left.

A process forks one child per kill: the child works on a copy of the prepared store and dies by SIGKILL;
then the oracle looks, a second child repeats the operation, and the oracle looks again. Run as a program
for the long version: `python -m tests.registry.crash.sweep --kills 2000`; prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from registry.disk import Disk
from registry.store import Store
from tests.registry.conftest import fast_folder
from tests.registry.crash.disks import CountingDisk, KillingDisk
from tests.registry.crash.operations import OPERATIONS, PULLED, Operation, World
from tests.registry.crash.oracle import Finding, examine
from tests.registry.fakehub import FakeHub


def in_child(act: object, world: World, disk: Disk) -> int:
    """Runs the operation in a forked child; its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act(world, disk)  # type: ignore[operator]
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


class Sweep:
    """The kills of one operation. `kills`, `points` and `failures` tell the result."""

    def __init__(self, name: str, operation: Operation, hub: str, scratch: Path) -> None:
        self._name = name
        self._operation = operation
        self._hub = hub
        self._scratch = scratch
        self.kills = 0
        self.failures: list[str] = []
        self._before = World(scratch / "before" / "models", scratch / "before" / "files", hub)
        self._before.root.parent.mkdir(parents=True)
        assert in_child(operation.prepare, self._before, Disk()) == 0
        self._old = examine(self._before.root)
        done = self._copy()
        counting = scratch / "names"
        assert in_child(lambda world, disk: self._count(world, counting), done, Disk()) == 0
        self.steps: list[str] = json.loads(counting.read_text())
        self._new = examine(done.root)

    def _count(self, world: World, target: Path) -> None:
        disk = CountingDisk()
        self._operation.act(world, disk)
        target.write_text(json.dumps(disk.names))

    def _copy(self) -> World:
        place = self._scratch / "now"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self._before.root.parent, place)
        return World(place / "models", place / "files", self._hub)

    def kill_at(self, number: int, torn: bool) -> None:
        """One kill, the look, the repetition (killed again at times), the second look."""
        world = self._copy()
        status = in_child(self._operation.act, world, KillingDisk(number, torn))
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        self.kills += killed
        if not killed and status != 0:
            self._fail(number, torn, "the operation failed before it was killed")
        self._look(number, torn, examine(world.root), (self._old.view, self._new.view))
        finding = examine(world.root)
        if self._operation.once and finding.view == self._new.view:
            assert in_child(lambda world, disk: Store.open(world.root).collect_garbage(), world, Disk()) == 0
        elif in_child(self._operation.act, world, Disk()) != 0:
            self._fail(number, torn, "the repetition failed")
        self._look(number, torn, examine(world.root), (self._new.view,))
        assert in_child(lambda world, disk: Store.open(world.root).prune(), world, Disk()) == 0
        last = examine(world.root)
        left = [name for name in last.staged if not name.startswith("dead")]
        if (last.orphans or left) and self._name != "repair":
            self._fail(number, torn, f"left behind {sorted(last.orphans)[:3]} {left[:3]}")

    def _look(self, number: int, torn: bool, finding: Finding, allowed: tuple[dict[str, str], ...]) -> None:
        known = set(self._old.problems)
        for problem in finding.problems:
            if problem not in known:
                self._fail(number, torn, problem)
        if finding.view not in allowed:
            self._fail(number, torn, f"names are {finding.view}, want one of {allowed}")

    def _fail(self, number: int, torn: bool, text: str) -> None:
        step = self.steps[number - 1] if number <= len(self.steps) else "end"
        self.failures.append(f"{self._name} at {number} ({step}{', torn' if torn else ''}): {text}")


def sweep(kills: int, seed: int = 0, only: str = "", most_seconds: float = 1e9) -> dict[str, object]:
    """About `kills` kills spread over all operations and all their points, each point at least once if there
    are enough."""
    chance = random.Random(seed)
    began = time.monotonic()
    total, points, failures = 0, 0, []
    with FakeHub() as hub, tempfile.TemporaryDirectory(dir=fast_folder()) as place:
        hub.add_oci("me/fox", PULLED)
        sweeps = [
            Sweep(name, operation, hub.netloc, Path(place) / name.replace(" ", "-"))
            for name, operation in OPERATIONS.items()
            if only in name
        ]
        cases = [(each, number, torn) for each in sweeps for number, torn in _points(each)]
        points = len(cases)
        chance.shuffle(cases)
        while total < kills and time.monotonic() - began < most_seconds:
            for each, number, torn in cases:
                before = each.kills
                each.kill_at(number, torn)
                total += each.kills - before
                if total >= kills or time.monotonic() - began > most_seconds:
                    break
        for each in sweeps:
            failures += each.failures
    seconds = round(time.monotonic() - began, 1)
    return {"kills": total, "points": points, "failures": failures, "seconds": seconds}


def _points(each: Sweep) -> list[tuple[int, bool]]:
    plain = [(number, False) for number in range(1, len(each.steps) + 1)]
    return plain + [(number, True) for number, name in enumerate(each.steps, 1) if name == "write"]


def main() -> int:
    """The long version."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long, with what was done")
    arguments = parser.parse_args()
    result = sweep(arguments.kills, arguments.seed, arguments.only, arguments.seconds)
    print(json.dumps(result))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())

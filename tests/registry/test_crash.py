"""Interrupted work: killed processes, power cuts, full and failing disks, several processes at once.

Bounded versions of the programs in `crash/`, which run for longer: `python -m tests.registry.crash.sweep`
(kills) and `python -m tests.registry.crash.replay` (power cuts).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from registry.disk import Disk
from registry.errors import DiskFull, ModelNotFound, RegistryError
from registry.store import Store
from tests.registry.conftest import gguf_bytes
from tests.registry.crash.disks import CountingDisk, FailingDisk
from tests.registry.crash.operations import OPERATIONS, PULLED, World, add
from tests.registry.crash.oracle import examine
from tests.registry.crash.replay import replay, replay_all
from tests.registry.fakehub import FakeHub, Fault

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTIBLE = [name for name in OPERATIONS if name != "pull"]


@pytest.mark.slow
def test_killed_anywhere_the_store_is_old_or_new() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.registry.crash.sweep", "--kills", "25", "--seed", str(os.getpid())],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["failures"] == []
    assert result["kills"] >= 25


@pytest.mark.slow
def test_after_a_power_cut_the_store_is_old_or_new() -> None:
    result = replay_all(limit=12)
    assert result["failures"] == []
    assert int(str(result["states"])) > 100


@pytest.mark.parametrize("forget", ["sync", "sync_folder"])
def test_the_replay_finds_a_forgotten_fsync(tmp_path: Path, forget: str) -> None:
    assert replay("create over", "", tmp_path / "store", limit=60, forget=forget)[1]


@pytest.mark.slow
@pytest.mark.parametrize("onwards", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("name", ["create over", "copy new", "copy over", "import", "upload"])
def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path, name: str, onwards: bool) -> None:
    operation = OPERATIONS[name]
    world = World(tmp_path / "models", tmp_path / "files")
    operation.prepare(world, Disk())
    old = examine(world.root)
    finished = World(tmp_path / "finished", tmp_path / "files")
    operation.prepare(finished, Disk())
    operation.act(finished, Disk())
    new = examine(finished.root)
    for at in range(1, 200):
        disk = FailingDisk(at, errno.ENOSPC, onwards)
        try:
            operation.act(world, disk)
        except DiskFull as error:
            assert "disk full" in str(error)
            found = examine(world.root)
            assert found.problems == []
            assert found.view in (old.view, new.view)  # new: all done but the proof that it lasts
            continue
        if not disk.failed:
            break  # past the last change
        assert name == "upload"  # what failed was only the unneeded part of a blob that exists
    else:
        pytest.fail("the operation never ended")
    assert examine(world.root).problems == []


@pytest.mark.parametrize("name", ["create over", "upload", "copy new"])
def test_a_failed_fsync_is_never_a_success(tmp_path: Path, name: str) -> None:
    operation = OPERATIONS[name]
    world = World(tmp_path / "models", tmp_path / "files")
    operation.prepare(world, Disk())
    counting = CountingDisk()
    operation.act(World(tmp_path / "models", tmp_path / "files"), counting)

    class SyncFails(FailingDisk):
        def step(self, step: str) -> None:
            if step.startswith("sync"):
                super().step(step)

    fresh = World(tmp_path / "again", tmp_path / "files")
    operation.prepare(fresh, Disk())
    syncs = sum(step.startswith("sync") for step in counting.names)
    assert syncs
    failed = 0
    for at in range(1, syncs + 1):
        disk = SyncFails(at, errno.EIO)
        try:
            operation.act(fresh, disk)
        except OSError as error:
            assert error.errno == errno.EIO
            failed += 1
            assert examine(fresh.root).problems == []
            continue
        assert not disk.failed
        break
    assert failed


@pytest.mark.slow
def test_the_systems_own_limit_on_files_ends_a_pull_cleanly(tmp_path: Path) -> None:
    with FakeHub() as hub:
        hub.add_oci("me/fox", PULLED)
        code = (
            "import resource, sys\n"
            "from pathlib import Path\n"
            "from registry.disk import Disk\n"
            "from registry.errors import DiskFull\n"
            "from tests.registry.crash.operations import World, pull\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
            f"world = World(Path({str(tmp_path / 'models')!r}), Path({str(tmp_path)!r}), {hub.netloc!r})\n"
            "try:\n    pull(world, Disk())\nexcept DiskFull as error:\n    print(error)\n    sys.exit(7)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.split(":")[0]) == (7, "disk full"), done.stderr
        assert examine(tmp_path / "models").view == {}
        world = World(tmp_path / "models", tmp_path, hub.netloc)
        OPERATIONS["pull"].act(world, Disk())
        assert examine(tmp_path / "models").problems == []
        assert list(examine(tmp_path / "models").view) == ["registry.ollama.ai/library/target/latest"]


WORKER = """
import random, sys
from pathlib import Path
from registry.errors import ModelCorrupt, ModelNotFound
from registry.store import Store
from tests.registry.conftest import gguf_bytes
from tests.registry.crash.operations import add
chance = random.Random(int(sys.argv[2]))
store = Store.open(Path(sys.argv[1]))
print("ready", flush=True)
for step in range(int(sys.argv[3])):
    name = f"m{chance.randrange(6)}"
    try:
        act = chance.choice(["add", "add", "copy", "delete", "list", "get", "collect"])
        if act == "add":
            add(store, name, gguf_bytes(chance.randrange(4)), top_k=chance.randrange(3))
        elif act == "copy":
            store.copy(name, f"m{chance.randrange(6)}")
        elif act == "delete":
            store.delete(name)
        elif act == "get":
            store.get(name)
        elif act == "collect":
            store.collect_garbage()
        else:
            for model in store.list():
                pass
            assert not [each for each in store.problems() if "missing" not in each.message], store.problems()
    except ModelNotFound:
        pass
print("done", flush=True)
"""


@pytest.mark.slow
def test_several_processes_share_a_store_and_one_is_killed(tmp_path: Path) -> None:
    root = tmp_path / "models"
    Store.open(root)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(root), str(seed), "120" if seed else "100000"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in range(3)
    ]  # fmt: skip
    assert workers[0].stdout is not None
    assert workers[0].stdout.readline() == "ready\n"
    time.sleep(1.0)
    workers[0].kill()  # whatever it held, the others go on
    workers[0].communicate()
    for worker in workers[1:]:
        output, errors = worker.communicate(timeout=90)
        assert output.endswith("done\n"), errors[-2000:]
    assert examine(root).problems == []
    Store.open(root).collect_garbage()
    final = examine(root)
    assert (final.orphans, final.staged, final.problems) == (set(), [], [])
    assert not list((root / "leases").iterdir())


@pytest.mark.slow
def test_threads_see_what_a_dictionary_would_show(store: Store) -> None:
    """One thread's changes, all kinds mixed, against a plain dict; others read and collect meanwhile."""
    chance = random.Random(5)
    expected: dict[str, tuple[int, int]] = {}
    stop = threading.Event()
    errors: list[BaseException] = []

    def disturb() -> None:
        try:
            while not stop.is_set():
                store.list()
                store.collect_garbage()
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=disturb) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(40):
            name, other = f"m{chance.randrange(5)}", f"M{chance.randrange(5)}"
            act = chance.choice(["add", "copy", "delete"])
            if act == "add":
                expected[name] = (chance.randrange(3), chance.randrange(3))
                add(store, name, gguf_bytes(expected[name][0]), top_k=expected[name][1])
            elif act == "copy" and name in expected:
                store.copy(name, other)
                expected[other.lower()] = expected[name]
            elif act == "delete":
                if name in expected:
                    store.delete(name)
                    del expected[name]
                else:
                    with pytest.raises(ModelNotFound):
                        store.delete(name)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert errors == []
    shown = {model.name.model.lower(): model.parameters["top_k"] for model in store.list()}
    assert shown == {name: top_k for name, (_, top_k) in expected.items()}
    assert examine(store.root).problems == []


@pytest.mark.slow
def test_a_lock_is_free_as_soon_as_its_holder_is_killed(store: Store) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom registry.store import Store\n"
        f"with Store.open(Path({str(store.root)!r})).lock.exclusive():\n"
        "    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.communicate()
    began = time.monotonic()
    add(store, "fox", gguf_bytes())
    assert time.monotonic() - began < 1.0
    with pytest.raises(RegistryError):
        store.get("ghost")


PART = 2 << 20
"""Bytes of a part of the pulls below."""


def pulling(store: Path, reference: str, connections: int) -> subprocess.Popen[str]:
    """A pull in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.registry.crash.one_pull", str(store), reference, str(connections),
         str(PART)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("connections", [1, 8])
def test_a_killed_pull_repeats_at_most_one_part(tmp_path: Path, connections: int) -> None:
    data = gguf_bytes(1, 16 * PART - 200)
    digest = hashlib.sha256(data).hexdigest()
    got = PART * 3 // 4 - 1000
    with FakeHub() as hub:
        name = hub.add_oci("me/big", [("model", data)])
        hub.faults[digest] = [Fault()] * 3 + [Fault(hang_at=got)] * connections
        had = 3 * PART + connections * got
        with pulling(tmp_path / "models", name, connections) as child:
            deadline = time.monotonic() + 20
            while hub.sent(digest) < had and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.5)  # what was sent has come, and what was due is saved
            child.kill()
        assert hub.sent(digest) == had
        with pulling(tmp_path / "models", name, connections) as child:
            assert child.wait(30) == 0
        assert 0 < hub.sent(digest) - len(data) <= PART
    assert Store.open(tmp_path / "models").fsck().problems == ()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak so")
def test_a_pull_takes_little_memory_whatever_the_size(tmp_path: Path) -> None:
    with FakeHub() as hub:
        name = hub.add_oci("me/big", [("model", gguf_bytes(1, 300 << 20))])
        with pulling(tmp_path / "models", name, 8) as child:
            assert child.stdout is not None
            assert int(child.stdout.read()) < 200
        assert child.returncode == 0

"""What is interrupted: each operation with the store it starts from. Deterministic, small, no clock."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelfiles.files import ModelFile
from modelfiles.modelfile import Modelfile
from registry.create import create
from registry.disk import Disk
from registry.manifest import CONFIG_TYPE, MEDIA_TYPES, Layer, Manifest
from registry.name import ModelName
from registry.plan import Fit
from registry.pull import ClientSettings, Puller
from registry.store import Store
from registry.transfer import export_model, import_model
from tests.registry.conftest import describe, gguf_bytes

KIB = 1 << 10
PULLED = [
    ("model", gguf_bytes(21, 700 * KIB)),
    ("license", b"x"),
    ("params", b'{"top_k":1}' + b" " * 64 * KIB),
]


@dataclass(frozen=True, slots=True)
class World:
    """Where an operation happens: the store's root, a folder of files beside it, the address of a hub."""

    root: Path
    folder: Path
    hub: str = ""


Act = Callable[[World, Disk], None]


@dataclass(frozen=True, slots=True)
class Operation:
    """`prepare` makes the store as it is before, `act` is what gets interrupted.

    `once` marks what cannot be repeated after it worked (a deleted model is gone).
    """

    prepare: Act
    act: Act
    once: bool = False


def add(store: Store, name: str, weights: bytes, **parameters: object) -> None:
    """A model of three blobs."""
    with store.lease_empty() as lease:
        layers = []
        for kind, data in (("model", weights), ("params", json.dumps(parameters).encode())):
            blob = store.blobs.put_bytes(data, lease)
            layers.append(Layer(MEDIA_TYPES[kind], blob.digest, blob.size))
        config = store.blobs.put_bytes(b"{}", lease)
        store.write(
            ModelName.parse(name), Manifest(Layer(CONFIG_TYPE, config.digest, config.size), tuple(layers))
        )


def start(world: World, disk: Disk) -> None:
    """Two models that share a blob with others, and the files the operations read."""
    store = Store.open(world.root, disk=disk)
    add(store, "other", gguf_bytes(1), top_k=1)
    add(store, "target", gguf_bytes(2), top_k=2)
    add(store, "sharer", gguf_bytes(2), top_k=3)
    world.folder.mkdir(exist_ok=True)
    (world.folder / "new.gguf").write_bytes(gguf_bytes(3, 200 * KIB))


def with_orphans(world: World, disk: Disk) -> None:
    """The same with blobs nobody names, a dead writer's file and a dead partial."""
    start(world, disk)
    store = Store.open(world.root, disk=disk)
    for number in range(3):
        store.blobs.put_bytes(b"orphan %d" % number)
    (store.blobs.staging / "dead.tmp").write_bytes(b"half")


def with_damage(world: World, disk: Disk) -> None:
    """The same with a torn manifest and a rotten blob, of a model of their own."""
    start(world, disk)
    store = Store.open(world.root, disk=disk)
    blob = store.blobs.put_bytes(b"rotting")
    (world.root / "blobs" / blob.digest.replace(":", "-")).write_bytes(b"rotten!")


def with_export(world: World, disk: Disk) -> None:
    """The same with a carried file of a model beside it."""
    start(world, disk)
    store = Store.open(world.root, disk=disk)
    add(store, "carried", gguf_bytes(9, 100 * KIB), top_k=9)
    packed = io.BytesIO()
    export_model(store, "carried", packed)
    (world.folder / "carried.tar").write_bytes(packed.getvalue())
    store.delete("carried")


def nothing(world: World, disk: Disk) -> None:
    """No store at all."""
    world.folder.mkdir(exist_ok=True)


def create_from_file(world: World, disk: Disk) -> None:
    """`create target` over an existing model, from a GGUF file."""
    text = "FROM ./new.gguf\nSYSTEM new\nPARAMETER top_k 7\nTEMPLATE t\n"
    run = create(
        Store.open(world.root, disk=disk),
        "target",
        Modelfile.parse(text),
        folder=world.folder,
        inspect=describe,
    )
    asyncio.run(run)


def create_from_model(world: World, disk: Disk) -> None:
    """`create brandnew` from a model."""
    run = create(
        Store.open(world.root, disk=disk),
        "brandnew",
        Modelfile.parse("FROM other\nSYSTEM new\n"),
        inspect=describe,
    )
    asyncio.run(run)


async def measure(files: Sequence[ModelFile]) -> Fit:
    """Makes a pull lay out stand-ins for its headers, which are interrupted too."""
    return Fit(files[0].size, 1 << 30, 2048)


def pull(world: World, disk: Disk) -> None:
    """`pull` of the model that the hub has, over an older one where `target_of_pull` is there."""

    async def run() -> None:
        settings = ClientSettings(least_part=128 * KIB, connections=3, backoff=0.001)
        puller = Puller(Store.open(world.root, disk=disk), settings, describe, measure=measure)
        try:
            async for _ in puller.pull(f"{world.hub}/me/fox", ModelName.parse("target")):
                pass
        finally:
            await puller.close()

    asyncio.run(run())


def on_store(act: Callable[[Store, World], object]) -> Act:
    """An operation that opens the store and does one thing with it."""

    def run(world: World, disk: Disk) -> None:
        act(Store.open(world.root, disk=disk), world)

    return run


OPERATIONS: dict[str, Operation] = {
    "open": Operation(nothing, on_store(lambda store, world: None)),
    "create over": Operation(start, create_from_file),
    "create new": Operation(start, create_from_model),
    "upload": Operation(start, on_store(lambda store, world: store.blobs.put_bytes(b"up" * 5000))),
    "copy new": Operation(start, on_store(lambda store, world: store.copy("other", "x/y:z"))),
    "copy over": Operation(start, on_store(lambda store, world: store.copy("other", "TARGET"))),
    "delete": Operation(start, on_store(lambda store, world: store.delete("other")), once=True),
    "delete shared": Operation(start, on_store(lambda store, world: store.delete("target")), once=True),
    "collect": Operation(with_orphans, on_store(lambda store, world: store.collect_garbage())),
    "prune": Operation(with_orphans, on_store(lambda store, world: store.prune())),
    "repair": Operation(with_damage, on_store(lambda store, world: store.fsck(repair=True))),
    "import": Operation(
        with_export, on_store(lambda store, world: import_model(store, world.folder / "carried.tar"))
    ),
    "pull": Operation(start, pull),
}

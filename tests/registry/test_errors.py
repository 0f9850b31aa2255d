"""What errors tell strangers: never where the store lies on this machine."""

from __future__ import annotations

import asyncio
import errno
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfiles.modelfile import Modelfile
from registry.create import create
from registry.errors import RegistryError
from registry.manifest import Layer, Manifest
from registry.store import Store
from registry.transfer import export_model, import_model
from tests.registry.conftest import describe, gguf_bytes
from tests.registry.crash.disks import FailingDisk
from tests.registry.fakehub import FakeHub, Fault
from tests.registry.hubs import pull
from tests.registry.test_store import add

CANARY = "secret-place"


def damage_weights(store: Store) -> None:
    path = Path(store.get("fox").files[0].path)
    path.write_bytes(bytes(path.stat().st_size))


def damage_manifest(store: Store) -> None:
    store.entry("fox").path.write_bytes(b"{")


def remove_weights(store: Store) -> None:
    Path(store.get("fox").files[0].path).unlink()


def broken_tar(store: Store) -> Path:
    path = store.root.parent / "broken.tar"
    path.write_bytes(b"\x1f\x8b" + bytes(600))
    return path


def foreign_tar(store: Store) -> Path:
    path = store.root.parent / "foreign.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("../../etc/passwd")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    return path


def make(store: Store, text: str, folder: Path | None = None) -> None:
    asyncio.run(create(store, "owl", Modelfile.parse(text), folder=folder, inspect=describe))


def made_with_nothing_left(store: Store) -> None:
    make(Store.open(store.root, disk=FailingDisk(1, errno.ENOSPC, True)), "FROM fox\nSYSTEM x")


def layer_that_is_gone(store: Store) -> None:
    manifest = store.entry("fox").manifest
    gone = Layer(manifest.layers[0].media_type, manifest.layers[0].digest, 7)
    store.write(store.get("fox").name, Manifest(manifest.config, (gone,)))


FAILING: dict[str, Callable[[Store], object]] = {
    "no such model": lambda store: store.get("ghost"),
    "bad name": lambda store: store.get("a/../b"),
    "damaged manifest": lambda store: (damage_manifest(store), store.get("fox")),
    "missing weights": lambda store: (remove_weights(store), store.get("fox")),
    "copying what is damaged": lambda store: (remove_weights(store), store.copy("fox", "owl")),
    "exporting what is gone": lambda store: (
        remove_weights(store),
        export_model(store, "fox", io.BytesIO()),
    ),
    "exporting what is damaged": lambda store: (
        damage_weights(store),
        export_model(store, "fox", io.BytesIO()),
    ),
    "broken archive": lambda store: import_model(store, broken_tar(store), None),
    "foreign archive": lambda store: import_model(store, foreign_tar(store), None),
    "no base": lambda store: make(store, "FROM ghost"),
    "unknown format": lambda store: make(store, "FROM .", store.root),
    "disk full": made_with_nothing_left,
    "layer of another size": layer_that_is_gone,
}


@pytest.mark.parametrize("name", FAILING)
def test_no_error_tells_where_the_store_lies(tmp_path: Path, name: str) -> None:
    store = Store.open(tmp_path / CANARY / "models")
    add(store, "fox", gguf_bytes(1))
    with pytest.raises(RegistryError) as caught:
        FAILING[name](store)
    assert CANARY not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500),
        Fault(body=b"x"),
        Fault(location="file:///etc/passwd"),
        Fault(headers={"Content-Encoding": "gzip"}),
    ],
)
def test_no_failing_pull_tells_it_either(tmp_path: Path, hub: FakeHub, fault: Fault) -> None:
    store = Store.open(tmp_path / CANARY / "models")
    name = hub.add_oci("me/fox", [("model", gguf_bytes(1))])
    hub.always["/v2/"] = fault
    with pytest.raises(RegistryError) as caught:
        pull(store, hub, name)
    assert CANARY not in str(caught.value)


def test_problems_of_a_store_are_named_from_its_root(tmp_path: Path) -> None:
    store = Store.open(tmp_path / CANARY / "models")
    add(store, "fox", gguf_bytes(1))
    damage_weights(store)
    damage_manifest(store)
    store.list()
    told = [*store.problems(), *store.fsck().problems]
    assert told
    assert not [each for each in told if CANARY in f"{each.path} {each.message}"]

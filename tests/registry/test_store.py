"""The store: list, get, copy, delete, leases, collection, examination, foreign stores, dirty folders."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest

from registry.blobs import blob_path, parse_digest
from registry.errors import InvalidName, ModelCorrupt, ModelNotFound, ReadOnlyModel, StoreUnwritable
from registry.manifest import CONFIG_TYPE, MEDIA_TYPES, Layer, Manifest, ModelConfig
from registry.model import Model
from registry.name import ModelName
from registry.store import Store
from tests.registry.conftest import gguf_bytes


def add(store: Store, name: str, weights: bytes = b"", system: str = "", **parameters: object) -> Model:
    """A model made of layers, without a Modelfile."""
    with store.lease_empty() as lease:
        layers = []
        for kind, data in (
            ("model", weights or gguf_bytes()),
            ("system", system.encode()),
            ("params", json.dumps(parameters).encode() if parameters else b""),
        ):
            if data:
                blob = store.blobs.put_bytes(data, lease)
                layers.append(Layer(MEDIA_TYPES[kind], blob.digest, blob.size))
        config = store.blobs.put_bytes(ModelConfig(model_format="gguf", base_name=system).encode(), lease)
        manifest = Manifest(Layer(CONFIG_TYPE, config.digest, config.size), tuple(layers))
        return store.write(ModelName.parse(name), manifest)[0]


def names(store: Store) -> set[str]:
    return {model.name.display() for model in store.list()}


def test_a_model_is_got_by_any_case_and_listed_newest_first(store: Store) -> None:
    first = add(store, "Fox", system="be sly", temperature=0.5, stop=["a", "b"])
    os.utime(store.own.path(first.name), (1, 1))
    second = add(store, "me/bear:small")
    assert [model.name.display() for model in store.list()] == ["me/bear:small", "Fox:latest"]
    got = store.get("fOX:LATEST")
    assert (got.name.display(), got.system, got.template) == ("Fox:latest", "be sly", None)
    assert got.parameters == {"temperature": 0.5, "stop": ["a", "b"]}
    assert got.weights_digest == second.weights_digest
    assert got.digest != second.digest
    assert got.modified_at.tzinfo is not None
    assert got.size == sum(store.entry("fox").manifest.blobs().values())
    assert Path(got.files[0].path).read_bytes() == gguf_bytes()
    assert store.problems() == ()


def test_a_name_in_another_case_replaces_the_same_model(store: Store) -> None:
    add(store, "fox", system="one")
    add(store, "FOX", system="two")
    assert names(store) == {"fox:latest"}
    assert store.get("Fox").system == "two"
    add(store, "Fox:v2")
    assert sorted(names(store)) == ["fox:latest", "fox:v2"]


def test_what_is_not_there(store: Store) -> None:
    for act in (store.get, store.delete, lambda name: store.copy(name, "other")):
        with pytest.raises(ModelNotFound, match="model 'ghost:latest' not found"):
            act("ghost")
    with pytest.raises(InvalidName):
        store.copy("../../etc/passwd", "x")


def test_copy_and_delete_share_and_free_blobs(store: Store) -> None:
    add(store, "fox", system="sly")
    add(store, "bear", gguf_bytes(1))
    copied = store.copy("fox", "wolf")
    assert copied.digest == store.get("fox").digest
    before = set(store.blobs.digests())
    store.delete("fox")
    assert set(store.blobs.digests()) == before
    store.delete("wolf")
    assert store.get("bear").files
    assert len(set(store.blobs.digests())) == 2
    assert not (store.root / "manifests/registry.ollama.ai/library/wolf").exists()
    store.delete("bear")
    assert not list(store.blobs.digests())


def test_a_replaced_models_own_layers_go(store: Store) -> None:
    add(store, "fox", gguf_bytes(1))
    assert len(set(store.blobs.digests())) == 2
    add(store, "fox", gguf_bytes(2))
    assert len(set(store.blobs.digests())) == 2


def test_a_lease_keeps_the_files_of_a_deleted_model(store: Store) -> None:
    model = add(store, "fox")
    with store.lease(model):
        store.delete("fox")
        assert store.collect_garbage().blobs == 0
        assert Path(model.files[0].path).exists()
    assert store.collect_garbage().blobs == 1
    assert not list((store.root / "leases").iterdir())


def test_collection_removes_what_nothing_names(store: Store) -> None:
    add(store, "fox")
    store.blobs.put_bytes(b"orphan")
    (store.blobs.staging / "dead.tmp").write_bytes(b"half")
    with store.blobs.writer() as living:
        living.push(b"busy")
        report = store.collect_garbage()
        assert (report.blobs, report.bytes, report.leftovers) == (1, 6, 1)
        assert living.finish().size == 4
    assert store.get("fox")


def test_nothing_is_collected_while_a_manifest_cannot_be_read(store: Store) -> None:
    add(store, "fox")
    store.own.path(ModelName.parse("fox")).write_bytes(b"torn")
    report = store.collect_garbage()
    assert report.blobs == 0
    assert "fox" in report.skipped
    assert len(set(store.blobs.digests())) == 2


def test_dirty_entries_are_isolated_and_reported(store: Store) -> None:
    add(store, "good")
    folder = store.root / "manifests/registry.ollama.ai/library"
    for model in ("torn", "empty", "wrongsize", "missing", "future"):
        (folder / model).mkdir()
    add(store, "wrongsize", gguf_bytes(3))
    blob_path(store.root, parse_digest(store.get("wrongsize").files[0].digest)).write_bytes(b"short")
    add(store, "missing", gguf_bytes(4))
    blob_path(store.root, parse_digest(store.get("missing").files[0].digest)).unlink()
    (folder / "torn/latest").write_bytes(store.own.path(ModelName.parse("good")).read_bytes()[:100])
    (folder / "empty/latest").write_bytes(b"")
    (folder / "future/latest").write_bytes(b'{"schemaVersion":9,"config":{"digest":"x","size":1}}')
    (folder / "folder/latest").mkdir(parents=True)
    (folder / "bad name").mkdir()
    (folder / "bad name/latest").write_bytes(b"x")
    (folder / "stray").write_bytes(b"a file where a folder belongs")
    assert names(store) == {"good:latest"}
    told = {Path(problem.path).parts[-2] for problem in store.problems()}
    assert told == {"torn", "empty", "wrongsize", "missing", "future", "folder", "bad name"}
    for broken in ("torn", "empty", "wrongsize", "missing"):
        with pytest.raises(ModelCorrupt, match=r"pull|create"):
            store.get(broken)
    store.delete("torn")  # the way out works for damaged ones too
    with pytest.raises(ModelNotFound):
        store.get("torn")


def test_fsck_names_what_is_damaged_and_quarantines_it(store: Store) -> None:
    model = add(store, "fox", gguf_bytes(size=1000))
    add(store, "bear", gguf_bytes(1))
    assert store.fsck().problems == ()
    weights = Path(model.files[0].path)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    report = store.fsck()
    assert [problem.digest for problem in report.problems] == [model.files[0].digest]
    assert "fox:latest" in report.problems[0].message
    assert report.models == 2
    report = store.fsck(repair=True)
    assert report.quarantined == (f"blobs/{weights.name}",)
    assert not weights.exists()
    assert (store.root / "quarantine" / f"blobs_{weights.name}").exists()
    assert names(store) == {"bear:latest"}


def test_a_foreign_store_is_read_and_never_written(tmp_path: Path, store: Store) -> None:
    other = Store.open(tmp_path / "ollama")
    add(other, "fox", gguf_bytes(7))
    add(other, "shared", system="theirs")
    before = {path: path.stat().st_mtime_ns for path in other.root.rglob("*")}
    both = Store.open(store.root, [other.root])
    add(both, "shared", system="ours")
    assert names(both) == {"fox:latest", "shared:latest"}
    assert both.get("shared").system == "ours"
    assert both.get("fox").read_only
    with pytest.raises(ReadOnlyModel, match="another program"):
        both.delete("fox")
    both.copy("fox", "mine")
    both.collect_garbage()
    assert {path: path.stat().st_mtime_ns for path in other.root.rglob("*")} == before
    assert Store.open(store.root).get("mine").files[0].size == len(gguf_bytes())


def test_a_folder_begun_by_another_program_is_never_collected(tmp_path: Path) -> None:
    root = tmp_path / "theirs"
    (root / "manifests").mkdir(parents=True)
    (root / "blobs").mkdir()
    shared = Store.open(root)
    add(shared, "fox")
    shared.blobs.put_bytes(b"theirs, still being pulled")
    assert "another program" in shared.collect_garbage().skipped
    shared.delete("fox")
    assert len(set(shared.blobs.digests())) == 3


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((StoreUnwritable, OSError)):
        Store.open(tmp_path / "file" / "models")


@pytest.mark.slow
def test_ten_thousand_models_are_listed_within_two_seconds(store: Store) -> None:
    template = add(store, "m0")
    manifest = store.own.path(template.name)
    for number in range(1, 10_000):
        config = json.dumps({"model_format": "gguf", "base_name": str(number)}).encode()
        digest = parse_digest(f"sha256:{hashlib.sha256(config).hexdigest()}")
        blob_path(store.root, digest).write_bytes(config)
        document = json.loads(manifest.read_bytes())
        document["config"] |= {"digest": digest, "size": len(config)}
        path = store.own.path(ModelName.parse(f"m{number}"))
        path.parent.mkdir(parents=True)
        path.write_bytes(json.dumps(document).encode())
    fresh = Store.open(store.root)
    began = time.process_time()  # the machine may be busy with other things
    assert len(fresh.list()) == 10_000
    taken = time.process_time() - began
    print(f"10,000 models listed in {taken:.2f} s")
    assert taken < 2.0


@pytest.mark.slow
def test_leases_come_and_go_while_a_collection_reads_them(store: Store) -> None:
    until = time.monotonic() + 1.5
    errors: list[BaseException] = []

    def churn() -> None:
        while time.monotonic() < until:
            with store.lease_empty() as lease:
                lease.add(["sha256:" + "0" * 64])

    def gather() -> None:
        try:
            while time.monotonic() < until:
                store.collect_garbage()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=act) for act in (churn, churn, gather)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not list((store.root / "leases").iterdir())

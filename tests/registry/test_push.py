"""Pushing, to the fake hub and to a real registry (Debian's `docker-registry`), and pulling back from it."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from registry.errors import ModelCorrupt, ModelNotFound, Unauthorized
from registry.manifest import Manifest
from registry.progress import Progress
from registry.pull import Puller
from registry.push import Pusher
from registry.store import Store
from tests.registry.conftest import describe, gguf_bytes
from tests.registry.fakehub import FakeHub, Fault
from tests.registry.hubs import BIG, clean, pull, settings
from tests.registry.test_store import add


def push(store: Store, hub: FakeHub, name: str) -> list[Progress]:
    async def run() -> list[Progress]:
        made = Puller(store, settings(hub), describe)
        try:
            return [line async for line in Pusher(store, made).push(name)]
        finally:
            await made.close()

    return asyncio.run(run())


@pytest.mark.parametrize("token", ["", "s3cret"])
def test_a_pushed_model_is_pulled_as_it_was(store: Store, hub: FakeHub, tmp_path: Path, token: str) -> None:
    hub.token = token
    model = add(store, f"{hub.netloc}/me/fox:v1", BIG, system="sly", top_k=3)
    lines = [line.status for line in push(store, hub, model.name.full())]
    assert (lines[0], lines[-2:]) == ("retrieving manifest", ["pushing manifest", "success"])
    assert f"pushing {model.files[0].digest[7:19]}" in lines
    other = Store.open(tmp_path / "other")
    pull(other, hub, model.name.full())
    assert other.get(model.name).digest == model.digest
    clean(other)
    hub.requests.clear()
    push(store, hub, model.name.full())
    assert not hub.asked("/uploads/", "POST")  # everything is there already


def test_a_blob_that_the_registry_has_under_another_name_is_mounted(store: Store, hub: FakeHub) -> None:
    base = add(store, f"{hub.netloc}/me/base", BIG)
    push(store, hub, base.name.full())
    entry = store.entry(base.name)
    derived = add(store, f"{hub.netloc}/me/derived", gguf_bytes(4), system="x")
    weights = replace(entry.manifest.layers[0], source=base.name.full())
    store.write(derived.name, Manifest(store.entry(derived.name).manifest.config, (weights,)))
    hub.requests.clear()
    hub.always[f"/me/derived/blobs/{weights.digest}"] = Fault(status=404)  # not in this repository
    push(store, hub, derived.name.full())
    assert [request.query["mount"] for request in hub.asked("/uploads/", "POST") if request.query] == [
        [weights.digest]
    ]
    assert sum(len(request.body) for request in hub.asked("/uploads/u", "PATCH")) < 1000  # the config alone


def test_an_upload_goes_on_after_the_line_broke(store: Store, hub: FakeHub) -> None:
    model = add(store, f"{hub.netloc}/me/fox", BIG)
    hub.faults["/uploads/u"] = [Fault(status=503), Fault(), Fault(status=500)]
    assert push(store, hub, model.name.full())[-1].status == "success"
    assert hub.blobs[model.files[0].digest] == BIG


def test_what_cannot_be_pushed(store: Store, hub: FakeHub) -> None:
    with pytest.raises(ModelNotFound):
        push(store, hub, "ghost")
    model = add(store, f"{hub.netloc}/me/fox", BIG)
    hub.always["/uploads/"] = Fault(status=403)
    with pytest.raises(Unauthorized, match="not authorized to push to this namespace"):
        push(store, hub, model.name.full())
    hub.always.clear()
    Path(model.files[0].path).unlink()
    with pytest.raises(ModelCorrupt, match="is missing"):
        push(store, hub, model.name.full())
    assert hub.manifests == {}


UNPACKED = str(Path(__file__).resolve().parents[2] / ".cache" / "docker-registry" / "usr" / "bin")
CONFIG = """
version: 0.1
storage:
  filesystem: {{rootdirectory: {root}}}
http:
  addr: 127.0.0.1:{port}
"""


@pytest.fixture
def real_registry(tmp_path: Path) -> Iterator[str]:
    """The address of a registry of its makers, running for one test."""
    program = shutil.which("docker-registry") or shutil.which("docker-registry", path=UNPACKED)
    if program is None:
        pytest.skip("no docker-registry here; scripts/docker_registry.sh fetches Debian's")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "registry.yml"
    config.write_text(CONFIG.format(root=tmp_path / "registry", port=port))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_real_registry_takes_and_gives(
    store: Store, hub: FakeHub, tmp_path: Path, real_registry: str
) -> None:
    big = BIG + bytes(30 << 20)
    model = add(store, f"{real_registry}/me/fox:v1", big, system="sly")
    assert push(store, hub, model.name.full())[-1].status == "success"
    other = Store.open(tmp_path / "other")
    pull(other, hub, model.name.full())
    assert other.get(model.name).digest == model.digest
    assert Path(other.get(model.name).files[0].path).read_bytes() == big
    clean(other)
    assert push(store, hub, model.name.full())[-1].status == "success"

"""Pulling from registries through the one downloader: resuming, sharing, faults; nothing unproved is seen."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import aclosing
from pathlib import Path

import pytest

from registry.blobs import blob_path, parse_digest
from registry.disk import Disk
from registry.errors import (
    AddressRefused,
    DigestMismatch,
    DiskFull,
    NotFound,
    ObjectChanged,
    SourceError,
    Unavailable,
    UnsupportedFormat,
)
from registry.progress import Progress
from registry.store import Store
from tests.registry.conftest import gguf_bytes
from tests.registry.fakehub import FakeHub, Fault
from tests.registry.hubs import BIG, MIB, cancel_at, clean, pull, puller


def test_a_model_from_a_registry(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes()), ("system", b"sly"), ("params", b'{"top_k":3}')])
    lines = pull(store, hub, name)
    statuses = [line.status for line in lines]
    assert statuses[0] == "pulling manifest"
    assert statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    layer = hashlib.sha256(gguf_bytes()).hexdigest()
    last = [line for line in lines if line.status == f"pulling {layer[:12]}"][-1]
    assert (last.digest, last.completed, last.total) == (
        f"sha256:{layer}",
        len(gguf_bytes()),
        len(gguf_bytes()),
    )
    model = store.get(name)
    assert (model.system, model.parameters) == ("sly", {"top_k": 3})
    assert store.own.path(model.name).read_bytes() == hub.manifests["me/fox:latest"]
    clean(store)
    before = len(hub.requests)
    pull(store, hub, name)
    assert len(hub.requests) == before + 1  # the manifest alone


def test_a_model_that_wants_a_renderer_nobody_has_is_refused_before_its_weights(
    store: Store, hub: FakeHub
) -> None:
    config = json.dumps({"model_format": "gguf", "renderer": "laguna"}).encode()
    name = hub.add_oci("me/odd", [("model", gguf_bytes())], config)
    with pytest.raises(UnsupportedFormat, match="unknown renderer 'laguna'; known are functiongemma"):
        pull(store, hub, name)
    weights = hashlib.sha256(gguf_bytes()).hexdigest()
    assert not any(weights in request.path for request in hub.requests)
    assert not store.list()


def test_a_new_version_removes_the_layers_of_the_old(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes(1))])
    pull(store, hub, name)
    hub.add_oci("me/fox", [("model", gguf_bytes(2))])
    assert "removing unused layers" in [line.status for line in pull(store, hub, name)]
    assert len(set(store.blobs.digests())) == 2


def test_a_registry_that_wants_a_token(store: Store, hub: FakeHub) -> None:
    hub.token = "s3cret"
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    pull(store, hub, name)
    (asked,) = hub.asked("/token")
    assert asked.query["scope"] == ["repository:any:pull,push"]
    public, _, signature = asked.headers["authorization"].partition(":")
    assert_signed(asked.path, asked.query, public, signature, hub)


def assert_signed(path: str, query: dict[str, list[str]], public: str, signature: str, hub: FakeHub) -> None:
    """The signature covers exactly the request that came."""
    import base64
    from urllib.parse import urlencode

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    key = load_ssh_public_key(f"ssh-ed25519 {public}".encode())
    assert isinstance(key, Ed25519PublicKey)
    pairs = [(name, value) for name, values in query.items() for value in values]
    nothing = base64.b64encode(hashlib.sha256(b"").hexdigest().encode()).decode()
    key.verify(base64.b64decode(signature), f"GET,{hub.url}{path}?{urlencode(pairs)},{nothing}".encode())


def test_a_token_server_on_another_host_does_not_learn_who_asks(store: Store, hub: FakeHub) -> None:
    with FakeHub("127.0.0.2") as other:
        hub.token = other.token = "s3cret"
        hub.realm = f"{other.url}/token?kind=model"
        name = hub.add_oci("me/fox", [("model", gguf_bytes())])
        pull(store, hub, name)
        (asked,) = other.requests
    assert asked.query == {
        "kind": ["model"], "service": ["fakehub"], "scope": ["repository:any:pull,push"],
    }  # fmt: skip
    assert "authorization" not in asked.headers
    assert not (store.root.parent / "id_ed25519").exists()
    clean(store)


def test_a_token_server_is_led_to_by_the_rules_of_redirects(store: Store, hub: FakeHub) -> None:
    hub.token, hub.realm = "s3cret", "http://127.0.0.2:9/token"
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    with pytest.raises(AddressRefused, match="private address"):
        pull(store, hub, name, public_networks=("127.0.0.1/32",))
    hub.realm = "file:///etc/passwd"
    with pytest.raises(AddressRefused, match="only http and https"):
        pull(store, hub, name)
    assert len(hub.requests) == 2


def test_what_is_not_there_and_what_is_no_manifest(store: Store, hub: FakeHub) -> None:
    with pytest.raises(NotFound, match="no model"):
        pull(store, hub, f"{hub.netloc}/me/ghost")
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    for body in (b"{}", b"[" * 100_000, hub.manifests["me/fox:latest"].replace(b"sha256:", b"sha256:../")):
        hub.manifests["me/fox:latest"] = body
        with pytest.raises(SourceError, match="manifest"):
            pull(store, hub, name)
    hub.manifests["me/fox:latest"] = b" " * (5 * MIB)
    with pytest.raises(SourceError, match="more than the 4,194,304 bytes"):
        pull(store, hub, name)
    assert store.list() == []
    clean(store)


def test_parts_come_in_parallel_and_make_the_file(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/big", [("model", BIG)])
    lines = pull(store, hub, name)
    done = [line.completed or 0 for line in lines if line.total == len(BIG)]
    assert done == sorted(done)
    assert done[-1] == len(BIG)
    assert len(hub.asked("/blobs/")) == 7  # six parts and the config
    assert Path(store.get(name).files[0].path).read_bytes() == BIG
    clean(store)


def test_a_cancelled_pull_goes_on_where_it_stopped(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/big", [("model", BIG)])
    digest = hashlib.sha256(BIG).hexdigest()
    hub.always[digest] = Fault(hang_at=MIB * 3 // 2)

    async def interrupted() -> int:
        async with puller(store, hub, stall_timeout=30) as made:
            return await cancel_at(made, name, 0.5)

    had = asyncio.run(interrupted())
    assert store.list() == []
    assert list(store.blobs.staging.glob("*.partial"))
    hub.always.clear()
    first = hub.sent(digest)
    pull(store, hub, name)
    again = hub.sent(digest) - first
    assert again <= len(BIG) - had  # nothing that was there is fetched again
    assert all("range" in request.headers for request in hub.asked(digest)[6:])
    clean(store)


@pytest.mark.slow
def test_eight_pulls_share_one_download_and_the_last_to_leave_stops_it(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/big", [("model", BIG)])
    digest = hashlib.sha256(BIG).hexdigest()

    async def run() -> list[list[Progress]]:
        async with puller(store, hub) as made:
            leavers = [asyncio.create_task(cancel_at(made, name, 0.05)) for _ in range(4)]

            async def whole() -> list[Progress]:
                return [line async for line in made.pull(name)]

            stayers = [asyncio.create_task(whole()) for _ in range(4)]
            await asyncio.gather(*leavers)
            return await asyncio.gather(*stayers)

    for lines in asyncio.run(run()):
        assert lines[-1].status == "success"
        assert any(line.total == len(BIG) for line in lines)
    assert hub.sent(digest) == len(BIG)
    clean(store)

    store.delete(name)
    hub.always[digest] = Fault(hang_at=1 * MIB)

    async def all_leave() -> float:
        async with puller(store, hub, stall_timeout=30) as made:
            tasks = [asyncio.create_task(cancel_at(made, name, 0.99)) for _ in range(8)]
            await asyncio.sleep(0.5)
            began = asyncio.get_running_loop().time()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return asyncio.get_running_loop().time() - began

    assert asyncio.run(all_leave()) < 1.0
    clean(store)


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        [Fault(status=503), Fault(status=500), Fault(status=502)],
        [Fault(status=429, headers={"Retry-After": "0"}), Fault(status=429, headers={"Retry-After": "-1"})],
        [Fault(reset_at=1_300_000), Fault(reset_at=1), Fault(reset_at=2_000_000)],
        [Fault(close_at=700_000), Fault(hang_at=900_000)],
        [Fault(status=408), Fault(drip=0.4)],
        [Fault(ignore_range=True)],
        [Fault(headers={"Content-Range": "bytes 5-9/100"}), Fault()],
    ],
    ids=["5xx", "429", "reset", "half-close and hang", "drip", "no ranges", "wrong range"],
)
def test_a_bad_line_is_outlasted_or_told(store: Store, hub: FakeHub, faults: list[Fault]) -> None:
    name = hub.add_oci("me/big", [("model", BIG)])
    hub.faults[hashlib.sha256(BIG).hexdigest()] = faults
    if "Content-Range" in faults[0].headers:
        hub.always[hashlib.sha256(BIG).hexdigest()] = faults[0]
        with pytest.raises(SourceError, match="range not asked for"):
            pull(store, hub, name)
        return
    assert pull(store, hub, name)[-1].status == "success"
    clean(store)


@pytest.mark.parametrize("after", ["1e9", "1000000000", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_six_tries_and_then_the_reason(store: Store, hub: FakeHub, after: str) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    digest = hashlib.sha256(gguf_bytes()).hexdigest()
    hub.always[digest] = Fault(status=503, headers={"Retry-After": after})
    with pytest.raises(Unavailable, match="503"):
        pull(store, hub, name, longest_wait=0.01)
    assert len(hub.asked(digest)) == 6
    clean(store)


def test_the_wrong_bytes_are_never_seen_and_fetched_again_once(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes(size=1000))])
    digest = parse_digest(f"sha256:{hashlib.sha256(gguf_bytes(size=1000)).hexdigest()}")
    hub.blobs[digest] = hub.blobs[digest][:-1] + b"\x01"
    with pytest.raises(DigestMismatch, match=r"want sha256:.*got sha256:"):
        pull(store, hub, name)
    assert len(hub.asked(digest)) == 2
    assert not blob_path(store.root, digest).exists()
    assert store.list() == []
    clean(store)


def test_a_body_longer_or_shorter_than_declared(store: Store, hub: FakeHub) -> None:
    data = gguf_bytes(size=1000)
    name = hub.add_oci("me/fox", [("model", data)])
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    hub.always[digest] = Fault(body=data + b"x" * 5000, no_length=True)
    pull(store, hub, name)  # what is too much is not read, and the digest is right
    store.delete(name)
    for body in (data[:-10], data + b"x"):
        hub.always[digest] = Fault(body=body)
        with pytest.raises((ObjectChanged, Unavailable)):
            pull(store, hub, name)
    clean(store)


class SmallDisk(Disk):
    """A disk that says it has hardly any room."""

    def free_bytes(self, folder: Path) -> int:
        return 1000


def test_a_full_disk_is_told_before_the_first_byte(tmp_path: Path, hub: FakeHub) -> None:
    small = Store.open(tmp_path / "small", disk=SmallDisk())
    name = hub.add_oci("me/big", [("model", BIG)])
    with pytest.raises(DiskFull, match=r"need 10,48\d,\d{3} bytes, have 1,000"):
        pull(small, hub, name)
    assert hub.sent(hashlib.sha256(BIG).hexdigest()) == 0


def test_only_the_damaged_blob_is_fetched_again(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes(1, 1000)), ("system", b"sly")])
    pull(store, hub, name)
    weights = Path(store.get(name).files[0].path)
    weights.write_bytes(bytes(weights.stat().st_size))
    assert [problem.path for problem in store.fsck(repair=True).problems] == [f"blobs/{weights.name}"]
    hub.requests.clear()
    pull(store, hub, name)
    assert [request.path.rpartition("/")[2] for request in hub.requests[1:]] == [
        weights.name.replace("-", ":")
    ]
    assert store.get(name).system == "sly"
    clean(store)


@pytest.mark.slow
def test_a_collection_between_two_tries_spares_what_was_finished(store: Store, hub: FakeHub) -> None:
    first, second = gguf_bytes(1, MIB), BIG
    name = hub.add_oci("me/fox", [("model", first), ("projector", second)])
    digests = [hashlib.sha256(data).hexdigest() for data in (first, second)]
    hub.always[digests[1]] = Fault(hang_at=MIB // 2)

    async def interrupted() -> None:
        async with puller(store, hub, stall_timeout=30) as made, aclosing(made.pull(name)) as lines:
            async for line in lines:
                if line.digest == f"sha256:{digests[1]}" and (line.completed or 0) > MIB:
                    return

    asyncio.run(interrupted())
    store.collect_garbage()
    hub.always.clear()
    before = hub.sent(digests[0])
    pull(store, hub, name)
    assert hub.sent(digests[0]) == before
    assert not list(store.blobs.staging.iterdir())
    clean(store)


@pytest.mark.slow
def test_prune_gives_unfinished_pulls_up(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/big", [("model", BIG)])
    hub.always[hashlib.sha256(BIG).hexdigest()] = Fault(hang_at=MIB)

    async def interrupted() -> None:
        async with puller(store, hub, stall_timeout=30) as made:
            await cancel_at(made, name, 0.2)

    asyncio.run(interrupted())
    report = store.prune()
    assert report.leftovers >= 1
    assert not list(store.blobs.staging.iterdir())
    assert not list(store.blobs.digests())

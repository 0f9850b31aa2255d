"""Pulling from the fake hub: every source, resuming, sharing, faults, redirects; nothing unproved is seen."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from registry.blobs import blob_path, parse_digest
from registry.disk import Disk
from registry.errors import (
    AddressRefused,
    DigestMismatch,
    DiskFull,
    Gated,
    NotFound,
    ObjectChanged,
    RegistryError,
    SourceError,
    Unauthorized,
    Unavailable,
    UnsupportedFormat,
)
from registry.progress import Progress
from registry.pull import ClientSettings, Puller, Reference
from registry.store import Store
from tests.registry.conftest import describe, gguf_bytes, safetensors_bytes
from tests.registry.fakehub import COMMIT, FakeHub, Fault

MIB = 1 << 20
BIG = gguf_bytes(1, 10 * MIB) + os.urandom(5)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        yield running


def settings(hub: FakeHub, **changes: Any) -> ClientSettings:
    environment = {"HOME": "/nonexistent", "HF_ENDPOINT": hub.url, "KAGGLE_API_ENDPOINT": hub.url}
    environment |= changes.pop("environment", {})
    return ClientSettings(
        environment=environment, **({"backoff": 0.01, "stall_timeout": 0.6, "least_part": 2 * MIB} | changes)
    )


@asynccontextmanager
async def puller(store: Store, hub: FakeHub, **changes: Any) -> AsyncIterator[Puller]:
    made = Puller(store, settings(hub, **changes), describe)
    try:
        yield made
    finally:
        await made.close()


def pull(store: Store, hub: FakeHub, reference: str, **changes: Any) -> list[Progress]:
    async def run() -> list[Progress]:
        async with puller(store, hub, **changes) as made:
            return [line async for line in made.pull(reference)]

    return asyncio.run(run())


def clean(store: Store) -> None:
    """Nothing in the store is unproved, half-done under a final name, or left in staging."""
    report = store.fsck()
    assert report.problems == ()
    assert not list(store.blobs.staging.glob("*.tmp"))
    assert not list((store.root / "leases").iterdir())


# registries


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


def test_a_token_is_never_asked_of_another_host(store: Store, hub: FakeHub) -> None:
    hub.token, hub.realm = "s3cret", "http://localhost:1/token"
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    with pytest.raises(AddressRefused, match="only its own host"):
        pull(store, hub, name)


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


# one downloader


def test_parts_come_in_parallel_and_make_the_file(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/big", [("model", BIG)])
    lines = pull(store, hub, name)
    done = [line.completed or 0 for line in lines if line.total == len(BIG)]
    assert done == sorted(done)
    assert done[-1] == len(BIG)
    assert len(hub.asked("/blobs/")) == 7  # six parts and the config
    assert Path(store.get(name).files[0].path).read_bytes() == BIG
    clean(store)


async def cancel_at(made: Puller, reference: str, share: float) -> int:
    """Pulls until that share of the file is there, then closes the stream; returns the bytes then done."""
    done = 0
    async with aclosing(made.pull(reference)) as lines:
        async for line in lines:
            done = line.completed or 0
            if line.total == len(BIG) and done >= share * len(BIG):
                break
    return done


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


# redirects and addresses

PUBLIC = {"public_networks": ("127.0.0.1/32",)}
"""The fake hub's own address taken as public; all others of this machine stay private."""


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("http://127.0.0.2:9/x", AddressRefused),
        ("http://169.254.169.254/latest/meta-data", AddressRefused),
        ("http://[::1]:9/x", AddressRefused),
        ("http://[::ffff:10.0.0.1]/x", AddressRefused),
        ("http://10.1.2.3/x", AddressRefused),
        ("http://0.0.0.0:9/x", AddressRefused),
        ("http://[64:ff9b::a00:1]/x", AddressRefused),
        ("file:///etc/passwd", AddressRefused),
        ("gopher://127.0.0.1/x", AddressRefused),
    ],
)
def test_redirects_that_are_refused(
    store: Store, hub: FakeHub, location: str, error: type[Exception]
) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    hub.always["/manifests/"] = Fault(location=location)
    with pytest.raises(error):
        pull(store, hub, name, **PUBLIC)
    assert len(hub.requests) == 1


def test_eleven_hops_are_too_many(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    hub.always["/manifests/"] = Fault(location="/v2/me/fox/manifests/latest")
    with pytest.raises(SourceError, match="more than 10 times"):
        pull(store, hub, name)
    assert len(hub.requests) == 11


def test_a_private_host_only_where_the_operator_may_name_it(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    with pytest.raises(AddressRefused, match="only the operator"):
        pull(store, hub, name, allow_private=False)
    assert hub.requests == []


def test_credentials_stay_with_their_origin(store: Store, hub: FakeHub) -> None:
    with FakeHub() as cdn:
        hub.token, hub.cdn_origin = "s3cret", cdn.url
        name = hub.add_oci("me/fox", [("model", gguf_bytes())])
        cdn.blobs = hub.blobs
        pull(store, hub, name)
        assert cdn.requests
        assert all("authorization" not in request.headers for request in cdn.requests)
    assert any("authorization" in request.headers for request in hub.asked("/blobs/"))


def test_proxies_are_used_and_passed_over(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    dead = {"HTTP_PROXY": "http://127.0.0.1:9"}
    with pytest.raises(Unavailable):
        pull(store, hub, name, environment=dead)
    pull(store, hub, name, environment=dead | {"NO_PROXY": "127.0.0.0/8"})
    store.delete(name)
    with FakeHub() as proxy:
        proxy.always["/v2/"] = Fault(status=418)
        with pytest.raises(SourceError, match="418"):
            pull(store, hub, "http://models.example/me/fox", environment={"HTTP_PROXY": proxy.url})
        assert proxy.requests


# Hugging Face


def repo(*quantizations: str, **files: bytes) -> dict[str, bytes]:
    found = {f"fox-{each}.gguf": gguf_bytes(index, 500) for index, each in enumerate(quantizations)}
    return found | {"README.md": b"# fox", "mmproj-F16.gguf": gguf_bytes(99, 500)} | files


@pytest.mark.parametrize(
    ("reference", "wanted", "tag"),
    [
        ("hf.co/org/fox-GGUF", "fox-Q4_K_M.gguf", "latest"),
        ("hf.co/org/fox-GGUF:q8_0", "fox-Q8_0.gguf", "q8_0"),
        ("https://huggingface.co/org/fox-GGUF:fox-F16.gguf", "fox-F16.gguf", "fox-F16"),
        ("huggingface.co/org/fox-GGUF/fox-F16.gguf", "fox-F16.gguf", "fox-F16"),
        ("https://huggingface.co/org/fox-GGUF/blob/main/fox-F16.gguf", "fox-F16.gguf", "fox-F16-main"),
        ("hf.co/org/fox-GGUF:Q8_0@v1", "fox-Q8_0.gguf", "Q8_0-v1"),
    ],
)
def test_gguf_by_quantization(store: Store, hub: FakeHub, reference: str, wanted: str, tag: str) -> None:
    files = hub.repos["org/fox-GGUF"] = repo(
        "Q2_K", "Q4_K_M", "Q8_0", "F16", params=b'{"stop":["x"]}', template=b"T"
    )
    pull(store, hub, reference)
    (model,) = store.list()
    assert model.name.full() == f"hf.co/org/fox-GGUF:{tag}"
    assert Path(model.files[0].path).read_bytes() == files[wanted]
    assert (len(model.files), model.template, model.parameters) == (1, "T", {"stop": ["x"]})
    assert (model.config.model_format, model.config.model_type) == ("gguf", "1.50M")
    clean(store)


def test_shards_and_folders_of_one_quantization(store: Store, hub: FakeHub) -> None:
    hub.repos["org/fox"] = {
        f"{each}/fox-{each}-0000{part}-of-00002.gguf": gguf_bytes(part, 200 + len(each))
        for each in ("BF16", "Q4_0")
        for part in (1, 2)
    }
    pull(store, hub, "hf.co/org/fox:bf16")
    assert [file.name for file in store.list()[0].files] == [
        f"fox-BF16-0000{part}-of-00002.gguf" for part in (1, 2)
    ]


def test_what_a_repository_does_not_have(store: Store, hub: FakeHub) -> None:
    hub.repos["org/fox"] = repo("Q4_0", "Q8_0")
    hub.repos["org/pickles"] = {"pytorch_model.bin": b"\x80\x02", "config.json": b"{}"}
    with pytest.raises(NotFound, match=r"no quantization 'Q5_K_M'; it has Q4_0, Q8_0"):
        pull(store, hub, "hf.co/org/fox:Q5_K_M")
    with pytest.raises(NotFound, match=r"no file 'x\.gguf'"):
        pull(store, hub, "hf.co/org/fox:x.gguf")
    with pytest.raises(NotFound, match="no revision 'nope'"):
        pull(store, hub, "hf.co/org/fox@nope")
    with pytest.raises(NotFound, match="or it is private: set HF_TOKEN"):
        pull(store, hub, "hf.co/org/ghost")
    with pytest.raises(UnsupportedFormat, match="can run code"):
        pull(store, hub, "hf.co/org/pickles")
    with pytest.raises(Unavailable, match="offline"):
        pull(store, hub, "hf.co/org/fox", environment={"HF_HUB_OFFLINE": "1"})
    assert store.list() == []


def test_safetensors_with_their_config_and_tokenizer(store: Store, hub: FakeHub) -> None:
    shards = {
        f"model-0000{part}-of-00002.safetensors": safetensors_bytes(part) + bytes(200) for part in (1, 2)
    }
    texts = {"config.json": b"{}", "tokenizer.json": b'{"a":1}', "generation_config.json": b"[]"}
    more = {f"notes-{number}.txt": b"x%d" % number for number in range(12)}  # a second page of the listing
    skipped = {
        "original/consolidated.00.safetensors": b"o" * 300,
        "pytorch_model.bin": b"p" * 300,
        ".gitattributes": b"",
    }
    hub.repos["org/fox"] = shards | texts | more | skipped
    with FakeHub() as cdn:
        hub.cdn_origin, cdn.blobs = cdn.url, hub.blobs
        pull(store, hub, "hf.co/org/fox")
    (model,) = store.list()
    assert [file.name for file in model.files if file.role == "weights"] == sorted(shards)
    assert [file.name for file in model.files if file.role == "tokenizer"] == ["tokenizer.json"]
    assert {file.name for file in model.files if file.role == "config"} == {*texts, *more} - {
        "tokenizer.json"
    }
    assert model.parameters == {"top_k": 64}
    assert hub.sent("original") == 0
    clean(store)


def test_a_gated_repository_and_the_token(store: Store, hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["org/fox"], hub.hf_token = repo("Q4_0"), "hf_abc"
    hub.gated.add("org/fox")
    with pytest.raises(Gated, match="accept its terms") as caught:
        pull(store, hub, "hf.co/org/fox")
    assert caught.value.page == f"{hub.url}/org/fox"
    (tmp_path / "token").write_text("hf_abc\n")
    pull(store, hub, "hf.co/org/fox", environment={"HF_HOME": str(tmp_path)})
    assert store.list()


def test_a_small_file_that_is_not_what_git_says(store: Store, hub: FakeHub) -> None:
    hub.repos["org/fox"] = {"model.safetensors": safetensors_bytes() + bytes(300), "config.json": b'{"a":1}'}
    hub.always["/resolve/" + COMMIT + "/config.json"] = Fault(body=b'{"a":2}')
    with pytest.raises(DigestMismatch, match="git:"):
        pull(store, hub, "hf.co/org/fox")
    assert store.list() == []


def test_weights_in_the_hubs_own_cache_are_linked(store: Store, hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["org/fox"] = repo("Q4_0")
    data = hub.repos["org/fox"]["fox-Q4_0.gguf"]
    cached = tmp_path / "hub" / "models--org--fox" / "blobs" / hashlib.sha256(data).hexdigest()
    cached.parent.mkdir(parents=True)
    cached.write_bytes(data)
    pull(store, hub, "hf.co/org/fox", environment={"HF_HOME": str(tmp_path)})
    assert Path(store.list()[0].files[0].path).samefile(cached)
    assert hub.sent("/resolve/") == 0


# Kaggle

TREE = {
    "2b-it/_METADATA": b"{}",
    "2b-it/checkpoint": b"c" * 500,
    "2b-it/d/0": b"array",
    "tokenizer.model": b"\x0atok",
}
HANDLE = "google/gemma/flax/2b-it"


def test_a_tree_from_kaggle_file_by_file(store: Store, hub: FakeHub) -> None:
    hub.kaggle[HANDLE] = {1: {"old": b""}, 3: TREE}
    hub.kaggle_token = "t"
    with FakeHub() as cdn:
        hub.cdn_origin, cdn.blobs = cdn.url, hub.blobs
        pull(store, hub, f"kaggle://{HANDLE}", environment={"KAGGLE_API_TOKEN": "t"})
        assert all("authorization" not in request.headers for request in cdn.requests)
    (model,) = store.list()
    assert model.name.full() == "kaggle.com/google/gemma:flax-2b-it"
    assert {file.name: Path(file.path).read_bytes() for file in model.files} == TREE
    assert [file.name for file in model.files if file.role == "tokenizer"] == ["tokenizer.model"]
    clean(store)


def test_a_tree_of_many_files_comes_as_an_archive(store: Store, hub: FakeHub) -> None:
    import io
    import tarfile

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in TREE.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    hub.kaggle[HANDLE] = {2: {f"2b-it/d/{number}": b"x" for number in range(250)}}
    hub.kaggle_archives[HANDLE] = packed.getvalue()
    pull(store, hub, f"kaggle://{HANDLE}/2")
    (model,) = store.list()
    assert {file.name: Path(file.path).read_bytes() for file in model.files} == TREE
    store.collect_garbage()
    assert len(set(store.blobs.digests())) == len(TREE) + 2  # the archive itself is gone


def test_kaggles_refusals(store: Store, hub: FakeHub) -> None:
    hub.kaggle[HANDLE] = {1: TREE}
    hub.consent.add(HANDLE)
    with pytest.raises(Gated, match=r"https://www\.kaggle\.com/models/google/gemma"):
        pull(store, hub, f"kaggle://{HANDLE}")
    hub.kaggle_token = "t"
    with pytest.raises(Unauthorized, match="KAGGLE_API_TOKEN"):
        pull(store, hub, f"kaggle://{HANDLE}")
    hub.kaggle_token = ""
    with pytest.raises(NotFound, match="no model"):
        pull(store, hub, "kaggle://google/gemma/flax/9b")


def test_bytes_that_kaggles_md5_disproves(store: Store, hub: FakeHub) -> None:
    hub.kaggle[HANDLE] = {1: TREE}
    hub.always["/cdn/"] = Fault(headers={"x-goog-hash": "md5=AAAAAAAAAAAAAAAAAAAAAA=="})
    with pytest.raises(DigestMismatch, match="md5:"):
        pull(store, hub, f"kaggle://{HANDLE}")
    clean(store)


# plain addresses


def test_a_file_at_an_address(store: Store, hub: FakeHub) -> None:
    data = hub.files["/files/fox.gguf"] = gguf_bytes(3, 5 * MIB)
    pull(store, hub, f"{hub.url}/files/fox.gguf")
    (model,) = store.list()
    assert model.name.full() == f"{hub.netloc}/files/fox:latest"
    assert Path(model.files[0].path).read_bytes() == data
    clean(store)
    wrong = "0" * 64
    with pytest.raises(DigestMismatch):
        pull(store, hub, f"{hub.url}/files/fox.gguf#sha256={wrong}")


@pytest.mark.slow
def test_a_file_that_changes_between_two_runs_is_never_mixed(store: Store, hub: FakeHub) -> None:
    first, second = gguf_bytes(1, 9 * MIB), gguf_bytes(2, 9 * MIB)
    hub.files["/files/fox.gguf"] = first
    hub.always["/files/fox.gguf"] = Fault(hang_at=MIB * 3 // 2)

    async def interrupted() -> None:
        async with (
            puller(store, hub, stall_timeout=30) as made,
            aclosing(made.pull(f"{hub.url}/files/fox.gguf")) as lines,
        ):
            async for line in lines:
                if (line.completed or 0) > 4 * MIB:
                    return

    asyncio.run(interrupted())
    hub.always.clear()
    hub.files["/files/fox.gguf"] = second
    pull(store, hub, f"{hub.url}/files/fox.gguf")
    assert Path(store.list()[0].files[0].path).read_bytes() == second


def test_a_server_without_ranges_and_without_lengths(store: Store, hub: FakeHub) -> None:
    data = hub.files["/files/fox.gguf"] = gguf_bytes(3, 3 * MIB)
    hub.always["/files/fox.gguf"] = Fault(ignore_range=True, no_length=True)
    pull(store, hub, f"{hub.url}/files/fox.gguf")
    assert Path(store.list()[0].files[0].path).read_bytes() == data


# plans and references


def test_a_plan_tells_sizes_and_choices(store: Store, hub: FakeHub) -> None:
    hub.repos["org/fox"] = repo("Q4_0", "Q8_0")

    async def run() -> Any:
        async with puller(store, hub) as made:
            return await made.plan("hf.co/org/fox")

    plan = asyncio.run(run())
    size = len(hub.repos["org/fox"]["fox-Q4_0.gguf"])
    assert (plan.total_bytes, plan.download_bytes, plan.fits) == (size, size, True)
    assert set(plan.choices) == {"Q4_0", "Q8_0"}
    assert hub.sent("/resolve/") == 0
    pull(store, hub, "hf.co/org/fox")
    assert asyncio.run(run()).download_bytes == 0


@pytest.mark.parametrize(
    "text",
    [
        "ftp://x/y.gguf", "kaggle://a/b/c", "kaggle://a/b/c/d/e", "kaggle://a/../c/d", "hf.co/onlyorg",
        "hf.co/a/b@../x",         "https://user:pass@h.example/x.gguf", "", "hf.co/a b/c", "https:///x.gguf",
    ],
)  # fmt: skip
def test_references_that_are_refused(text: str) -> None:
    with pytest.raises(RegistryError):
        Reference.parse(text)


def test_references_and_the_names_they_give() -> None:
    parsed = {
        text: Reference.parse(text)
        for text in ("gemma3:4b", "./x/My Fox.gguf", "http://h.example/a/b:c", "h.example/a/b")
    }
    assert [(each.kind, each.name.display()) for each in parsed.values()] == [
        ("oci", "gemma3:4b"), ("local", "my-fox:latest"),
        ("oci", "h.example/a/b:c"), ("oci", "h.example/a/b:latest"),
    ]  # fmt: skip
    assert parsed["http://h.example/a/b:c"].insecure


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

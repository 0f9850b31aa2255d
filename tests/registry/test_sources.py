"""Pulling from Hugging Face, Kaggle and plain addresses: what each source makes of a reference."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from pathlib import Path

import pytest

from registry.errors import (
    DigestMismatch,
    Gated,
    NotFound,
    Unauthorized,
    Unavailable,
    UnsupportedFormat,
)
from registry.plan import Plan
from registry.store import Store
from tests.registry.conftest import gguf_bytes, safetensors_bytes
from tests.registry.fakehub import COMMIT, FakeHub, Fault
from tests.registry.hubs import MIB, clean, pull, puller, repo

# Hugging Face


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


@pytest.mark.parametrize("expired", [False, True])
def test_a_repository_on_xet_comes_through_its_bridge(store: Store, hub: FakeHub, expired: bool) -> None:
    big = gguf_bytes(4, 5 * MIB)
    hub.repos["org/fox"], hub.hf_token = {"fox-Q4_0.gguf": big}, "hf_abc"
    hub.gated.add("org/fox")
    hub.xet.add("org/fox")
    with FakeHub("127.0.0.2") as bridge:
        hub.cdn_origin, bridge.blobs = bridge.url, hub.blobs
        if expired:  # signed addresses run out while a download lasts
            bridge.faults["/cdn/"] = [Fault(status=403)]
        pull(store, hub, "hf.co/org/fox", environment={"HF_TOKEN": "hf_abc"})
        assert all("range" in request.headers for request in bridge.requests)
        assert all("authorization" not in request.headers for request in bridge.requests)
        assert bridge.sent("/cdn/") == len(big) + (2 if expired else 0)
    assert Path(store.list()[0].files[0].path).read_bytes() == big
    assert not [request for request in hub.requests if "xet" in request.path]
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
    shared = tmp_path / "hub" / "shared" / "x"  # newer clients keep one copy for all repositories
    shared.parent.mkdir()
    shared.write_bytes(data)
    cached.symlink_to("../../shared/x")
    pull(store, hub, "hf.co/org/fox", environment={"HF_HOME": str(tmp_path)})
    blob = Path(store.list()[0].files[0].path)
    assert blob.samefile(shared)
    assert not blob.is_symlink()
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


def keep_in_kaggles_cache(home: Path, version: int, complete: bool = True) -> Path:
    """The tree as Kaggle's own client leaves it."""
    folder = home / ".cache" / "kagglehub" / "models" / HANDLE / str(version)
    for name, data in TREE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if complete:
        folder.with_name(f"{version}.complete").touch()
    return folder


def test_what_kaggles_own_cache_holds_is_linked(store: Store, hub: FakeHub, tmp_path: Path) -> None:
    hub.kaggle[HANDLE] = {3: TREE}
    folder = keep_in_kaggles_cache(tmp_path, 3)
    (folder / "tokenizer.model").write_bytes(b"\x0axxx")  # as long, but not what Kaggle has
    (folder / "2b-it/d/0").unlink()
    environment = {"HOME": str(tmp_path)}

    async def plan() -> Plan:
        async with puller(store, hub, environment=environment) as made:
            return await made.plan(f"kaggle://{HANDLE}")

    assert asyncio.run(plan()).download_bytes == len(TREE["2b-it/d/0"])
    pull(store, hub, f"kaggle://{HANDLE}", environment=environment)
    (model,) = store.list()
    files = {file.name: Path(file.path) for file in model.files}
    assert {name: path.read_bytes() for name, path in files.items()} == TREE
    kept = {name: folder / name for name in files if (folder / name).exists()}
    linked = {name for name, path in kept.items() if files[name].samefile(path)}
    assert linked == {"2b-it/_METADATA", "2b-it/checkpoint"}
    clean(store)


@pytest.mark.parametrize("broken", ["unfinished", "no md5", "another version"])
def test_a_cache_that_proves_nothing_is_not_used(
    store: Store, hub: FakeHub, tmp_path: Path, broken: str
) -> None:
    hub.kaggle[HANDLE] = {3: TREE}
    folder = keep_in_kaggles_cache(
        tmp_path, 2 if broken == "another version" else 3, complete=broken != "unfinished"
    )
    if broken == "no md5":
        hub.always["/cdn/"] = Fault(headers={"x-goog-hash": "crc32c=AAAAAA=="})
    pull(store, hub, f"kaggle://{HANDLE}", environment={"HOME": str(tmp_path)})
    (model,) = store.list()
    assert {file.name: Path(file.path).read_bytes() for file in model.files} == TREE
    assert not any(Path(file.path).samefile(folder / file.name) for file in model.files)


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

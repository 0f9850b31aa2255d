"""Blobs: what counts as a digest, publishing only what is proved, and never a trace of what failed."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry.blobs import Digest, blob_path, digest_of, parse_digest
from registry.errors import BlobNotFound, DigestMismatch, InvalidDigest, ModelCorrupt
from registry.store import Store

HEX = "ab" * 32
NOT_DIGESTS = [
    "", "sha256:", HEX, f"sha256:{HEX[:-1]}", f"sha256:{HEX}0", f"sha512:{HEX}", f"SHA256:{HEX}",
    f"sha256:{'g' * 64}", f"sha256:../{HEX}", f"../sha256:{HEX}", f"sha256:{HEX}/..", f"sha256:{HEX}\n",
    f"\nsha256:{HEX}", f"sha256:{HEX}\0", f"sha256:{HEX[:62]}%2e", "sha256:../../../../etc/passwd",
    f"sha256:/{HEX[1:]}", f"sha256:{HEX[:-2]}..", f" sha256:{HEX}", f"sha256::{HEX}",
    f"sha256:{'٣' * 64}", f"sha256_{HEX}", f"sha256:\\{HEX[1:]}", "/etc/passwd", "sha256-../../x",
    "sha256:" + "a" * 1_000_000,
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_DIGESTS, ids=range(len(NOT_DIGESTS)))
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(InvalidDigest, match="invalid digest format"):
        parse_digest(text)


def test_both_spellings_make_one_digest_and_one_path(tmp_path: Path) -> None:
    digest = parse_digest(f"sha256-{HEX.upper()}")
    assert digest == parse_digest(f"sha256:{HEX}") == f"sha256:{HEX}"
    assert blob_path(tmp_path, digest) == tmp_path / "blobs" / f"sha256-{HEX}"


def test_bytes_come_back_once_stored(store: Store) -> None:
    first, again = store.blobs.put_bytes(b"hello"), store.blobs.put_bytes(b"hello")
    assert first.digest == f"sha256:{hashlib.sha256(b'hello').hexdigest()}"
    assert (first.existed, again.existed, again.size) == (False, True, 5)
    with store.blobs.open(first.digest) as file:
        assert file.read() == b"hello"
    store.blobs.verify(first.digest)
    assert blob_path(store.root, first.digest).stat().st_mode & 0o777 == 0o600
    assert store.root.stat().st_mode & 0o777 == 0o700
    assert not list(store.blobs.staging.iterdir())


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


def test_a_stream_with_another_digest_leaves_nothing(store: Store) -> None:
    want = digest_of(b"other")
    with pytest.raises(DigestMismatch, match="must be downloaded again"):
        asyncio.run(store.blobs.put_stream(pieces(b"he", b"llo"), want))
    assert not list(store.blobs.digests())
    assert not list(store.blobs.staging.iterdir())


def test_a_long_stream_and_one_past_its_limit(store: Store) -> None:
    data = os.urandom(3_000_000)
    blob = asyncio.run(store.blobs.put_stream(pieces(data[:10], data[10:2_000_000], data[2_000_000:])))
    assert blob.digest == digest_of(data)
    with pytest.raises(ModelCorrupt, match="longer than the 4 bytes"):
        asyncio.run(store.blobs.put_stream(pieces(b"hello"), limit=4))
    assert not list(store.blobs.staging.iterdir())


@pytest.mark.parametrize("link", [False, True])
def test_a_file_is_taken_over(store: Store, tmp_path: Path, link: bool) -> None:
    source = tmp_path / "weights"
    source.write_bytes(b"w" * 100_000)
    blob = store.blobs.put_file(source, link=link)
    stored = blob_path(store.root, blob.digest)
    assert stored.read_bytes() == source.read_bytes()
    assert stored.samefile(source) is link
    assert store.blobs.put_file(source, link=link).existed
    with pytest.raises(DigestMismatch):
        store.blobs.put_file(source, digest_of(b""), link=link)


def test_damage_is_found_on_reading(store: Store) -> None:
    blob = store.blobs.put_bytes(b"hello")
    path = blob_path(store.root, blob.digest)
    path.write_bytes(b"jello")
    with pytest.raises(ModelCorrupt, match="hashes to"):
        store.blobs.verify(blob.digest)
    with pytest.raises(ModelCorrupt, match="does not hash"):
        store.blobs.read(blob.digest, 5)
    path.write_bytes(b"hello!")
    assert not store.blobs.exists(blob.digest, 5)
    assert not store.blobs.put_bytes(b"hello").existed  # one of the wrong size is replaced
    store.blobs.verify(blob.digest)


def test_a_blob_that_is_not_there(store: Store) -> None:
    digest = Digest(f"sha256:{HEX}")
    with pytest.raises(BlobNotFound, match="not found"):
        store.blobs.open(digest)
    assert not store.blobs.exists(digest)

"""`export` and `import`: one model as one file, an OCI image layout in a tar, for a machine without network.

The file is what `skopeo copy oci-archive:` reads. Importing believes nothing: names, sizes and digests are
proved, and the model appears only when all its blobs are there. Blocking; progress by callback.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import msgspec

from registry.archive import Member, open_archive
from registry.blobs import Blob, Digest, digest_of, parse_digest
from registry.disk import translated
from registry.errors import BlobNotFound, InvalidArchive, InvalidManifest, ModelCorrupt
from registry.locks import Lease
from registry.manifest import MANIFEST_LIMIT, MANIFEST_TYPE, Manifest
from registry.model import Model
from registry.name import ModelName
from registry.progress import OnProgress, Progress
from registry.store import Store

STEP = 4 << 20
"""Bytes between two lines of progress about one blob."""
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_REF_ANNOTATION = "org.opencontainers.image.ref.name"
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")


def export_model(
    store: Store, name: ModelName | str, target: IO[bytes], on_progress: OnProgress = lambda progress: None
) -> None:
    """Writes the model to `target`, its blobs proved on the way.

    The index and the manifest come first, so that a reader knows what follows. Raises ModelNotFound,
    ModelCorrupt, DiskFull.
    """
    entry = store.entry(name)
    manifest_bytes = entry.data
    descriptor = {
        "mediaType": MANIFEST_TYPE,
        "digest": digest_of(manifest_bytes),
        "size": len(manifest_bytes),
        "annotations": {_REF_ANNOTATION: entry.name.full()},
    }
    index = msgspec.json.encode({"schemaVersion": 2, "manifests": [descriptor]})
    with (
        _kept(store, entry.manifest),
        translated(entry.manifest.size),
        tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as out,
    ):
        for path, data in (
            ("oci-layout", _LAYOUT),
            ("index.json", index),
            (_blob_name(digest_of(manifest_bytes)), manifest_bytes),
        ):
            out.addfile(_info(path, len(data)), io.BytesIO(data))
        for digest, size in entry.manifest.blobs().items():
            with _opened(store, digest) as file:
                source = _Proved(file, digest, _shown("exporting", digest, size, on_progress))
                out.addfile(_info(_blob_name(digest), size), source)  # type: ignore[arg-type]
                source.finish()
    on_progress(Progress("success"))


@contextlib.contextmanager
def _kept(store: Store, manifest: Manifest) -> Iterator[None]:
    """Keeps the blobs of a manifest on disk meanwhile, whatever is deleted."""
    if not store.writable:
        yield
        return
    with store.lease_empty() as lease:
        lease.add(manifest.blobs())
        yield


def _opened(store: Store, digest: Digest) -> BufferedReader:
    try:
        return store.blobs.open(digest)
    except (BlobNotFound, OSError) as error:
        raise _damaged(digest, "is missing") from error


def _damaged(digest: Digest, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"the model is damaged: blob {digest} {what}; pull or create it again", digest)


class _Proved:
    """A blob as tarfile reads it; raises ModelCorrupt when it cannot be read or proves wrong at its end."""

    def __init__(self, file: BufferedReader, digest: Digest, on_bytes: Callable[[int], None]) -> None:
        self._file = file
        self._digest = digest
        self._done = 0
        self._hash = hashlib.sha256()
        self._on_bytes = on_bytes

    def read(self, count: int) -> bytes:
        """The next `count` bytes."""
        try:
            data = self._file.read(count)
        except OSError as error:
            raise _damaged(self._digest, "cannot be read") from error
        if len(data) < count:
            raise _damaged(self._digest, "is too short")
        self._hash.update(data)
        self._done += len(data)
        self._on_bytes(self._done)
        return data

    def finish(self) -> None:
        """To be called after the last byte."""
        if self._file.read(1) or f"sha256:{self._hash.hexdigest()}" != self._digest:
            raise _damaged(self._digest, "does not hash to its name")


def _shown(verb: str, digest: Digest, size: int, on_progress: OnProgress) -> Callable[[int], None]:
    """Tells how far one blob is, every few MiB and at its end."""
    told = 0

    def tell(done: int) -> None:
        nonlocal told
        if done - told >= STEP or done == size:
            told = done
            on_progress(Progress(f"{verb} {digest[7:19]}", digest, size, done))

    return tell


def import_model(
    store: Store,
    source: Path,
    name: ModelName | str | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Model:
    """Takes the model out of a file that `export` wrote, under its own name or `name`.

    Raises InvalidArchive, ModelCorrupt, DiskFull; then nothing is there but blobs for the next collection.
    """
    small: dict[str, bytes] = {}
    with store.lease_empty() as lease:
        blobs: dict[Digest, int] = {}
        for member in open_archive(source, _expected):
            if member.name in ("oci-layout", "index.json"):
                small[member.name] = _small(member)
                continue
            blob = _take_blob(store, lease, member, on_progress)
            blobs[blob.digest] = blob.size
        digest, own_name = _entry_point(small.get("index.json", b""))
        if digest not in blobs:
            raise InvalidArchive("the file holds no model: its manifest is missing")
        data = store.blobs.read(digest, blobs[digest], MANIFEST_LIMIT)
        target = ModelName.parse(str(name)) if name is not None else own_name
        on_progress(Progress("writing manifest"))
        missing = [each for each in Manifest.parse(data).blobs() if each not in blobs]
        if missing:
            raise InvalidArchive(f"the file is incomplete: blob {missing[0]} is missing")
        model, _ = store.write(target, data)
    on_progress(Progress("success"))
    return model


def _expected(name: str) -> bool:
    return name in ("oci-layout", "index.json") or _BLOB.fullmatch(name) is not None


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"


def _info(path: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.size, info.mode = size, 0o644
    return info


def _small(member: Member) -> bytes:
    if member.size > MANIFEST_LIMIT:
        raise InvalidArchive(f"{member.name} is longer than the {MANIFEST_LIMIT:,} bytes allowed")
    return b"".join(member.chunks)


def _take_blob(store: Store, lease: Lease, member: Member, on_progress: OnProgress) -> Blob:
    match = _BLOB.fullmatch(member.name)
    assert match is not None  # only such names are expected
    digest = parse_digest(f"sha256:{match[1]}")
    tell = _shown("importing", digest, member.size, on_progress)
    with store.blobs.writer() as writer:
        for chunk in member.chunks:
            writer.push(chunk)
            tell(writer.size)
        return writer.finish(digest, lease)


def _entry_point(index: bytes) -> tuple[Digest, ModelName]:
    """The digest of the one manifest in the index, and the name it had."""
    try:
        document: Any = msgspec.json.decode(index)
        (descriptor,) = document["manifests"]
        name = ModelName.parse(descriptor["annotations"][_REF_ANNOTATION])
        return parse_digest(descriptor["digest"]), name
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError, ValueError, InvalidManifest) as error:
        raise InvalidArchive("the file is no exported model: its index does not parse") from error

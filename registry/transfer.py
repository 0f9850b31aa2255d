"""`export` and `import`: one model as one file, an OCI image layout in a tar, for a machine without network.

The file is what `skopeo copy oci-archive:` reads. Importing believes nothing: names, sizes and digests are
proved, and the model appears only when all its blobs are there. Blocking; progress by callback.
"""

from __future__ import annotations

import io
import re
import tarfile
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

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_REF_ANNOTATION = "org.opencontainers.image.ref.name"
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")


def export_model(
    store: Store, name: ModelName | str, target: IO[bytes], on_progress: OnProgress = lambda progress: None
) -> None:
    """Writes the model to `target`; raises ModelNotFound, ModelCorrupt, DiskFull.

    The index and the manifest come first, so that a reader knows what follows.
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
            try:
                with store.blobs.open(digest) as file:
                    out.addfile(_info(_blob_name(digest), size), file)
            except (BlobNotFound, OSError) as error:
                raise ModelCorrupt(f"model '{entry.name}' is damaged: {error}", digest) from error
            on_progress(Progress(f"exporting {digest[7:19]}", digest, size, size))
    on_progress(Progress("success"))


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
            blob = _take_blob(store, lease, member)
            blobs[blob.digest] = blob.size
            on_progress(Progress(f"importing {blob.digest[7:19]}", blob.digest, blob.size, blob.size))
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


def _take_blob(store: Store, lease: Lease, member: Member) -> Blob:
    match = _BLOB.fullmatch(member.name)
    assert match is not None  # only such names are expected
    with store.blobs.writer() as writer:
        for chunk in member.chunks:
            writer.push(chunk)
        return writer.finish(parse_digest(f"sha256:{match[1]}"), lease)


def _entry_point(index: bytes) -> tuple[Digest, ModelName]:
    """The digest of the one manifest in the index, and the name it had."""
    try:
        document: Any = msgspec.json.decode(index)
        (descriptor,) = document["manifests"]
        name = ModelName.parse(descriptor["annotations"][_REF_ANNOTATION])
        return parse_digest(descriptor["digest"]), name
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError, ValueError, InvalidManifest) as error:
        raise InvalidArchive("the file is no exported model: its index does not parse") from error

"""Archives and llamafiles as layers: every regular file inside becomes a blob of its own.

Called by `create` and `pull`; the archive itself is read through `registry.archive` and never extracted.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from registry.archive import Limits, open_archive
from registry.blobs import Blob
from registry.errors import UnsupportedFormat
from registry.locks import Lease
from registry.manifest import LAYER_LIMIT, MEDIA_TYPES, Layer
from registry.sources.local import kinds_of_names
from registry.store import Store


def unpack(store: Store, lease: Lease, path: Path) -> list[Layer]:
    """The layers of the model in the archive; raises InvalidArchive, UnsupportedFormat."""
    blobs: dict[str, Blob] = {}
    for member in open_archive(path, _wanted, Limits(members=LAYER_LIMIT)):
        with store.blobs.writer() as writer:
            for chunk in member.chunks:
                writer.push(chunk)
            blobs[member.name] = writer.finish(lease=lease)
    kinds = kinds_of_names(list(blobs), path.name)
    return [Layer(MEDIA_TYPES[kind], blobs[name].digest, blobs[name].size, name) for kind, name in kinds]


def unpack_llamafile(store: Store, lease: Lease, path: Path) -> Blob:
    """The GGUF in the zip at the end of a llamafile; raises UnsupportedFormat when there is none."""
    for member in open_archive(path, lambda name: name.endswith(".gguf")):
        with store.blobs.writer() as writer:
            for chunk in member.chunks:
                writer.push(chunk)
            return writer.finish(lease=lease)
    raise UnsupportedFormat(f"unsupported format: {path.name!r} holds no GGUF")


def _wanted(name: str) -> bool:
    return not any(part.startswith(".") for part in PurePosixPath(name).parts)

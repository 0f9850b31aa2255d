"""Sends models to registries that speak the OCI distribution protocol.

Blobs that are there already are skipped or mounted; the others go up in pieces, from where the registry
says the last try ended. The manifest goes last, so that a half-pushed model has no name there.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from registry.blobs import Digest
from registry.errors import BlobNotFound, InvalidName, ModelCorrupt, SourceError, Unauthorized, Unavailable
from registry.manifest import MANIFEST_TYPE, Layer
from registry.name import ModelName
from registry.progress import Progress
from registry.pull import INTERVAL, Puller
from registry.reference import Reference
from registry.sources.oci import RegistrySession
from registry.store import Store
from registry.threads import in_thread

PIECE = 16 << 20
BLOBS_AT_ONCE = 3
_NOT_YOURS = "you are not authorized to push to this namespace, create the model under a namespace you own"


@dataclass(slots=True)
class _Upload:
    """A blob on its way and how far it is."""

    layer: Layer
    done: int = 0
    told: int = -1
    place: str = ""

    def progress(self) -> Progress:
        """Its line."""
        return Progress(f"pushing {self.layer.digest[7:19]}", self.layer.digest, self.layer.size, self.done)


class Pusher:
    """Pushes from one store; shares the connections and the key of a puller."""

    def __init__(self, store: Store, puller: Puller) -> None:
        self._store = store
        self._puller = puller

    async def push(self, name: ModelName | str, insecure: bool = False) -> AsyncIterator[Progress]:
        """Sends the model to the registry that its name says, and tells how far it is.

        Raises ModelNotFound, ModelCorrupt, Unauthorized, Unavailable, SourceError.
        """
        wanted = name if isinstance(name, ModelName) else ModelName.parse(name)
        yield Progress("retrieving manifest")
        entry = await in_thread(self._store.entry, wanted)
        session = self._puller.oci.session(Reference("oci", entry.name, "", insecure=insecure))
        with await in_thread(self._store.lease_empty) as lease:
            await in_thread(lease.add, entry.manifest.blobs())
            layers = {layer.digest: layer for layer in (*entry.manifest.layers, entry.manifest.config)}
            uploads = [_Upload(layer) for layer in layers.values()]
            working = asyncio.create_task(self._push_all(session, uploads))
            try:
                while not working.done():
                    await asyncio.wait([working], timeout=INTERVAL)
                    for upload in uploads:
                        if upload.done != upload.told:
                            upload.told = upload.done
                            yield upload.progress()
                await working
            finally:
                working.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await working
        yield Progress("pushing manifest")
        reply, _ = await session.fetch(
            "PUT", f"/manifests/{entry.name.tag}", {"Content-Type": MANIFEST_TYPE}, entry.data
        )
        if reply.status not in (200, 201, 202):
            raise _refused(reply.failure(f"the manifest of '{entry.name}'"))
        yield Progress("success")

    async def _push_all(self, session: RegistrySession, uploads: list[_Upload]) -> None:
        gate = asyncio.Semaphore(BLOBS_AT_ONCE)

        async def one(upload: _Upload) -> None:
            async with gate:
                await self._push_blob(session, upload)

        tasks = [asyncio.create_task(one(upload)) for upload in uploads]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _push_blob(self, session: RegistrySession, upload: _Upload) -> None:
        attempts = self._puller.transport.settings.attempts
        for attempt in range(1, attempts + 1):
            try:
                await self._try_blob(session, upload)
                return
            except Unavailable as error:
                if attempt == attempts:
                    raise
                await self._puller.transport.pause(attempt, error.retry_after)

    async def _try_blob(self, session: RegistrySession, upload: _Upload) -> None:
        """Brings the blob there from wherever it stands; raises Unavailable when it is worth another try."""
        layer = upload.layer
        reply, _ = await session.fetch("HEAD", f"/blobs/{layer.digest}")
        mounted = reply.status == 200
        if not mounted:
            mounted = not await self._resume(session, upload) and await self._begin(session, upload)
        if mounted:
            upload.done = layer.size
            return
        await self._send(session, upload)
        separator = "&" if urlsplit(upload.place).query else "?"
        commit = f"{upload.place}{separator}digest={quote(layer.digest)}"
        reply, _ = await session.fetch("PUT", commit, content=b"")
        if reply.status != 201:
            raise reply.failure(f"blob {layer.digest}")

    async def _begin(self, session: RegistrySession, upload: _Upload) -> bool:
        """Opens an upload; True when the registry took the blob from another model instead."""
        reply, _ = await session.fetch("POST", f"/blobs/uploads/{_mount(upload.layer)}", content=b"")
        if reply.status == 201:
            return True
        if reply.status != 202:
            raise _refused(reply.failure(f"an upload of {upload.layer.digest[:19]}"))
        upload.place, upload.done = _location(reply.headers, session.base + "/"), 0
        return False

    async def _send(self, session: RegistrySession, upload: _Upload) -> None:
        """Sends the rest in pieces."""
        layer = upload.layer
        while upload.done < layer.size:
            piece = await in_thread(self._read, layer.digest, upload.done)
            if not piece:
                raise ModelCorrupt(f"blob {layer.digest} is shorter than declared", layer.digest)
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{upload.done}-{upload.done + len(piece) - 1}",
            }
            reply, _ = await session.fetch("PATCH", upload.place, headers, piece)
            if reply.status not in (202, 204):
                raise reply.failure(f"a piece of blob {layer.digest[:19]}")
            upload.done += len(piece)
            upload.place = _location(reply.headers, upload.place)

    async def _resume(self, session: RegistrySession, upload: _Upload) -> bool:
        """Asks how much of an opened upload arrived; False when there is none (any more)."""
        if not upload.place:
            return False
        reply, _ = await session.fetch("GET", upload.place)
        match = re.fullmatch(r"(?:bytes=)?0-(\d{1,19})", reply.headers.get("range", ""))
        if reply.retryable:
            raise reply.failure(f"the state of the upload of {upload.layer.digest[:19]}")
        if reply.status != 204 or match is None:
            return False
        arrived = int(match[1]) + 1
        if arrived == 1 and not upload.done:
            arrived = 0  # the protocol has no way to write "nothing": registries say 0-0
        upload.done = min(arrived, upload.layer.size)
        upload.place = _location(reply.headers, upload.place)
        return True

    def _read(self, digest: Digest, offset: int) -> bytes:
        try:
            with self._store.blobs.open(digest) as file:
                file.seek(offset)
                return file.read(PIECE)
        except BlobNotFound as error:
            raise ModelCorrupt(f"blob {digest} is missing; pull or create its model again", digest) from error


def _refused(error: SourceError) -> SourceError:
    return Unauthorized(f"{error}; {_NOT_YOURS}") if isinstance(error, Unauthorized) else error


def _mount(layer: Layer) -> str:
    """The query that asks the registry to take the blob from the model it came from, where known."""
    try:
        name = ModelName.parse(layer.source or "")
    except InvalidName:
        return ""
    return f"?mount={quote(layer.digest)}&from={quote(f'{name.namespace}/{name.model}')}"


def _location(headers: Mapping[str, str], current: str) -> str:
    """Where the upload goes on; registries give a path or a whole address."""
    found = headers.get("docker-upload-location") or headers.get("location")
    return urljoin(current, found) if found else current

"""Brings models from anywhere into the store, and says beforehand what that would cost.

Joins sources, downloader and store; the order is the promise: every blob proved and durable under a
lease, then the manifest, then "success". Progress is a stream of values; closing it cancels.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

from modelfiles.templates.builtin import UnknownName, check_names
from registry.blobs import Blob, blob_path
from registry.create import Inspect, ModelBuilder, fresh_base
from registry.download import Downloader
from registry.errors import InvalidReference, NotFound, UnsupportedFormat
from registry.identity import Identity
from registry.locks import Lease
from registry.manifest import MEDIA_TYPES, Layer, Manifest, ModelConfig
from registry.name import ModelName
from registry.partial import recorded
from registry.peek import Peeker, with_memory
from registry.plan import Measure, Plan
from registry.progress import Progress
from registry.reference import Reference, SourceKind
from registry.sources.base import Listing, Source, SourceFile, total_size
from registry.sources.huggingface import HuggingFaceSource
from registry.sources.kaggle import KaggleSource
from registry.sources.oci import OciSource
from registry.sources.url import UrlSource
from registry.store import Store
from registry.threads import gathered, in_thread
from registry.transport import ClientSettings, Transport
from registry.unpack import unpack

__all__ = ["ClientSettings", "Plan", "Progress", "Puller", "Reference"]

INTERVAL = 0.06
"""Seconds between two progress lines of one blob: Ollama's rhythm."""
FILES_AT_ONCE = 3
_TEXT_KINDS = frozenset({"template", "system", "params", "license"})


class _Board:
    """The newest state of every blob, for a reader that comes by now and then."""

    def __init__(self) -> None:
        self._changed: dict[str, Progress] = {}

    def watcher(self, source: SourceFile) -> _Watcher:
        """What the downloader calls for one file."""
        return _Watcher(self._changed, source)

    def take(self) -> list[Progress]:
        """What changed since the last time."""
        changed = list(self._changed.values())
        self._changed.clear()
        return changed


class _Watcher:
    def __init__(self, changed: dict[str, Progress], source: SourceFile) -> None:
        self._changed = changed
        self._digest = source.remote.sha256
        self._shown = self._digest[7:19] if self._digest else (source.name or source.kind)
        self._key = source.remote.key

    def __call__(self, done: int, size: int | None) -> None:
        self._changed[self._key] = Progress(f"pulling {self._shown}", self._digest or self._shown, size, done)


class Puller:
    """Pulls into one store. Make one for the whole process: that is what lets callers share downloads."""

    def __init__(
        self,
        store: Store,
        settings: ClientSettings,
        inspect: Inspect,
        identity_path: Path | None = None,
        measure: Measure | None = None,
    ) -> None:
        self._store = store
        self._inspect = inspect
        self._measure = measure
        self._identity_path = identity_path or store.root.parent / "id_ed25519"
        self.transport = Transport(settings)
        self._downloader = Downloader(store, self.transport)
        self.oci = OciSource(self.transport, self.identity)
        self.sources: dict[SourceKind, Source] = {
            "oci": self.oci,
            "huggingface": HuggingFaceSource(self.transport),
            "kaggle": KaggleSource(self.transport),
            "url": UrlSource(self.transport),
        }

    def identity(self) -> Identity:
        """This machine's key, made when first needed."""
        return Identity.load_or_create(self._identity_path, self._store.disk)

    async def close(self) -> None:
        """Closes all connections."""
        await self.transport.close()

    async def plan(self, reference: Reference | str) -> Plan:
        """What `pull` would fetch; downloads nothing but metadata."""
        parsed = reference if isinstance(reference, Reference) else Reference.parse(reference)
        return await self._plan(parsed, await self._resolve(parsed))

    async def _plan(self, reference: Reference, listing: Listing) -> Plan:
        plan = Plan(
            name=reference.name,
            total_bytes=total_size(listing.files),
            download_bytes=await in_thread(self._missing, listing),
            free_bytes=await in_thread(self._store.disk.free_bytes, self._store.root),
            complete=all(file.size is not None for file in listing.files),
            choices={name: total_size(files) for name, files in listing.choices.items()},
            chosen=listing.chosen,
        )
        if self._measure is None or not plan.has_room:
            return plan
        return await with_memory(plan, listing, Peeker(self._store, self.transport), self._measure)

    def _missing(self, listing: Listing) -> int:
        """Bytes that have yet to come: neither here, nor in another program's cache, nor left by a pull that
        was interrupted."""
        staging = self._store.blobs.staging
        return sum(
            max(0, (file.size or 0) - recorded(staging, file.remote.key, file.remote.identity))
            for file in listing.files
            if not self._downloader.at_hand(file.remote, file.size)
        )

    async def _resolve(self, reference: Reference) -> Listing:
        source = self.sources.get(reference.kind)
        if source is None:
            raise InvalidReference(
                f"{reference.address!r} is a local path: use create with FROM {reference.address}"
            )
        return await source.resolve(reference)

    async def pull(
        self, reference: Reference | str, name: ModelName | None = None
    ) -> AsyncIterator[Progress]:
        """Brings the model, under `name` or the one its reference implies, and tells how far it is.

        The last value is `success`. Raises what sources, downloader and store raise; closing the iterator
        cancels, and what came so far is resumed from by the next pull.
        """
        parsed = reference if isinstance(reference, Reference) else Reference.parse(reference)
        target = name or parsed.name
        yield Progress("pulling manifest")
        listing = await self._resolve(parsed)
        plan = await self._plan(parsed, listing)
        yield Progress("pulling manifest", plan=plan)
        plan.require_room()
        with await in_thread(self._store.lease_empty) as lease:
            wanted = [file.remote.sha256 for file in listing.files if file.remote.sha256]
            await in_thread(self._store.intents.note, target, wanted)
            board = _Board()
            await self._check_names(listing, lease, board)
            fetching = asyncio.create_task(self._fetch_all(listing.files, lease, board))
            try:
                while not fetching.done():
                    await asyncio.wait([fetching], timeout=INTERVAL)
                    for line in board.take():
                        yield line
                blobs = await fetching
            finally:
                if not fetching.done():
                    fetching.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await fetching
            yield Progress("verifying sha256 digest")
            yield Progress("writing manifest")
            if listing.manifest is not None:
                _, removed = await in_thread(self._store.write, target, listing.manifest)
            else:
                removed = await self._write_made(target, listing, blobs, lease)
            if removed:
                yield Progress("removing unused layers")
            await in_thread(self._store.intents.forget, target)
        yield Progress("success")

    async def fetch_again(self, name: ModelName, digests: Collection[str]) -> set[str]:
        """Fetches those blobs of a model that are lost or damaged; returns the ones that came, proved.

        The name says where: models that were made here, or came from where a name cannot say all (Kaggle,
        plain addresses), get none. Their manifest stays. Raises what sources and downloader raise.
        """
        try:
            listing = await self._resolve(Reference.parse(name.full()))
        except (InvalidReference, NotFound):
            return set()
        files = [file for file in listing.files if file.remote.sha256 in digests]
        with await in_thread(self._store.lease_empty) as lease:
            return {blob.digest for blob in await self._fetch_all(files, lease, _Board())}

    async def _check_names(self, listing: Listing, lease: Lease, board: _Board) -> None:
        """Refuses a model that wants a RENDERER or PARSER nobody here has, before its weights come."""
        if listing.manifest is None:
            return
        config = Manifest.parse(listing.manifest).config
        files = [file for file in listing.files if file.remote.sha256 == config.digest]
        for blob in await self._fetch_all(files, lease, board):
            path = self._store.blobs.find(blob.digest)
            said = ModelConfig.parse(await in_thread(path.read_bytes)) if path else ModelConfig()
            try:
                check_names(said.renderer, said.parser)
            except UnknownName as error:
                raise UnsupportedFormat(error.sentence) from None

    async def _fetch_all(self, files: Sequence[SourceFile], lease: Lease, board: _Board) -> list[Blob]:
        """Every file, a few at a time; the first failure stops the others."""
        gate = asyncio.Semaphore(FILES_AT_ONCE)

        async def one(file: SourceFile) -> Blob:
            async with gate:
                return await self._downloader.fetch(file.remote, lease, board.watcher(file))

        return await gathered(map(one, files))

    async def _write_made(self, target: ModelName, listing: Listing, blobs: list[Blob], lease: Lease) -> int:
        """A manifest over files that came without one."""
        builder = ModelBuilder(self._store, lease)
        layers: list[Layer] = []
        texts: list[Layer] = []
        for file, blob in zip(listing.files, blobs, strict=True):
            if file.kind == "archive":
                path = blob_path(self._store.root, blob.digest)
                layers += await in_thread(unpack, self._store, lease, path)
                continue
            layer = Layer(MEDIA_TYPES[file.kind], blob.digest, blob.size, file.name)
            (texts if file.kind in _TEXT_KINDS else layers).append(layer)
        description = await builder.describe(layers, self._inspect)
        base = fresh_base(layers, description, texts)
        _, removed = await in_thread(builder.write_plain, target, base)
        return removed

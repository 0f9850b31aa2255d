"""Reads the beginnings of weight files at their source, so that what they need is known before they are
fetched.

A header names every tensor, but says nothing of where the header ends: so more is read until the caller's
`Measure` is content. It is shown stand-ins, files of the full size that hold the beginning and then a hole,
which takes no room on the disk. Called by the puller.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modelfiles.files import ModelFile
from registry.errors import HeadersCut, RegistryError, UnsupportedFormat
from registry.locks import try_lock
from registry.model import FILE_ROLES
from registry.plan import Fit, Measure, Plan
from registry.ranges import read_range
from registry.remote import RemoteFile
from registry.sources.base import Listing, SourceFile
from registry.store import Store
from registry.threads import gathered, in_thread
from registry.transport import Transport

BEGINNINGS = (1 << 20, 8 << 20, 32 << 20)
"""Bytes of a GGUF file that are read, until its header is among them: vocabularies take up to a dozen MiB."""
OTHER_SHARD = 1 << 20
"""Bytes of every shard but the first: they have no vocabulary."""
TEXT_LIMIT = 8 << 20
FILES_LIMIT = 64
SECONDS = 20.0
"""What finding out may take: a pull must not wait longer for it."""
CHOICES_TRIED = 4
"""Quantizations whose headers are read to find the largest that fits."""
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class _Beginning:
    data: bytes
    size: int
    """Of the whole file."""


class Peeker:
    """The beginnings of one pull's files, each byte fetched once."""

    def __init__(self, store: Store, transport: Transport) -> None:
        self._store = store
        self._transport = transport
        self._known: dict[str, _Beginning] = {}

    async def fit(self, files: Sequence[SourceFile], measure: Measure) -> Fit | None:
        """What these files take in memory; None where headers do not tell. Raises what `measure` raises, and
        SourceError, Unavailable, Unauthorized, StoreUnwritable."""
        wanted = [file for file in files if _tells(file)]
        weights = [file for file in wanted if FILE_ROLES[file.kind] == "weights"]
        if not weights or len(wanted) > FILES_LIMIT or not all(map(_has_header, weights)):
            return None
        for most in BEGINNINGS:
            try:
                async with self._stand_ins(wanted, weights[0], most) as found:
                    return await measure(found)
            except HeadersCut:
                if all(file.size <= most for file in found):
                    raise UnsupportedFormat("the weights are cut short or lie about their size") from None
        return None

    @contextlib.asynccontextmanager
    async def _stand_ins(
        self, files: Sequence[SourceFile], first: SourceFile, most: int
    ) -> AsyncIterator[list[ModelFile]]:
        """Something to read headers from for each file; gone afterwards."""
        here = {file: self._here(file.remote) for file in files}
        missing = [file for file in files if here[file] is None]
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(file: SourceFile) -> _Beginning:
            async with gate:
                return await self._beginning(file, most if file is first else OTHER_SHARD)

        read = dict(zip(missing, await gathered(map(one, missing)), strict=True))
        with contextlib.ExitStack() as made:
            for file, beginning in read.items():
                here[file] = await in_thread(made.enter_context, _stand_in(self._store, beginning))
            yield [_model_file(file, path) for file, path in here.items() if path]

    def _here(self, remote: RemoteFile) -> Path | None:
        """The file itself, where an earlier pull brought it."""
        return self._store.blobs.find(remote.sha256, remote.size) if remote.sha256 else None

    async def _beginning(self, file: SourceFile, most: int) -> _Beginning:
        """As much of the file as its kind needs, or `most` where only the header itself would tell."""
        remote = file.remote
        if FILE_ROLES[file.kind] == "config":
            return await self._read(remote, TEXT_LIMIT)
        found = await self._read(remote, min(most, OTHER_SHARD))
        if found.data[:4] != b"GGUF":  # safetensors say at once how long their header is
            length = int.from_bytes(found.data[:8], "little") + 8
            return await self._read(remote, length) if length <= BEGINNINGS[-1] else found
        return await self._read(remote, most)

    async def _read(self, remote: RemoteFile, end: int) -> _Beginning:
        """The bytes up to `end`, or all where there are fewer."""
        known = self._known.get(remote.key)
        have = len(known.data) if known else 0
        if known and have >= min(end, known.size):
            return known
        piece = await read_range(self._transport, remote, have, end)
        data = (known.data if known else b"") + piece.data
        found = self._known[remote.key] = _Beginning(data, piece.size)
        return found


async def with_memory(plan: Plan, listing: Listing, peeker: Peeker, measure: Measure) -> Plan:
    """The plan, and what the model takes in memory as far as that can be found out in a few seconds."""
    try:
        async with asyncio.timeout(SECONDS):
            plan = replace(plan, fit=await peeker.fit(listing.files, measure))
            return replace(plan, best=await _best(plan, listing, peeker, measure))
    except UnsupportedFormat as error:
        return replace(plan, obstacle=str(error))
    except (RegistryError, OSError, TimeoutError):
        return plan  # it is an extra: the pull itself will tell what is wrong with the source


async def _best(plan: Plan, listing: Listing, peeker: Peeker, measure: Measure) -> str:
    """The largest quantization that fits memory and disk; "" where none of those tried does."""
    if plan.fit is None:
        return ""
    room = min(plan.fit.budget_bytes, plan.free_bytes)
    names = sorted(filter(None, plan.choices), key=lambda name: plan.choices[name], reverse=True)
    tries = 0
    for name in names:
        fits = False
        if name == plan.chosen:
            fits = plan.fit.fits
        elif plan.choices[name] > room or tries == CHOICES_TRIED:
            continue
        else:
            tries += 1
            with contextlib.suppress(RegistryError):  # one that is no good is passed over
                fit = await peeker.fit(listing.choices[name], measure)
                fits = fit is not None and fit.fits
        if fits:
            return name
    return ""


@contextlib.contextmanager
def _stand_in(store: Store, beginning: _Beginning) -> Iterator[Path]:
    """A file of the full size that holds but its beginning; locked, or a collector would take it away."""
    path = store.blobs.staging / f"{secrets.token_hex(16)}.tmp"
    with store.lock.shared():
        descriptor = store.disk.create(path)
        try_lock(descriptor)
    try:
        store.disk.write(descriptor, beginning.data)
        store.disk.truncate(descriptor, beginning.size)
        yield path
    finally:
        store.disk.unlink(path)
        os.close(descriptor)


def _has_header(file: SourceFile) -> bool:
    """Whether it is in a format of one file, GGUF or safetensors; trees of arrays are not."""
    return file.name is None or file.name.endswith((".gguf", ".safetensors"))


def _tells(file: SourceFile) -> bool:
    """Whether the file is needed to know what the model takes."""
    role = FILE_ROLES.get(file.kind)
    name = file.name or ""
    if role == "config":
        return name.endswith(("config.json", ".safetensors.index.json"))
    return role == "weights"


def _model_file(file: SourceFile, path: Path) -> ModelFile:
    role = FILE_ROLES[file.kind]
    digest = file.remote.sha256 or f"sha256:{'0' * 64}"
    return ModelFile(role, file.name or f"{file.kind}.gguf", str(path), digest, path.stat().st_size)

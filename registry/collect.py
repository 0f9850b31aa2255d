"""What keeps a store tidy and honest: collection by mark and sweep, examination, quarantine.

Every function takes the open store; those that remove anything are called under its exclusive lock.
A blob is removed only when every manifest could be read and neither one of them nor a living lease
names it. Age is never a reason.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from registry.blobs import Digest, blob_path, parse_digest
from registry.errors import BlobNotFound, RegistryError
from registry.locks import leased, try_lock
from registry.manifests import Entry, Problem

if TYPE_CHECKING:
    from registry.store import Store


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What a collection removed; `skipped` says why nothing could be, where that was so."""

    blobs: int = 0
    bytes: int = 0
    leftovers: int = 0
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class FsckReport:
    """What an examination read and found; `quarantined` are paths relative to the store."""

    models: int
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]
    quarantined: tuple[str, ...] = ()


def _marked(store: Store) -> set[str] | str:
    """Every digest in use, or why that cannot be known."""
    if store.shared:
        return "this folder was begun by another program"
    marks = leased(store.root / "leases", store.disk) | store.intents.digests()
    for entry in store.own.entries():
        if isinstance(entry, Problem):
            return f"{entry.path} {entry.message}"
        marks.update(entry.manifest.blobs())
    return marks


def sweep(store: Store, candidates: Iterable[str]) -> int:
    """Removes those of `candidates` that are no longer in use; returns how many."""
    wanted = set(candidates)
    if not wanted:
        return 0
    marks = _marked(store)
    if isinstance(marks, str):
        return 0
    unused = [parse_digest(text) for text in wanted - marks]
    for digest in unused:
        store.blobs.remove(digest)
    return len(unused)


def collect(store: Store) -> CollectReport:
    """The full collection."""
    leftovers = _remove_leftovers(store)
    marks = _marked(store)
    if isinstance(marks, str):
        return CollectReport(leftovers=leftovers, skipped=marks)
    count = size = 0
    for digest in list(store.blobs.digests()):
        if digest in marks:
            continue
        path = blob_path(store.root, digest)
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
        store.blobs.remove(digest)
        count += 1
    return CollectReport(count, size, leftovers)


def _staged(store: Store, suffix: str) -> Iterator[tuple[Path, int]]:
    """Staging files with that suffix that no living writer holds, open and locked."""
    for path in sorted(store.blobs.staging.glob(f"*{suffix}")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if try_lock(descriptor):
                yield path, descriptor
        finally:
            os.close(descriptor)


def _remove_leftovers(store: Store) -> int:
    count = 0
    for path, _ in _staged(store, ".tmp"):
        store.disk.unlink(path)
        count += 1
    for record in store.blobs.staging.glob("*.json"):
        if not record.with_suffix(".partial").exists():
            store.disk.unlink(record)
            count += 1
    return count


def prune_partials(store: Store, report: CollectReport) -> CollectReport:
    """Removes partial downloads nobody is busy with, and their records."""
    count = size = 0
    for path, _ in _staged(store, ".partial"):
        size += path.stat().st_blocks * 512
        store.disk.unlink(path)
        store.disk.unlink(path.with_suffix(".json"))
        count += 1
    return replace(report, bytes=report.bytes + size, leftovers=report.leftovers + count)


def examine(store: Store, repair: bool) -> FsckReport:
    """Reads every manifest and every blob of our own store; see `Store.fsck`."""
    problems: list[Problem] = []
    users: dict[Digest, list[Entry]] = {}
    models = 0
    for entry in store.own.entries():
        if isinstance(entry, Problem):
            problems.append(entry)
            continue
        models += 1
        for digest in entry.manifest.blobs():
            users.setdefault(digest, []).append(entry)
    size = 0
    for digest in store.blobs.digests():
        path = blob_path(store.root, digest)
        users.setdefault(digest, [])
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    for digest, entries in users.items():
        problem = _examine_blob(store, digest, entries)
        if problem:
            problems.append(problem)
    moved = _quarantine(store, problems) if repair else ()
    return FsckReport(models, len(users), size, tuple(problems), moved)


def _examine_blob(store: Store, digest: Digest, entries: list[Entry]) -> Problem | None:
    models = tuple(entry.name for entry in entries)
    names = ", ".join(sorted(name.display() for name in models)) or "no model"
    where = f"blobs/{digest.replace(':', '-', 1)}"
    try:
        store.blobs.verify(digest)
    except BlobNotFound:
        return (
            Problem(where, f"is missing, used by {names}; pull or create it again", digest, models)
            if entries
            else None
        )
    except (RegistryError, OSError) as error:
        return Problem(where, f"{error}, used by {names}; pull or create it again", digest, models)
    for entry in entries:
        declared = entry.manifest.blobs()[digest]
        if not store.blobs.exists(digest, declared):
            told = f"is not the {declared:,} bytes long that {entry.name} declares"
            return Problem(where, told, digest, models)
    return None


def _quarantine(store: Store, problems: list[Problem]) -> tuple[str, ...]:
    """Moves what is damaged out of the way, so that a pull or create makes it anew; removes nothing."""
    moved = []
    with store.lock.exclusive():
        folder = store.root / "quarantine"
        store.disk.make_folder(folder)
        for problem in problems:
            source = store.root / problem.path
            if problem.digest is not None:
                source = blob_path(store.root, parse_digest(problem.digest))
            if not source.is_file():
                continue
            if problem.digest is not None:
                with contextlib.suppress(RegistryError):
                    store.blobs.verify(parse_digest(problem.digest))
                    continue  # replaced by a good one since it was examined
            store.disk.rename(source, folder / problem.path.replace("/", "_"))
            store.disk.sync_folder(source.parent)
            moved.append(problem.path)
    return tuple(moved)

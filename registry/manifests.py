"""The names of one store: the folders `manifests/<host>/<namespace>/<model>/<tag>` and the files in them.

Finds, reads (remembering what did not change), writes and removes manifests. Knows nothing of blobs;
whoever writes or removes holds the store's exclusive lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from registry.disk import Disk
from registry.errors import InvalidManifest, InvalidName, ModelCorrupt, RegistryError
from registry.manifest import MANIFEST_LIMIT, Manifest
from registry.name import ModelName


@dataclass(frozen=True, slots=True)
class Entry:
    """A manifest as read: `digest` is the SHA-256 of its bytes (64 hex digits)."""

    name: ModelName
    path: Path
    digest: str
    data: bytes
    manifest: Manifest
    modified_at: datetime
    stamp: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a store that is not as it should be; `path` is relative to the store."""

    path: str
    message: str
    digest: str | None = None
    models: tuple[ModelName, ...] = ()
    """Who needs it."""


class ManifestFolder:
    """The manifests below one root."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root = root
        self._top = root / "manifests"
        self._disk = disk
        self._known: dict[Path, Entry] = {}

    def path(self, name: ModelName) -> Path:
        """Where a manifest of exactly this name lies (or would)."""
        return self._top.joinpath(*name.parts())

    def find(self, name: ModelName) -> tuple[ModelName, Path] | None:
        """The manifest whose name equals this one, part by part, whatever the case."""
        exact = self.path(name)
        if exact.is_file():
            return name, exact
        return self._search(self._top, name.parts(), ())

    def _search(
        self, folder: Path, wanted: tuple[str, ...], taken: tuple[str, ...]
    ) -> tuple[ModelName, Path] | None:
        if not wanted:
            return (ModelName.of(*taken), folder) if folder.is_file() else None
        names = [name for name in _names(folder) if name.lower() == wanted[0].lower()]
        for name in sorted(names, key=lambda each: each != wanted[0]):
            with contextlib.suppress(InvalidName):
                found = self._search(folder / name, wanted[1:], (*taken, name))
                if found:
                    return found
        return None

    def walk(self) -> Iterator[tuple[ModelName, Path] | Problem]:
        """Everything at the depth of a manifest: a name and its file, or what is wrong there."""
        for host in _names(self._top):
            for namespace in _names(self._top / host):
                for model in _names(self._top / host / namespace):
                    for tag in _names(self._top / host / namespace / model):
                        parts = (host, namespace, model, tag)
                        try:
                            yield ModelName.of(*parts), self._top.joinpath(*parts)
                        except InvalidName:
                            yield Problem("manifests/" + "/".join(parts), "is no valid model name")

    def read(self, name: ModelName, path: Path) -> Entry:
        """The manifest in this file; raises ModelCorrupt, or FileNotFoundError when it is gone."""
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            known = self._known.get(path)
            if known is not None and known.stamp == stamp:
                return known
            if not 0 < found.st_size <= MANIFEST_LIMIT or not stat.S_ISREG(found.st_mode):
                raise InvalidManifest(f"manifest of '{name}' is empty, too long or no file; pull it again")
            data = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ModelCorrupt(f"manifest of '{name}' cannot be read: {error.strerror}") from error
        try:
            manifest = Manifest.parse(data)
        except InvalidManifest as error:
            raise InvalidManifest(f"model '{name}' is damaged: {error}; pull or create it again") from error
        modified_at = datetime.fromtimestamp(found.st_mtime, UTC).astimezone()
        entry = Entry(name, path, hashlib.sha256(data).hexdigest(), data, manifest, modified_at, stamp)
        self._known[path] = entry
        return entry

    def entries(self) -> Iterator[Entry | Problem]:
        """Every manifest, or why it is none; one bad entry never hides another."""
        for found in self.walk():
            if isinstance(found, Problem):
                yield found
                continue
            name, path = found
            try:
                yield self.read(name, path)
            except FileNotFoundError:
                continue  # deleted since the folder was read
            except RegistryError as error:
                yield Problem(str(path.relative_to(self.root)), str(error))

    def write(self, name: ModelName, data: bytes) -> Path:
        """Gives `name` a new meaning, durably and at once; returns the path."""
        found = self.find(name)
        path = found[1] if found else self._spelled(name)
        self._disk.make_folder(path.parent)
        staged = self.root / "staging" / f"{secrets.token_hex(16)}.tmp"
        descriptor = self._disk.create(staged)
        try:
            self._disk.write(descriptor, data)
            self._disk.sync(descriptor)
            self._disk.rename(staged, path)
        except BaseException:
            with contextlib.suppress(OSError, RegistryError):
                self._disk.unlink(staged)
            raise
        finally:
            os.close(descriptor)
        self._disk.sync_folder(path.parent)
        return path

    def _spelled(self, name: ModelName) -> Path:
        """A free path for a new name that reuses the folders whose names differ in case only."""
        folder = self._top
        for part in name.parts():
            same = [each for each in _names(folder) if each.lower() == part.lower()]
            folder = folder / (part if part in same or not same else sorted(same)[0])
        return folder

    def remove(self, path: Path) -> None:
        """Takes a name away, durably, with the folders it leaves empty."""
        self._disk.unlink(path)
        self._disk.sync_folder(path.parent)
        self._known.pop(path, None)
        folder = path.parent
        while folder != self._top and self._disk.remove_folder(folder):
            folder = folder.parent


def _names(folder: Path) -> list[str]:
    """What a folder holds, sorted; nothing when it is absent, no folder or unreadable."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError:
        return []

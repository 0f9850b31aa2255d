"""The models on this machine: our own store, and read-only ones of other programs beside it.

Blocking and safe between threads and processes: names change under one exclusive lock, atomically and
durably; readers take no lock. Called by the gateway, and by `create`, `pull` and `push` here. Knows no
network. The layout is Ollama's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from registry.blobs import BlobStore
from registry.collect import CollectReport, FsckReport, collect, examine, prune_partials, sweep
from registry.disk import Disk
from registry.errors import (
    BlobNotFound,
    ModelCorrupt,
    ModelNotFound,
    ReadOnlyModel,
    RegistryError,
    StoreUnwritable,
)
from registry.intents import Intents
from registry.locks import Lease, StoreLock
from registry.manifest import Layer, Manifest
from registry.manifests import Entry, ManifestFolder, Problem
from registry.model import Model, assemble
from registry.name import ModelName

T = TypeVar("T")

MARKER = "gemmule-store"
"""A file in every store that this program began; a folder without it is shared, and never collected."""


class Store:
    """Open one with `Store.open`; any number of processes may have the same folder open."""

    def __init__(self, root: Path, extra_roots: Sequence[Path], disk: Disk, writable: bool) -> None:
        self.root = root
        self.disk = disk
        self.writable = writable
        self.lock = StoreLock(root / "lock")
        self.blobs = BlobStore(root, disk, self.lock, extra_roots)
        self.own = ManifestFolder(root, disk)
        self.intents = Intents(self.blobs)
        self._extra = [ManifestFolder(folder, disk) for folder in extra_roots]
        self._problems: tuple[Problem, ...] = ()
        self._known: dict[Path, tuple[Entry, Model]] = {}

    @staticmethod
    def open(root: Path, extra_roots: Sequence[Path] = (), disk: Disk | None = None) -> Store:
        """The store at `root`, made when absent; one that cannot be written is opened for reading only.

        Raises StoreUnwritable when there is nothing to read either.
        """
        disk = disk or Disk()
        root = root.expanduser().absolute()
        others = [folder.expanduser().absolute() for folder in extra_roots]
        others = [folder for folder in dict.fromkeys(others) if not _same(folder, root)]
        try:
            _prepare(root, disk)
        except StoreUnwritable:
            if not (root / "manifests").is_dir():
                raise
            return Store(root, others, disk, writable=False)
        return Store(root, others, disk, writable=os.access(root, os.W_OK))

    @property
    def shared(self) -> bool:
        """Whether the folder was begun by another program: then nothing is ever collected in it."""
        return not (self.root / MARKER).exists()

    # reading

    def list(self) -> list[Model]:
        """Every model, newest first; ours hide those of the same name beside us. Bad entries are left
        out and reported by `problems`."""
        models: dict[tuple[str, ...], Model] = {}
        problems: list[Problem] = []
        for folder in (self.own, *self._extra):
            for entry in folder.entries():
                if isinstance(entry, Problem):
                    problems.append(entry)
                    continue
                if entry.name.folded() in models:
                    continue
                try:
                    models[entry.name.folded()] = self._model(entry, folder)
                except RegistryError as error:
                    where = str(entry.path.relative_to(folder.root))
                    problems.append(Problem(where, str(error), getattr(error, "digest", None)))
        self._problems = tuple(problems)
        return sorted(models.values(), key=lambda model: model.modified_at, reverse=True)

    def problems(self) -> tuple[Problem, ...]:
        """What the last `list` found wrong."""
        return self._problems

    def entry(self, name: ModelName | str) -> Entry:
        """The manifest of a name; raises ModelNotFound, ModelCorrupt, InvalidName."""
        return self._entry(_parsed(name))[0]

    def get(self, name: ModelName | str) -> Model:
        """The model of that name; raises ModelNotFound, ModelCorrupt, InvalidName."""
        return self._settled(_parsed(name), self._model)

    def _settled(self, name: ModelName, use: Callable[[Entry, ManifestFolder], T]) -> T:
        """What `use` makes of the name's manifest, again when the name was given away meanwhile.

        Readers take no lock: between reading a manifest and its blobs another process may replace or delete
        the model. A blob that is missing while the name still stands for it is damage.
        """
        while True:
            entry, folder = self._entry(name)
            try:
                return use(entry, folder)
            except ModelCorrupt:
                if self._entry(name)[0].stamp == entry.stamp:
                    raise

    def _entry(self, name: ModelName) -> tuple[Entry, ManifestFolder]:
        for folder in (self.own, *self._extra):
            found = folder.find(name)
            if found:
                with contextlib.suppress(FileNotFoundError):
                    return folder.read(*found), folder
        raise ModelNotFound(name.display())

    def _model(self, entry: Entry, folder: ManifestFolder) -> Model:
        """The model of a manifest, remembered; that its files are still there is looked at every time."""
        known = self._known.get(entry.path)
        if known is None or known[0] is not entry or not _in_place(known[1]):
            known = self._known[entry.path] = (entry, self._assemble(entry, folder))
        return replace(known[1], parameters=dict(known[1].parameters))

    def _assemble(self, entry: Entry, folder: ManifestFolder) -> Model:
        def locate(layer: Layer) -> str:
            path = self.blobs.find(layer.digest, layer.size)
            if path is None:
                raise ModelCorrupt(
                    f"model '{entry.name}' is damaged: blob {layer.digest} is missing or has a wrong size; "
                    f"pull or create it again",
                    layer.digest,
                )
            return str(path)

        def read(layer: Layer) -> bytes:
            try:
                return self.blobs.read(layer.digest, layer.size)
            except (BlobNotFound, OSError) as error:
                raise ModelCorrupt(
                    f"model '{entry.name}' is damaged: blob {layer.digest} cannot be read; "
                    "pull or create it again",
                    layer.digest,
                ) from error

        return assemble(
            entry.name, entry.digest, entry.manifest, entry.modified_at, folder is not self.own, locate, read
        )

    # changing names

    def write(self, name: ModelName, manifest: Manifest | bytes) -> tuple[Model, int]:
        """Gives `name` this manifest (bytes are stored as they are) and removes the layers only its old
        one used. Returns the model and how many blobs were removed.

        Raises ModelCorrupt when a blob of it is absent; the caller holds a lease on all of them.
        """
        self._require_writable()
        data = manifest if isinstance(manifest, bytes) else manifest.encode()
        parsed = Manifest.parse(data)
        with self.lock.exclusive():
            for digest, size in parsed.blobs().items():
                if not self.blobs.owns(digest, size):
                    raise ModelCorrupt(f"cannot write '{name}': blob {digest} is not in the store", digest)
            old = self._old_blobs(name)
            path = self.own.write(name, data)
            model = self._model(self.own.read(ModelName.of(*path.parts[-4:]), path), self.own)
            return model, sweep(self, old - set(parsed.blobs()))

    def copy(self, source: ModelName | str, destination: ModelName | str) -> Model:
        """Gives the model of `source` another name; raises ModelNotFound, ModelCorrupt."""
        wanted, target = _parsed(source), _parsed(destination)
        self._require_writable()

        def take(entry: Entry, folder: ManifestFolder) -> Model:
            with self.lease_empty() as lease:
                lease.add(entry.manifest.blobs())
                for digest, size in entry.manifest.blobs().items():
                    try:
                        self.blobs.adopt(digest, size)
                    except BlobNotFound as error:
                        raise ModelCorrupt(f"model '{wanted}' is damaged: {error}", digest) from error
                return self.write(target, entry.data)[0]

        return self._settled(wanted, take)

    def delete(self, name: ModelName | str) -> None:
        """Takes a name away with the layers nothing else uses; raises ModelNotFound, ReadOnlyModel."""
        wanted = _parsed(name)
        self._require_writable()
        with self.lock.exclusive():
            found = self.own.find(wanted)
            if found is None:
                if any(folder.find(wanted) for folder in self._extra):
                    raise ReadOnlyModel(
                        f"model '{wanted}' lies in another program's store, which is never changed; "
                        "remove it with the program that put it there"
                    )
                raise ModelNotFound(wanted.display())
            old = self._old_blobs(wanted)
            self.own.remove(found[1])
            self._known.pop(found[1], None)
            sweep(self, old)

    def _old_blobs(self, name: ModelName) -> set[str]:
        found = self.own.find(name)
        if found is None:
            return set()
        try:
            return set(self.own.read(*found).manifest.blobs())
        except (RegistryError, FileNotFoundError):
            return set()  # a damaged manifest may be replaced or deleted; its blobs wait for a collection

    # keeping and collecting

    def lease_empty(self) -> Lease:
        """A lease to which digests are added as they become known."""
        self._require_writable()
        return Lease(self.root / "leases", self.lock, self.disk)

    @contextlib.contextmanager
    def lease(self, model: Model) -> Iterator[Model]:
        """Keeps the files of `model` on disk for as long as it is held, whatever is deleted or replaced."""
        files = [*model.files, *(file for group in model.adapters for file in group)]
        if not self.writable:
            yield model
            return
        with self.lease_empty() as lease:
            lease.add(file.digest for file in files)
            yield model

    def collect_garbage(self) -> CollectReport:
        """Removes the blobs that no manifest and no lease names, and what dead writers left behind."""
        self._require_writable()
        with self.lock.exclusive():
            return collect(self)

    def fsck(self, repair: bool = False) -> FsckReport:
        """Reads every byte of every model; with `repair`, damaged blobs and manifests go to `quarantine/`."""
        return examine(self, repair)

    def prune(self) -> CollectReport:
        """`collect_garbage`, and gives up unfinished pulls: what they left is removed, but for downloads
        that a process is busy with now."""
        self._require_writable()
        with self.lock.exclusive():
            self.intents.forget_all()
            return prune_partials(self, collect(self))

    def _require_writable(self) -> None:
        if not self.writable:
            raise StoreUnwritable(
                "the model store is read-only; check who owns its folder, or point GEMMULE_MODELS elsewhere"
            )


def _parsed(name: ModelName | str) -> ModelName:
    return name if isinstance(name, ModelName) else ModelName.parse(name)


def _in_place(model: Model) -> bool:
    """Whether every file of the model still has its size; a cheap look, `fsck` is the thorough one."""
    try:
        files = itertools.chain(model.files, *model.adapters)
        return all(os.stat(file.path).st_size == file.size for file in files)  # noqa: PTH116 - ten thousand
    except OSError:
        return False


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return first == second


def _prepare(root: Path, disk: Disk) -> None:
    """Makes the folders of a store and, where nothing was there before, its marker."""
    fresh = not (root / "manifests").exists() and not (root / "blobs").exists()
    for folder in (root, root / "staging", root / "leases"):
        disk.make_folder(folder)
    if fresh:
        os.close(disk.open_or_create(root / MARKER))
        disk.sync_folder(root)
    for folder in (root / "blobs", root / "manifests"):
        disk.make_folder(folder)

"""Publishes `bud`, the model in this folder, into a store, once.

A stamp beside the models remembers what was published, so that a later start costs two `stat` calls and a
`bud` that its user removed or replaced stays that way until a newer one ships. Called when a server starts.
"""

from __future__ import annotations

import inspect as python_inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from modelfiles.description import ModelDescription
from modelfiles.files import ModelFile
from registry.create import ModelBuilder, fresh_base
from registry.errors import ModelNotFound
from registry.model import Model
from registry.name import ModelName
from registry.sources.local import Part
from registry.store import Store

FOLDER = Path(__file__).parent
NAME = ModelName.parse("bud")
_STAMP = "bundled-bud"


def ensure_bundled(
    store: Store,
    inspect: Callable[[Sequence[ModelFile]], ModelDescription] | None = None,
    folder: Path = FOLDER,
) -> Model | None:
    """Makes `bud` be there: returns it when it was published now, else None.

    Does nothing where the file did not ship, the store is read-only or the name was taken by the user.
    Blocking; hashing 20 MB once takes some 50 ms.
    """
    weights, modelfile_path = folder / "bud.gguf", folder / "Modelfile"
    if not store.writable or not weights.is_file() or not modelfile_path.is_file():
        return None
    sizes_and_times = [(each.stat().st_size, each.stat().st_mtime_ns) for each in (weights, modelfile_path)]
    shipped = " ".join(f"{size}:{time}" for size, time in sizes_and_times)
    stamp_path = store.root / _STAMP
    stamp = stamp_path.read_text(encoding="utf-8") if stamp_path.is_file() else ""
    known, _, published = stamp.partition("\n")
    if known == shipped or _present(store) != (published or None):
        return None  # nothing new; or its user removed it, or calls a model of his own `bud`
    model = _publish(store, weights, modelfile_path, inspect or _describe)
    _write_stamp(store, stamp_path, f"{shipped}\n{model.digest}")
    return model


def _present(store: Store) -> str | None:
    """The digest of what is called `bud` now."""
    try:
        return store.entry(NAME).digest
    except ModelNotFound:
        return None


def _publish(
    store: Store,
    weights: Path,
    modelfile_path: Path,
    inspect: Callable[[Sequence[ModelFile]], ModelDescription],
) -> Model:
    from modelfiles.modelfile import Modelfile

    modelfile = Modelfile.parse(modelfile_path.read_text(encoding="utf-8"))
    with store.lease_empty() as lease:
        builder = ModelBuilder(store, lease)
        # Copied, not linked: whoever trains it anew may write into the file, and a blob must never change.
        layers = builder.store_parts([Part("model", None, weights)])
        description = inspect([builder.model_file(layer) for layer in layers])
        assert not python_inspect.isawaitable(description)
        return builder.write(NAME, modelfile, fresh_base(layers, description), ())


def _describe(files: Sequence[ModelFile]) -> ModelDescription:
    """Our own file needs no sandbox."""
    from modelfiles.describe import describe

    return describe(files)


def _write_stamp(store: Store, path: Path, stamp: str) -> None:
    descriptor = store.disk.open_or_create(path)
    try:
        store.disk.truncate(descriptor, 0)
        store.disk.write(descriptor, stamp.encode(), 0)
        store.disk.sync(descriptor)
    finally:
        os.close(descriptor)
    store.disk.sync_folder(path.parent)

"""What a server does with its store besides serving from it: tidying at the start, keeping loaded files.

Blocking, so called in threads, and never a reason to fail: what goes wrong is logged. Called by `gateway`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from modelfiles.files import ModelFile
from registry.collect import sweep
from registry.errors import RegistryError
from registry.locks import Lease
from registry.store import Store

log = logging.getLogger("gemmule.store")


def tidy(store: Store, prune: bool) -> None:
    """Removes what nothing names any more, if `prune`, and says what of the store cannot be used."""
    try:
        if prune and store.writable:
            _collect(store)
        store.list()
    except (RegistryError, OSError) as error:
        log.warning("the store could not be tidied: %s", error)
    for problem in store.problems():
        log.warning("in the store, %s %s", problem.path, problem.message)


def _collect(store: Store) -> None:
    report = store.collect_garbage()
    if report.skipped:
        log.info("unused blobs are kept: %s", report.skipped)
    elif report.blobs or report.leftovers:
        log.info(
            "removed %d unused blobs (%d bytes) and %d leftovers of dead writers",
            report.blobs,
            report.bytes,
            report.leftovers,
        )


def hold(store: Store, files: Sequence[ModelFile]) -> Lease | None:
    """Keeps these files on disk, whatever is deleted, until `let_go`; None where nothing can be deleted."""
    if not store.writable:
        return None
    try:
        lease = store.lease_empty()
        lease.add(file.digest for file in files)
    except (RegistryError, OSError) as error:
        log.warning("files of a loading model could not be protected from deletion: %s", error)
        return None
    return lease


def let_go(store: Store, lease: Lease, files: Sequence[ModelFile]) -> None:
    """Ends a `hold`, and removes those files whose model was deleted meanwhile."""
    try:
        lease.close()
        with store.lock.exclusive():
            sweep(store, (file.digest for file in files))
    except (RegistryError, OSError) as error:
        log.warning("files of an unloaded model could not be given up: %s", error)

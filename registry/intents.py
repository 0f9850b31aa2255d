"""What unfinished pulls still want: digests that a collection spares although no manifest names them yet.

A lease ends with its process; an intent stays, so that a pull of many files which was killed goes on with
those it had finished. Given up by `prune`, and when the pull succeeds. Losing one costs a download, no
more: nothing here is synced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from registry.blobs import BlobStore, parse_digest
from registry.errors import InvalidDigest
from registry.name import ModelName


class Intents:
    """The files `staging/*.pull` of one store."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def _path(self, name: ModelName) -> Path:
        key = hashlib.sha256("/".join(name.folded()).encode()).hexdigest()[:32]
        return self._blobs.staging / f"{key}.pull"

    def note(self, name: ModelName, digests: Iterable[str]) -> None:
        """Remembers what the pull of `name` wants, in place of what an earlier one did."""
        disk = self._blobs.disk
        descriptor = disk.open_or_create(self._path(name))
        try:
            disk.truncate(descriptor, 0)
            disk.write(descriptor, "".join(f"{digest}\n" for digest in digests).encode(), 0)
        finally:
            os.close(descriptor)

    def forget(self, name: ModelName) -> None:
        """The pull is done."""
        self._blobs.disk.unlink(self._path(name))

    def forget_all(self) -> None:
        """No pull will be gone on with."""
        for path in self._blobs.staging.glob("*.pull"):
            self._blobs.disk.unlink(path)

    def digests(self) -> set[str]:
        """Everything that is still wanted; half-written lines are passed over."""
        found: set[str] = set()
        for path in self._blobs.staging.glob("*.pull"):
            with contextlib.suppress(OSError):
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                    with contextlib.suppress(InvalidDigest):
                        found.add(parse_digest(line))
        return found

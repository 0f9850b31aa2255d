"""A file to fetch, as its source describes it: address, identity, and what will prove its bytes.

Made by the sources, read by the downloader. A value: nothing here touches network or disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from registry.blobs import Digest

Credentials = Callable[[bool], Awaitable[Mapping[str, str]]]
"""Gives the headers that authorize a request; called with True after they were refused."""


async def no_credentials(refresh: bool) -> Mapping[str, str]:
    """For files that anybody may have."""
    return {}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to fetch. `identity` says which object it is (digest, revision and path, ETag): a resumed
    download must have the same. `size` None where the source does not say; checksums as hex digits."""

    url: str
    identity: str
    size: int | None = None
    sha256: Digest | None = None
    git_sha1: str = ""
    md5: str = ""
    credentials: Credentials = field(default=no_credentials, compare=False)
    body: bytes | None = None
    """When set, the address is asked by POST with this JSON, and leads on to where the bytes are."""
    google_hash: bool = False
    """Whether the answer carries an MD5 in `x-goog-hash`, which then is proved."""
    copies: tuple[Path, ...] = ()
    """Where another program may already keep this file; used only when a digest proves it: the SHA-256, else
    the MD5 that the source tells when asked for the first byte."""

    @property
    def key(self) -> str:
        """The name of its partial file: by content where known, else by identity."""
        if self.sha256:
            return self.sha256.replace(":", "-")
        return "url-" + hashlib.sha256(self.identity.encode()).hexdigest()


OnBytes = Callable[[int, int | None], None]
"""Called with the bytes done so far and the size, or None while that is unknown."""

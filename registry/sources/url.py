"""A file at a plain address. Nothing declares its digest but, where its author wrote one, `#sha256=<hex>`."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import urldefrag, urlsplit

from registry.addresses import origin_of
from registry.blobs import parse_digest
from registry.errors import InvalidDigest, InvalidReference, UnsupportedFormat
from registry.reference import Reference
from registry.remote import RemoteFile
from registry.sources.base import Listing, SourceFile
from registry.transport import Transport


class UrlSource:
    """Files on web servers."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def resolve(self, reference: Reference) -> Listing:
        """Asks for the size and the identity of the file, without its body."""
        url, fragment = urldefrag(reference.address)
        digest = None
        if fragment:
            try:
                digest = parse_digest(fragment.replace("sha256=", "sha256:", 1))
            except InvalidDigest as error:
                raise InvalidReference(
                    f"cannot read '#{fragment[:80]}': want #sha256=<64 hex digits>"
                ) from error
        name = PurePosixPath(urlsplit(url).path).name
        if name.lower().endswith(".llamafile"):
            raise UnsupportedFormat(f"download {name!r} and create a model from the file")
        async with self._transport.request("HEAD", url) as reply:
            if reply.status >= 400 and reply.status not in (403, 405, 501):  # some servers know no HEAD
                raise reply.failure(f"the file {name}", f"check the address at {origin_of(url)}")
            size = reply.length if reply.status == 200 else None
            identity = f"{url} {reply.headers.get('etag', '')} {reply.headers.get('last-modified', '')}"
        remote = RemoteFile(url, identity, size, digest)
        return Listing((SourceFile(remote, "model"),))

"""Everything that can go wrong in this package, as one tree; the gateway maps the types to statuses.

    RegistryError
    ├── InvalidName · InvalidDigest · InvalidReference · InvalidModelfile
    ├── ModelNotFound · BlobNotFound · ReadOnlyModel
    ├── ModelCorrupt
    │   └── InvalidManifest
    ├── StoreError
    │   ├── DiskFull
    │   └── StoreUnwritable
    ├── DigestMismatch
    ├── UnsupportedFormat · InvalidArchive · HeadersCut
    └── SourceError
        ├── Unauthorized ── Gated
        ├── NotFound
        ├── AddressRefused
        ├── ObjectChanged
        └── Unavailable

Messages name the thing, the limit and the way out; they never hold a path outside the store or a secret.
"""

from __future__ import annotations


class RegistryError(Exception):
    """Anything this package refuses or fails to do; `str(error)` is fit to show to a user."""


class InvalidName(RegistryError):
    """The text is no model name."""


class InvalidDigest(RegistryError):
    """The text is no `sha256:` digest."""


class InvalidReference(RegistryError):
    """The text names no place a model can be pulled from."""


class InvalidModelfile(RegistryError):
    """The Modelfile parses but asks for something that cannot be made."""


class ModelNotFound(RegistryError):
    """No model of that name in the store."""

    def __init__(self, name: str) -> None:
        super().__init__(f"model '{name}' not found")
        self.name = name


class BlobNotFound(RegistryError):
    """No blob of that digest in the store."""

    def __init__(self, digest: str) -> None:
        super().__init__(f'blob "{digest}" not found')
        self.digest = digest


class ReadOnlyModel(RegistryError):
    """The model lies in a store that belongs to another program."""


class ModelCorrupt(RegistryError):
    """A manifest or a blob of a model is missing, short, long or wrong; `digest` names it where known."""

    def __init__(self, message: str, digest: str | None = None) -> None:
        super().__init__(message)
        self.digest = digest


class InvalidManifest(ModelCorrupt):
    """The bytes are no manifest within the limits."""


class StoreError(RegistryError):
    """The local disk refused."""


class DiskFull(StoreError):
    """Not enough room; sizes in bytes, `available` -1 where unknown."""

    def __init__(self, needed: int, available: int) -> None:
        have = f", have {available:,}" if available >= 0 else ""
        super().__init__(
            f"disk full: need {needed:,} bytes{have}; "
            "free some space, or point GEMMULE_MODELS at a larger disk"
        )
        self.needed = needed
        self.available = available


class StoreUnwritable(StoreError):
    """The store's folder cannot be written."""


class DigestMismatch(RegistryError):
    """The bytes do not hash to what was declared."""

    def __init__(self, want: str, got: str) -> None:
        super().__init__(f"digest mismatch, file must be downloaded again: want {want}, got {got}")
        self.want = want
        self.got = got


class UnsupportedFormat(RegistryError):
    """The files are in a format that is not run here (or must never be, like pickles)."""


class InvalidArchive(RegistryError):
    """An archive holds something other than the regular files expected, or more than the limits."""


class HeadersCut(RegistryError):
    """The beginning of a weight file, looked at before the rest, ends inside its header."""


class SourceError(RegistryError):
    """A hub, registry or server answered wrongly or not at all."""


class Unauthorized(SourceError):
    """The source wants (other) credentials."""


class Gated(Unauthorized):
    """The source wants consent given on a page; `page` is its address."""

    def __init__(self, message: str, page: str) -> None:
        super().__init__(message)
        self.page = page


class NotFound(SourceError):
    """The source has no such model, revision or file."""


class AddressRefused(SourceError):
    """A redirect, scheme or address that the rules of outbound requests forbid."""


class ObjectChanged(SourceError):
    """The remote file is not the one the download began with."""


class Unavailable(SourceError):
    """The source failed for now; `retry_after` seconds where it said so."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

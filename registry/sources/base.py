"""What every source gives the puller: the files of a model and what each will be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from registry.reference import Reference
from registry.remote import RemoteFile


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to fetch and the kind and name of the layer it becomes; kind "archive" is unpacked first.

    `expected` are its bytes as a listing tells them that nothing holds the source to, None where unknown.
    """

    remote: RemoteFile
    kind: str
    name: str | None = None
    expected: int | None = None

    @property
    def size(self) -> int | None:
        """Bytes, as well as they are known."""
        return self.expected if self.remote.size is None else self.remote.size


@dataclass(frozen=True, slots=True)
class Listing:
    """A model at its source. `manifest` are the bytes to store as they are, where the source has such;
    else one is made from the files. `choices` maps the quantizations that could be had to their weights,
    `chosen` is the one that `files` hold."""

    files: tuple[SourceFile, ...]
    manifest: bytes | None = None
    choices: dict[str, tuple[SourceFile, ...]] = field(default_factory=dict)
    chosen: str = ""


def total_size(files: Iterable[SourceFile]) -> int:
    """Bytes of all files together, those of unknown size counted as none."""
    return sum(file.size or 0 for file in files)


class Source(Protocol):
    """A place that models come from."""

    async def resolve(self, reference: Reference) -> Listing:
        """Looks the reference up. Raises NotFound, Unauthorized, Gated, Unavailable, SourceError."""
        ...

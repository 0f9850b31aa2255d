"""What every source gives the puller: the files of a model and what each will be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from registry.reference import Reference
from registry.remote import RemoteFile


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to fetch and the kind and name of the layer it becomes; kind "archive" is unpacked first."""

    remote: RemoteFile
    kind: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A model at its source. `manifest` are the bytes to store as they are, where the source has such;
    else one is made from the files. `choices` maps quantizations that could be had to their bytes."""

    files: tuple[SourceFile, ...]
    manifest: bytes | None = None
    choices: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files together, those of unknown size counted as none."""
        return sum(file.remote.size or 0 for file in self.files)


class Source(Protocol):
    """A place that models come from."""

    async def resolve(self, reference: Reference) -> Listing:
        """Looks the reference up. Raises NotFound, Unauthorized, Gated, Unavailable, SourceError."""
        ...

"""What a pull would cost and whether this machine has room for it, as values.

Made by the puller before the first byte is fetched, told to whoever asked. Knows no network, and no
arithmetic on models: what these take in memory is a `Measure` that the caller brings.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from modelfiles.files import ModelFile
from registry.errors import DiskFull
from registry.name import ModelName


@dataclass(frozen=True, slots=True)
class Fit:
    """What a model takes when it runs: bytes of memory with a `context` of so many tokens, and the bytes
    that models may use on this machine."""

    memory_bytes: int
    budget_bytes: int
    context: int

    @property
    def fits(self) -> bool:
        """Whether it can be loaded."""
        return self.memory_bytes <= self.budget_bytes


Measure = Callable[[Sequence[ModelFile]], Awaitable[Fit]]
"""Reads headers only: the rest of the files may be a hole.

Raises HeadersCut when they end too early, UnsupportedFormat when such files are not served here, any other
RegistryError when it cannot tell now.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pull would do. Bytes: of the whole model, still to download, free on the disk.

    `complete` is False where the source leaves sizes out, which then count as none. `choices` maps the
    quantizations to be had to their bytes; `chosen` is the one this is about, `best` the largest that is
    known to fit, "" where none is. `fit` is None where the memory cannot be told beforehand; `obstacle` says
    why the files would not be served here, "" where nothing speaks against it.
    """

    name: ModelName
    total_bytes: int
    download_bytes: int
    free_bytes: int
    complete: bool = True
    choices: dict[str, int] = field(default_factory=dict)
    chosen: str = ""
    best: str = ""
    fit: Fit | None = None
    obstacle: str = ""

    @property
    def has_room(self) -> bool:
        """Whether the disk has room for what is missing."""
        return self.download_bytes <= self.free_bytes

    def require_room(self) -> None:
        """Raises DiskFull, with the numbers, where it has not."""
        if not self.has_room:
            raise DiskFull(self.download_bytes, self.free_bytes)

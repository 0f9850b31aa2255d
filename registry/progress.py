"""What long operations tell while they run: Ollama's progress lines as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from registry.plan import Plan


@dataclass(frozen=True, slots=True)
class Progress:
    """One line. With a `digest`, `completed` of `total` bytes of that blob are done; `plan` comes once,
    before the first byte of a pull."""

    status: str
    digest: str | None = None
    total: int | None = None
    completed: int | None = None
    plan: Plan | None = None


OnProgress = Callable[[Progress], None]

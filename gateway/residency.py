"""What the manager keeps: plans of loads, the runners they became, how often one failed, rows of `ps`.

Values and one record for each runner; what happens to them is decided in `manager` alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from engines.base import (
    EncodeOutput,
    EncodeRequest,
    GenerateRequest,
    LoadProgress,
    LoadRequest,
    Ready,
    RunnerStatus,
    StepOutput,
)

FOREVER = float("inf")


class Runner(Protocol):
    """What the manager and the service need of a loaded model's process (`engines.client.RunnerClient`)."""

    @property
    def ready(self) -> Ready: ...

    @property
    def pid(self) -> int: ...

    async def generate(self, request: GenerateRequest) -> AsyncIterator[StepOutput]: ...

    async def embed(self, requests: Sequence[EncodeRequest]) -> Sequence[EncodeOutput]: ...

    async def status(self) -> RunnerStatus: ...

    async def wait_closed(self) -> None: ...

    async def close(self) -> None: ...


StartRunner = Callable[["LoadPlan", Callable[[LoadProgress], None]], Awaitable[Runner]]


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Weights to have loaded: `key` is their digest, `memory_bytes` what they need; known before a start."""

    key: str
    name: str
    load: LoadRequest
    memory_bytes: int
    keep_alive: float = 300.0
    engine: str = "decoder"


@dataclass(frozen=True, slots=True)
class Loaded:
    """One row of `ps`; `expires_in` is in seconds (`FOREVER` when it stays)."""

    key: str
    names: tuple[str, ...]
    memory_bytes: int
    device: str
    context: int
    slots: int
    users: int
    pid: int
    expires_in: float
    state: Literal["loading", "ready", "closing"]


@dataclass(eq=False, slots=True)
class Entry:
    plan: LoadPlan
    loading: asyncio.Task[Runner]
    state: Literal["loading", "ready", "closing"] = "loading"
    runner: Runner | None = None
    names: dict[str, None] = field(default_factory=dict)
    users: int = 0
    keep_alive: float = 300.0
    last_used: float = 0.0
    retiring: bool = False
    closing: asyncio.Task[None] | None = None
    watcher: asyncio.Task[None] | None = None

    @property
    def slots(self) -> int:
        limits = self.runner.ready.limits if self.runner else self.plan.load.limits
        return max(1, limits.slots)

    @property
    def context(self) -> int:
        return (self.runner.ready.limits if self.runner else self.plan.load.limits).context


@dataclass(eq=False, slots=True)
class Failures:
    count: int = 0
    not_before: float = 0.0

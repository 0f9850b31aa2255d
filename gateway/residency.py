"""What the manager keeps: plans of loads, the runners they became and who uses them, rows of `ps`.

Values and one record for each runner; what happens to them is decided in `manager` alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from engines.base import (
    AdapterFiles,
    AdapterRoom,
    EncodeOutput,
    EncodeRequest,
    GenerateRequest,
    LabelScore,
    LoadProgress,
    LoadRequest,
    Ready,
    RunnerStatus,
    StepOutput,
)
from gateway.adapter_slots import AdapterSlots, Slot

FOREVER = float("inf")


class Runner(Protocol):
    """What the manager and the service need of a loaded model's process (`engines.client.RunnerClient`)."""

    @property
    def ready(self) -> Ready: ...

    @property
    def pid(self) -> int: ...

    async def generate(self, request: GenerateRequest) -> AsyncIterator[StepOutput]: ...

    async def embed(self, requests: Sequence[EncodeRequest]) -> Sequence[EncodeOutput]: ...

    async def score(self, image: bytes) -> list[LabelScore]: ...

    async def adapt(self, slot: int, adapter: AdapterFiles) -> None: ...

    async def status(self) -> RunnerStatus: ...

    async def wait_closed(self) -> None: ...

    async def close(self) -> None: ...


StartRunner = Callable[["LoadPlan", Callable[[LoadProgress], None]], Awaitable[Runner]]


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Weights to have loaded: `key` is their digest, `memory_bytes` what they need; known before a start.

    Models that differ in `adapter` alone share a key: each adapter takes a slot of `adapter_bytes`.
    """

    key: str
    name: str
    load: LoadRequest
    memory_bytes: int
    keep_alive: float = 300.0
    engine: str = "decoder"
    adapter: AdapterFiles | None = None
    adapter_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """One row of `ps`: a name a runner is used by; `expires_in` is in seconds (`FOREVER` when it stays).

    `memory_bytes` is the runner's, or that of its adapter's slot where another row has the base.
    """

    key: str
    name: str
    memory_bytes: int
    device: str
    context: int
    slots: int
    users: int
    pid: int
    expires_in: float
    state: Literal["loading", "ready", "closing"]


@dataclass(eq=False, slots=True)
class Use:
    """One model's claim to a runner: it lasts for `keep_alive` seconds after the last user.

    `adapter_bytes` is what its adapter takes, 0 without one.
    """

    adapter_bytes: int
    keep_alive: float
    last_used: float
    users: int = 0


@dataclass(eq=False, slots=True)
class Entry:
    """A runner, from the start of loading to its end; it goes when nothing in `uses` holds it."""

    plan: LoadPlan
    loading: asyncio.Task[Runner]
    state: Literal["loading", "ready", "closing"] = "loading"
    runner: Runner | None = None
    uses: dict[str, Use] = field(default_factory=dict)
    adapters: AdapterSlots = field(default_factory=lambda: AdapterSlots(0))
    last_used: float = 0.0
    retiring: bool = False
    closing: asyncio.Task[None] | None = None
    watcher: asyncio.Task[None] | None = None

    @property
    def users(self) -> int:
        return sum(use.users for use in self.uses.values())

    @property
    def slots(self) -> int:
        limits = self.runner.ready.limits if self.runner else self.plan.load.limits
        return max(1, limits.slots)

    @property
    def context(self) -> int:
        return (self.runner.ready.limits if self.runner else self.plan.load.limits).context

    @property
    def room(self) -> AdapterRoom | None:
        return self.plan.load.adapter_room


@dataclass(eq=False, slots=True)
class Hold:
    """What one lease has of a runner: places of a model's use, and its adapter's slot."""

    entry: Entry
    use: Use
    weight: int
    slot: Slot | None = None


@dataclass(eq=False, slots=True)
class Failures:
    count: int = 0
    not_before: float = 0.0

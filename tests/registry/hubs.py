"""Pulls from the fake hub, for tests: a puller with short waits, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from registry.progress import Progress
from registry.pull import ClientSettings, Puller
from registry.store import Store
from tests.registry.conftest import describe, gguf_bytes
from tests.registry.fakehub import FakeHub

MIB = 1 << 20
BIG = gguf_bytes(1, 10 * MIB) + os.urandom(5)


def settings(hub: FakeHub, **changes: Any) -> ClientSettings:
    environment = {"HOME": "/nonexistent", "HF_ENDPOINT": hub.url, "KAGGLE_API_ENDPOINT": hub.url}
    environment |= changes.pop("environment", {})
    return ClientSettings(
        environment=environment, **({"backoff": 0.01, "stall_timeout": 0.6, "least_part": 2 * MIB} | changes)
    )


@asynccontextmanager
async def puller(store: Store, hub: FakeHub, **changes: Any) -> AsyncIterator[Puller]:
    made = Puller(store, settings(hub, **changes), describe)
    try:
        yield made
    finally:
        await made.close()


def pull(store: Store, hub: FakeHub, reference: str, **changes: Any) -> list[Progress]:
    async def run() -> list[Progress]:
        async with puller(store, hub, **changes) as made:
            return [line async for line in made.pull(reference)]

    return asyncio.run(run())


def clean(store: Store) -> None:
    """Nothing in the store is unproved, half-done under a final name, or left in staging."""
    report = store.fsck()
    assert report.problems == ()
    assert not list(store.blobs.staging.glob("*.tmp"))
    assert not list((store.root / "leases").iterdir())


async def cancel_at(made: Puller, reference: str, share: float) -> int:
    """Pulls until that share of the file is there, then closes the stream; returns the bytes then done."""
    done = 0
    async with aclosing(made.pull(reference)) as lines:
        async for line in lines:
            done = line.completed or 0
            if line.total == len(BIG) and done >= share * len(BIG):
                break
    return done


def repo(*quantizations: str, **files: bytes) -> dict[str, bytes]:
    found = {f"fox-{each}.gguf": gguf_bytes(index, 500) for index, each in enumerate(quantizations)}
    return found | {"README.md": b"# fox", "mmproj-F16.gguf": gguf_bytes(99, 500)} | files

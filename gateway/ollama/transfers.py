"""The one puller of a process, made when first needed, and how create and pull read weight files.

One puller lets callers that want the same model share its download. Called by `progress`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from fastapi import FastAPI

from gateway.gateway import Gateway
from gateway.sandbox_worker import Examine
from modelfiles.description import ModelDescription
from modelfiles.files import ModelFile
from registry.progress import OnProgress
from registry.pull import ClientSettings, Puller
from registry.reference import Reference

INSPECT_SECONDS = 120.0
SCANNED_BYTES_PER_SECOND = 50e6


def inspector(gateway: Gateway) -> Callable[[Sequence[ModelFile]], Awaitable[ModelDescription]]:
    """Examines strangers' weight files in a sandbox worker before a model of them is published."""

    async def inspect(files: Sequence[ModelFile]) -> ModelDescription:
        seconds = INSPECT_SECONDS + sum(file.size for file in files) / SCANNED_BYTES_PER_SECOND
        return await gateway.sandbox.call(Examine(tuple(files)), ModelDescription, seconds)

    return inspect


def puller_of(app: FastAPI, gateway: Gateway) -> Puller:
    """The app's puller."""
    found: Puller | None = getattr(app.state, "puller", None)
    if found is None:
        settings = ClientSettings(environment=dict(os.environ))
        found = app.state.puller = Puller(gateway.store, settings, inspector(gateway))
    return found


@contextlib.asynccontextmanager
async def close_puller(app: FastAPI) -> AsyncIterator[None]:
    """Closes the puller's connections when the app ends."""
    yield
    if (found := getattr(app.state, "puller", None)) is not None:
        await found.close()


async def fetch(puller: Puller, reference: Reference, on_progress: OnProgress) -> None:
    """Pulls to the end; cancelling it keeps what came so far for the next time."""
    async with contextlib.aclosing(puller.pull(reference)) as lines:  # type: ignore[type-var]
        async for progress in lines:
            on_progress(progress)

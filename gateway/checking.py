"""A short look at a model that was just created or pulled: does it make sense of plain text? It only warns.

Runs `engines.decoder.checkup` in a process of its own, for a bounded time, and only where memory is free and
nobody is being answered; what it finds becomes lines of the progress stream. Called by the native API.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec

from engines.process import CHECKUP_COMMAND, runner_environment
from engines.runner import device_environment
from gateway.catalog import ServedModel
from gateway.manager import ModelManager
from gateway.memory import Device
from gateway.residency import LoadPlan

REMEMBERED = 1024

log = logging.getLogger("gemmule.check")


class Row(msgspec.Struct):
    """What is read of a row of `engines.decoder.checkup`, which is not imported here: it is heavy."""

    name: str
    state: str
    detail: str
    fix: str


class Answer(msgspec.Struct):
    rows: list[Row]


class Checker:
    """Looks once at each set of weights. `seconds` is the longest it may take; 0 switches it off."""

    def __init__(
        self,
        plan: Callable[[ServedModel], Awaitable[LoadPlan]],
        manager: ModelManager,
        device: Device,
        seconds: float,
    ) -> None:
        self._plan = plan
        self._manager = manager
        self._device = device
        self._seconds = seconds
        self._seen: dict[str, None] = {}

    async def warnings(self, model: ServedModel, begin: Callable[[], None]) -> list[str]:
        """What is wrong with the model, in sentences; none where there was no time or room to look.

        `begin` is called when it does look.
        """
        if self._seconds <= 0 or model.engine != "decoder" or not self._is_new(model):
            return []
        plan = await self._plan(model)
        if not self._manager.has_spare(plan.memory_bytes):
            return []
        begin()
        try:
            async with asyncio.timeout(self._seconds):
                return await self._look(model, plan)
        except TimeoutError:
            log.info("looking at %s took more than %g s and was given up", model.name, self._seconds)
        except (OSError, msgspec.DecodeError) as error:
            log.info("%s could not be looked at: %s", model.name, error)
        return []

    def _is_new(self, model: ServedModel) -> bool:
        key = f"{model.weights_digest}:{model.adapters}"
        if key in self._seen:
            return False
        self._seen[key] = None
        while len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return True

    async def _look(self, model: ServedModel, plan: LoadPlan) -> list[str]:
        adapter = next(iter(model.adapters), ())
        question = {"files": model.files, "adapter": adapter, "short": True}
        half = replace(plan.load, threads=max(1, (os.cpu_count() or 2) // 2), compile_cache=None)
        process = await asyncio.create_subprocess_exec(
            *CHECKUP_COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=runner_environment(device_environment(half, lambda index: 0)),
        )
        try:
            told, _ = await process.communicate(msgspec.json.encode(question))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise OSError(f"its process ended with code {process.returncode}")
        rows = msgspec.json.decode(told, type=Answer).rows
        return [f"{row.name}: {row.detail}; {row.fix}" for row in rows if row.state == "fail"]

"""Everything one server has, made in one place and ended in one place.

`Gateway.open` wires store, sandbox, manager and service from settings; routes find it as
`request.app.state.gateway`. Called by `server`, by tests and by nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from engines.base import LoadProgress
from engines.listener import FrameListener
from gateway.archive import Archive
from gateway.auth import Authority, read_keys
from gateway.catalog import Catalog, ServedModel
from gateway.checking import Checker
from gateway.checkpoint import make_model
from gateway.errors import LoadError, ShuttingDown
from gateway.frames import FrameDialect
from gateway.housekeeping import hold, let_go, tidy
from gateway.manager import ModelManager
from gateway.memory import Device
from gateway.metrics import Metrics
from gateway.planning import Planner
from gateway.residency import LoadPlan, Runner
from gateway.sandbox import Sandbox, SandboxError
from gateway.sandbox_calls import Examine, ExamineAdapter
from gateway.service import Service
from gateway.settings import Settings
from modelfiles.description import ModelDescription
from modelfiles.files import ModelFile
from registry.errors import InvalidModelfile
from registry.pull import ClientSettings, Puller
from registry.store import Store

EXAMINE_SECONDS = 120.0
SCANNED_BYTES_PER_SECOND = 50e6


class Gateway:
    """The parts, by name. `draining` is set while the server finishes what runs and takes nothing new."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        device: Device,
        built_in: Mapping[str, ServedModel],
        environment: Mapping[str, str],
    ) -> None:
        self.settings = settings
        self.store = store
        self.device = device
        keys = read_keys(settings)
        self.authority = Authority(keys, settings.anonymous)
        self.sandbox = Sandbox(settings.sandbox_workers)
        self.catalog = Catalog(store, self.sandbox, settings.aliases, built_in)
        self.manager = ModelManager(
            self._start_runner,
            budget=device.budget,
            max_loaded=settings.max_loaded,
            max_queue=settings.max_queue,
            clock=time.monotonic,
        )
        self.load_progress: dict[str, LoadProgress] = {}
        self.manager.on_progress = self.load_progress.__setitem__
        self.metrics = Metrics(self.manager.loaded)
        planner = Planner(self.sandbox, settings, device)
        self.service = Service(self.catalog, self.manager, self.sandbox, planner, self.metrics)
        self.checker = Checker(planner.plan, self.manager, device, settings.check)
        self.frames = FrameListener(FrameDialect(self, settings.classifier).answer)
        self.archive = Archive(settings.state / "replies.sqlite")
        self.puller = Puller(
            store,
            client_settings(settings, bool(keys), environment),
            self.examine,
            measure=planner.fit,
        )
        self.background: dict[str, asyncio.Task[None]] = {}
        self.draining = False
        self._janitor: asyncio.Task[None] | None = None
        self._warming: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()

    @classmethod
    def open(
        cls,
        settings: Settings,
        device: Device,
        built_in: Mapping[str, ServedModel] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Gateway:
        """A gateway over the stores of `settings`. `built_in` are models that lie in no store.

        `environment` is where pulls find proxies, certificates, tokens and endpoints.
        """
        extra = [folder for folder in settings.extra_stores if (folder / "manifests").is_dir()]
        store = Store.open(settings.models, extra)
        return cls(settings, store, device, built_in or {}, environment or {})

    async def start(self) -> None:
        """Begins to expire idle models, to answer frames and to tidy the store; on the loop that serves."""
        await self.frames.start()
        self._janitor = asyncio.ensure_future(self.manager.run())
        self._warming = asyncio.ensure_future(self.sandbox.warm())
        self._begin(asyncio.to_thread(tidy, self.store, not self.settings.no_prune))
        if self.settings.checkpoint is not None:
            folder, tokenizer = self.settings.checkpoint, self.settings.tokenizer
            self._begin(make_model(self.store, folder, tokenizer, self.examine))

    async def examine(self, files: Sequence[ModelFile]) -> ModelDescription:
        """Reads strangers' weight files in a sandbox worker, before a model of them is published."""
        seconds = EXAMINE_SECONDS + sum(file.size for file in files) / SCANNED_BYTES_PER_SECOND
        return await self.sandbox.call(Examine(tuple(files)), ModelDescription, seconds)

    async def examine_adapter(self, files: Sequence[ModelFile], adapter: Sequence[ModelFile]) -> None:
        """Whether an adapter fits the weights; raises InvalidModelfile, saying what does not."""
        seconds = EXAMINE_SECONDS + sum(file.size for file in adapter) / SCANNED_BYTES_PER_SECOND
        try:
            await self.sandbox.call(ExamineAdapter(tuple(files), tuple(adapter)), bool, seconds)
        except SandboxError as error:
            raise InvalidModelfile(str(error)) from error

    def check_open(self) -> None:
        """Raises `ShuttingDown` once the server drains."""
        if self.draining:
            raise ShuttingDown

    async def close(self) -> None:
        """Ends runners and workers; running streams get their last event."""
        self.draining = True
        if self._janitor is not None:
            self._janitor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._janitor
        for task in list(self.background.values()):
            task.cancel()
        await asyncio.gather(*self.background.values(), return_exceptions=True)
        if self._warming is not None:
            await asyncio.gather(self._warming, return_exceptions=True)
        await self.frames.close()
        await self.puller.close()
        await self.manager.close()
        await self.sandbox.close()
        await self.archive.close()
        await asyncio.gather(*self._chores, return_exceptions=True)

    async def _start_runner(self, plan: LoadPlan, on_progress: Callable[[LoadProgress], None]) -> Runner:
        """As `start_runner`; the files stay on disk for as long as the runner lives."""
        files = plan.load.files
        lease = await asyncio.to_thread(hold, self.store, files)
        try:
            runner = await start_runner(plan, on_progress, silence=self.settings.load_timeout)
        except BaseException:
            if lease is not None:
                self._begin(asyncio.to_thread(let_go, self.store, lease, files))
            raise

        async def outlive() -> None:
            await runner.wait_closed()
            if lease is not None:
                await asyncio.to_thread(let_go, self.store, lease, files)

        self._begin(outlive())
        return runner

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs work that nobody waits for until the end."""
        task = asyncio.ensure_future(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


def client_settings(settings: Settings, has_keys: bool, environment: Mapping[str, str]) -> ClientSettings:
    """How pulls reach the world.

    Whoever talks to a server of this machine alone, without keys, sits at it and may name private addresses.
    Others could make the server ask what only it can reach: for them there are the networks the operator
    allows, and the public ones.
    """
    return ClientSettings(
        environment=dict(environment),
        allow_private=settings.is_loopback and not has_keys,
        public_networks=tuple(str(network) for network in settings.pull_networks),
    )


async def start_runner(
    plan: LoadPlan, on_progress: Callable[[LoadProgress], None], *, silence: float
) -> Runner:
    """Executes the runner that `plan` asks for.

    Raises what the runner reports, or `LoadError` when it made no progress for `silence` seconds (for ever
    when that is not positive).
    """
    from engines.client import RunnerClient
    from engines.process import runner_command

    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(silence if silence > 0 else None) as patience:

            def progressed(progress: LoadProgress) -> None:
                if silence > 0:
                    patience.reschedule(loop.time() + silence)
                on_progress(progress)

            command = runner_command(plan.engine)
            return await RunnerClient.start(plan.load, command=command, on_progress=progressed)
    except TimeoutError:
        raise LoadError(
            f"{plan.name} made no progress for {silence:g} s while loading and was stopped; raise "
            "GEMMULE_LOAD_TIMEOUT on a slow disk"
        ) from None

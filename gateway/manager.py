"""Owns the runners: which weights are loaded, who uses them, what must go when room is needed.

One asyncio loop is the only owner, so there are no locks: state changes between awaits and whoever waits
re-checks after every change. Knows byte counts and times, not text, names' meaning or HTTP. Starting a
runner, the clock and the budget are given. Called by `service` (lease) and by `ps`/unload.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable

from engines.base import (
    LoadProgress,
    OutOfMemory,
    RunnerDied,
)
from gateway.errors import Overloaded, ShuttingDown
from gateway.residency import FOREVER, Entry, Failures, Loaded, LoadPlan, Runner, StartRunner

FIRST_BACK_OFF = 1.0
LONGEST_BACK_OFF = 60.0

log = logging.getLogger("gemmule.manager")


class Lease:
    """The right to use a runner; give it back with `release`, or use it as a context manager."""

    def __init__(
        self, manager: ModelManager, entry: Entry, runner: Runner, load_ns: int, weight: int
    ) -> None:
        self._manager = manager
        self._entry: Entry | None = entry
        self._weight = weight
        self.runner = runner
        self.load_ns = load_ns
        self.key = entry.plan.key

    def release(self, error: BaseException | None = None) -> None:
        """Gives the lease back, once; `error` tells the manager that the runner died meanwhile."""
        if self._entry is not None:
            entry, self._entry = self._entry, None
            self._manager._release(entry, self._weight, error)

    @property
    def cancelled(self) -> bool:
        """Whether the runner was ended because the server stops."""
        return self._manager.closed

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.release(error)


class ModelManager:
    """Leases runners. `budget` is bytes for all of them together; `max_loaded` 0 means as many as fit."""

    def __init__(
        self,
        start: StartRunner,
        *,
        budget: int,
        max_loaded: int = 0,
        max_queue: int = 512,
        clock: Callable[[], float],
    ) -> None:
        self._start = start
        self._budget = budget
        self._max_loaded = max_loaded
        self._max_queue = max_queue
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._failures: dict[str, Failures] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self.on_progress: Callable[[str, LoadProgress], None] = lambda name, progress: None

    @property
    def closed(self) -> bool:
        """Whether everything is being ended."""
        return self._closed

    # -- leasing --------------------------------------------------------------------------------------

    async def lease(self, plan: LoadPlan, weight: int = 1) -> Lease:
        """A lease on a runner for `plan`, loading it first if need be.

        `weight` is the number of sequences the caller will run. Raises `Overloaded` when the queue is full or
        the runner keeps dying, `OutOfMemory` when the budget can never hold it, and whatever
        starting it raised, to all who waited for it.
        """
        started = self._clock()
        while True:
            if self._closed:
                raise ShuttingDown
            entry = self._entries.get(plan.key)
            if entry is None:
                entry = await self._make_room_and_load(plan)
                continue
            if self._must_reload(entry, plan):
                await self._changed()
                continue
            return await self._join(entry, plan, weight, started)

    async def _join(self, entry: Entry, plan: LoadPlan, weight: int, started: float) -> Lease:
        if entry.users + weight > entry.slots + self._max_queue:
            raise Overloaded(f"{self._max_queue} requests already wait for {plan.name}, please try again")
        entry.users += weight
        entry.names[plan.name] = None
        try:
            runner = entry.runner
            if runner is None:
                runner = await asyncio.shield(entry.loading)
        except BaseException as error:
            self._release(entry, weight, None)
            if isinstance(error, asyncio.CancelledError) and entry.loading.cancelled():
                raise ShuttingDown from None  # the load was given up, not the caller
            raise
        entry.keep_alive = plan.keep_alive
        return Lease(self, entry, runner, int((self._clock() - started) * 1e9), weight)

    def _must_reload(self, entry: Entry, plan: LoadPlan) -> bool:
        """Whether the caller has to wait for this entry to go: it is going, or its context is too small."""
        if entry.state == "closing" or entry.retiring:
            return True
        if entry.context >= plan.load.limits.context:
            return False
        entry.retiring = True
        self._close_if_idle(entry)
        return True

    async def _make_room_and_load(self, plan: LoadPlan) -> Entry:
        self._refuse_hopeless(plan)
        while not self._fits(plan):
            idle = [e for e in self._entries.values() if e.state == "ready" and not e.users]
            closing = any(e.state == "closing" for e in self._entries.values())
            if idle and not closing:
                self._close(min(idle, key=lambda e: e.last_used), "room for another model")
            if len(self._waiters) >= self._max_queue:
                raise Overloaded("too many requests wait for a model to load, please try again")
            await self._changed()
            if self._closed:
                raise ShuttingDown
        if plan.key not in self._entries:
            self._entries[plan.key] = self._begin(plan)
        return self._entries[plan.key]

    def _refuse_hopeless(self, plan: LoadPlan) -> None:
        if plan.memory_bytes > self._budget:
            raise OutOfMemory(
                f"{plan.name} with a context of {plan.load.limits.context} needs {_gib(plan.memory_bytes)}, "
                f"but models may use {_gib(self._budget)} here; lower num_ctx or raise GEMMULE_MEMORY"
            )
        failures = self._failures.get(plan.key)
        wait = failures.not_before - self._clock() if failures else 0.0
        if failures and wait > 0:
            raise Overloaded(f"{plan.name} failed {failures.count} times in a row, it may restart soon", wait)

    def _fits(self, plan: LoadPlan) -> bool:
        others = [entry for key, entry in self._entries.items() if key != plan.key]
        if self._max_loaded and len(others) >= self._max_loaded:
            return False
        return sum(entry.plan.memory_bytes for entry in others) + plan.memory_bytes <= self._budget

    def _begin(self, plan: LoadPlan) -> Entry:
        async def load() -> Runner:
            return await self._start(plan, lambda progress: self.on_progress(plan.name, progress))

        task = asyncio.ensure_future(load())
        entry = Entry(plan, task, keep_alive=plan.keep_alive, last_used=self._clock())
        task.add_done_callback(lambda done: self._loaded(entry, done))
        return entry

    def _loaded(self, entry: Entry, task: asyncio.Task[Runner]) -> None:
        if task.cancelled() or task.exception() is not None:
            if self._entries.get(entry.plan.key) is entry:
                del self._entries[entry.plan.key]
        else:
            entry.runner, entry.state = task.result(), "ready"
            entry.last_used = self._clock()
            entry.watcher = asyncio.ensure_future(self._watch(entry, entry.runner))
            log.info("loaded %s in runner %d", entry.plan.name, entry.runner.pid)
        self._wake()

    async def _watch(self, entry: Entry, runner: Runner) -> None:
        """Notices a death that no request was there to see."""
        await runner.wait_closed()
        self._forget(entry, RunnerDied("its process ended"))

    # -- giving back ----------------------------------------------------------------------------------

    def _release(self, entry: Entry, weight: int, error: BaseException | None) -> None:
        entry.users -= weight
        entry.last_used = self._clock()
        if isinstance(error, RunnerDied):
            self._forget(entry, error)
        elif error is None and entry.state == "ready":
            self._failures.pop(entry.plan.key, None)
        self._close_if_idle(entry)
        self._wake()

    def _forget(self, entry: Entry, error: RunnerDied) -> None:
        """Takes a dead runner out; the second death in a row starts the back-off."""
        if self._entries.get(entry.plan.key) is not entry or entry.state == "closing":
            return
        log.warning("the runner of %s died: %s", entry.plan.name, error)
        failures = self._failures.setdefault(entry.plan.key, Failures())
        failures.count += 1
        if failures.count > 1:
            pause = min(FIRST_BACK_OFF * 2 ** (failures.count - 2), LONGEST_BACK_OFF)
            failures.not_before = self._clock() + pause
        self._close(entry, "its process died")

    def _close_if_idle(self, entry: Entry) -> None:
        if entry.users == 0 and entry.state == "ready" and (entry.retiring or entry.keep_alive == 0):
            self._close(entry, "nobody needs it")

    def _close(self, entry: Entry, reason: str) -> None:
        if entry.state == "closing":
            return
        entry.state = "closing"

        async def close() -> None:
            try:
                if entry.runner is not None:
                    await entry.runner.close()
            except Exception:
                log.exception("closing the runner of %s failed", entry.plan.name)
            finally:
                if self._entries.get(entry.plan.key) is entry:
                    del self._entries[entry.plan.key]
                log.info("unloaded %s: %s", entry.plan.name, reason)
                self._wake()

        entry.closing = asyncio.ensure_future(close())

    # -- time, unloading, looking -----------------------------------------------------------------------

    def set_keep_alive(self, key: str, seconds: float) -> bool:
        """Changes how long a loaded model stays; 0 unloads it once idle. False when it is not loaded."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        entry.keep_alive = seconds
        entry.last_used = self._clock()
        self._close_if_idle(entry)
        self._wake()
        return True

    async def unload(self, key: str) -> None:
        """Takes the weights out: at once when idle, else when the last user is done; returns when gone."""
        while (entry := self._entries.get(key)) is not None:
            entry.retiring = True
            self._close_if_idle(entry)
            await self._changed()

    def expire(self) -> float | None:
        """Closes what stayed idle too long; seconds until the next one is due, None when none is."""
        now = self._clock()
        due = [
            (entry.last_used + entry.keep_alive - now, entry)
            for entry in self._entries.values()
            if entry.state == "ready" and not entry.users and entry.keep_alive >= 0
        ]
        for remaining, entry in due:
            if remaining <= 0:
                self._close(entry, "it was idle")
        return min((remaining for remaining, _ in due if remaining > 0), default=None)

    async def run(self) -> None:
        """Expires idle models for as long as it runs."""
        while True:
            remaining = self.expire()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed(), remaining)

    def loaded(self) -> list[Loaded]:
        """What is in memory now, most recently used first."""
        entries = sorted(self._entries.values(), key=lambda entry: -entry.last_used)
        return [self._describe(entry) for entry in entries]

    def runner(self, key: str) -> Runner | None:
        """The runner of these weights if it is up; for metrics."""
        entry = self._entries.get(key)
        return entry.runner if entry and entry.state == "ready" else None

    def _describe(self, entry: Entry) -> Loaded:
        idle = self._clock() - entry.last_used if not entry.users else 0.0
        expires = FOREVER if entry.keep_alive < 0 else max(0.0, entry.keep_alive - idle)
        ready = entry.runner.ready if entry.runner else None
        return Loaded(
            key=entry.plan.key,
            names=tuple(entry.names) or (entry.plan.name,),
            memory_bytes=ready.memory_bytes if ready and ready.memory_bytes else entry.plan.memory_bytes,
            device=ready.device if ready else entry.plan.load.device,
            context=entry.context,
            slots=entry.slots,
            users=entry.users,
            pid=entry.runner.pid if entry.runner else 0,
            expires_in=expires,
            state=entry.state,
        )

    async def close(self) -> None:
        """Ends every runner; leases wait no longer and new ones are refused."""
        self._closed = True
        for entry in list(self._entries.values()):
            if entry.state == "loading":
                entry.loading.cancel()
            elif entry.state == "ready":
                self._close(entry, "the server stops")
        self._wake()
        waiting = [e.closing or e.loading for e in self._entries.values()]
        await asyncio.gather(*waiting, return_exceptions=True)

    # -- waiting for a change -----------------------------------------------------------------------------

    async def _changed(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"

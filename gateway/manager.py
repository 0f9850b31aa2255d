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

from engines.base import AdapterFiles, LoadProgress, OutOfMemory, RunnerDied
from gateway.adapter_slots import AdapterSlots
from gateway.errors import Overloaded, ShuttingDown
from gateway.residency import FOREVER, Entry, Failures, Hold, Loaded, LoadPlan, Runner, StartRunner, Use

FIRST_BACK_OFF = 1.0
LONGEST_BACK_OFF = 60.0

log = logging.getLogger("gemmule.manager")


class Lease:
    """The right to use a runner; give it back with `release`, or use it as a context manager."""

    def __init__(self, manager: ModelManager, hold: Hold, runner: Runner, load_ns: int) -> None:
        self._manager = manager
        self._hold: Hold | None = hold
        self.runner = runner
        self.load_ns = load_ns

    def release(self, error: BaseException | None = None) -> None:
        """Gives the lease back, once; `error` tells the manager that the runner died meanwhile."""
        if self._hold is not None:
            hold, self._hold = self._hold, None
            self._manager._release(hold, error)

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
        """A lease on a runner for `plan` with its adapter in a slot, loading what is not there.

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
        hold = self._hold(entry, plan, weight)
        try:
            runner = entry.runner
            if runner is None:
                runner = await asyncio.shield(entry.loading)
            if plan.adapter is not None:
                await self._place(hold, runner, plan.adapter)
        except BaseException as error:
            self._release(hold, error)
            if isinstance(error, asyncio.CancelledError) and entry.loading.cancelled():
                raise ShuttingDown from None  # the load was given up, not the caller
            raise
        return Lease(self, hold, runner, int((self._clock() - started) * 1e9))

    def _hold(self, entry: Entry, plan: LoadPlan, weight: int) -> Hold:
        use = entry.uses.setdefault(plan.name, Use(plan.adapter_bytes, plan.keep_alive, self._clock()))
        use.keep_alive = plan.keep_alive
        use.users += weight
        return Hold(entry, use, weight)

    async def _place(self, hold: Hold, runner: Runner, adapter: AdapterFiles) -> None:
        """Has the adapter in a slot, which the hold keeps; waits while all slots are in use."""
        adapters = hold.entry.adapters
        while (slot := adapters.take(adapter.name)) is None:
            await self._changed()
            if self._closed:
                raise ShuttingDown
            if hold.entry.state != "ready":
                raise RunnerDied("its process ended")
        hold.slot = slot
        if slot.placing is None:

            def placed(done: asyncio.Future[None]) -> None:
                if done.cancelled() or done.exception() is not None:
                    adapters.empty(slot)

            slot.placing = asyncio.ensure_future(runner.adapt(slot.number, adapter))
            slot.placing.add_done_callback(placed)
        await asyncio.shield(slot.placing)

    def _must_reload(self, entry: Entry, plan: LoadPlan) -> bool:
        """Whether the caller has to wait for this entry to go: it is going, or it is too small.

        A runner that was loaded without room for the caller's adapter starts anew, once for a base.
        """
        if entry.state == "closing" or entry.retiring:
            return True
        needed, room = plan.load.adapter_room, entry.room
        fits = plan.adapter is None or needed is None or (room is not None and room.holds(needed))
        if fits and entry.context >= plan.load.limits.context:
            return False
        entry.retiring = True
        self._settle(entry)
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
        slots = AdapterSlots(plan.load.adapter_room.slots if plan.load.adapter_room else 0)
        entry = Entry(plan, task, adapters=slots, last_used=self._clock())
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
            self._settle(entry)
        self._wake()

    async def _watch(self, entry: Entry, runner: Runner) -> None:
        """Notices a death that no request was there to see."""
        await runner.wait_closed()
        self._forget(entry, RunnerDied("its process ended"))

    # -- giving back ----------------------------------------------------------------------------------

    def _release(self, hold: Hold, error: BaseException | None) -> None:
        entry = hold.entry
        hold.use.users -= hold.weight
        hold.use.last_used = entry.last_used = self._clock()
        if hold.slot is not None:
            entry.adapters.give_back(hold.slot)
        if isinstance(error, RunnerDied):
            self._forget(entry, error)
        elif error is None and entry.state == "ready":
            self._failures.pop(entry.plan.key, None)
        self._settle(entry)
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

    def _settle(self, entry: Entry) -> None:
        """Ends the uses that are over; the runner goes with the last one."""
        if entry.state != "ready" or (entry.retiring and entry.users):
            return
        left = {name: use for name, use in entry.uses.items() if use.users or use.keep_alive != 0}
        if entry.retiring or not left:
            self._close(entry, "nobody needs it")
        else:
            entry.uses = left

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

    async def unload(self, key: str, name: str) -> None:
        """Takes a model out: at once when idle, else when its last user is done; returns when it is gone.

        Its runner goes along unless other models use it. A new request for the model keeps it.
        """
        entry = self._entries.get(key)
        use = entry.uses.get(name) if entry else None
        if entry is None or use is None:
            return
        use.keep_alive = 0.0
        self._settle(entry)
        while self._entries.get(key) is entry:
            leaving = entry.uses.get(name) is use and use.keep_alive == 0
            if entry.state != "closing" and not leaving:
                return
            await self._changed()

    def expire(self) -> float | None:
        """Ends what stayed idle too long; seconds until the next is due, None when none is."""
        now, waits = self._clock(), []
        for entry in [each for each in self._entries.values() if each.state == "ready"]:
            due = {
                name: use.last_used + use.keep_alive - now
                for name, use in entry.uses.items()
                if not use.users and use.keep_alive >= 0
            }
            over = {name for name, remaining in due.items() if remaining <= 0}
            waits += [remaining for name, remaining in due.items() if name not in over]
            if over == set(entry.uses):
                self._close(entry, "it was idle")
            for name in over if entry.state == "ready" else ():
                del entry.uses[name]
        return min(waits, default=None)

    async def run(self) -> None:
        """Expires idle models for as long as it runs."""
        while True:
            remaining = self.expire()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed(), remaining)

    def has_spare(self, memory_bytes: int) -> bool:
        """Whether so much memory is free while nobody is being answered or waits for a load."""
        if any(entry.users or entry.state != "ready" for entry in self._entries.values()):
            return False
        return sum(entry.plan.memory_bytes for entry in self._entries.values()) + memory_bytes <= self._budget

    def loaded(self) -> list[Loaded]:
        """What is in memory now, most recently used first; rows of one runner together, the base's first."""
        entries = sorted(self._entries.values(), key=lambda entry: -entry.last_used)
        return [row for entry in entries for row in self._describe(entry)]

    def _describe(self, entry: Entry) -> list[Loaded]:
        uses = entry.uses or {entry.plan.name: Use(0, entry.plan.keep_alive, entry.last_used)}
        ordered = sorted(uses.items(), key=lambda item: item[1].adapter_bytes > 0)
        ready = entry.runner.ready if entry.runner else None
        whole = ready.memory_bytes if ready and ready.memory_bytes else entry.plan.memory_bytes
        return [
            Loaded(
                key=entry.plan.key,
                name=name,
                memory_bytes=use.adapter_bytes if at and use.adapter_bytes else whole,
                device=ready.device if ready else entry.plan.load.device,
                context=entry.context,
                slots=entry.slots,
                users=use.users,
                pid=entry.runner.pid if entry.runner else 0,
                expires_in=self._expires_in(use),
                state=entry.state,
            )
            for at, (name, use) in enumerate(ordered)
        ]

    def _expires_in(self, use: Use) -> float:
        idle = self._clock() - use.last_used if not use.users else 0.0
        return FOREVER if use.keep_alive < 0 else max(0.0, use.keep_alive - idle)

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

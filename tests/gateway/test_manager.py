"""The model manager over fake runners and a fake clock: who waits, who goes, who may come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from engines.base import (
    AdapterFiles,
    AdapterRoom,
    EncodeOutput,
    EncodeRequest,
    GenerateRequest,
    LabelScore,
    Limits,
    LoadFailed,
    LoadRequest,
    OutOfMemory,
    Ready,
    RunnerDied,
    RunnerStatus,
    StepOutput,
)
from gateway.errors import Overloaded, ShuttingDown
from gateway.manager import ModelManager
from gateway.residency import FOREVER, LoadPlan

GIB = 2**30


class FakeRunner:
    """Answers nothing; lives until closed or killed."""

    def __init__(self, plan: LoadPlan, pid: int) -> None:
        limits = plan.load.limits
        self.ready = Ready(limits, ("generate",), plan.memory_bytes, "cpu", 0)
        self.pid = pid
        self.closed = asyncio.Event()
        self.placed: list[tuple[int, str]] = []
        self.refused: set[str] = set()
        self.gate: asyncio.Event | None = None

    async def adapt(self, slot: int, adapter: AdapterFiles) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if adapter.name in self.refused:
            raise LoadFailed(f"{adapter.name} cannot be read")
        self.placed.append((slot, adapter.name))

    async def generate(self, request: GenerateRequest) -> AsyncIterator[StepOutput]:
        raise NotImplementedError

    async def embed(self, requests: Sequence[EncodeRequest]) -> Sequence[EncodeOutput]:
        raise NotImplementedError

    async def score(self, image: bytes) -> list[LabelScore]:
        raise NotImplementedError

    async def status(self) -> RunnerStatus:
        raise NotImplementedError

    async def wait_closed(self) -> None:
        await self.closed.wait()

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed.set()


class World:
    """A manager with everything around it under control."""

    def __init__(self, budget: int = 4 * GIB, **limits: int) -> None:
        self.now = 1000.0
        self.started: list[FakeRunner] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.manager = ModelManager(self._start, budget=budget, clock=lambda: self.now, **limits)

    async def _start(self, plan: LoadPlan, on_progress: Any) -> FakeRunner:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.started.append(FakeRunner(plan, pid=100 + len(self.started)))
        return self.started[-1]

    @property
    def alive(self) -> int:
        return sum(not runner.closed.is_set() for runner in self.started)


def plan(
    key: str, *, gib: float = 1, context: int = 4096, slots: int = 2, keep_alive: float = 300
) -> LoadPlan:
    load = LoadRequest(files=(), limits=Limits(slots, context))
    return LoadPlan(key, f"{key}:latest", load, int(gib * GIB), keep_alive)


def adapted(adapter: str, key: str = "a", *, slots: int = 2, rank: int = 8, **fields: Any) -> LoadPlan:
    """A plan of a model on the base `key` with an adapter."""
    made = plan(key, **fields)
    load = replace(made.load, adapter_room=AdapterRoom(slots, rank, ("q",)))
    return replace(
        made, name=f"{key}+{adapter}", load=load, adapter=AdapterFiles(adapter, ()), adapter_bytes=1000
    )


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 5))  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_many_callers_load_once() -> None:
    async def scenario() -> None:
        world = World()
        world.gate.clear()
        waiting = [asyncio.create_task(world.manager.lease(plan("a", slots=50))) for _ in range(40)]
        await settle()
        assert world.manager.loaded()[0].state == "loading"
        world.gate.set()
        leases = await asyncio.gather(*waiting)
        assert len(world.started) == 1
        assert {lease.runner for lease in leases} == {world.started[0]}
        assert world.manager.loaded()[0].users == 40

    run(scenario)


def test_a_failed_load_wakes_all_and_the_next_try_starts_anew() -> None:
    async def scenario() -> None:
        world = World()
        world.gate.clear()
        world.failure = LoadFailed("weights are truncated")
        waiting = [asyncio.create_task(world.manager.lease(plan("a"))) for _ in range(3)]
        await settle()
        world.gate.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(result) for result in results] == ["weights are truncated"] * 3
        assert world.manager.loaded() == []
        world.failure = None
        (await world.manager.lease(plan("a"))).release()
        assert len(world.started) == 1

    run(scenario)


def test_a_waiter_that_gives_up_does_not_stop_the_load() -> None:
    async def scenario() -> None:
        world = World()
        world.gate.clear()
        impatient = asyncio.create_task(world.manager.lease(plan("a")))
        patient = asyncio.create_task(world.manager.lease(plan("a")))
        await settle()
        impatient.cancel()
        await settle()
        world.gate.set()
        lease = await patient
        assert world.manager.loaded()[0].users == 1
        lease.release()
        assert world.alive == 1

    run(scenario)


def test_idle_models_go_when_their_time_is_over_and_used_ones_stay() -> None:
    async def scenario() -> None:
        world = World()
        used = await world.manager.lease(plan("used", keep_alive=10))
        (await world.manager.lease(plan("idle", keep_alive=10))).release()
        assert world.manager.expire() == 10
        world.now += 11
        world.manager.expire()
        await settle()
        assert [row.key for row in world.manager.loaded()] == ["used"]
        used.release()
        assert world.manager.expire() == 10

    run(scenario)


def test_keep_alive_zero_unloads_at_the_last_release_and_negative_never() -> None:
    async def scenario() -> None:
        world = World()
        first = await world.manager.lease(plan("zero", keep_alive=0))
        second = await world.manager.lease(plan("zero", keep_alive=0))
        first.release()
        await settle()
        assert world.alive == 1
        second.release()
        await settle()
        assert world.alive == 0
        (await world.manager.lease(plan("forever", keep_alive=-1))).release()
        world.now += 1e9
        assert world.manager.expire() is None
        await settle()
        assert world.alive == 1
        assert world.manager.loaded()[0].expires_in == FOREVER

    run(scenario)


def test_lease_during_expiry_waits_for_the_old_runner_and_loads_a_new_one() -> None:
    async def scenario() -> None:
        world = World()
        (await world.manager.lease(plan("a", keep_alive=1))).release()
        world.now += 2
        world.manager.expire()
        lease = await world.manager.lease(plan("a"))
        assert lease.runner is world.started[1]
        assert world.started[0].closed.is_set()

    run(scenario)


def test_the_least_recently_used_idle_model_makes_room() -> None:
    async def scenario() -> None:
        world = World(budget=3 * GIB)
        for key in ("a", "b", "c"):
            (await world.manager.lease(plan(key))).release()
            world.now += 1
        (await world.manager.lease(plan("a"))).release()
        (await world.manager.lease(plan("d"))).release()
        assert {row.key for row in world.manager.loaded()} == {"a", "c", "d"}

    run(scenario)


def test_a_model_in_use_is_never_evicted() -> None:
    async def scenario() -> None:
        world = World(budget=2 * GIB)
        big = await world.manager.lease(plan("a", gib=1.5))
        waiting = asyncio.create_task(world.manager.lease(plan("b", gib=1)))
        await settle()
        assert not waiting.done()
        assert world.alive == 1
        big.release()
        lease = await waiting
        assert lease.runner is world.started[1]
        assert [row.key for row in world.manager.loaded()] == ["b"]

    run(scenario)


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    async def scenario() -> None:
        world = World(budget=2 * GIB)
        with pytest.raises(OutOfMemory, match=r"needs 3\.00 GiB, but models may use 2\.00 GiB"):
            await world.manager.lease(plan("a", gib=3))

    run(scenario)


def test_the_number_of_models_can_be_limited() -> None:
    async def scenario() -> None:
        world = World(max_loaded=1)
        (await world.manager.lease(plan("a", gib=0.1))).release()
        (await world.manager.lease(plan("b", gib=0.1))).release()
        assert [row.key for row in world.manager.loaded()] == ["b"]

    run(scenario)


def test_the_queue_is_bounded_and_says_when_to_come_back() -> None:
    async def scenario() -> None:
        world = World(max_queue=3)
        leases = [await world.manager.lease(plan("a", slots=2)) for _ in range(5)]
        with pytest.raises(Overloaded) as refused:
            await world.manager.lease(plan("a", slots=2))
        assert refused.value.retry_after
        leases.pop().release()
        leases.append(await world.manager.lease(plan("a", slots=2)))
        with pytest.raises(Overloaded):
            await world.manager.lease(plan("a", slots=2), weight=2)

    run(scenario)


def test_waiting_for_room_is_bounded_too() -> None:
    async def scenario() -> None:
        world = World(budget=GIB, max_queue=2)
        lease = await world.manager.lease(plan("a"))
        waiting = [asyncio.create_task(world.manager.lease(plan(f"b{i}"))) for i in range(2)]
        await settle()
        with pytest.raises(Overloaded):
            await world.manager.lease(plan("c"))
        lease.release()
        for task in waiting:
            (await task).release()

    run(scenario)


def test_a_death_is_noticed_and_the_next_lease_gets_a_new_runner() -> None:
    async def scenario() -> None:
        world = World()
        (await world.manager.lease(plan("a"))).release()
        world.started[0].closed.set()
        await settle()
        assert world.manager.loaded() == []
        lease = await world.manager.lease(plan("a"))
        assert lease.runner is world.started[1]

    run(scenario)


def test_dying_again_and_again_is_answered_with_a_pause() -> None:
    async def scenario() -> None:
        world = World()
        for _ in range(2):
            lease = await world.manager.lease(plan("a"))
            world.started[-1].closed.set()
            lease.release(RunnerDied("killed"))
            await settle()
        with pytest.raises(Overloaded) as refused:
            await world.manager.lease(plan("a"))
        assert refused.value.retry_after == 1
        world.now += 1.1
        lease = await world.manager.lease(plan("a"))
        lease.release()
        assert world.alive == 1

    run(scenario)


def test_a_larger_context_reloads_once_idle_and_a_smaller_one_is_served() -> None:
    async def scenario() -> None:
        world = World()
        lease = await world.manager.lease(plan("a", context=4096))
        (await world.manager.lease(plan("a", context=1024))).release()
        assert len(world.started) == 1
        larger = asyncio.create_task(world.manager.lease(plan("a", context=8192)))
        await settle()
        assert not larger.done()
        lease.release()
        assert (await larger).runner.ready.limits.context == 8192
        assert world.alive == 1

    run(scenario)


def test_unload_waits_for_the_last_user() -> None:
    async def scenario() -> None:
        world = World()
        lease = await world.manager.lease(plan("a"))
        going = asyncio.create_task(world.manager.unload("a", "a:latest"))
        await settle()
        assert not going.done()
        lease.release()
        await going
        assert world.alive == 0
        await world.manager.unload("a", "a:latest")

    run(scenario)


def test_releasing_twice_counts_once() -> None:
    async def scenario() -> None:
        world = World()
        lease, other = await world.manager.lease(plan("a")), await world.manager.lease(plan("a"))
        lease.release()
        lease.release()
        assert world.manager.loaded()[0].users == 1
        other.release()

    run(scenario)


def test_closing_ends_runners_and_refuses_waiters() -> None:
    async def scenario() -> None:
        world = World()
        (await world.manager.lease(plan("a"))).release()
        world.gate.clear()
        loading = asyncio.create_task(world.manager.lease(plan("b")))
        await settle()
        await world.manager.close()
        with pytest.raises(ShuttingDown):
            await loading
        assert world.alive == 0
        with pytest.raises(ShuttingDown):
            await world.manager.lease(plan("a"))

    run(scenario)


def test_the_janitor_sleeps_until_the_next_model_is_due() -> None:
    async def scenario() -> None:
        world = World()
        janitor = asyncio.create_task(world.manager.run())
        (await world.manager.lease(plan("a", keep_alive=0.02))).release()
        world.now += 1  # the clock the manager reads; the sleep itself is real and short
        await asyncio.wait_for(world.started[0].wait_closed(), 2)
        janitor.cancel()

    run(scenario)


def test_models_of_one_base_share_its_runner_each_with_its_adapter() -> None:
    async def scenario() -> None:
        world = World()
        one, two = adapted("x"), adapted("y")
        leases = [await world.manager.lease(each) for each in (one, two, one)]
        runner = world.started[0]
        assert len(world.started) == 1
        assert runner.placed == [(1, "x"), (2, "y")]
        rows = {row.name: (row.memory_bytes, row.users) for row in world.manager.loaded()}
        assert rows == {"a+x": (GIB, 2), "a+y": (1000, 1)}
        base = await world.manager.lease(plan("a"))
        assert world.manager.loaded()[0].name == "a:latest"
        for lease in (*leases, base):
            lease.release()

    run(scenario)


def test_a_base_without_room_starts_anew_once_and_then_serves_both() -> None:
    async def scenario() -> None:
        world = World()
        busy = await world.manager.lease(plan("a"))
        waiting = asyncio.create_task(world.manager.lease(adapted("x")))
        await settle()
        assert not waiting.done()
        busy.release()
        (await waiting).release()
        assert len(world.started) == 2
        assert world.alive == 1
        (await world.manager.lease(plan("a"))).release()
        (await world.manager.lease(adapted("x"))).release()
        assert len(world.started) == 2
        (await world.manager.lease(adapted("big", rank=64))).release()
        assert len(world.started) == 3

    run(scenario)


def test_requests_wait_while_every_slot_is_used_by_others() -> None:
    async def scenario() -> None:
        world = World()
        first, second = [await world.manager.lease(adapted(name)) for name in "xy"]
        third = asyncio.create_task(world.manager.lease(adapted("z")))
        await settle()
        assert not third.done()
        second.release()
        assert (await third).runner is world.started[0]
        assert world.started[0].placed == [(1, "x"), (2, "y"), (2, "z")]
        waiting = asyncio.create_task(world.manager.lease(adapted("y")))
        await settle()
        await world.manager.close()
        with pytest.raises(ShuttingDown):
            await waiting
        first.release()

    run(scenario)


def test_an_adapter_is_placed_once_for_all_who_wait_and_a_bad_one_harms_nobody_else() -> None:
    async def scenario() -> None:
        world = World()
        good = await world.manager.lease(adapted("x"))
        runner = world.started[0]
        runner.gate = asyncio.Event()
        runner.refused.add("bad")
        waiting = [asyncio.create_task(world.manager.lease(adapted("bad"))) for _ in range(3)]
        await settle()
        waiting[0].cancel()
        runner.gate.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError, LoadFailed, LoadFailed]
        runner.refused.clear()
        (await world.manager.lease(adapted("bad"))).release()
        assert runner.placed == [(1, "x"), (2, "bad")]
        assert world.alive == 1
        good.release()

    run(scenario)


def test_unloading_one_model_leaves_the_others_on_its_base() -> None:
    async def scenario() -> None:
        world = World()
        for each in (adapted("x"), adapted("y", keep_alive=10), plan("a", keep_alive=-1)):
            (await world.manager.lease(each)).release()
        assert world.alive == 1
        started = len(world.started)
        await world.manager.unload("a", "a+x")
        assert {row.name for row in world.manager.loaded()} == {"a+y", "a:latest"}
        world.now += 11
        world.manager.expire()
        assert [row.name for row in world.manager.loaded()] == ["a:latest"]
        assert len(world.started) == started
        await world.manager.unload("a", "a:latest")
        assert world.alive == 0
        assert world.manager.loaded() == []

    run(scenario)


def test_a_new_request_keeps_a_model_that_was_to_be_unloaded() -> None:
    async def scenario() -> None:
        world = World()
        lease = await world.manager.lease(plan("a"))
        going = asyncio.create_task(world.manager.unload("a", "a:latest"))
        await settle()
        again = await world.manager.lease(plan("a"))
        lease.release()
        again.release()
        await going
        assert world.alive == 1

    run(scenario)

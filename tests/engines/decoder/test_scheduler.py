"""The policy on a simulated device: thousands of requests, no arrays, a clock that tests set."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from engines.base import EngineOverloaded, InvalidRequest
from engines.decoder.plan import SCORE_CHUNK, Buckets, PrefillChunk, SlotCopy, StepPlan
from engines.decoder.prefix import Ring
from engines.decoder.scheduler import AGE_SECONDS, MIN_SHARED, Scheduler

BUCKETS = Buckets(prefill=(16, 64, 256), decode=(1, 2, 4, 8))
WINDOW, RING = 48, 384


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlotCells:
    """What a device would hold for one slot: a global layer and a ring layer, cell by cell."""

    def __init__(self, context: int) -> None:
        self.full = np.full(context, -1)
        self.ring = np.full(RING, -1)

    def write(self, start: int, tokens: list[int]) -> None:
        positions = np.arange(start, start + len(tokens))
        self.full[positions] = tokens
        self.ring[positions % RING] = tokens

    def copy_from(self, other: SlotCells) -> None:
        self.full, self.ring = other.full.copy(), other.ring.copy()

    def check(self, tokens: list[int]) -> None:
        """What attention at the newest position reads is this sequence and nothing else."""
        expected = np.array(tokens)
        newest = len(tokens) - 1
        assert np.array_equal(self.full[: newest + 1], expected)
        positions = newest - (newest - np.arange(RING)) % RING  # what each ring cell is taken for
        seen = positions >= max(0, newest - WINDOW + 1)
        assert np.array_equal(self.ring[seen], expected[positions[seen]])


@dataclass
class Request:
    prompt: list[int]
    max_tokens: int
    given: list[int] = field(default_factory=list)


class Simulation:
    """A scheduler with a device one step behind it, as the engine drives it."""

    def __init__(self, slots: int = 4, context: int = 1024, **kwargs: Any) -> None:
        self.clock = Clock()
        self.scheduler = Scheduler(
            slots=slots,
            context=context,
            buckets=BUCKETS,
            clock=self.clock,
            rings=(Ring(WINDOW, RING),),
            **kwargs,
        )
        stored = kwargs.get("stored", 0)
        self.cells = [SlotCells(context) for _ in range(slots + stored)]
        self.requests: dict[int, Request] = {}
        self.done: dict[int, tuple[Request, Any]] = {}
        self.pending: list[tuple[int, int]] = []
        self.plans: list[StepPlan] = []
        self.ready = BUCKETS

    def submit(self, request_id: int, prompt: list[int], max_tokens: int = 4, **kwargs: Any) -> None:
        self.scheduler.submit(request_id, prompt, max_tokens, **kwargs)
        self.requests[request_id] = Request(prompt, max_tokens)

    def next_token(self, tokens: list[int]) -> int:
        return (sum(tokens[-7:]) * 31 + len(tokens)) % 50

    def step(self) -> StepPlan:
        plan = self.scheduler.plan(self.ready)
        self.plans.append(plan)
        sampled = self._run(plan)
        self._read(self.pending)
        self.pending = sampled
        self.clock.now += 0.01
        return plan

    def run(self, limit: int = 100_000) -> None:
        for _ in range(limit):
            if self.step().empty and not self.pending and not self.scheduler.waiting:
                return
        raise AssertionError("the simulation never ends")

    def _copy(self, copies: tuple[SlotCopy, ...]) -> None:
        for copy in copies:
            self.cells[copy.target].copy_from(self.cells[copy.source])

    def _run(self, plan: StepPlan) -> list[tuple[int, int]]:
        self._copy(plan.copies)
        sampled = [self._prefill(chunk) for chunk in plan.prefill]
        assert plan.prefill_tokens <= sum(chunk.bucket for chunk in plan.prefill)
        rows = [row for group in plan.decode for row in group.rows]
        assert len({row.slot for row in rows}) == len(rows)
        for group in plan.decode:
            assert len(group.rows) <= group.bucket
        sampled += [self._decode(row.request_id, row.slot, row.position) for row in rows]
        self._copy(plan.stores)
        return [each for each in sampled if each is not None]

    def _prefill(self, chunk: PrefillChunk) -> tuple[int, int] | None:
        assert len(chunk.token_ids) <= chunk.bucket
        request = self.requests[chunk.request_id]
        end = chunk.start + len(chunk.token_ids)
        assert list(chunk.token_ids) == request.prompt[chunk.start : end]
        self.cells[chunk.slot].write(chunk.start, list(chunk.token_ids))
        self.cells[chunk.slot].check(request.prompt[:end])
        if not chunk.samples:
            return None
        assert end == len(request.prompt)
        request.given.append(self.next_token(request.prompt))
        return chunk.request_id, request.given[-1]

    def _decode(self, request_id: int, slot: int, position: int) -> tuple[int, int] | None:
        done = request_id in self.done
        request = self.done[request_id][0] if done else self.requests[request_id]
        tokens = request.prompt + request.given
        assert position == len(tokens) - 1
        self.cells[slot].write(position, tokens[-1:])
        self.cells[slot].check(tokens)
        request.given.append(self.next_token(tokens))
        return request_id, request.given[-1]

    def _read(self, sampled: list[tuple[int, int]]) -> None:
        for request_id, token in sampled:
            self.scheduler.accept(request_id, token)
            if request_id in self.requests and self.scheduler.exhausted(request_id):
                self.end(request_id)

    def end(self, request_id: int) -> None:
        self.done[request_id] = (self.requests.pop(request_id), self.scheduler.finish(request_id))


def tokens(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(50, 1000), k=count)


def test_one_request_runs_to_its_length() -> None:
    simulation = Simulation()
    simulation.submit(1, tokens(1, 20), max_tokens=5)
    simulation.run()
    request, ended = simulation.done[1]
    assert len(request.given) == 5
    assert (ended.prompt, ended.cached, ended.generated) == (20, 0, 5)


def test_a_request_may_want_no_tokens_at_all() -> None:
    simulation = Simulation()
    simulation.submit(1, tokens(1, 20), max_tokens=0)
    plan = simulation.step()
    assert not plan.prefill[0].samples
    assert simulation.scheduler.exhausted(1)


def test_the_context_cuts_max_tokens() -> None:
    simulation = Simulation(context=100)
    simulation.submit(1, tokens(1, 90), max_tokens=10**9)
    simulation.run()
    assert len(simulation.done[1][0].given) == 10


def test_impossible_requests_are_refused_with_numbers() -> None:
    scheduler = Simulation(context=100).scheduler
    with pytest.raises(InvalidRequest, match=r"100 tokens, but the context is 100; .*num_ctx"):
        scheduler.submit(1, [5] * 100, 1)
    with pytest.raises(InvalidRequest, match="no tokens"):
        scheduler.submit(1, [], 1)


def test_the_queue_is_bounded() -> None:
    simulation = Simulation(max_waiting=3)
    for i in range(3):
        simulation.submit(i, tokens(i, 5))
    with pytest.raises(EngineOverloaded, match="3 requests wait"):
        simulation.submit(4, tokens(4, 5))
    simulation.run()
    assert len(simulation.done) == 3


def test_no_slot_idles_while_a_request_waits() -> None:
    simulation = Simulation(slots=4)
    simulation.scheduler.pace.observe((), 1, 1.0)
    simulation.scheduler.pace.observe((64,), 0, 0.1)
    for i in range(200):
        simulation.submit(i, tokens(i, random.Random(i).randint(1, 16)), max_tokens=1 + i % 9)
    while True:
        plan = simulation.step()
        if not simulation.scheduler.waiting:
            break
        assert plan.decode_rows + len(plan.prefill) == 4
    simulation.run()
    assert len(simulation.done) == 200


def test_thousands_of_requests_with_cancels_and_shared_prefixes_read_only_their_own_tokens() -> None:
    chooser = random.Random(7)
    systems = [tokens(seed, count) for seed, count in ((1, 40), (2, 200), (3, 500))]
    simulation = Simulation(slots=6, stored=2, max_waiting=5000)
    talks: list[list[int]] = [[]]
    for i in range(2000):
        start = chooser.choice([*systems, [], chooser.choice(talks)])[:900]
        prompt = start[: chooser.randint(0, len(start))] if chooser.random() < 0.3 else start
        prompt = prompt + tokens(1000 + i, chooser.randint(1, 60))
        simulation.submit(i, prompt, chooser.randint(1, 12), owner=chooser.choice("aab"))
        for _ in range(chooser.randint(0, 6)):
            simulation.step()
        if chooser.random() < 0.1 and simulation.requests:
            victim = chooser.choice(list(simulation.requests))
            simulation.end(victim)
        if simulation.done and chooser.random() < 0.5:
            request = simulation.done[chooser.choice(list(simulation.done))][0]
            talks = [*talks[-20:], request.prompt + request.given[:-1]]
    simulation.run()
    assert not simulation.requests
    cached = [ended.cached for _, ended in simulation.done.values()]
    assert sum(1 for count in cached if count) > 500
    assert simulation.scheduler.free_slots == 6


def test_the_next_turn_of_a_talk_computes_only_what_is_new() -> None:
    simulation = Simulation()
    first = tokens(1, 300)
    simulation.submit(1, first, max_tokens=20)
    simulation.run()
    answer = simulation.done[1][0].given
    simulation.submit(2, first + answer + tokens(2, 10), max_tokens=2)
    simulation.run()
    assert simulation.done[2][1].cached == 300 + 20 - 1  # the last token was sampled but never written


def test_an_overwritten_ring_is_not_taken_for_a_prefix() -> None:
    simulation = Simulation(slots=1, context=4096)
    long = tokens(1, 2000)
    simulation.submit(1, long, max_tokens=2)
    simulation.run()
    simulation.submit(2, long[:500] + tokens(2, 5), max_tokens=2)
    simulation.run()
    assert simulation.done[2][1].cached == 0


def test_a_branching_prefix_is_stored_the_second_time_and_found_the_third() -> None:
    simulation = Simulation(slots=1, context=4096, stored=1)
    system = tokens(1, 500)
    for i in range(3):
        simulation.submit(i, system + tokens(100 + i, 700), max_tokens=2)
        simulation.run()
    assert [simulation.done[i][1].cached for i in range(3)] == [0, 0, 500]


def test_requests_sharing_an_uncached_prefix_wait_for_the_first_and_others_do_not() -> None:
    simulation = Simulation(slots=4, context=4096)
    simulation.scheduler.pace.observe((), 1, 0.001)
    system = tokens(1, 600)
    for i in range(3):
        simulation.submit(i, system + tokens(100 + i, 5))
    simulation.submit(9, tokens(50, 30))
    plan = simulation.step()
    assert {chunk.request_id for chunk in plan.prefill} <= {0, 9}
    assert simulation.scheduler.running == 2
    simulation.run()
    computed = sum(plan.prefill_tokens for plan in simulation.plans)
    assert computed == 605 + 30 + 2 * 5
    assert [simulation.done[i][1].cached for i in range(3)] == [0, 600, 600]


def test_waiting_for_a_prefix_ends_when_its_owner_is_cancelled() -> None:
    simulation = Simulation(slots=2, context=4096)
    system = tokens(1, 1000)
    simulation.submit(1, [*system, 7])
    simulation.submit(2, [*system, 8])
    simulation.step()
    simulation.end(1)
    simulation.run()
    assert simulation.done[2][1].generated == 4


def test_owners_never_share_a_prefix() -> None:
    simulation = Simulation()
    for i, owner in enumerate("abb"):
        simulation.submit(i, tokens(1, 100), owner=owner)
        simulation.run()
    assert [simulation.done[i][1].cached for i in range(3)] == [0, 0, 99]


def test_a_scored_prompt_is_computed_whole() -> None:
    simulation = Simulation()
    for i in range(2):
        simulation.submit(i, tokens(1, 100), score=True)
        simulation.run()
    assert simulation.done[1][1].cached == 0
    assert {chunk.bucket for plan in simulation.plans for chunk in plan.prefill} == {SCORE_CHUNK}


def test_priority_goes_first_but_nobody_waits_for_ever() -> None:
    simulation = Simulation(slots=1, max_waiting=5000)
    simulation.submit(0, tokens(0, 5))
    simulation.step()
    simulation.submit(1, tokens(1, 5), priority=0)
    simulation.submit(2, tokens(2, 5), priority=1)
    simulation.run()
    assert list(simulation.done) == [0, 2, 1]
    simulation.submit(10, tokens(10, 5), priority=0)
    waited_from = simulation.clock.now
    i = 11
    while 10 not in simulation.done:
        simulation.submit(i, tokens(i, 5), priority=3)
        i += 1
        for _ in range(6):
            simulation.step()
    assert simulation.clock.now - waited_from < 4 * AGE_SECONDS + 1


def test_one_owner_with_many_requests_does_not_shut_others_out() -> None:
    simulation = Simulation(slots=2)
    for i in range(50):
        simulation.submit(i, tokens(i, 5), owner="many")
    simulation.submit(99, tokens(99, 5), owner="one")
    simulation.step()
    assert 99 in [chunk.request_id for chunk in simulation.plans[0].prefill]


def test_prompts_are_cut_so_that_running_streams_keep_their_pace() -> None:
    simulation = Simulation(slots=2, context=4096)
    pace = simulation.scheduler.pace
    simulation.submit(1, tokens(1, 5), max_tokens=500)
    for _ in range(3):
        simulation.step()
    pace.observe((), 1, 0.010)
    for size, seconds in ((16, 0.004), (64, 0.012), (256, 0.050)):
        pace.observe((size,), 0, seconds)
    simulation.submit(2, tokens(2, 2000))
    sizes = []
    while 2 not in simulation.done:
        plan = simulation.step()
        assert plan.decode_rows >= 1
        sizes += [chunk.bucket for chunk in plan.prefill]
    assert set(sizes[:-1]) == {64}


def test_alone_a_prompt_is_computed_in_the_largest_chunks() -> None:
    simulation = Simulation(context=4096)
    simulation.submit(1, tokens(1, 600))
    assert [chunk.bucket for chunk in simulation.step().prefill] == [256]


def test_several_short_prompts_share_a_step() -> None:
    simulation = Simulation(slots=4)
    for i in range(4):
        simulation.submit(i, tokens(i, 10))
    assert len(simulation.step().prefill) == 4


def test_with_few_programs_ready_rows_are_split_or_padded() -> None:
    simulation = Simulation(slots=4)
    for i in range(4):
        simulation.submit(i, tokens(i, 10), max_tokens=50)
    simulation.step()
    simulation.ready = Buckets(prefill=(16,), decode=(1,))
    assert [len(group.rows) for group in simulation.step().decode] == [1, 1, 1, 1]
    simulation.ready = Buckets(prefill=(16,), decode=(1, 8))
    (group,) = simulation.step().decode
    assert (len(group.rows), group.bucket) == (4, 8)
    simulation.run()


def test_a_group_is_greedy_only_when_all_its_rows_are() -> None:
    simulation = Simulation(slots=4)
    simulation.submit(1, tokens(1, 5), max_tokens=9)
    simulation.submit(2, tokens(2, 5), max_tokens=4, mode="general")
    simulation.step()
    assert simulation.step().decode[0].mode == "general"
    for _ in range(5):
        plan = simulation.step()
    assert plan.decode[0].mode == "greedy"


def test_cancelling_while_a_step_is_under_way_frees_the_slot_for_the_next_plan() -> None:
    simulation = Simulation(slots=1)
    simulation.submit(1, tokens(1, 5), max_tokens=500)
    simulation.submit(2, tokens(2, 5))
    for _ in range(4):
        simulation.step()
    simulation.end(1)
    assert simulation.step().prefill[0].request_id == 2
    simulation.run()


def test_the_prefix_index_survives_any_writing_order() -> None:
    """Directly: whatever `reusable` allows, the simulated ring really still holds."""
    chooser = random.Random(3)
    index = Simulation(context=4096).scheduler.prefixes
    for _ in range(3000):
        written = chooser.randint(1, 1500)
        cut = chooser.randint(0, written)
        if not index.reusable(written, cut):
            continue
        cells = SlotCells(1501)
        old = list(range(written))
        for start in range(0, written, RING):  # a scatter of one chunk writes each ring cell once
            cells.write(start, old[start : start + RING])
        cells.write(cut, [-2])
        cells.check([*old[:cut], -2])


def test_short_prefixes_are_not_worth_a_copy() -> None:
    simulation = Simulation()
    shared = tokens(1, MIN_SHARED - 1)
    for i in range(2):
        simulation.submit(i, shared + tokens(10 + i, 5))
        simulation.run()
    assert simulation.done[1][1].cached == 0

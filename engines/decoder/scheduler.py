"""Chooses what runs next. Pure Python: knows slots, lengths and token ids, not arrays, text or devices.

Requests wait in order of priority, take a slot, have their prompt computed in chunks, then give one token per
step until they end. Plans are made ahead of results: a plan assumes that every running sequence goes on, and
`finish` corrects that before the next one. Called only by the decoder's engine; the clock is injected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from engines.base import EngineOverloaded, InvalidRequest
from engines.decoder.pace import Pace
from engines.decoder.plan import (
    SCORE_CHUNK,
    Buckets,
    DecodeGroup,
    DecodeRow,
    PrefillChunk,
    SampleMode,
    SlotCopy,
    StepPlan,
    smallest_holding,
)
from engines.decoder.prefix import PrefixIndex, Ring, Tokens, common_prefix

MAX_WAITING = 256
MIN_SHARED = 32
"""Prefixes shorter than this are computed again: copying a slot or waiting for another costs more."""

AGE_SECONDS = 5.0
"""A waiting request gains one step of priority per this time, so that none waits for ever."""


class Phase(Enum):
    WAITING = auto()
    PREFILL = auto()
    DECODE = auto()
    DRAINING = auto()
    """Every token it may have is planned, its slot is free again; the results are still to be read."""


@dataclass(slots=True, eq=False)
class Running:
    """One request's progress. `computed` prompt tokens and `planned` samples are already in plans."""

    request_id: int
    prompt: Tokens
    max_tokens: int
    owner: Hashable
    priority: int
    mode: SampleMode
    score: bool
    adapter: int
    arrived: float
    order: int
    phase: Phase = Phase.WAITING
    slot: int = -1
    cached: int = 0
    computed: int = 0
    planned: int = 0
    store_at: int = 0
    generated: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Positions written once all plans have run: the last sampled token is not written yet."""
        return self.computed + max(self.planned - 1, 0)


@dataclass(frozen=True, slots=True)
class Ended:
    """What is left of a sequence that ended: for its usage."""

    prompt: int
    cached: int
    generated: int


class Scheduler:
    """Owns all sequences of a runner, from submission to their end."""

    def __init__(
        self,
        *,
        slots: int,
        context: int,
        buckets: Buckets,
        clock: Callable[[], float] = time.monotonic,
        rings: Sequence[Ring] = (),
        stored: int = 0,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._slots = slots
        self._context = context
        self._clock = clock
        self._max_waiting = max_waiting
        self._waiting: list[Running] = []
        self._running: dict[int, Running] = {}
        self._free = set(range(slots))
        self._holders: dict[int, Running] = {}
        self._order = 0
        self.pace = Pace(buckets.prefill)
        self.prefixes = PrefixIndex(slots, stored, rings, context)

    # Requests come and go

    def submit(
        self,
        request_id: int,
        prompt: Sequence[int] | Tokens,
        max_tokens: int,
        *,
        owner: Hashable = "",
        priority: int = 0,
        mode: SampleMode = "greedy",
        score: bool = False,
        adapter: int = 0,
    ) -> None:
        """Queues a request; raises `InvalidRequest` when it can never run, `EngineOverloaded` when full."""
        if not len(prompt):
            raise InvalidRequest("the prompt has no tokens; give at least one")
        if len(prompt) >= self._context:
            raise InvalidRequest(
                f"prompt has {len(prompt)} tokens, but the context is {self._context}; "
                "raise num_ctx or shorten the prompt"
            )
        if len(self._waiting) >= self._max_waiting:
            raise EngineOverloaded(f"{self._max_waiting} requests wait already; try again later")
        self._order += 1
        self._waiting.append(
            Running(
                request_id=request_id,
                prompt=np.asarray(prompt, np.int32),
                max_tokens=min(max_tokens, self._context - len(prompt)),
                owner=owner,
                priority=priority,
                mode=mode,
                score=score,
                adapter=adapter,
                arrived=self._clock(),
                order=self._order,
            )
        )

    def accept(self, request_id: int, token: int) -> None:
        """A sampled token was read; does nothing for a sequence that ended meanwhile."""
        sequence = self._running.get(request_id)
        if sequence is not None:
            sequence.generated.append(token)
            self._claim(sequence)

    def finish(self, request_id: int) -> Ended | None:
        """Ends a sequence, wherever it is; its slot is free for the next plan. None when unknown."""
        sequence = self._running.pop(request_id, None)
        if sequence is not None:
            self._release(sequence)
            return Ended(len(sequence.prompt), sequence.cached, len(sequence.generated))
        for waiting in self._waiting:
            if waiting.request_id == request_id:
                self._waiting.remove(waiting)
                return Ended(len(waiting.prompt), 0, 0)
        return None

    def exhausted(self, request_id: int) -> bool:
        """Whether every token the sequence may have was read: it ends for its length."""
        sequence = self._running.get(request_id)
        return (
            sequence is not None
            and sequence.phase is Phase.DRAINING
            and len(sequence.generated) >= sequence.max_tokens
        )

    def forget_contents(self) -> None:
        """The device lost its cache: no prefix is there any more."""
        self.prefixes.forget_all()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def free_slots(self) -> int:
        return len(self._free)

    @property
    def has_work(self) -> bool:
        """Whether a plan made now would do something."""
        active = any(each.phase in (Phase.PREFILL, Phase.DECODE) for each in self._running.values())
        return active or (bool(self._waiting) and bool(self._free))

    # The next step

    def plan(self, ready: Buckets) -> StepPlan:
        """The next step with the programs that are `ready`; empty when there is nothing to do."""
        if not (self._running or self._waiting):
            return StepPlan()
        copies = tuple(self._admit())
        decode = tuple(self._decode_groups(ready.decode))
        prefill: list[PrefillChunk] = []
        stores: list[SlotCopy] = []
        budget = self.pace.prefill_tokens(sum(len(group.rows) for group in decode), ready.prefill)
        for sequence in self._in_order(Phase.PREFILL):
            if budget <= 0:
                break
            sizes = (SCORE_CHUNK,) if sequence.score else ready.prefill
            chunk = self._next_chunk(sequence, budget, sizes)
            budget -= chunk.bucket
            prefill.append(chunk)
            stores += self._store(sequence)
        for sequence in self._in_order(Phase.DRAINING):
            self._release(sequence)
        return StepPlan(copies, tuple(prefill), decode, tuple(stores))

    def _admit(self) -> Iterator[SlotCopy]:
        """Gives free slots to waiting requests, the most urgent first."""
        now = self._clock()
        owners: dict[Hashable, int] = {}
        for sequence in self._running.values():
            owners[sequence.owner] = owners.get(sequence.owner, 0) + 1

        def urgency(sequence: Running) -> tuple[int, int, int]:
            aged = sequence.priority + int((now - sequence.arrived) / AGE_SECONDS)
            return -aged, owners.get(sequence.owner, 0), sequence.order

        while self._free and self._waiting:
            able = (each for each in sorted(self._waiting, key=urgency) if not self._should_wait(each))
            first = next(able, None)
            if first is None:
                return
            self._waiting.remove(first)
            owners[first.owner] = owners.get(first.owner, 0) + 1
            copy = self._place(first)
            if copy is not None:
                yield copy

    def _should_wait(self, sequence: Running) -> bool:
        """Another request is computing a prefix that this one shares: wait instead of computing it twice."""
        if sequence.score:
            return False
        for other in self._running.values():
            if other.phase is Phase.PREFILL and other.owner == sequence.owner:
                shared = min(common_prefix(other.prompt, sequence.prompt), len(sequence.prompt) - 1)
                if shared - other.computed >= MIN_SHARED:
                    return True
        return False

    def _place(self, sequence: Running) -> SlotCopy | None:
        """Chooses a slot and what of the prompt it need not compute."""
        if sequence.score:  # its own tokens' log-probabilities are wanted: all of them are computed
            self._start(sequence, self.prefixes.least_recent(self._free), 0)
            return None
        wanted = sequence.prompt[:-1]  # the last token must run: it gives the logits
        shared = self.prefixes.longest_shared(sequence.owner, wanted)
        match = self.prefixes.match(sequence.owner, wanted)
        cut = match.length if match is not None and match.length >= MIN_SHARED else 0
        if shared - cut >= MIN_SHARED:
            sequence.store_at = shared  # here once and overwritten since, so it will be wanted again: keep it
        if match is None or not cut:
            self._start(sequence, self.prefixes.least_recent(self._free), 0)
            return None
        in_place = match.slot in self._free and (2 * cut >= match.held or len(self._free) == 1)
        slot = match.slot if in_place else self.prefixes.least_recent(self._free - {match.slot})
        if not in_place:
            self.prefixes.copy(match.slot, slot, cut)
        self._start(sequence, slot, cut)
        return None if in_place else SlotCopy(match.slot, slot)

    def _start(self, sequence: Running, slot: int, cut: int) -> None:
        self._free.discard(slot)
        self._holders[slot] = sequence
        self._running[sequence.request_id] = sequence
        sequence.slot, sequence.phase = slot, Phase.PREFILL
        sequence.cached = sequence.computed = cut
        self.prefixes.start(slot, sequence.owner, sequence.prompt, cut)

    def _release(self, sequence: Running) -> None:
        """The next plan may give the slot away: the device runs plans in order."""
        if self._holders.get(sequence.slot) is sequence:
            self._free.add(sequence.slot)

    def _store(self, sequence: Running) -> Iterator[SlotCopy]:
        if sequence.store_at and sequence.computed == sequence.store_at:
            target = self.prefixes.store_target()
            if target is not None:
                self.prefixes.copy(sequence.slot, target, sequence.store_at)
                yield SlotCopy(sequence.slot, target)

    def _next_chunk(self, sequence: Running, budget: int, sizes: tuple[int, ...]) -> PrefillChunk:
        start, total = sequence.computed, len(sequence.prompt)
        end = sequence.store_at if start < sequence.store_at else total
        allowed = [size for size in sizes if size <= budget] or [sizes[0]]
        bucket = smallest_holding(tuple(allowed), end - start)
        end = min(end, start + bucket)
        last = end == total
        sequence.computed = end
        if last:
            sequence.planned = min(1, sequence.max_tokens)
            sequence.phase = self._phase_after_sample(sequence)
        self._claim(sequence)
        return PrefillChunk(
            request_id=sequence.request_id,
            slot=sequence.slot,
            start=start,
            token_ids=tuple(sequence.prompt[start:end].tolist()),
            bucket=bucket,
            samples=last and sequence.max_tokens > 0,
            mode=sequence.mode,
            score=sequence.score,
            adapter=sequence.adapter,
        )

    def _decode_groups(self, sizes: tuple[int, ...]) -> Iterator[DecodeGroup]:
        """Every running sequence once, in as few groups as the ready programs allow."""
        rows = list(self._in_order(Phase.DECODE))
        while rows:
            bucket = smallest_holding(sizes, len(rows))
            group, rows = rows[:bucket], rows[bucket:]
            mode: SampleMode = "general" if any(each.mode == "general" for each in group) else "greedy"
            yield DecodeGroup(tuple(map(self._decode_row, group)), bucket, mode)

    def _decode_row(self, sequence: Running) -> DecodeRow:
        position = len(sequence.prompt) + sequence.planned - 1
        sequence.planned += 1
        sequence.phase = self._phase_after_sample(sequence)
        self.prefixes.touch_written(sequence.slot, position + 1)
        return DecodeRow(sequence.request_id, sequence.slot, position, sequence.adapter)

    def _phase_after_sample(self, sequence: Running) -> Phase:
        return Phase.DECODE if sequence.planned < sequence.max_tokens else Phase.DRAINING

    def _claim(self, sequence: Running) -> None:
        """Tells the prefix index which tokens are both known and written, while the slot is still its own."""
        if self._holders.get(sequence.slot) is not sequence:
            return
        held = self.prefixes.count(sequence.slot)
        if held < sequence.computed:
            self.prefixes.extend(sequence.slot, sequence.prompt[held : sequence.computed])
            held = sequence.computed
        begin = held - len(sequence.prompt)
        if begin >= 0:
            end = min(len(sequence.generated), sequence.length - len(sequence.prompt))
            if end > begin:
                self.prefixes.extend(sequence.slot, sequence.generated[begin:end])

    def _in_order(self, phase: Phase) -> Iterator[Running]:
        """Running sequences of a phase in order of admission."""
        return iter([each for each in self._running.values() if each.phase is phase])

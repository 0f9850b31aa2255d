"""Joins scheduler and programs: requests in, tokens out, one device step per turn.

A step is dispatched before the one before it is read, so the device never waits for the host. Where a row has
a grammar, its forward pass runs while its mask is computed from the token just read.
Implements `engines.serving.ServedEngine`; belongs to the runner's engine thread.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import numpy as np
from numpy.typing import NDArray

from engines.base import (
    AdapterFiles,
    AdapterRoom,
    AdaptRequest,
    EncodeOutput,
    EncodeRequest,
    EngineError,
    EngineOverloaded,
    FinishReason,
    GenerateRequest,
    InvalidRequest,
    LabelScore,
    LoadFailed,
    LoadProgress,
    LoadRequest,
    OutOfMemory,
    Ready,
    RunnerStatus,
    StepOutput,
    TokenLogprob,
    Usage,
)
from engines.decoder import native, weights
from engines.decoder.adapter_files import room_bytes
from engines.decoder.adapters import Filling, empty_stacks, read_filling, with_stacks
from engines.decoder.cache import DTYPES
from engines.decoder.config import DecoderConfig
from engines.decoder.params import MAX_STORED_PREFIXES, memory_needed, one_slot_bytes
from engines.decoder.plan import DecodeGroup, PrefillChunk, SampleMode, StepPlan
from engines.decoder.prefix import Ring
from engines.decoder.programs import Programs, Sampled, mask_words
from engines.decoder.requests import (
    Active,
    check_request,
    check_tokens,
    logprob_entry,
    sample_mode,
    settings_arrays,
    token_logprob,
)
from engines.decoder.sampling import BAD_LOGITS, OK, TOP_LOGPROBS, Logprobs, Settings
from engines.decoder.scheduler import Scheduler
from engines.grammar import GrammarCompiler, Matcher
from engines.serving import StepResult, first_line, is_out_of_memory

MAX_EMBEDDINGS = 4096
EMBED_WAIT_SECONDS = 0.01
MAX_KEPT_SETTINGS = 16
STATUS_ERRORS = {
    BAD_LOGITS: "the model gave numbers that are not finite; its weights or its cache type may be damaged",
}
NOTHING_ALLOWED_ERROR = "the grammar and the logit bias forbid every token here"


@dataclass(slots=True)
class Group:
    """Rows sampled together: who they are, and where their new tokens will be."""

    request_ids: tuple[int, ...]
    slots: tuple[int, ...]
    positions: tuple[int, ...]
    mode: SampleMode
    logits: jax.Array
    sampled: Sampled | None = None


@dataclass(slots=True)
class Score:
    """Log-probabilities of a prompt chunk's tokens, on their way from the device."""

    request_id: int
    targets: tuple[int, ...]
    logprobs: Logprobs


@dataclass(slots=True)
class Flight:
    """A step that was dispatched and not read yet."""

    plan: StepPlan
    dispatched: float
    groups: list[Group] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    """Requests whose prompt is done and that want no tokens."""


class DecoderEngine:
    """Serves one decoder model. `compiler_options` are XLA's, for every program."""

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        compiler_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._clock = clock
        self._compiler_options = compiler_options
        self._active: dict[int, Active] = {}
        self._serials = itertools.count(1)
        self._adapters: dict[str, int] = {}
        self._room: AdapterRoom | None = None
        self._pending: Flight | None = None
        self._outputs: list[StepOutput] = []
        self._failures: list[tuple[int, EngineError]] = []
        self._embeddings: deque[EncodeRequest] = deque()
        self._settings: dict[tuple[int, ...], Settings] = {}
        self._last_read = 0.0
        self._totals = {"generated": 0, "prompt": 0, "cached": 0}

    # Loading

    def load(self, request: LoadRequest, progress: Callable[[LoadProgress], None]) -> Ready:
        started = self._clock()
        if request.device == "cpu":
            native.set_threads(request.threads)
        loaded = weights.load(
            request.files, progress=lambda done, total: progress(LoadProgress("reading", done, total))
        )
        limits = request.limits
        self._config = loaded.config
        params, self._room = loaded.params, request.adapter_room
        if self._room is not None:
            params = with_stacks(params, empty_stacks(loaded.config, self._room, jax.devices()[0]))
        self._grammars = GrammarCompiler(request.files, loaded.config.vocabulary_size)
        kv_type = request.kv_type or _natural_kv_type(loaded.stored_types)
        generates = not loaded.config.bidirectional
        rings_exist = generates and any(layer.window for layer in loaded.config.layers)
        stored = _stored_slots(request, loaded.config, kv_type) if rings_exist else 0
        self._programs = Programs(
            loaded.config,
            params,
            adapters=self._room is not None,
            slots=limits.slots if generates else 1,
            context=limits.context,
            kv_type=DTYPES[kv_type],
            stored=stored,
            compiler_options=self._compiler_options,
        )
        self._scheduler = Scheduler(
            slots=limits.slots,
            context=limits.context,
            buckets=self._programs.buckets,
            clock=self._clock,
            rings=list(_rings(loaded.config, self._programs)),
            stored=stored,
        )
        self._limits = limits
        self._programs.start_compiling(lambda done, total: progress(LoadProgress("compiling", done, total)))
        cache_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._programs.state))
        return Ready(
            limits=limits,
            capabilities=("embed",) if loaded.config.bidirectional else ("generate", "embed"),
            memory_bytes=loaded.nbytes + cache_bytes + _room_bytes(request, loaded.config),
            device=jax.devices()[0].device_kind,
            load_ns=int((self._clock() - started) * 1e9),
            kernels=loaded.kernels,
        )

    # Requests

    def prepare(self, request: GenerateRequest) -> object:
        """Compiles a request's grammar; called from other threads."""
        assert request.grammar is not None
        return self._grammars.compile(request.grammar)

    def submit(self, request: GenerateRequest, prepared: object | None) -> None:
        check_request(request, self._config)
        adapter = self._adapter(request.adapter)
        matcher = prepared if isinstance(prepared, Matcher) else None
        self._scheduler.submit(
            request.request_id,
            request.prompt_token_ids,
            request.max_tokens,
            owner=(request.cache_salt, request.adapter),
            priority=request.priority,
            mode=sample_mode(request),
            score=request.prompt_logprobs,
            adapter=adapter,
        )
        seed = request.sampling.seed
        self._active[request.request_id] = Active(
            serial=next(self._serials),
            request=request,
            matcher=matcher,
            seed=int.from_bytes(os.urandom(8), "little") if seed is None else seed,
            submitted=self._clock(),
            stop_ids=frozenset() if request.ignore_eos else frozenset(request.stop_token_ids),
        )

    def submit_embedding(self, request: EncodeRequest) -> None:
        self._adapter(request.adapter)
        if not request.prompt_token_ids:
            raise InvalidRequest("nothing to embed: the input has no tokens")
        check_tokens(request.prompt_token_ids, self._config.vocabulary_size)
        longest = min(self._programs.embed_sizes[-1], self._limits.context)
        if len(request.prompt_token_ids) > longest:
            raise InvalidRequest(
                f"the input has {len(request.prompt_token_ids)} tokens, of at most {longest}; "
                "shorten it or ask for truncation"
            )
        if len(self._embeddings) >= MAX_EMBEDDINGS:
            raise EngineOverloaded(f"{MAX_EMBEDDINGS} inputs wait to be embedded already; try again later")
        self._embeddings.append(request)

    # Adapters

    def read_adapter(self, adapter: AdapterFiles) -> object:
        """What a slot is filled with, read from the files; called from other threads."""
        if self._room is None:
            raise InvalidRequest("this runner was loaded without room for adapters")
        try:
            return read_filling(self._config, self._room, adapter.files)
        except (ValueError, OSError) as error:
            raise LoadFailed(f"the adapter cannot be used: {first_line(error)}") from error

    def adapt(self, request: AdaptRequest, filling: object) -> None:
        """Fills a slot. Requests that still run with what was there would go on with something else."""
        if self._room is None or not 1 <= request.slot <= self._room.slots:
            raise InvalidRequest(f"there is no adapter slot {request.slot} here")
        before = next((name for name, slot in self._adapters.items() if slot == request.slot), None)
        used = {each.request.adapter for each in self._active.values()}
        if before is not None and before in used | {each.adapter for each in self._embeddings}:
            raise InvalidRequest(f"adapter slot {request.slot} is in use")
        self._adapters = {name: slot for name, slot in self._adapters.items() if slot != request.slot}
        self._programs.adapt(request.slot, cast("Filling", filling))
        self._adapters[request.adapter.name] = request.slot

    def _adapter(self, name: str | None) -> int:
        """The slot of an adapter, 0 for none."""
        if name is None:
            return 0
        if name not in self._adapters:
            loaded = ", ".join(sorted(self._adapters)) or "none"
            raise InvalidRequest(f"no adapter {name} is loaded here; loaded: {loaded}")
        return self._adapters[name]

    def score(self, image: bytes) -> list[LabelScore]:
        raise InvalidRequest("this model does not classify images")

    def cancel(self, request_id: int) -> None:
        self._embeddings = deque(each for each in self._embeddings if each.request_id != request_id)
        active = self._active.get(request_id)
        if active is not None:
            self._outputs.append(self._end(active, "cancelled"))

    def status(self) -> RunnerStatus:
        return RunnerStatus(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            tokens_in_cache=self._scheduler.prefixes.tokens_held,
            tokens_cache_size=self._limits.slots * self._limits.context,
            generated_total=self._totals["generated"],
            prompt_total=self._totals["prompt"],
            cached_total=self._totals["cached"],
            compiled_programs=self._programs.compiled,
        )

    def wait_seconds(self) -> float | None:
        if self._pending or self._outputs or self._failures or self._scheduler.has_work:
            return 0
        if self._embeddings:
            return (
                0
                if self._programs.can_embed(len(self._embeddings[0].prompt_token_ids))
                else EMBED_WAIT_SECONDS
            )
        return None

    # One turn

    def step(self) -> StepResult:
        flight = self._dispatch(self._scheduler.plan(self._programs.ready()))
        if flight is not None and any(self._masked(group) for group in flight.groups):
            self._read(self._pending)
            self._sample(flight)
        else:
            self._sample(flight)
            self._read(self._pending)
        self._pending = flight
        embedded = list(self._embed_next())
        result = StepResult(self._outputs, embedded, self._failures)
        self._outputs, self._failures = [], []
        return result

    def _embed_next(self) -> Iterator[EncodeOutput]:
        """One waiting input per turn, so that running streams go on in between."""
        if not self._embeddings or not self._programs.can_embed(len(self._embeddings[0].prompt_token_ids)):
            return
        request = self._embeddings.popleft()
        started = self._clock()
        try:
            adapter = self._adapter(request.adapter)
            vector = np.asarray(self._programs.embed(request.prompt_token_ids, adapter), "<f4")
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._failures.append((request.request_id, OutOfMemory(first_line(error))))
            return
        seconds = self._clock() - started
        count = len(request.prompt_token_ids)
        self._totals["prompt"] += count
        yield EncodeOutput(request.request_id, vector.tobytes(), Usage(count, prefill_ns=int(seconds * 1e9)))

    def _dispatch(self, plan: StepPlan) -> Flight | None:
        """Starts the forward passes of a plan."""
        if plan.empty:
            return None
        flight = Flight(plan, self._clock())
        for copy in plan.copies:
            self._programs.copy(copy.source, copy.target)
        for chunk in plan.prefill:
            self._guard((chunk.request_id,), self._prefill, flight, chunk)
        for group in plan.decode:
            ids = tuple(row.request_id for row in group.rows)
            self._guard(ids, self._decode, flight, group)
        for copy in plan.stores:
            self._programs.copy(copy.source, copy.target)
        return flight

    def _prefill(self, flight: Flight, chunk: PrefillChunk) -> None:
        active = self._active.get(chunk.request_id)
        if active is None:
            return  # an earlier failure in this step took everyone along
        if active.started is None:
            active.started = self._clock()
        logits, hidden = self._programs.prefill(
            chunk.token_ids, chunk.slot, chunk.start, chunk.bucket, chunk.samples, chunk.adapter
        )
        end = chunk.start + len(chunk.token_ids)
        prompt = active.request.prompt_token_ids
        if chunk.score:
            targets = prompt[chunk.start + 1 : end + 1]
            flight.scores.append(Score(chunk.request_id, targets, self._programs.score(hidden, targets)))
        if chunk.samples:
            flight.groups.append(Group((chunk.request_id,), (chunk.slot,), (end,), chunk.mode, logits))
        elif end == len(prompt):
            flight.ended.append(chunk.request_id)

    def _decode(self, flight: Flight, group: DecodeGroup) -> None:
        slots = tuple(row.slot for row in group.rows)
        positions = tuple(row.position for row in group.rows)
        adapters = tuple(row.adapter for row in group.rows)
        logits = self._programs.decode(slots, positions, adapters, group.bucket)
        ids = tuple(row.request_id for row in group.rows)
        after = tuple(position + 1 for position in positions)
        flight.groups.append(Group(ids, slots, after, group.mode, logits))

    def _sample(self, flight: Flight | None) -> None:
        for group in flight.groups if flight else ():
            self._guard(group.request_ids, self._sample_group, group)

    def _sample_group(self, group: Group) -> None:
        rows = group.logits.shape[0]
        if group.mode == "greedy" and self._programs.has_greedy(rows):
            settings, mask = None, None
        else:
            settings, mask = self._settings_of(group.request_ids, rows), self._mask_of(group, rows)
        group.sampled = self._programs.sample(group.logits, group.slots, group.positions, settings, mask)

    def _guard(self, request_ids: Sequence[int], work: Callable[..., None], *arguments: object) -> None:
        """Runs device work for some requests; when the device has no room, only they fail."""
        try:
            work(*arguments)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self._programs.lost:
                request_ids = tuple(self._active)
                self._programs.reset()
                self._scheduler.forget_contents()
            for request_id in request_ids:
                self._fail(request_id, OutOfMemory(f"the device has no room for this: {first_line(error)}"))

    # Settings and masks of a group

    def _settings_of(self, request_ids: tuple[int, ...], rows: int) -> Settings:
        """Device arrays, kept while the same requests run together."""
        active = [self._active.get(request_id) for request_id in request_ids]
        key = (rows, *(one.serial if one else 0 for one in active))
        if key not in self._settings:
            if len(self._settings) >= MAX_KEPT_SETTINGS:
                self._settings.clear()
            host = settings_arrays(active, rows, self._config.vocabulary_size)
            self._settings[key] = jax.device_put(host)
        return self._settings[key]

    def _matchers(self, group: Group) -> Iterator[tuple[int, Matcher]]:
        for row, request_id in enumerate(group.request_ids):
            active = self._active.get(request_id)
            if active is not None and active.matcher is not None:
                yield row, active.matcher

    def _masked(self, group: Group) -> bool:
        return any(True for _ in self._matchers(group))

    def _mask_of(self, group: Group, rows: int) -> NDArray[np.uint32] | None:
        """Bits of allowed tokens; None when no row has a grammar."""
        mask: NDArray[np.uint32] | None = None
        for row, matcher in self._matchers(group):
            if mask is None:
                mask = np.full((rows, mask_words(self._config.vocabulary_size)), 0xFFFFFFFF, np.uint32)
            try:
                matcher.fill_mask(mask[row])
            except EngineError as error:
                self._fail(group.request_ids[row], error)
        return mask

    # Reading

    def _read(self, flight: Flight | None) -> None:
        """Waits for a step and hands its tokens out."""
        if flight is None:
            return
        for score in flight.scores:
            self._read_score(score)
        for group in flight.groups:
            if group.sampled is not None:
                self._guard(group.request_ids, self._read_group, group)
        for request_id in flight.ended:
            if (active := self._active.get(request_id)) is not None:
                self._outputs.append(self._end(active, "length"))
        now = self._clock()
        seconds = now - max(flight.dispatched, self._last_read)
        buckets = [chunk.bucket for chunk in flight.plan.prefill]
        self._scheduler.pace.observe(buckets, flight.plan.decode_rows, seconds)
        self._last_read = now

    def _read_group(self, group: Group) -> None:
        assert group.sampled is not None
        packed = np.asarray(group.sampled.packed)
        active = [self._active.get(request_id) for request_id in group.request_ids]
        logprobs = None
        if group.sampled.logprobs is not None and any(each and each.wants_logprobs for each in active):
            logprobs = jax.device_get(group.sampled.logprobs)
        for row, one in enumerate(active):
            if one is not None:
                token, status = packed[row].tolist()
                self._take_token(one, token, status, token_logprob(one, logprobs, row, token))

    def _take_token(self, active: Active, token: int, status: int, logprob: TokenLogprob | None) -> None:
        """One sampled token of a running request: it goes on, or ends here."""
        request_id = active.request.request_id
        if active.first_token is None:
            active.first_token = self._clock()
        if status != OK:
            error = STATUS_ERRORS.get(status, NOTHING_ALLOWED_ERROR)
            self._outputs.append(self._end(active, "error", error=error))
            return
        if token in active.stop_ids:
            self._outputs.append(self._end(active, "stop"))
            return
        self._scheduler.accept(request_id, token)
        self._totals["generated"] += 1
        reason: FinishReason | None = None
        if active.matcher is not None:
            try:
                reason = "stop" if active.matcher.take(token) else None
            except EngineError as error:
                self._fail(request_id, error)
                return
        if reason is None and self._scheduler.exhausted(request_id):
            reason = "length"
        logprobs = () if logprob is None else (logprob,)
        if reason is not None:
            self._outputs.append(self._end(active, reason, (token,), logprobs))
        else:
            self._outputs.append(
                StepOutput(request_id, (token,), logprobs, prompt_logprobs=self._scored(active))
            )

    def _read_score(self, score: Score) -> None:
        active = self._active.get(score.request_id)
        if active is None:
            return
        logprobs = jax.device_get(score.logprobs)
        count = min(max(active.request.top_logprobs, 0), TOP_LOGPROBS)
        if not active.prompt_logprobs:
            active.prompt_logprobs.append(None)
        for row, token in enumerate(score.targets):
            active.prompt_logprobs.append(logprob_entry(logprobs, row, token, count))

    def _scored(self, active: Active) -> tuple[TokenLogprob | None, ...]:
        """The prompt's log-probabilities, once."""
        scored, active.prompt_logprobs = tuple(active.prompt_logprobs), []
        return scored

    # Ends

    def _end(
        self,
        active: Active,
        reason: FinishReason,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        error: str | None = None,
    ) -> StepOutput:
        request_id = active.request.request_id
        return StepOutput(
            request_id,
            token_ids,
            logprobs,
            self._scored(active),
            finish_reason=reason,
            usage=self._forget(active),
            error=error,
        )

    def _fail(self, request_id: int, error: EngineError) -> None:
        active = self._active.get(request_id)
        if active is not None:
            self._forget(active)
            self._failures.append((request_id, error))

    def _forget(self, active: Active) -> Usage:
        """Takes a request out of everything; its slot is free for the next plan."""
        del self._active[active.request.request_id]
        ended = self._scheduler.finish(active.request.request_id)
        assert ended is not None
        self._totals["prompt"] += ended.prompt
        self._totals["cached"] += ended.cached
        now = self._clock()
        started = active.started or now
        first = active.first_token or now
        return Usage(
            prompt=ended.prompt,
            cached=ended.cached,
            generated=ended.generated,
            prefill_ns=int((first - started) * 1e9),
            decode_ns=int((now - first) * 1e9),
        )


# Loading, in numbers


def _natural_kv_type(stored_types: Any) -> str:
    """Float32 weights keep a float32 cache; everything else has no use for one."""
    return "f32" if set(stored_types.values()) == {"F32"} else "bf16"


def _rings(config: DecoderConfig, programs: Programs) -> Iterator[Ring]:
    for layer, cache in zip(config.layers, programs.state.cache, strict=True):
        if cache is not None and cache.wraps:
            yield Ring(layer.window, cache.length)


def _room_bytes(request: LoadRequest, config: DecoderConfig) -> int:
    return room_bytes(config, request.adapter_room) if request.adapter_room else 0


def _stored_slots(request: LoadRequest, config: DecoderConfig, kv_type: str) -> int:
    """Copies of prefixes that fit the memory left of the budget."""
    if not request.memory_bytes:
        return MAX_STORED_PREFIXES
    context, slots = request.limits.context, request.limits.slots
    one = one_slot_bytes(config, context, kv_type)  # type: ignore[arg-type]
    needed = memory_needed(request.files, slots, context, kv_type, request.device)  # type: ignore[arg-type]
    rest = request.memory_bytes - needed
    rest -= _room_bytes(request, config)
    return max(0, min(MAX_STORED_PREFIXES, rest // one))

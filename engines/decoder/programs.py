"""The compiled programs of one model, and the state they leave on the device.

Every program is compiled ahead of its use, in threads beside the engine's, the most needed first; running one
never compiles. `ready` says which sizes can be planned with. Logits, cache and token history stay on the
device; the host passes a few integers per step. Knows rows, slots and positions; not requests, not text.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from numpy.typing import NDArray

from engines.decoder import embedding, model, sampling
from engines.decoder.adapters import Filling, fill_slot, stacks_of, with_stacks
from engines.decoder.cache import Cache, init_cache
from engines.decoder.config import DecoderConfig
from engines.decoder.params import rounded_length
from engines.decoder.plan import SCORE_CHUNK, Buckets, smallest_holding
from engines.decoder.sampling import Logprobs, Settings

PREFILL_SIZES = (16, 64, 256, 512)
EMBED_SIZES = (64, 512, 2048)
"""Tokens of a whole sequence that is embedded, padded; longer ones are refused."""

MAX_ROW_SIZES = 5
COMPILE_THREADS = 2
BACKGROUND_NICENESS = 10

Key = tuple[str, int]
"""Kind and size: ("prefill", tokens), ("decode", rows), ("general", rows), ("copy", 1) and so on."""


class State(NamedTuple):
    """What lives on the device between steps; donated to each program that changes it.

    `history` int32 [slots + 1, context] holds every sequence's tokens by position; the last row is trash.
    """

    cache: Cache
    history: jax.Array


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampling pass, perhaps still running: `packed` int32 [B, 2] is token and status per row."""

    packed: jax.Array
    logprobs: Logprobs | None


def row_sizes(slots: int) -> tuple[int, ...]:
    """Row counts worth a program each: powers of two up to `slots`, or of four when those are too many."""
    for factor in (2, 4, 8):
        sizes = {min(factor**power, slots) for power in range(slots.bit_length() + 1)}
        if len(sizes) <= MAX_ROW_SIZES:
            break
    return tuple(sorted(sizes))


def prefill_sizes(context: int) -> tuple[int, ...]:
    """Chunk sizes worth a program each: none longer than a whole context needs, or than its cache is."""
    worth = sizes_up_to(context, PREFILL_SIZES, SCORE_CHUNK)
    return tuple(size for size in worth if size <= rounded_length(context))


def sizes_up_to(context: int, sizes: Sequence[int], least: int) -> tuple[int, ...]:
    """Those of ascending `sizes` that some length up to `context` needs, and all up to `least`."""
    pairs = zip((0, *sizes), sizes, strict=False)
    return tuple(size for shorter, size in pairs if shorter < context or size <= least)


def mask_words(vocabulary_size: int) -> int:
    return -(-vocabulary_size // 32)


class Programs:
    """Compiles, keeps and runs the programs of one model with `slots` sequences of `context` tokens.

    Methods that run something belong to one thread. The methods of `State` are in device order: what is
    called first runs first, so a slot may be given away while its last step is still running.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Mapping[str, Any],
        *,
        slots: int,
        context: int,
        kv_type: DTypeLike,
        stored: int = 0,
        adapters: bool = False,
        compiler_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._adapters = adapters
        self._compiler_options = dict(compiler_options or {})
        self.config = config
        self.params = params
        self.trash = slots + stored
        self.buckets = Buckets(prefill_sizes(context), row_sizes(slots))
        self.embed_sizes = sizes_up_to(context, EMBED_SIZES, EMBED_SIZES[0])
        self._make_state = jax.jit(partial(_init_state, config, slots + stored, context, kv_type))
        self._abstract_params = jax.tree.map(_abstract, params)
        self.state: State = self._make_state()
        self._abstract_state = jax.tree.map(_abstract, self.state)
        self._compiled: dict[Key, Any] = {}
        self._wanted: dict[Key, Future[None]] = {key: Future() for key in self._keys()}
        self._queue = list(self._wanted)
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(COMPILE_THREADS, thread_name_prefix="compile")
        self._no_mask = {
            rows: jax.device_put(np.zeros((rows, mask_words(config.vocabulary_size)), np.uint32))
            for rows in self.buckets.decode
        }

    # Compiling

    def _keys(self) -> list[Key]:
        """All programs of this model, the most needed first."""
        prefill = sorted(self.buckets.prefill, key=lambda size: abs(size - 64))
        rows = self.buckets.decode
        first: list[Key] = [("decode", rows[0]), ("general", rows[0]), ("prefill", prefill[0])]
        chunks: list[Key] = [("prefill", size) for size in sorted(prefill[1:], reverse=True)]
        vectors: list[Key] = [("embed", size) for size in self.embed_sizes]
        adapt: list[Key] = [("adapt", 1)] if self._adapters else []
        if self.config.bidirectional:
            return [vectors[0], *adapt, *vectors[1:]]
        batches: list[Key] = [(kind, size) for size in rows[:0:-1] for kind in ("decode", "general")]
        greedy: list[Key] = [("greedy", size) for size in (rows[0], *rows[:0:-1])]
        rest: list[Key] = [*chunks, *batches, *greedy[1:], *vectors, ("score", SCORE_CHUNK)]
        return [*first, *adapt, ("copy", 1), greedy[0], *rest]

    @property
    def first_keys(self) -> list[Key]:
        """What the first token, or the first vector, needs."""
        return self._keys()[: 1 if self.config.bidirectional else 3]

    @property
    def compiled(self) -> int:
        return len(self._compiled)

    @property
    def total(self) -> int:
        return len(self._wanted)

    def start_compiling(self, progress: Callable[[int, int], None]) -> None:
        """Returns when the first programs are ready; the others follow in the background."""
        for _ in range(COMPILE_THREADS):
            self._pool.submit(self._compile_all)
        first = self.first_keys
        for count, key in enumerate(first):
            progress(count, len(first))
            self._wanted[key].result()
        progress(len(first), len(first))

    def wait_all(self) -> None:
        """Returns when every program is compiled."""
        for future in self._wanted.values():
            future.result()

    def stop_compiling(self) -> None:
        """Leaves out what is still to be compiled; returns when the threads have ended."""
        with self._lock:
            self._queue.clear()
        self._pool.shutdown()

    def hurry(self, key: Key) -> None:
        """Moves a program to the front of what is still to be compiled."""
        with self._lock:
            if key in self._queue:
                self._queue.remove(key)
                self._queue.insert(0, key)

    def ready(self) -> Buckets:
        """The sizes that can be planned with now."""
        compiled = self._compiled
        return Buckets(
            tuple(size for size in self.buckets.prefill if ("prefill", size) in compiled),
            tuple(
                size
                for size in self.buckets.decode
                if ("decode", size) in compiled and ("general", size) in compiled
            ),
        )

    def _compile_all(self) -> None:
        first = self.first_keys
        while True:
            with self._lock:
                if not self._queue:
                    return
                key = self._queue.pop(0)
            if key not in first:
                _yield_the_processor()
            try:
                self._compiled[key] = self._compile(key)
            except BaseException as error:
                self._wanted[key].set_exception(error)
            else:
                self._wanted[key].set_result(None)

    def _compile(self, key: Key) -> Any:
        kind, size = key
        function, arguments, donated = getattr(self, f"_{kind}_program")(size)
        function.__name__ = f"{kind}_{size}"
        lowered = jax.jit(function, donate_argnums=donated).lower(*arguments)
        return lowered.compile(compiler_options=self._compiler_options)

    def _get(self, key: Key) -> Any:
        """A compiled program; waits when it is not ready, which plans made with `ready` avoid."""
        if key not in self._compiled:
            self.hurry(key)
            self._wanted[key].result()
        return self._compiled[key]

    # What the programs are: (function, abstract arguments, donated arguments)

    def _prefill_program(self, size: int) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]:
        config = self.config

        def prefill(params: Any, state: State, tokens: jax.Array, where: jax.Array) -> Any:
            slot, start, length, wanted, adapter = where
            steps = jnp.arange(size, dtype=jnp.int32)
            real = steps < length
            positions = jnp.where(real, start + steps, -1)
            rows = jnp.where(real, slot, state.history.shape[0] - 1)
            history = state.history.at[rows, jnp.maximum(positions, 0)].set(tokens)
            chosen = adapter[None] if self._adapters else None
            batch = model.Batch(tokens[None], positions[None], slot[None], chosen)
            hidden, cache = model.forward(config, params, state.cache, batch)
            last = lax.dynamic_index_in_dim(hidden[0], length - 1, keepdims=True)  # [1, D]
            logits = lax.cond(
                wanted > 0,
                lambda x: model.logits(config, params, x),
                lambda x: jnp.zeros((1, config.vocabulary_size), jnp.float32),
                last,
            )
            return logits, hidden[0], State(cache, history)

        return prefill, (self._abstract_params, self._abstract_state, _ints(size), _ints(5)), (1,)

    def _decode_program(self, rows: int) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]:
        config = self.config

        def decode(params: Any, state: State, where: jax.Array) -> Any:
            slots, positions, adapters = where
            tokens = state.history[slots, jnp.maximum(positions, 0)]
            chosen = adapters if self._adapters else None
            batch = model.Batch(tokens[:, None], positions[:, None], slots, chosen)
            hidden, cache = model.forward(config, params, state.cache, batch)
            logits = model.logits(config, params, hidden[:, 0])
            return logits, State(cache, state.history)

        return decode, (self._abstract_params, self._abstract_state, _ints(3, rows)), (1,)

    def _greedy_program(self, rows: int) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]:
        def greedy(logits: jax.Array, history: jax.Array, where: jax.Array) -> Any:
            slots, positions = where
            drawn = sampling.greedy(logits)
            packed = jnp.stack(drawn, axis=1)
            return packed, history.at[slots, positions].set(drawn.token_ids)

        return greedy, (self._logits(rows), self._abstract_state.history, _ints(2, rows)), (1,)

    def _general_program(self, rows: int) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]:
        on_cpu = model.platform_of(self.params["layers"][0]) == "cpu"
        draw = sampling.draw_each if on_cpu else sampling.draw_together

        def general(
            logits: jax.Array, history: jax.Array, where: jax.Array, settings: Settings, mask: jax.Array
        ) -> Any:
            slots, positions = where
            drawn, logprobs = draw(logits, settings, mask, history[slots], positions)
            packed = jnp.stack(drawn, axis=1)
            return packed, logprobs, history.at[slots, positions].set(drawn.token_ids)

        settings = jax.tree.map(_abstract, neutral_settings(rows, self.config.vocabulary_size))
        mask = _shaped((rows, mask_words(self.config.vocabulary_size)), jnp.uint32)
        arguments = (self._logits(rows), self._abstract_state.history, _ints(2, rows), settings, mask)
        return general, arguments, (1,)

    def _copy_program(self, _: int) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]:
        def copy(state: State, where: jax.Array) -> State:
            source, target = where

            def over(x: jax.Array) -> jax.Array:
                row = lax.dynamic_index_in_dim(x, source)
                changed: jax.Array = lax.dynamic_update_index_in_dim(x, row, target, 0)
                return changed

            copied: State = jax.tree.map(over, state)
            return copied

        return copy, (self._abstract_state, _ints(2)), (0,)

    def _score_program(self, size: int) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]:
        config = self.config

        def score(params: Any, hidden: jax.Array, targets: jax.Array) -> Logprobs:
            logits = model.logits(config, params, hidden)
            return sampling.log_probabilities(logits, targets, jnp.ones(size, bool))

        hidden = _shaped((size, config.width), jnp.float32)
        return score, (self._abstract_params, hidden, _ints(size)), ()

    def _embed_program(self, size: int) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]:
        config = self.config

        def embed(params: Any, tokens: jax.Array, where: jax.Array) -> jax.Array:
            length, adapter = where
            steps = jnp.arange(size, dtype=jnp.int32)
            positions = jnp.where(steps < length, steps, -1)
            chosen = adapter[None] if self._adapters else None
            vector: jax.Array = embedding.embed(config, params, tokens[None], positions[None], chosen)[0]
            return vector

        return embed, (self._abstract_params, _ints(size), _ints(2)), ()

    def _adapt_program(self, _: int) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]:
        stacks = stacks_of(self._abstract_params)
        one = jax.tree.map(lambda stack: _shaped(stack.shape[1:], stack.dtype), stacks)

        def adapt(stacks: Any, slot: jax.Array, filling: Any) -> Any:
            return fill_slot(stacks, slot, filling)

        return adapt, (stacks, _ints(), one), (0,)

    def _logits(self, rows: int) -> jax.ShapeDtypeStruct:
        return _shaped((rows, self.config.vocabulary_size), jnp.float32)

    # Running

    def prefill(
        self, tokens: Sequence[int], slot: int, start: int, size: int, wanted: bool, adapter: int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """Computes a prompt chunk: logits [1, V] of its end if `wanted`, and hidden states [size, D]."""
        padded = np.zeros(size, np.int32)
        padded[: len(tokens)] = tokens
        where = np.array([slot, start, len(tokens), wanted, adapter], np.int32)
        run = self._get(("prefill", size))
        logits, hidden, self.state = run(self.params, self.state, padded, where)
        return logits, hidden

    def decode(
        self, slots: Sequence[int], positions: Sequence[int], adapters: Sequence[int], size: int
    ) -> jax.Array:
        """One token of each row forward: logits [size, V]. The tokens are those of the history."""
        where = np.zeros((3, size), np.int32)
        where[:2] = self._where(slots, positions, size, -1)
        where[2, : len(adapters)] = adapters
        logits: jax.Array
        logits, self.state = self._get(("decode", size))(self.params, self.state, where)
        return logits

    def sample(
        self,
        logits: jax.Array,
        slots: Sequence[int],
        positions: Sequence[int],
        settings: Settings | None,
        mask: NDArray[np.uint32] | None,
    ) -> Sampled:
        """Draws a token per row, to be at `positions`. Without settings all rows are greedy."""
        rows = logits.shape[0]
        where = self._where(slots, positions, rows, 0)
        if settings is None:
            packed, history = self._get(("greedy", rows))(logits, self.state.history, where)
            self.state = State(self.state.cache, history)
            return Sampled(packed, None)
        chosen = self._no_mask[rows] if mask is None else mask
        run = self._get(("general", rows))
        packed, logprobs, history = run(logits, self.state.history, where, settings, chosen)
        self.state = State(self.state.cache, history)
        return Sampled(packed, logprobs)

    def copy(self, source: int, target: int) -> None:
        self.state = self._get(("copy", 1))(self.state, np.array([source, target], np.int32))

    def score(self, hidden: jax.Array, targets: Sequence[int]) -> Logprobs:
        """Log-probabilities of `targets` after hidden states [SCORE_CHUNK, D]."""
        padded = np.zeros(SCORE_CHUNK, np.int32)
        padded[: len(targets)] = targets
        found: Logprobs = self._get(("score", SCORE_CHUNK))(self.params, hidden, padded)
        return found

    def embed(self, tokens: Sequence[int], adapter: int = 0) -> jax.Array:
        """The vector float32 [E] of a whole sequence of at most `embed_sizes[-1]` tokens."""
        size = smallest_holding(self.embed_sizes, len(tokens))
        padded = np.zeros(size, np.int32)
        padded[: len(tokens)] = tokens
        where = np.array([len(tokens), adapter], np.int32)
        vector: jax.Array = self._get(("embed", size))(self.params, padded, where)
        return vector

    def adapt(self, slot: int, filling: Filling) -> None:
        """Puts an adapter's numbers into a slot; steps dispatched before still see what was there."""
        stacks = self._get(("adapt", 1))(stacks_of(self.params), np.int32(slot), filling)
        self.params = with_stacks(self.params, stacks)

    def can_embed(self, length: int) -> bool:
        """Whether the program for a sequence of this length is ready; asks for it if not."""
        key = ("embed", smallest_holding(self.embed_sizes, length))
        self.hurry(key)
        return key in self._compiled

    def has_greedy(self, rows: int) -> bool:
        return ("greedy", rows) in self._compiled

    def reset(self) -> None:
        """A new empty state, after a failure that took the old one along."""
        self.state = self._make_state()

    @property
    def lost(self) -> bool:
        """Whether a failed program took the donated state with it."""
        return any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state))

    def _where(
        self, slots: Sequence[int], positions: Sequence[int], size: int, padding: int
    ) -> NDArray[np.int32]:
        where = np.empty((2, size), np.int32)
        where[0], where[1] = self.trash, padding
        where[0, : len(slots)], where[1, : len(slots)] = slots, positions
        return where


def neutral_settings(rows: int, vocabulary_size: int) -> Settings:
    """Greedy rows without anything else, as host arrays that a caller fills in."""

    def filled(value: float, kind: DTypeLike, *width: int) -> Any:
        return np.full((rows, *width), value, kind)

    return Settings(
        temperature=filled(0, np.float32),
        top_k=filled(0, np.int32),
        top_p=filled(1, np.float32),
        min_p=filled(0, np.float32),
        typical_p=filled(1, np.float32),
        repeat_penalty=filled(1, np.float32),
        repeat_last_n=filled(0, np.int32),
        presence_penalty=filled(0, np.float32),
        frequency_penalty=filled(0, np.float32),
        generated_from=filled(0, np.int32),
        seed=filled(0, np.uint32, 2),
        bias_ids=filled(vocabulary_size, np.int32, sampling.MAX_BIAS),
        bias_values=filled(0, np.float32, sampling.MAX_BIAS),
        masked=filled(False, bool),
        logprobs=filled(False, bool),
    )


def _init_state(config: DecoderConfig, slots: int, context: int, kv_type: DTypeLike) -> State:
    cache = init_cache(config, slots, context, kv_type)
    return State(cache, jnp.zeros((slots + 1, context), jnp.int32))


def _yield_the_processor() -> None:
    """Lowers this thread's priority: what is compiled behind a running stream must not slow it down."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICENESS)


def _abstract(array: Any) -> jax.ShapeDtypeStruct:
    return _shaped(array.shape, array.dtype)


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return _shaped(shape, jnp.int32)


def _shaped(shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    make: Any = jax.ShapeDtypeStruct  # untyped in JAX 0.10
    made: jax.ShapeDtypeStruct = make(shape, dtype)
    return made

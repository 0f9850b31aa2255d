"""Draws the next token of every row from its logits. Everything per request is an array: nothing recompiles.

A row's token depends on its own logits, settings, seed and position alone, never on its batch mates. One
uniform number per token is turned into a token by the inverse of the distribution function, over the
likeliest `CANDIDATES` tokens first and the others after them. Where the filters cannot be decided on those
candidates, the whole vocabulary is looked at. Knows nothing of sequences or text; called by `programs`.

Axes: B rows, V vocabulary, C candidates, P tokens of history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

CANDIDATES = 128
BLOCK = 64
TOP_LOGPROBS = 20
MAX_BIAS = 256
RECENT = 128
"""Penalties that look back no further take a short path."""

OK, BAD_LOGITS, NOTHING_ALLOWED = 0, 1, 2
"""Status of a row: drawn; its logits are not finite; its grammar and bias forbid every token."""


class Settings(NamedTuple):
    """What each row asks for, [B] unless said; see `engines.base.SamplingParams` for the meanings.

    `temperature` 0 is greedy; `top_k` 0, `top_p` and `typical_p` 1, `min_p` 0 and penalties 1, 0, 0 are off.
    `repeat_last_n` -1 means everything. `generated_from` is the prompt's length: presence and frequency look
    at generated tokens only. `seed` is uint32 [B, 2]. `bias_ids` int32 [B, MAX_BIAS], V where unused.
    `masked` rows obey `mask`; `logprobs` rows want log-probabilities.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    typical_p: jax.Array
    repeat_penalty: jax.Array
    repeat_last_n: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    generated_from: jax.Array
    seed: jax.Array
    bias_ids: jax.Array
    bias_values: jax.Array
    masked: jax.Array
    logprobs: jax.Array


class Drawn(NamedTuple):
    """Tokens int32 [B], status int32 [B]."""

    token_ids: jax.Array
    status: jax.Array


class Logprobs(NamedTuple):
    """Of the model's own distribution, before penalties and temperature.

    `chosen` float32 [B]; `top` float32 and `top_ids` int32 [B, TOP_LOGPROBS], likeliest first.
    """

    chosen: jax.Array
    top: jax.Array
    top_ids: jax.Array


class _Candidates(NamedTuple):
    """The likeliest tokens of each row, descending: scaled logits and ids [B, C]."""

    values: jax.Array
    ids: jax.Array


def greedy(logits: jax.Array) -> Drawn:
    """The likeliest token of each row of float32 [B, V]; of equal ones the smallest id."""
    highest = jnp.max(logits, axis=-1)
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    first = jnp.min(jnp.where(logits == highest[:, None], ids, ids[-1]), axis=-1)
    return Drawn(first, jnp.where(jnp.isfinite(highest), OK, BAD_LOGITS))


def draw(
    logits: jax.Array, settings: Settings, mask: jax.Array, history: jax.Array, positions: jax.Array
) -> Drawn:
    """The next token of each row.

    `logits` float32 [B, V]; `mask` uint32 [B, ceil(V / 32)], bit i of word w allows token 32 w + i;
    `history` int32 [B, P], the row's tokens by position; `positions` int32 [B], where the new token will be.
    """
    finite = jnp.isfinite(jnp.max(logits, axis=-1))
    processed = penalize(logits, settings, history, positions)
    processed = _when(
        jnp.any(settings.bias_ids < logits.shape[-1]), lambda x: add_bias(x, settings), processed
    )
    processed = _when(jnp.any(settings.masked), lambda x: apply_mask(x, settings.masked, mask), processed)
    best = greedy(processed)
    sampled = lax.cond(
        jnp.any(settings.temperature > 0),
        lambda: _sample(processed, settings, uniforms(settings.seed, positions)),
        lambda: best.token_ids,
    )
    tokens = jnp.where(settings.temperature > 0, sampled, best.token_ids)
    status = jnp.where(finite, jnp.where(best.status == OK, OK, NOTHING_ALLOWED), BAD_LOGITS)
    return Drawn(tokens, status)


def draw_each(
    logits: jax.Array, settings: Settings, mask: jax.Array, history: jax.Array, positions: jax.Array
) -> tuple[Drawn, Logprobs]:
    """`draw` and `log_probabilities`, one row after the other.

    On a CPU a row of a large vocabulary fits a core's cache and a batch does not: 8 rows of 262,144 take
    4 ms instead of 24 (measured, two cores). Each row also takes only the paths that it needs itself.
    """

    def one(row: tuple[jax.Array, Settings, jax.Array, jax.Array, jax.Array]) -> tuple[Drawn, Logprobs]:
        scores, chosen, bits, tokens, position = jax.tree.map(lambda x: x[None], row)
        drawn = draw(scores, chosen, bits, tokens, position)
        logprobs = log_probabilities(scores, drawn.token_ids, chosen.logprobs)
        return jax.tree.map(lambda x: x[0], (drawn, logprobs))  # type: ignore[no-any-return]

    return lax.map(one, (logits, settings, mask, history, positions))  # type: ignore[no-any-return]


def draw_together(
    logits: jax.Array, settings: Settings, mask: jax.Array, history: jax.Array, positions: jax.Array
) -> tuple[Drawn, Logprobs]:
    """`draw` and `log_probabilities` of all rows at once: for devices that want wide programs."""
    drawn = draw(logits, settings, mask, history, positions)
    return drawn, log_probabilities(logits, drawn.token_ids, settings.logprobs)


def uniforms(seeds: jax.Array, positions: jax.Array) -> jax.Array:
    """One number in [0, 1) per row, from its seed and the position of the token it is for."""

    def one(seed: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(key, position))

    return jax.vmap(one)(seeds, positions)


def log_probabilities(logits: jax.Array, token_ids: jax.Array, wanted: jax.Array) -> Logprobs:
    """Natural logarithms for the rows that want them; zeros when no row does."""
    rows = logits.shape[0]
    count = min(TOP_LOGPROBS, logits.shape[-1])

    def compute() -> Logprobs:
        total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, token_ids[:, None], axis=-1)[:, 0]
        top, ids = largest(logits, count)
        return Logprobs(chosen - total, top - total[:, None], ids)

    def nothing() -> Logprobs:
        return Logprobs(
            jnp.zeros(rows, jnp.float32),
            jnp.zeros((rows, count), jnp.float32),
            jnp.zeros((rows, count), jnp.int32),
        )

    found: Logprobs = lax.cond(jnp.any(wanted), compute, nothing)
    return found


# What changes logits


def penalize(logits: jax.Array, settings: Settings, history: jax.Array, positions: jax.Array) -> jax.Array:
    """Repeat, presence and frequency penalties; a short look back where every row allows it."""
    repeats = settings.repeat_penalty != 1.0
    counts = (settings.presence_penalty != 0.0) | (settings.frequency_penalty != 0.0)
    whole = jnp.where(settings.repeat_last_n < 0, positions, settings.repeat_last_n)
    back = jnp.maximum(
        jnp.where(repeats, jnp.minimum(whole, positions), 0),
        jnp.where(counts, positions - settings.generated_from, 0),
    )
    short = min(RECENT, history.shape[1])

    def look_back(width: int) -> Callable[[jax.Array], jax.Array]:
        return lambda x: _penalize_window(x, settings, history, positions, width)

    branch = jnp.where(jnp.max(back) <= 0, 0, jnp.where(jnp.max(back) <= short, 1, 2))
    changes = [lambda x: x, look_back(short), look_back(history.shape[1])]
    penalized: jax.Array = lax.switch(branch, changes, logits)
    return penalized


def _penalize_window(
    logits: jax.Array, settings: Settings, history: jax.Array, positions: jax.Array, width: int
) -> jax.Array:
    """Looks at the `width` positions before each row's own."""
    rows, size = logits.shape
    at = positions[:, None] - 1 - jnp.arange(width)  # [B, width], newest first
    tokens = jnp.take_along_axis(history, jnp.maximum(at, 0), axis=1)
    ages = positions[:, None] - at
    last_n = jnp.where(settings.repeat_last_n < 0, history.shape[1], settings.repeat_last_n)
    recent = (at >= 0) & (ages <= last_n[:, None])
    generated = (at >= 0) & (at >= settings.generated_from[:, None])
    row = jnp.arange(rows)[:, None]
    seen = jnp.zeros((rows, size), bool).at[row, jnp.where(recent, tokens, size)].set(True, mode="drop")
    counts = jnp.zeros((rows, size), jnp.float32)
    counts = counts.at[row, jnp.where(generated, tokens, size)].add(1.0, mode="drop")
    penalty = settings.repeat_penalty[:, None]
    repeated = jnp.where(logits > 0, logits / penalty, logits * penalty)
    presence = settings.presence_penalty[:, None] * (counts > 0)
    return jnp.where(seen, repeated, logits) - presence - settings.frequency_penalty[:, None] * counts


def add_bias(logits: jax.Array, settings: Settings) -> jax.Array:
    row = jnp.arange(logits.shape[0])[:, None]
    return logits.at[row, settings.bias_ids].add(settings.bias_values, mode="drop")


def apply_mask(logits: jax.Array, masked: jax.Array, mask: jax.Array) -> jax.Array:
    """Minus infinity where a masked row's bit is 0."""
    size = logits.shape[-1]
    bits = (mask[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1  # [B, words, 32]
    allowed = bits.reshape(mask.shape[0], -1)[:, :size].astype(bool) | ~masked[:, None]
    return jnp.where(allowed, logits, -jnp.inf)


# Drawing


def _sample(logits: jax.Array, settings: Settings, uniform: jax.Array) -> jax.Array:
    """Tokens by temperature and filters; rows with temperature 0 give a meaningless one."""
    scaled = logits / jnp.where(settings.temperature > 0, settings.temperature, 1.0)[:, None]
    scaled = scaled - jnp.max(scaled, axis=-1, keepdims=True)
    count = min(CANDIDATES, scaled.shape[-1])
    candidates = _Candidates(*largest(scaled, count))
    total = jnp.sum(jnp.exp(scaled), axis=-1)
    short, decided = _sample_candidates(candidates, total, settings, uniform, scaled.shape[-1])
    undecided = (settings.temperature > 0) & ~decided
    tokens: jax.Array = lax.cond(
        jnp.any(undecided),
        lambda: jnp.where(undecided, _sample_all(scaled, candidates, settings, uniform), short),
        lambda: short,
    )
    return tokens


def _sample_candidates(
    candidates: _Candidates, total: jax.Array, settings: Settings, uniform: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """A token per row from its candidates, and whether it is the one the whole vocabulary would give.

    It is when the filters leave nothing outside the candidates, or when there are no filters and the number
    drawn falls into the candidates' share. Typical sampling, rarely asked for, is left to the long way.
    """
    weights = jnp.exp(candidates.values)  # [B, C], the largest is 1
    count = weights.shape[1]
    unfiltered_k = (settings.top_k <= 0) | (settings.top_k >= size)
    k = jnp.where(unfiltered_k, count, settings.top_k)
    all_here = jnp.where(unfiltered_k, count == size, settings.top_k <= count)  # nothing else passes top-k
    typical = settings.typical_p < 1.0
    kept = jnp.arange(count) < k[:, None]
    kept_total = jnp.sum(jnp.where(kept, weights, 0.0), axis=-1)
    whole = jnp.where(all_here, kept_total, total)
    before = jnp.cumsum(jnp.where(kept, weights, 0.0), axis=-1) - weights
    inside_p = before < (settings.top_p * whole)[:, None]
    inside_min = weights >= settings.min_p[:, None]
    final = kept & jnp.where((settings.top_p < 1.0)[:, None], inside_p, True) & inside_min
    complete = ~typical & (all_here | (unfiltered_k & ~final[:, -1]))
    filtered = ~unfiltered_k | typical | (settings.top_p < 1.0) | (settings.min_p > 0.0)
    mass = jnp.where(final, weights, 0.0)
    own = jnp.sum(mass, axis=-1)
    reach = uniform * jnp.where(complete, own, total)
    decided = complete | (~filtered & (reach < own))
    chosen = first_above(mass, reach)
    return jnp.take_along_axis(candidates.ids, chosen[:, None], axis=1)[:, 0], decided


def _sample_all(
    scaled: jax.Array, candidates: _Candidates, settings: Settings, uniform: jax.Array
) -> jax.Array:
    """The same draw over the whole vocabulary: candidates in their order, then the others by id."""
    rows, size = scaled.shape
    kept = keep_all(scaled, settings)
    weights = jnp.where(kept, jnp.exp(scaled), 0.0)
    head = jnp.take_along_axis(weights, candidates.ids, axis=1)  # [B, C]
    tail = weights.at[jnp.arange(rows)[:, None], candidates.ids].set(0.0)
    head_mass, tail_mass = jnp.sum(head, axis=-1), jnp.sum(tail, axis=-1)
    reach = uniform * (head_mass + tail_mass)
    inside = (reach < head_mass) | (tail_mass <= 0)
    near = jnp.take_along_axis(candidates.ids, first_above(head, reach)[:, None], axis=1)[:, 0]
    far = first_above_long(tail, reach - head_mass)
    return jnp.where(inside, near, jnp.minimum(far, size - 1))


def keep_all(scaled: jax.Array, settings: Settings) -> jax.Array:
    """Which tokens of [B, V] pass top-k, typical-p, top-p and min-p, each on what the one before left."""
    size = scaled.shape[-1]
    possible = scaled > -jnp.inf
    cut = (settings.top_k > 0) & (settings.top_k < size)
    kept = _when(jnp.any(cut), lambda k: k & _top_k(scaled, jnp.where(cut, settings.top_k, size)), possible)
    typical = settings.typical_p < 1.0
    kept = _when(
        jnp.any(typical),
        lambda k: jnp.where(typical[:, None], _typical(scaled, k, settings.typical_p), k),
        kept,
    )
    nucleus = settings.top_p < 1.0
    kept = _when(
        jnp.any(nucleus),
        lambda k: jnp.where(nucleus[:, None], _top_p(scaled, k, settings.top_p), k),
        kept,
    )
    highest = jnp.max(jnp.where(kept, scaled, -jnp.inf), axis=-1, keepdims=True)
    return kept & (scaled >= highest + jnp.log(settings.min_p)[:, None])


def _top_k(scaled: jax.Array, k: jax.Array) -> jax.Array:
    """The `k` [B] largest; all that equal the last of them stay."""
    keys = _ordered(scaled)
    threshold = _highest_threshold(lambda t: jnp.sum(keys >= t[:, None], axis=-1) >= k, scaled.shape[0])
    return keys >= threshold[:, None]


def _top_p(scaled: jax.Array, kept: jax.Array, top_p: jax.Array) -> jax.Array:
    """The likeliest kept tokens until their share reaches `top_p` [B], the one that reaches it included."""
    weights = jnp.where(kept, jnp.exp(scaled), 0.0)
    needed = jnp.sum(weights, axis=-1) * top_p
    keys = _ordered(scaled)

    def enough(t: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(keys >= t[:, None], weights, 0.0), axis=-1) >= needed

    return kept & (keys >= _highest_threshold(enough, scaled.shape[0])[:, None])


def _typical(scaled: jax.Array, kept: jax.Array, typical_p: jax.Array) -> jax.Array:
    """Locally typical sampling (arXiv:2202.00666): the tokens whose surprise is nearest the entropy."""
    logs = jnp.where(kept, scaled, -jnp.inf)
    logs = logs - jax.nn.logsumexp(logs, axis=-1, keepdims=True)
    shares = jnp.where(kept, jnp.exp(logs), 0.0)
    surprise = jnp.where(kept, -logs, 0.0)
    entropy = jnp.sum(shares * surprise, axis=-1, keepdims=True)
    nearness = _ordered(jnp.where(kept, -jnp.abs(surprise - entropy), -jnp.inf))

    def enough(t: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(nearness >= t[:, None], shares, 0.0), axis=-1) >= typical_p

    return kept & (nearness >= _highest_threshold(enough, scaled.shape[0])[:, None])


# Arithmetic


def largest(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest of [B, V] with their places, descending.

    They all lie in the `count` blocks with the largest maxima, so only those are sorted.
    """
    rows, size = values.shape
    if size <= 2 * count * BLOCK:
        top, ids = lax.top_k(values, count)
        return top, ids.astype(jnp.int32)
    padding = -size % BLOCK
    padded = jnp.pad(values, ((0, 0), (0, padding)), constant_values=-jnp.inf) if padding else values
    blocks = padded.reshape(rows, -1, BLOCK)
    _, chosen = lax.top_k(jnp.max(blocks, axis=-1), count)  # [B, count]
    inside = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(rows, -1)
    top, at = lax.top_k(inside, count)
    block = jnp.take_along_axis(chosen, at // BLOCK, axis=1)
    return top, jnp.minimum(block * BLOCK + at % BLOCK, size - 1).astype(jnp.int32)


def first_above(weights: jax.Array, reach: jax.Array) -> jax.Array:
    """The first place of [B, N] where the running sum exceeds `reach` [B]; never one of weight 0."""
    above = (jnp.cumsum(weights, axis=-1) > reach[:, None]) & (weights > 0)
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    return jnp.where(jnp.any(above, axis=-1), jnp.argmax(above, axis=-1), last)


def first_above_long(weights: jax.Array, reach: jax.Array) -> jax.Array:
    """`first_above` for long rows: by blocks first, so that no running sum is long."""
    rows, size = weights.shape
    width = max(BLOCK, 1 << ((size - 1).bit_length() // 2))
    padded = jnp.pad(weights, ((0, 0), (0, -size % width)))
    blocks = padded.reshape(rows, -1, width)
    sums = jnp.sum(blocks, axis=-1)
    block = first_above(sums, reach)
    before = jnp.take_along_axis(jnp.cumsum(sums, axis=-1) - sums, block[:, None], axis=1)[:, 0]
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * width + first_above(inside, reach - before)


def _ordered(values: jax.Array) -> jax.Array:
    """Float32 as int32 that sort the same way."""
    bits = lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _highest_threshold(enough: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The highest int32 [B] for which `enough` holds, by bisection; the lowest int32 when it never does."""
    low = jnp.full(rows, -(1 << 31), jnp.int32)
    high = jnp.full(rows, (1 << 31) - 1, jnp.int32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)  # the mean rounded up, without overflow
        good = enough(middle)
        return jnp.where(good, middle, low), jnp.where(good, high, middle - 1)

    threshold: jax.Array = lax.fori_loop(0, 32, halve, (low, high))[0]
    return threshold


def _when(condition: jax.Array, change: Callable[[jax.Array], jax.Array], value: jax.Array) -> jax.Array:
    changed: jax.Array = lax.cond(condition, change, lambda x: x, value)
    return changed

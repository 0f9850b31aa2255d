"""Rotary positions and attention over the cache or over the batch itself. Pure functions, float32 scores.

Axes: B rows of a batch, T tokens per row, N query heads, K key heads, G = N / K queries per key head,
H head size, S cached positions. Called by `model`; asks `cache` where positions live.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from engines.decoder import ops
from engines.decoder.cache import LayerCache, cell_positions, read
from engines.decoder.config import LayerConfig, Rope
from engines.decoder.rope import inverse_frequencies

MASKED = -1e30
KEY_BLOCK = 2048
"""Longer key ranges are read in blocks with a running softmax when many queries attend to them."""

KERNEL_HEAD_MULTIPLE = 16
"""Head sizes a registered attention kernel takes; others are left to XLA."""


# Rotary positions ---------------------------------------------------------------------------------------


def rotations(rope: Rope, head_dim: int, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [B, T, 1, H / 2] of every pair's angle at `positions` [B, T]."""
    angles = positions[..., None, None].astype(jnp.float32) * inverse_frequencies(rope, head_dim)
    factor = rope.scaling.attention_factor if rope.scaling else 1.0
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Turns the half-split pairs (i, i + H / 2) of x [B, T, heads, H]."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


# Attention ----------------------------------------------------------------------------------------------


def attend_cache(
    query: jax.Array,
    cache: LayerCache,
    slots: jax.Array,
    positions: jax.Array,
    layer: LayerConfig,
    *,
    scale: float,
    softcap: float | None,
    platform: str,
    longest: int | None = None,
) -> jax.Array:
    """Attention of query [B, T, N, H] at `positions` [B, T] to the cached keys of `slots` [B].

    The cache already holds the keys of this batch. `longest` bounds the positions in use on global layers
    (None: all), so that short contexts read less.
    """
    kernel = ops.lookup("attention", cache.keys.dtype.name, platform)
    if kernel is not None and query.shape[-1] % KERNEL_HEAD_MULTIPLE == 0:
        stored_scales = {"key_scales": cache.key_scales, "value_scales": cache.value_scales}
        attended: jax.Array = kernel(
            query,
            cache.keys,
            cache.values,
            slots,
            positions,
            scale=scale,
            softcap=softcap,
            window=layer.window,
            **({} if cache.key_scales is None else stored_scales),
        )
        return attended
    length = cache.length if layer.window else min(longest or cache.length, cache.length)
    newest = jnp.max(positions, axis=1)  # [B]
    key_positions = cell_positions(cache.length, newest)[:, :length]  # [B, S]
    keys, values = read(cache, slots, length)  # [B, K, S, H]
    mask = causal_mask(positions, key_positions, layer.window)
    return attend(query, keys, values, mask, scale=scale, softcap=softcap)


def causal_mask(positions: jax.Array, key_positions: jax.Array, window: int) -> jax.Array:
    """[B, T, S]: which keys each query sees; `window` counts the query's own position (0: no limit)."""
    distance = positions[:, :, None] - key_positions[:, None, :]
    seen = (distance >= 0) & (key_positions >= 0)[:, None, :]
    return seen & (distance < window) if window else seen


def attend_batch(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    positions: jax.Array,
    layer: LayerConfig,
    *,
    scale: float,
    softcap: float | None,
    bidirectional: bool,
) -> jax.Array:
    """Attention within the batch, without a cache: keys and values are [B, T, K, H] at the same positions."""
    if bidirectional:
        distance = jnp.abs(positions[:, :, None] - positions[:, None, :])
        mask = (positions >= 0)[:, None, :] & (distance < (layer.window or 1 << 30))
    else:
        mask = causal_mask(positions, positions, layer.window)
    swapped = keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3)
    return attend(query, *swapped, mask, scale=scale, softcap=softcap)


def attend(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """Softmax attention of query [B, T, N, H] over keys and values [B, K, S, H] under mask [B, T, S]."""
    batch, time, heads, head_dim = query.shape
    kv_heads, span = keys.shape[1], keys.shape[2]
    grouped = query.reshape(batch, time, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.astype(jnp.float32) * scale  # [B, K, G, T, H]
    if time > 1 and span > KEY_BLOCK and span % KEY_BLOCK == 0:
        attended = _attend_in_blocks(grouped, keys, values, mask, softcap)
    else:
        scores = _scores(grouped, keys, mask, softcap)
        weights = jax.nn.softmax(scores, axis=-1)
        attended = _weighted(weights, values)
    return attended.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, head_dim)


def _scores(grouped: jax.Array, keys: jax.Array, mask: jax.Array, softcap: float | None) -> jax.Array:
    """Masked float32 scores [B, K, G, T, S]."""
    scores = _product(grouped, keys, 3)
    if softcap is not None:
        scores = jnp.tanh(scores / softcap) * softcap
    return jnp.where(mask[:, None, None], scores, MASKED)


def _weighted(weights: jax.Array, values: jax.Array) -> jax.Array:
    return _product(weights, values, 2)


def _product(left: jax.Array, stored: jax.Array, contracted: int) -> jax.Array:
    """left [B, K, G, T, x] times stored [B, K, S, H] over `contracted` (3: H, 2: S), in the stored precision.

    Neither an einsum, which may swap the operands, nor several free dimensions on a side: XLA then wants the
    stored operand transposed on a GPU, and with it the whole cache, in every step.
    """
    exact = jax.lax.Precision.HIGHEST if stored.dtype == jnp.float32 else None
    product = jax.lax.dot_general(
        left.astype(stored.dtype).reshape(*left.shape[:2], -1, left.shape[4]),
        stored,
        (((3,), (contracted,)), ((0, 1), (0, 1))),
        precision=exact,
        preferred_element_type=jnp.float32,
    )
    return product.reshape(*left.shape[:4], -1)


def _attend_in_blocks(
    grouped: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, softcap: float | None
) -> jax.Array:
    """The same result with a running maximum and sum over key blocks, so that scores stay small."""

    def step(
        carry: tuple[jax.Array, jax.Array, jax.Array], start: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        top, total, acc = carry
        block = [jax.lax.dynamic_slice_in_dim(array, start, KEY_BLOCK, 2) for array in (keys, values, mask)]
        scores = _scores(grouped, block[0], block[2], softcap)
        new_top = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - new_top)
        shrink = jnp.exp(top - new_top)
        total = total * shrink + weights.sum(axis=-1, keepdims=True)
        return (new_top, total, acc * shrink + _weighted(weights, block[1])), None

    shape = grouped.shape
    start = (
        jnp.full((*shape[:-1], 1), MASKED, jnp.float32),
        jnp.zeros((*shape[:-1], 1), jnp.float32),
        jnp.zeros(shape, jnp.float32),
    )
    (_, total, acc), _ = jax.lax.scan(step, start, jnp.arange(0, keys.shape[2], KEY_BLOCK))
    return acc / total

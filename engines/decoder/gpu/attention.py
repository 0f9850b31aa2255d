"""Attention to the cache on a GPU: for one new token per row without copying keys or values at all.

One query per row is a matrix-vector product: multiply and sum, which XLA fuses with the gather of the row's
slot. A dot of the same would first copy every row's keys and values out of the cache. Cells that a query does
not see are not fetched either: their places in the gather all name the newest cell, which the card's own
caches hold by then, so a step moves what is in use and not what is reserved. Registered by `forms`;
`engines.decoder.attention` serves chunks of prompts, and is the oracle.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from engines.decoder.attention import MASKED, attend, causal_mask
from engines.decoder.cache import cell_positions


def attend_cache(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    slots: jax.Array,
    positions: jax.Array,
    *,
    scale: float,
    softcap: float | None,
    window: int,
    key_scales: jax.Array | None = None,
    value_scales: jax.Array | None = None,
) -> jax.Array:
    """The contract of `ops`' `attention`; with int8 caches also scales [slots + 1, kv heads, length]."""
    newest = jnp.max(positions, axis=1)  # [B]
    mask = causal_mask(positions, cell_positions(keys.shape[2], newest), window)  # [B, T, S]
    if query.shape[1] == 1:
        cells = _cells_in_use(mask[:, 0], newest)
        taken = _take(keys, key_scales, slots, cells), _take(values, value_scales, slots, cells)
        return _attend_one(query, *taken, mask[:, 0], scale=scale, softcap=softcap)
    copied = [_of_slots(*pair, slots) for pair in ((keys, key_scales), (values, value_scales))]
    return attend(query, copied[0], copied[1], mask, scale=scale, softcap=softcap)


def _cells_in_use(mask: jax.Array, newest: jax.Array) -> jax.Array:
    """int32 [B, S]: each cell's own index where it is seen, else the newest cell's."""
    length = mask.shape[1]
    cells = jnp.arange(length, dtype=jnp.int32)
    return jnp.where(mask, cells, (jnp.maximum(newest, 0) % length)[:, None])


def _take(stored: jax.Array, scales: jax.Array | None, slots: jax.Array, cells: jax.Array) -> jax.Array:
    """Vectors float32 [B, S, K, H] of the given cells."""
    vectors = stored[slots[:, None], :, cells].astype(jnp.float32)
    return vectors if scales is None else vectors * scales[slots[:, None], :, cells][..., None]


def _of_slots(stored: jax.Array, scales: jax.Array | None, slots: jax.Array) -> jax.Array:
    """All vectors [B, K, S, H] of the slots; of an int8 cache in bfloat16, which holds the codes exactly."""
    if scales is None:
        return stored[slots]
    return (stored[slots].astype(jnp.float32) * scales[slots][..., None]).astype(jnp.bfloat16)


def _attend_one(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """Softmax attention of query [B, 1, N, H] over float32 keys and values [B, S, K, H] under mask [B, S]."""
    batch, _, heads, size = query.shape
    kv_heads = keys.shape[2]
    grouped = (query * scale).reshape(batch, 1, kv_heads, heads // kv_heads, size)
    each = [jnp.sum(grouped[:, :, :, group] * keys, axis=-1) for group in range(grouped.shape[3])]
    scores = jnp.stack(each, axis=1)  # [B, G, S, K]
    if softcap is not None:
        scores = jnp.tanh(scores / softcap) * softcap
    scores = jnp.where(mask[:, None, :, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=2)
    parts = [jnp.sum(weights[:, group, :, :, None] * values, axis=1) for group in range(len(each))]
    return jnp.stack(parts, axis=2).reshape(batch, 1, heads, size)

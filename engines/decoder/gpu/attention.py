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
from engines.decoder.gpu.products import apart

MOST_PARTS = 16
"""Parts of the cells whose values are summed at a time. In programs compiled for an H200, XLA fused the sums
of 12 or 16 parts with the gather, and wrote products to memory for 1, 3 or 64 of them."""


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
    """Vectors float32 [B, K, S, H] of the given cells, gathered in the order in which they lie."""
    heads = jnp.arange(stored.shape[1], dtype=jnp.int32)
    where = slots[:, None, None], heads[None, :, None], cells[:, None, :]
    vectors = stored[where].astype(jnp.float32)
    return vectors if scales is None else vectors * scales[where][..., None]


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
    """Softmax attention of query [B, 1, N, H] over float32 keys and values [B, K, S, H] under mask [B, S].

    Queries that share a head's keys are summed side by side, which XLA makes one pass over the keys; what is
    made of the sums is kept apart from them, or that pass happens twice. Values are summed by parts first: so
    there is work for the whole card, and XLA does not write their products to memory.
    """
    batch, kv_heads, length, size = keys.shape
    grouped = (query * scale).reshape(batch, kv_heads, -1, 1, size)  # [B, K, G, 1, H]
    groups = range(grouped.shape[2])
    scores = _stacked([jnp.sum(grouped[:, :, group] * keys, axis=-1) for group in groups])
    if softcap is not None:
        scores = jnp.tanh(scores / softcap) * softcap
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)  # [B, K, G, S]
    parts = next(count for count in range(MOST_PARTS, 0, -1) if length % count == 0)
    split = values.reshape(batch, kv_heads, parts, -1, size)
    shares = weights.reshape(batch, kv_heads, len(groups), parts, -1)
    sums = _stacked([jnp.sum(split * shares[:, :, group, :, :, None], axis=3) for group in groups])
    return sums.sum(axis=3).reshape(query.shape)


def _stacked(sums: list[jax.Array]) -> jax.Array:
    """Results of several reductions along a new axis 2."""
    return jnp.stack(apart(sums), axis=2)

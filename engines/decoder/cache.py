"""The key-value cache: where a position of a sequence lives. Only this module and `attention` know.

Each layer that owns keys has two arrays [slots + 1, kv_heads, length, head_dim]. Global layers hold the whole
context, position p in cell p; sliding layers are rings, position p in cell p % length. The last slot is a
trash row: padding is written there. Positions of a slot must be written from 0 upward without gaps; cells of
an earlier occupant are then never seen, because a cell's position follows from the newest one written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from engines.decoder import ops
from engines.decoder.config import DecoderConfig, LayerConfig
from engines.decoder.params import PREFILL_CHUNK, layer_length

DTYPES: dict[str, DTypeLike] = {"bf16": jnp.bfloat16, "f32": jnp.float32, "int8": jnp.int8}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys", "values", "key_scales", "value_scales"],
    meta_fields=["wraps"],
)
@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer [slots + 1, kv_heads, length, head_dim].

    With int8 storage the scales are float32 [slots + 1, kv_heads, length], else None. `wraps` is set when the
    context is longer than the arrays: then a chunk may not overwrite cells its own first query still sees.
    """

    keys: jax.Array
    values: jax.Array
    key_scales: jax.Array | None = None
    value_scales: jax.Array | None = None
    wraps: bool = False

    @property
    def length(self) -> int:
        return self.keys.shape[2]

    @property
    def trash_slot(self) -> int:
        return self.keys.shape[0] - 1


Cache = tuple[LayerCache | None, ...]
"""One entry per layer; None where a layer reads another's keys."""


def init_cache(
    config: DecoderConfig, slots: int, context: int, dtype: DTypeLike, chunk: int = PREFILL_CHUNK
) -> Cache:
    """An empty cache for `slots` sequences of `context` tokens, at most `chunk` of them written at once."""
    return tuple(
        _init_layer(layer, slots, context, dtype, chunk) if layer.kv_source is None else None
        for layer in config.layers
    )


def _init_layer(layer: LayerConfig, slots: int, context: int, dtype: DTypeLike, chunk: int) -> LayerCache:
    length = layer_length(layer, context, chunk)
    shape = (slots + 1, layer.kv_heads, length, layer.head_dim)
    wraps = context > length
    empty = partial(jnp.zeros, shape, dtype)
    if jnp.dtype(dtype) != jnp.int8:
        return LayerCache(empty(), empty(), wraps=wraps)
    scales = partial(jnp.zeros, shape[:3], jnp.float32)
    return LayerCache(empty(), empty(), scales(), scales(), wraps)


def longest_chunk(layer: LayerConfig, cache: LayerCache) -> int:
    """Most tokens that may be written at once: the oldest key the first of them sees must survive."""
    return cache.length - layer.window + 1 if cache.wraps else cache.length


def write(
    cache: LayerCache,
    keys: jax.Array,
    values: jax.Array,
    slots: jax.Array,
    positions: jax.Array,
    platform: str = "",
) -> LayerCache:
    """Stores keys and values [B, T, kv_heads, head_dim] of `positions` [B, T] (-1: padding) in `slots` [B].

    By the platform's kernel where there is one (padding is then not written at all), else one scatter per
    array; either way a donated cache is updated in place.
    """
    kernel = ops.lookup("write", cache.keys.dtype.name, platform)
    if kernel is not None and cache.key_scales is None:
        written = [
            kernel(old, new, slots, positions) for old, new in ((cache.keys, keys), (cache.values, values))
        ]
        return LayerCache(written[0], written[1], wraps=cache.wraps)
    real = positions >= 0
    rows = jnp.where(real, slots[:, None], cache.trash_slot)  # [B, T]
    cells = jnp.where(real, positions, 0) % cache.length  # [B, T]
    if cache.key_scales is None or cache.value_scales is None:
        return LayerCache(
            cache.keys.at[rows, :, cells].set(keys.astype(cache.keys.dtype)),
            cache.values.at[rows, :, cells].set(values.astype(cache.values.dtype)),
            wraps=cache.wraps,
        )
    key_codes, key_scales = _to_int8(keys)
    value_codes, value_scales = _to_int8(values)
    return LayerCache(
        cache.keys.at[rows, :, cells].set(key_codes),
        cache.values.at[rows, :, cells].set(value_codes),
        cache.key_scales.at[rows, :, cells].set(key_scales),
        cache.value_scales.at[rows, :, cells].set(value_scales),
        cache.wraps,
    )


def _to_int8(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes of the same shape and one float32 scale per vector."""
    exact = vectors.astype(jnp.float32)
    scales = jnp.max(jnp.abs(exact), axis=-1) / 127.0
    codes = jnp.round(exact / jnp.maximum(scales, 1e-30)[..., None])
    return codes.astype(jnp.int8), scales


def read(cache: LayerCache, slots: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Keys and values of the first `length` cells of `slots` [B]: [B, kv_heads, length, head_dim]."""
    keys, values = cache.keys[slots, :, :length], cache.values[slots, :, :length]
    if cache.key_scales is None or cache.value_scales is None:
        return keys, values
    key_scales, value_scales = cache.key_scales[slots, :, :length], cache.value_scales[slots, :, :length]
    return keys * key_scales[..., None], values * value_scales[..., None]


def cell_positions(length: int, newest: jax.Array) -> jax.Array:
    """The position each of `length` cells holds when `newest` [B] is the last one written: [B, length].

    Negative where nothing was written yet. On a layer that holds the whole context the newest position is
    below the length and the answer is the cell's own index or a negative number.
    """
    cells = jnp.arange(length, dtype=jnp.int32)
    return newest[:, None] - (newest[:, None] - cells) % length

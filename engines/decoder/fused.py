"""Halves of a layer computed by one kernel each, where the registry has one that covers the layer.

A decode step of a small model is otherwise mostly the small operations between its products. What no kernel
covers (adapters, experts, AltUp, int8 caches, weights that are not packed) is left to `model`, whose plain
form is also what the tests compare with. Called by `model` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from engines.decoder import ops
from engines.decoder.attention import KERNEL_HEAD_MULTIPLE
from engines.decoder.cache import LayerCache
from engines.decoder.config import DecoderConfig, LayerConfig
from engines.decoder.quant import QuantizedMatrix

Weights = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What an `attention_block` kernel must know beside its arrays. `widths` are the outputs of q, k and v.

    0 for keys: the layer reads another's cache; 0 for values alone: values are the keys before their norm.
    """

    heads: int
    widths: tuple[int, int, int]
    scale: float
    softcap: float | None
    window: int
    epsilon: float
    norm_values: bool


@dataclass(frozen=True, slots=True)
class FeedForwardShape:
    """What a `feed_forward_block` kernel must know beside its arrays."""

    inner: int
    activation: str
    epsilon: float


def attention_block(
    config: DecoderConfig,
    layer: LayerConfig,
    weights: Weights,
    hidden: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    cache: LayerCache | None,
    slots: jax.Array | None,
    positions: jax.Array,
) -> tuple[jax.Array, LayerCache] | None:
    """The residual [B, T, D] after attention and its norms, and the cache; None where no kernel covers it."""
    if cache is None or slots is None or cache.key_scales is not None:
        return None
    parts = parts_of(weights, ("q", "k", "v"))
    kernel = ops.lookup("attention_block", cache.keys.dtype.name, weights["o"].platform)
    if kernel is None or not packed([*parts, weights["o"]]) or layer.head_dim % KERNEL_HEAD_MULTIPLE:
        return None
    keys = layer.kv_heads * layer.head_dim if layer.kv_source is None else 0
    shape = AttentionShape(
        heads=config.heads,
        widths=(config.heads * layer.head_dim, keys, 0 if layer.value_from_key else keys),
        scale=config.attention_scale,
        softcap=config.attention_softcap,
        window=layer.window,
        epsilon=config.norm_epsilon,
        norm_values=config.v_norm,
    )
    out, new_keys, new_values = kernel(
        hidden, weights, parts, *rotation, cache.keys, cache.values, slots, positions, shape
    )
    return out, LayerCache(new_keys, new_values, wraps=cache.wraps)


def feed_forward_block(
    config: DecoderConfig, layer: LayerConfig, weights: Weights, hidden: jax.Array
) -> jax.Array | None:
    """The residual [B, T, D] after the feed-forward network and its norms; None where no kernel covers it."""
    kernel = ops.lookup("feed_forward_block", config.activation, weights["o"].platform)
    if kernel is None or layer.experts is not None or layer.sparsity:
        return None
    parts = parts_of(weights, ("gate", "up"))
    if not packed([*parts, weights["down"]]):
        return None
    shape = FeedForwardShape(layer.ffn_width, config.activation, config.norm_epsilon)
    out: jax.Array = kernel(hidden, weights, parts, shape)
    return out


def parts_of(weights: Weights, names: Sequence[str]) -> list[QuantizedMatrix | None]:
    """The matrix of each name; None for one that lies in the matrix before it, or that there is not."""
    found: list[QuantizedMatrix | None] = []
    while len(found) < len(names):
        rest = names[len(found) :]
        count = next((n for n in range(len(rest), 0, -1) if "+".join(rest[:n]) in weights), 1)
        found += [weights.get("+".join(rest[:count])), *[None] * (count - 1)]
    return found


def packed(matrices: Sequence[QuantizedMatrix | None]) -> bool:
    """Whether all of them lie in a kernel's layout."""
    return all(matrix is None or matrix.layout == "native" for matrix in matrices)

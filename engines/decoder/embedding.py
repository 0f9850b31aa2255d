"""Sequences to vectors: mean of the final hidden states, an encoder's dense layers, unit length.

Pure functions like `model`; serves EmbeddingGemma (attention in both directions) and any decoder.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from engines.decoder.config import DecoderConfig
from engines.decoder.model import Params, encode, rms_norm
from engines.decoder.quant import matmul


def embed(
    config: DecoderConfig,
    params: Params,
    token_ids: jax.Array,
    positions: jax.Array | None = None,
    adapters: jax.Array | None = None,
) -> jax.Array:
    """Float32 vectors [B, E] of unit length for token_ids int32 [B, T]; position -1 marks padding.

    E is the width of the last dense layer, or the model's. A row of nothing but padding gives zeros.
    `adapters` int32 [B] numbers each row's LoRA adapter, as in `model.Batch`.
    """
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1], dtype=jnp.int32), token_ids.shape)
    hidden = encode(config, params, token_ids, positions, adapters)
    normal = rms_norm(hidden, params["final_norm"], config.norm_epsilon)  # [B, T, D]
    real = (positions >= 0).astype(jnp.float32)[..., None]
    pooled = (normal * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1.0)  # [B, D]
    for dense in params.get("dense", ()):
        pooled = matmul(pooled, dense)
    return pooled * jax.lax.rsqrt(jnp.maximum(jnp.square(pooled).sum(axis=-1, keepdims=True), 1e-24))


def embedding_width(config: DecoderConfig) -> int:
    """Elements of the vectors `embed` returns."""
    return config.dense_layers[-1] if config.dense_layers else config.width

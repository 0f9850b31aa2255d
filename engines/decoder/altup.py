"""Gemma 3n's alternating updates: four residual streams, of which each layer computes one and corrects all.

Also its LAuReL branch and sparse activations. Pure functions called by `model`.

Axes: S streams, B rows, T tokens, D model width. Source: arXiv:2301.13310, arXiv:2411.07501, transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp

from engines.decoder.quant import QuantizedMatrix, matmul

Params = Mapping[str, Any]
SMALLEST_SQUARE = 1e-5


def expand(projections: Sequence[QuantizedMatrix], hidden: jax.Array) -> jax.Array:
    """The streams [S, B, T, D] of embeddings [B, T, D]: themselves, and projections of the same magnitude."""
    size = _magnitude(hidden, 0.0)
    others = [_scaled_to(matmul(hidden, projection), size) for projection in projections]
    return jnp.stack([hidden, *others])


def collapse(projections: Sequence[QuantizedMatrix], streams: jax.Array) -> jax.Array:
    """The mean [B, T, D] of the first stream and the others projected to its magnitude."""
    size = _magnitude(streams[0], 0.0)
    others = [
        _scaled_to(matmul(stream, projection), size)
        for stream, projection in zip(streams[1:], projections, strict=True)
    ]
    return jnp.mean(jnp.stack([streams[0], *others]), axis=0)


def _magnitude(x: jax.Array, least: float) -> jax.Array:
    return jnp.sqrt(jnp.maximum(jnp.mean(jnp.square(x), axis=-1, keepdims=True), least))


def _scaled_to(x: jax.Array, size: jax.Array) -> jax.Array:
    return x * size / _magnitude(x, SMALLEST_SQUARE)


def predict(weights: Params, streams: jax.Array, router_input: jax.Array) -> jax.Array:
    """What the streams would be without the layer [S, B, T, D]; `router_input` is stream 0 normalised."""
    count = streams.shape[0]
    mixing = _route(weights, router_input) @ weights["altup_predict"].T  # [B, T, S * S]
    mixing = mixing.reshape(*mixing.shape[:-1], count, count)
    return streams + jnp.einsum("pbtd,btip->ibtd", streams, mixing)


def correct(
    weights: Params, predictions: jax.Array, computed: jax.Array, router_input: jax.Array
) -> jax.Array:
    """Spreads what changed in stream 0 over all streams; `router_input` is `computed` normalised."""
    shares = _route(weights, router_input) @ weights["altup_correct"].T + 1.0  # [B, T, S]
    innovation = computed - predictions[0]
    return predictions + innovation[None] * jnp.moveaxis(shares, -1, 0)[..., None]


def _route(weights: Params, router_input: jax.Array) -> jax.Array:
    """Modalities [B, T, S] in (-1, 1)."""
    return jnp.tanh(router_input / router_input.shape[-1] @ weights["altup_router"].T)


def laurel(weights: Params, normal: jax.Array) -> jax.Array:
    """The low-rank branch beside attention, before its norm and residual [B, T, D]."""
    return matmul(matmul(normal, weights["laurel_left"]), weights["laurel_right"])


def keep_largest(gate: jax.Array, sparsity: float) -> jax.Array:
    """Gates [..., F] less the value that `sparsity` of a normal distribution lies below; at least 0."""
    mean = jnp.mean(gate, axis=-1, keepdims=True)
    deviation = jnp.std(gate, axis=-1, keepdims=True)
    return jax.nn.relu(gate - (mean + deviation * NormalDist().inv_cdf(sparsity)))

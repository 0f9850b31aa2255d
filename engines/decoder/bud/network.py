"""bud's training forward: Gemma 3's text architecture in float32, vectorised for whole packed rows.

Parameters are stacked over layers. The serving engine has its own forward; `tests/engines/bud` proves that
the two agree. Knows no tokenizer and no files. Called by `train`.

Axis letters: b batch, t time, d model width, n query heads, h head width, v vocabulary, q and k positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

Params = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Gemma 3 text model with one key-value head."""

    vocabulary: int = 4096
    width: int = 192
    hidden: int = 640
    layers: int = 6
    heads: int = 3
    head_width: int = 64
    window: int = 128
    pattern: int = 6
    context: int = 1024
    local_base: float = 10_000.0
    global_base: float = 1_000_000.0
    epsilon: float = 1e-6

    def is_global(self, layer: int) -> bool:
        return (layer + 1) % self.pattern == 0


SHAPE = Shape()
MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


def init_params(shape: Shape, seed: int) -> Params:
    """Normal matrices of variance 1/fan-in, norms at zero (Gemma's norms multiply by 1 + weight)."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    width, hidden, layers, inner = shape.width, shape.hidden, shape.layers, shape.heads * shape.head_width

    def matrix(rows: int, columns: int) -> Array:
        spread: float = rows**-0.5
        return jax.random.normal(next(keys), (layers, rows, columns)) * spread

    return {
        "embedding": jax.random.normal(next(keys), (shape.vocabulary, width)) * 0.05,
        "query": matrix(width, inner),
        "key": matrix(width, shape.head_width),
        "value": matrix(width, shape.head_width),
        "output": matrix(inner, width),
        "gate": matrix(width, hidden),
        "up": matrix(width, hidden),
        "down": matrix(hidden, width),
        "query_norm": jnp.zeros((layers, shape.head_width)),
        "key_norm": jnp.zeros((layers, shape.head_width)),
        "attention_norm": jnp.zeros((layers, width)),
        "attention_post_norm": jnp.full((layers, width), -0.5),
        "hidden_norm": jnp.zeros((layers, width)),
        "hidden_post_norm": jnp.full((layers, width), -0.5),
        "final_norm": jnp.zeros((width,)),
    }


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * (1 + weight)


def rotate(x: Array, base: float) -> Array:
    """Rotary positions along axis 1 of [b, t, n, h]; the halves of a head are the pairs."""
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half) / half)
    angle = jnp.arange(x.shape[1])[:, None, None] * frequency  # [t, 1, h/2]
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """Softmax attention of [b, q, n, h] over [b, k, h] where `mask` [b, q, k] is true; scale h**-0.5."""
    scores = jnp.einsum("bqnh,bkh->bnqk", query, key) * query.shape[-1] ** -0.5
    scores = jnp.where(mask[:, None], scores, -1e30)
    return jnp.einsum("bnqk,bkh->bqnh", jax.nn.softmax(scores, axis=-1), value)


def attend_globally(query: Array, key: Array, value: Array, segments: Array) -> Array:
    """Causal attention inside each document."""
    time = jnp.arange(query.shape[1])
    mask = (time[:, None] >= time) & (segments[:, :, None] == segments[:, None, :])
    return attend(query, key, value, mask)


def attend_locally(query: Array, key: Array, value: Array, segments: Array, window: int) -> Array:
    """The same over the last `window` positions only, computed block by block against two key blocks."""
    batch, time = segments.shape
    blocks = time // window

    def fold(x: Array) -> Array:
        return x.reshape(batch * blocks, window, *x.shape[2:])

    def with_previous(x: Array) -> Array:
        split = x.reshape(batch, blocks, window, *x.shape[2:])
        before = jnp.pad(split[:, :-1], [(0, 0), (1, 0)] + [(0, 0)] * (split.ndim - 2))
        return jnp.concatenate([before, split], axis=2).reshape(batch * blocks, 2 * window, *x.shape[2:])

    at = jnp.arange(window)[:, None] + window
    to = jnp.arange(2 * window)
    # Padding keys of the first block carry segment 0 minus one, which no query has.
    mask = (to <= at) & (to > at - window)
    same = fold(segments)[:, :, None] == with_previous(segments + 1)[:, None, :] - 1
    mixed = attend(fold(query), with_previous(key), with_previous(value), mask & same)
    return mixed.reshape(batch, time, *query.shape[2:])


def attention_block(params: Params, layer: int, x: Array, segments: Array, shape: Shape) -> Array:
    p = {name: params[name][layer] for name in ("query", "key", "value", "output", "query_norm", "key_norm")}
    base = shape.global_base if shape.is_global(layer) else shape.local_base
    batch, time, _ = x.shape
    query = (x @ p["query"]).reshape(batch, time, shape.heads, shape.head_width)
    key = (x @ p["key"])[:, :, None]
    value = x @ p["value"]
    query = rotate(rms_norm(query, p["query_norm"], shape.epsilon), base)
    key = rotate(rms_norm(key, p["key_norm"], shape.epsilon), base)[:, :, 0]
    if shape.is_global(layer):
        mixed = attend_globally(query, key, value, segments)
    else:
        mixed = attend_locally(query, key, value, segments, shape.window)
    return mixed.reshape(batch, time, -1) @ p["output"]


def hidden_block(params: Params, layer: int, x: Array) -> Array:
    gate = jax.nn.gelu(x @ params["gate"][layer], approximate=True)
    return (gate * (x @ params["up"][layer])) @ params["down"][layer]


def forward(params: Params, tokens: Array, segments: Array, shape: Shape = SHAPE) -> Array:
    """Logits f32 [b, t, v] of int32 `tokens` [b, t]; t must be a multiple of the window.

    Tokens see only earlier ones of their own segment.
    """
    epsilon = shape.epsilon
    x = params["embedding"][tokens] * shape.width**0.5
    for layer in range(shape.layers):
        mixed = attention_block(
            params, layer, rms_norm(x, params["attention_norm"][layer], epsilon), segments, shape
        )
        x = x + rms_norm(mixed, params["attention_post_norm"][layer], epsilon)
        mixed = hidden_block(params, layer, rms_norm(x, params["hidden_norm"][layer], epsilon))
        x = x + rms_norm(mixed, params["hidden_post_norm"][layer], epsilon)
    return rms_norm(x, params["final_norm"], epsilon) @ params["embedding"].T


def loss(
    params: Params, tokens: Array, targets: Array, weights: Array, segments: Array, shape: Shape = SHAPE
) -> Array:
    """Mean cross-entropy in nats over the targets of weight 1."""
    logits = forward(params, tokens, segments, shape)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.sum(nats * weights) / jnp.maximum(jnp.sum(weights), 1.0)

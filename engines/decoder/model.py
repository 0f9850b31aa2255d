"""The decoder as pure functions: token ids in, hidden states and logits out. No loops over requests.

The configuration is static, everything per request is an array. Decoding (T = 1 for many rows) and prefill
(a chunk of T tokens) are the same function. Residuals are float32; matrices keep their stored precision.

Axes: B rows of a batch, T tokens per row, D model width, F feed-forward width, N query heads, K key-value
heads, H head size, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from engines.decoder import altup, fused
from engines.decoder.attention import attend_batch, attend_cache, rotate, rotations
from engines.decoder.cache import Cache, LayerCache, longest_chunk, write
from engines.decoder.config import Activation, DecoderConfig, Experts, LayerConfig, Rope
from engines.decoder.experts import route, run_experts
from engines.decoder.quant import QuantizedMatrix, matmul, take_rows

Params = Mapping[str, Any]
"""The tree that the loader builds: names of `param_specs`, with `layers` a tuple of mappings."""


class Batch(NamedTuple):
    """What one pass computes: `token_ids` and `positions` int32 [B, T], `slots` int32 [B].

    Position -1 marks padding, which may only follow the real tokens of a row; rows of nothing but padding
    use any slot. `adapters` int32 [B] names each row's LoRA adapter, 0 for none (None: no row has one).
    """

    token_ids: jax.Array
    positions: jax.Array
    slots: jax.Array
    adapters: jax.Array | None = None


class _Keys(NamedTuple):
    """Where layer number `own` finds keys and values: in those of layer `source`, which may be itself.

    Layers replace the entries of `cache` and fill `batch_keys` as they are computed.
    """

    own: int
    source: int
    cache: list[LayerCache | None]
    batch_keys: dict[int, tuple[jax.Array, jax.Array]]


class _Step(NamedTuple):
    """What every layer of one pass shares."""

    positions: jax.Array
    slots: jax.Array | None
    rotations: Mapping[tuple[Rope, int], tuple[jax.Array, jax.Array]]
    longest: int | None
    adapters: jax.Array | None = None


def forward(
    config: DecoderConfig, params: Params, cache: Cache, batch: Batch, *, longest: int | None = None
) -> tuple[jax.Array, Cache]:
    """Runs a batch: hidden states [B, T, D] before the final norm, and the cache with its tokens in it.

    `longest` bounds every position in the batch on global layers (static; None: the cache's length). A chunk
    of T tokens needs rings made for it (`init_cache(chunk=)`); ValueError otherwise.
    """
    _check_chunk(config, cache, batch.token_ids.shape[1])
    turned = _rotations(config, batch.positions)
    step = _Step(batch.positions, batch.slots, turned, longest, batch.adapters)
    return _run_layers(config, params, cache, batch.token_ids, step)


def encode(
    config: DecoderConfig,
    params: Params,
    token_ids: jax.Array,
    positions: jax.Array,
    adapters: jax.Array | None = None,
) -> jax.Array:
    """Hidden states [B, T, D] of whole sequences, without a cache. Encoders attend in both directions."""
    step = _Step(positions, None, _rotations(config, positions), None, adapters)
    hidden, _ = _run_layers(config, params, (None,) * len(config.layers), token_ids, step)
    return hidden


def logits(config: DecoderConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Float32 scores [..., V] of the next token for hidden states [..., D]."""
    normal = rms_norm(hidden, params["final_norm"], config.norm_epsilon)
    scores = matmul(normal, params["embedding" if config.tied_head else "head"])
    if config.final_softcap is not None:
        scores = jnp.tanh(scores / config.final_softcap) * config.final_softcap
    return scores


def _check_chunk(config: DecoderConfig, cache: Cache, time: int) -> None:
    for layer, stored in zip(config.layers, cache, strict=True):
        if stored is not None and time > longest_chunk(layer, stored):
            limit = longest_chunk(layer, stored)
            raise ValueError(
                f"a chunk of {time} tokens does not fit a cache made for {limit}; see init_cache(chunk=)"
            )


def _rotations(
    config: DecoderConfig, positions: jax.Array
) -> dict[tuple[Rope, int], tuple[jax.Array, jax.Array]]:
    kinds = {(layer.rope, layer.head_dim) for layer in config.layers}
    safe = jnp.maximum(positions, 0)
    return {key: rotations(*key, safe) for key in sorted(kinds, key=repr)}


def _run_layers(
    config: DecoderConfig, params: Params, cache: Cache, token_ids: jax.Array, step: _Step
) -> tuple[jax.Array, Cache]:
    hidden = embed_tokens(config, params, token_ids)  # [B, T, D]
    per_layer = per_layer_inputs(config, params, token_ids, hidden)  # [B, T, L, P] or None
    block: Callable[..., jax.Array] = _layer
    if config.altup_streams:
        hidden, block = altup.expand(params["altup_projection"], hidden), _altup_layer  # [S, B, T, D]
    updated: list[LayerCache | None] = list(cache)
    batch_keys: dict[int, tuple[jax.Array, jax.Array]] = {}
    for index, layer in enumerate(config.layers):
        weights = params["layers"][index]
        source = index if layer.kv_source is None else layer.kv_source
        hidden = block(
            config,
            layer,
            weights,
            hidden,
            None if per_layer is None else per_layer[:, :, index],
            step,
            _Keys(index, source, updated, batch_keys),
        )
    if config.altup_streams:
        hidden = altup.collapse(params["altup_unembed"], hidden)
    return hidden, tuple(updated)


def embed_tokens(config: DecoderConfig, params: Params, token_ids: jax.Array) -> jax.Array:
    """Float32 [..., D]: looked-up rows, times the family's scale."""
    return take_rows(params["embedding"], token_ids) * config.embedding_scale


def _layer(
    config: DecoderConfig,
    layer: LayerConfig,
    weights: Params,
    hidden: jax.Array,
    per_layer: jax.Array | None,
    step: _Step,
    place: _Keys,
) -> jax.Array:
    """One block: attention and feed-forward, each added to the residual; then the family's extras."""
    hidden = _attention_residual(config, layer, weights, hidden, step, place)
    hidden = _feed_forward_residual(config, layer, weights, hidden, step)
    if per_layer is not None:
        hidden = hidden + _per_layer_block(config, weights, hidden, per_layer)
    return hidden * weights["layer_scale"] if config.layer_scale else hidden


def _altup_layer(
    config: DecoderConfig,
    layer: LayerConfig,
    weights: Params,
    streams: jax.Array,
    per_layer: jax.Array | None,
    step: _Step,
    place: _Keys,
) -> jax.Array:
    """Gemma 3n's block on streams [S, B, T, D]: predicts all, computes the first, corrects all by it."""
    norm = partial(rms_norm, epsilon=config.norm_epsilon)
    predictions = altup.predict(weights, streams, norm(streams[0], weights["altup_router_norm"]))
    active = predictions[0]
    normal = norm(active, weights["attention_norm"])
    laurel = normal + norm(altup.laurel(weights, normal), weights["post_laurel_norm"])
    attended = _attention(config, layer, weights, normal, step, place)
    attended = active + _post_norm(config, weights, "post_attention_norm", attended)
    mixed = (attended + laurel) * 2.0**-0.5
    computed = mixed + _feed_forward_block(config, layer, weights, mixed, step)
    router_input = norm(computed, weights["altup_router_norm"])
    corrected = altup.correct(weights, predictions, computed, router_input)
    assert per_layer is not None
    added = _per_layer_block(config, weights, corrected[0] * weights["altup_scale"], per_layer)
    return corrected.at[1:].add(added)


def _post_norm(config: DecoderConfig, weights: Params, name: str, x: jax.Array) -> jax.Array:
    return rms_norm(x, weights[name], config.norm_epsilon) if config.post_norms else x


def rms_norm(x: jax.Array, scale: jax.Array | None, epsilon: float) -> jax.Array:
    """Root-mean-square norm over the last axis in float32; `scale` is the final multiplier, or None."""
    normal = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
    return normal if scale is None else normal * scale


# Attention ----------------------------------------------------------------------------------------------


def _attention_residual(
    config: DecoderConfig, layer: LayerConfig, weights: Params, hidden: jax.Array, step: _Step, place: _Keys
) -> jax.Array:
    """The residual [B, T, D] with what attention adds, by one kernel where there is one."""
    if step.adapters is None:
        stored, rotation = place.cache[place.source], step.rotations[layer.rope, layer.head_dim]
        done = fused.attention_block(
            config, layer, weights, hidden, rotation, stored, step.slots, step.positions
        )
        if done is not None:
            hidden, place.cache[place.source] = done
            return hidden
    normal = rms_norm(hidden, weights["attention_norm"], config.norm_epsilon)
    attended = _attention(config, layer, weights, normal, step, place)
    return hidden + _post_norm(config, weights, "post_attention_norm", attended)


def _attention(
    config: DecoderConfig,
    layer: LayerConfig,
    weights: Params,
    normal: jax.Array,
    step: _Step,
    place: _Keys,
) -> jax.Array:
    """Projects, rotates, stores keys and values where this layer owns them, attends: [B, T, D]."""
    cosine, sine = step.rotations[layer.rope, layer.head_dim]
    projected = _project(weights, normal, _projection_sizes(config, layer), step)
    query = _heads(config, weights, "q", projected, layer.head_dim)
    query = rotate(query, cosine, sine)  # [B, T, N, H]
    if layer.kv_source is None:
        keys, values = _keys_and_values(config, layer, weights, projected)
        place.batch_keys[place.own] = rotate(keys, cosine, sine), values  # [B, T, K, H]
    scale, softcap = config.attention_scale, config.attention_softcap
    if step.slots is None:
        attended = attend_batch(
            query,
            *place.batch_keys[place.source],
            step.positions,
            layer,
            scale=scale,
            softcap=softcap,
            bidirectional=config.bidirectional,
        )
    else:
        stored = place.cache[place.source]
        assert stored is not None
        if layer.kv_source is None:
            new = place.batch_keys[place.own]
            stored = place.cache[place.own] = write(
                stored, *new, step.slots, step.positions, platform_of(weights)
            )
        attended = attend_cache(
            query,
            stored,
            step.slots,
            step.positions,
            layer,
            scale=scale,
            softcap=softcap,
            platform=platform_of(weights),
            longest=step.longest,
        )
    flat = attended.reshape(*attended.shape[:2], -1)
    return _project(weights, flat, {"o": config.width}, step)["o"]


def _keys_and_values(
    config: DecoderConfig, layer: LayerConfig, weights: Params, projected: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Keys (normalised, not yet rotated) and values [B, T, K, H]; Gemma 4 may take values from raw keys."""
    keys = _heads(config, weights, "k", projected, layer.head_dim)
    raw = projected["k" if layer.value_from_key else "v"]
    values = raw.reshape(keys.shape)
    return keys, rms_norm(values, None, config.norm_epsilon) if config.v_norm else values


def _heads(
    config: DecoderConfig, weights: Params, name: str, projected: Mapping[str, jax.Array], head_dim: int
) -> jax.Array:
    """Queries or keys split into heads [B, T, heads, H], normalised where the family does."""
    split = projected[name].reshape(*projected[name].shape[:2], -1, head_dim)
    return rms_norm(split, weights[f"{name}_norm"], config.norm_epsilon) if config.qk_norm else split


def _projection_sizes(config: DecoderConfig, layer: LayerConfig) -> dict[str, int]:
    """Outputs of the attention projections this layer has."""
    sizes = {"q": config.heads * layer.head_dim}
    if layer.kv_source is None:
        sizes["k"] = layer.kv_heads * layer.head_dim
        if not layer.value_from_key:
            sizes["v"] = sizes["k"]
    return sizes


def _project(weights: Params, x: jax.Array, sizes: Mapping[str, int], step: _Step) -> dict[str, jax.Array]:
    """Projections of one input [B, T, in], bias and adapters added; some may be joined (`q+k+v`)."""
    names, products = list(sizes), dict[str, jax.Array]()
    while names:
        count = next(n for n in range(len(names), 0, -1) if "+".join(names[:n]) in weights)
        group, names = names[:count], names[count:]
        cuts = list(accumulate(sizes[name] for name in group))[:-1]
        together = matmul(x, weights["+".join(group)])
        products |= zip(group, jnp.split(together, cuts, axis=-1), strict=True)
    for name in products:
        if f"{name}_bias" in weights:
            products[name] += weights[f"{name}_bias"]
        if step.adapters is not None and name in weights.get("lora", {}):
            products[name] += _adaptation(weights["lora"][name], x, step.adapters)
    return products


def _adaptation(pair: tuple[jax.Array, jax.Array], x: jax.Array, adapters: jax.Array) -> jax.Array:
    """What each row's adapter adds: x [B, T, in] through its A [r, in] and B [out, r]; adapter 0 adds 0."""
    down, up = pair[0][adapters], pair[1][adapters]  # [B, r, in], [B, out, r]
    return jnp.einsum("btr,bor->bto", jnp.einsum("bti,bri->btr", x, down), up)


def platform_of(weights: Params) -> str:
    """Where the weights lie, `cpu` or `gpu`: recorded when they were placed."""
    matrix: QuantizedMatrix = weights["o"]
    return matrix.platform


# Feed-forward -------------------------------------------------------------------------------------------

ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}


def activate(kind: Activation, x: jax.Array) -> jax.Array:
    return ACTIVATIONS[kind](x)


def _feed_forward_residual(
    config: DecoderConfig, layer: LayerConfig, weights: Params, hidden: jax.Array, step: _Step
) -> jax.Array:
    """The residual [B, T, D] with what the feed-forward network adds, by one kernel where there is one."""
    done = fused.feed_forward_block(config, layer, weights, hidden) if step.adapters is None else None
    return hidden + _feed_forward_block(config, layer, weights, hidden, step) if done is None else done


def _feed_forward_block(
    config: DecoderConfig, layer: LayerConfig, weights: Params, hidden: jax.Array, step: _Step
) -> jax.Array:
    """The gated feed-forward network of a layer with its norms: what is added to the residual [B, T, D]."""
    normal = rms_norm(hidden, weights["ffn_norm"], config.norm_epsilon)
    both = _project(weights, normal, {"gate": layer.ffn_width, "up": layer.ffn_width}, step)
    gate = altup.keep_largest(both["gate"], layer.sparsity) if layer.sparsity else both["gate"]
    gated = activate(config.activation, gate) * both["up"]
    out = _project(weights, gated, {"down": config.width}, step)["down"]
    if layer.experts is not None:
        dense = rms_norm(out, weights["post_dense_norm"], config.norm_epsilon)
        out = dense + _experts_branch(config, layer.experts, weights, hidden)
    return _post_norm(config, weights, "post_ffn_norm", out)


def _experts_branch(config: DecoderConfig, experts: Experts, weights: Params, hidden: jax.Array) -> jax.Array:
    """What Gemma 4's experts add beside the dense network [B, T, D]; the router reads the bare residual."""
    flat = hidden.reshape(-1, config.width)
    routed = rms_norm(flat, weights["router_scale"], config.norm_epsilon) * config.width**-0.5
    chosen, shares = route(matmul(routed, weights["router"]), weights["expert_scale"], experts)
    normal = rms_norm(flat, weights["pre_experts_norm"], config.norm_epsilon)
    out = run_experts(normal, chosen, shares, weights, experts, ACTIVATIONS[config.activation])
    return rms_norm(out, weights["post_experts_norm"], config.norm_epsilon).reshape(hidden.shape)


# Per-layer embeddings (Gemma 3n and 4) ------------------------------------------------------------------


def per_layer_inputs(
    config: DecoderConfig, params: Params, token_ids: jax.Array, hidden: jax.Array
) -> jax.Array | None:
    """[B, T, L, P]: for each layer a small vector, from the token's own table row and from its embedding."""
    if not config.per_layer_width:
        return None
    shape = (*token_ids.shape, len(config.layers), config.per_layer_width)
    inside = jnp.where(token_ids < config.per_layer_vocabulary, token_ids, 0)
    table = take_rows(params["per_layer_embedding"], inside).reshape(shape)
    table = table * config.per_layer_width**0.5
    projected = matmul(hidden, params["per_layer_model_projection"]) * config.width**-0.5
    projected = rms_norm(projected.reshape(shape), params["per_layer_projection_norm"], config.norm_epsilon)
    combined: jax.Array = (projected + table) * 2.0**-0.5
    return combined


def _per_layer_block(
    config: DecoderConfig, weights: Params, hidden: jax.Array, per_layer: jax.Array
) -> jax.Array:
    """Gates the layer's own input [B, T, P] with the hidden state and projects it back to [B, T, D]."""
    gate = activate(config.activation, matmul(hidden, weights["per_layer_gate"]))
    projected = matmul(gate * per_layer, weights["per_layer_projection"])
    return rms_norm(projected, weights["post_per_layer_norm"], config.norm_epsilon)

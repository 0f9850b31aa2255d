"""Reads GGUF metadata, as llama.cpp's converters and Ollama write it, and fills in what the files leave out.

Facts: gguf 0.19's key names, llama.cpp's hyperparameter loading. Missing from files and supplied here: the
attention scale of the two 27B Gemmas, Gemma 2's and 3's layer pattern, Gemma 3's base for sliding layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from engines.decoder.config import (
    Activation,
    ConfigError,
    DecoderConfig,
    Experts,
    LayerConfig,
    LayerKind,
    Rope,
    RopeScaling,
    UnknownArchitecture,
)
from engines.decoder.families.keys import Keys, check_sizes
from engines.decoder.families.sharing import kv_sources

SOURCE = "GGUF metadata"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture name implies. `period` is that of global layers (1: all global).

    `wide_layers` is the layer count of the member whose attention scale is (width / heads) ** -0.5.
    """

    architecture: str
    activation: Activation = "silu"
    scaled_embedding: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    v_norm: bool = False
    period: int = 1
    sliding_base: float | None = None
    wide_layers: int = 0
    unit_attention_scale: bool = False
    attention_bias: bool = False
    layer_scale: bool = False
    bidirectional: bool = False
    final_softcap: float | None = None


FAMILIES: dict[str, Family] = {
    "gemma": Family("gemma", "gelu_tanh", scaled_embedding=True),
    "gemma2": Family("gemma2", "gelu_tanh", True, post_norms=True, period=2, wide_layers=46),
    "gemma3": Family(
        "gemma3", "gelu_tanh", True, True, qk_norm=True, period=6, sliding_base=10_000.0, wide_layers=62
    ),
    "gemma-embedding": Family(
        "gemma3", "gelu_tanh", True, True, qk_norm=True, period=6, sliding_base=10_000.0, bidirectional=True
    ),
    "gemma3n": Family(
        "gemma3n",
        "gelu_tanh",
        scaled_embedding=True,
        post_norms=True,
        qk_norm=True,
        v_norm=True,
        period=5,
        sliding_base=10_000.0,
        unit_attention_scale=True,
        final_softcap=30.0,
    ),
    "gemma4": Family(
        "gemma4",
        "gelu_tanh",
        scaled_embedding=True,
        post_norms=True,
        qk_norm=True,
        v_norm=True,
        period=6,
        sliding_base=10_000.0,
        unit_attention_scale=True,
        layer_scale=True,
    ),
    "llama": Family("llama"),
    "qwen2": Family("qwen2", attention_bias=True),
    "qwen3": Family("qwen3", qk_norm=True),
}


def read_metadata(metadata: Mapping[str, Any], shapes: Shapes) -> DecoderConfig:
    """The decoder a GGUF file holds. Raises UnknownArchitecture or ConfigError."""
    name = metadata.get("general.architecture")
    family = FAMILIES.get(str(name))
    if family is None:
        raise UnknownArchitecture(name, tuple(FAMILIES))
    keys = Keys(metadata, SOURCE, f"{name}.")
    if "token_embd.weight" not in shapes:
        raise ConfigError(f"{SOURCE}: the file has no tensor token_embd.weight")
    vocabulary, width = shapes["token_embd.weight"]
    heads = keys.integer("attention.head_count")
    kinds = _kinds(keys, family)
    per_layer_width = keys.integer("embedding_length_per_layer_input", 0)
    config = DecoderConfig(
        architecture=family.architecture,
        width=keys.integer("embedding_length", width),
        heads=heads,
        layers=_layers(keys, family, shapes, kinds),
        vocabulary_size=vocabulary,
        max_context=keys.integer("context_length", 8192),
        attention_scale=_attention_scale(keys, family),
        embedding_scale=math.sqrt(width) if family.scaled_embedding else 1.0,
        norm_epsilon=keys.number("attention.layer_norm_rms_epsilon", 1e-6),
        activation=family.activation,
        post_norms=family.post_norms,
        qk_norm=family.qk_norm,
        v_norm=family.v_norm,
        attention_bias=family.attention_bias or "blk.0.attn_q.bias" in shapes,
        output_bias="blk.0.attn_output.bias" in shapes,
        attention_softcap=keys.optional_number("attn_logit_softcapping"),
        final_softcap=keys.optional_number("final_logit_softcapping") or family.final_softcap,
        tied_head="output.weight" not in shapes,
        layer_scale=family.layer_scale,
        per_layer_width=per_layer_width,
        per_layer_vocabulary=shapes["per_layer_token_embd.weight"][0] if per_layer_width else 0,
        altup_streams=keys.integer("altup.num_inputs", 0),
        laurel_rank=shapes.get("blk.0.laurel_l.weight", (0,))[0],
        bidirectional=family.bidirectional,
        dense_layers=tuple(
            shapes[f"{name}.weight"][0] for name in ("dense_2", "dense_3") if f"{name}.weight" in shapes
        ),
    )
    check_sizes(SOURCE, width=config.width, heads=heads, vocabulary=vocabulary)
    return config


def _kinds(keys: Keys, family: Family) -> tuple[LayerKind, ...]:
    """One kind per layer: the file's pattern (a list of booleans, true for sliding, or a period) or ours."""
    count = keys.integer("block_count")
    if not 0 < count <= 1024:
        raise ConfigError(f"{SOURCE}: {keys.prefix}block_count is {count}; 1 to 1024 layers are supported")
    if family.period == 1 or not keys.integer("attention.sliding_window", 0):
        return (_kind(False),) * count
    pattern = keys.get("attention.sliding_window_pattern", family.period)
    if not hasattr(pattern, "__len__"):
        return tuple(_kind((index + 1) % int(pattern) != 0) for index in range(count))
    if len(pattern) < count:
        raise ConfigError(f"{SOURCE}: sliding_window_pattern has {len(pattern)} entries for {count} layers")
    return tuple(_kind(bool(pattern[index])) for index in range(count))


def _kind(slides: bool) -> LayerKind:
    return "sliding" if slides else "global"


def _attention_scale(keys: Keys, family: Family) -> float:
    given = keys.optional_number("attention.scale")
    if given:
        return given
    if family.unit_attention_scale:
        return 1.0
    if keys.integer("block_count") == family.wide_layers:
        return float((keys.integer("embedding_length") / keys.integer("attention.head_count")) ** -0.5)
    return float(_head_dim(keys, "global") ** -0.5)


def _head_dim(keys: Keys, kind: LayerKind) -> int:
    derived = keys.integer("embedding_length") // max(keys.integer("attention.head_count"), 1)
    everywhere = keys.integer("attention.key_length", derived)
    return keys.integer("attention.key_length_swa", everywhere) if kind == "sliding" else everywhere


def _layers(
    keys: Keys, family: Family, shapes: Shapes, kinds: tuple[LayerKind, ...]
) -> tuple[LayerConfig, ...]:
    count = len(kinds)
    kv_heads = keys.per_layer("attention.head_count_kv", count, keys.integer("attention.head_count"))
    widths = keys.per_layer("feed_forward_length", count)
    ropes = {kind: _rope(keys, family, kind, shapes) for kind in set(kinds)}
    window = keys.integer("attention.sliding_window", 0)
    if family.bidirectional:
        window = window // 2 + 1  # the file's window spans both sides; ours counts one side, self included
    sparsities = _sparsities(keys, count)
    sources = kv_sources(kinds, keys.integer("attention.shared_kv_layers", 0))
    return tuple(
        LayerConfig(
            kind=kind,
            head_dim=_head_dim(keys, kind),
            kv_heads=kv_heads[index],
            ffn_width=widths[index],
            rope=ropes[kind],
            window=window if kind == "sliding" else 0,
            kv_source=sources[index],
            value_from_key=family.layer_scale
            and sources[index] is None
            and f"blk.{index}.attn_v.weight" not in shapes,
            experts=_experts(keys, f"blk.{index}.", shapes),
            sparsity=sparsities[index],
        )
        for index, kind in enumerate(kinds)
    )


def _sparsities(keys: Keys, count: int) -> tuple[float, ...]:
    """Shares of activations to zero; the file has the normal quantiles of them, minus infinity for none."""
    quantiles = keys.get("activation_sparsity_scale")
    if quantiles is None:
        return (0.0,) * count
    if len(quantiles) < count:
        raise ConfigError(
            f"{SOURCE}: activation_sparsity_scale has {len(quantiles)} values for {count} layers"
        )
    return tuple(round(NormalDist().cdf(float(value)), 6) for value in quantiles[:count])


def _experts(keys: Keys, prefix: str, shapes: Shapes) -> Experts | None:
    if prefix + "ffn_gate_inp.weight" not in shapes:
        return None
    return Experts(
        keys.integer("expert_count"),
        keys.integer("expert_used_count"),
        keys.integer("expert_feed_forward_length"),
    )


def _rope(keys: Keys, family: Family, kind: LayerKind, shapes: Shapes) -> Rope:
    """Sliding layers of Gemma 3 and 4 have a base of their own and no scaling."""
    base = keys.number("rope.freq_base", 10_000.0)
    if kind == "sliding" and family.sliding_base is not None:
        own = keys.number("rope.local.freq_base", family.sliding_base)
        return Rope(keys.number("rope.freq_base_swa", own))
    head_dim = _head_dim(keys, kind)
    proportional = family.layer_scale and kind == "global"
    if "rope_freqs.weight" in shapes and not proportional:
        return Rope(base, RopeScaling("factors", 1.0))  # the loader reads the factors from the tensor
    return Rope(base, _scaling(keys), head_dim // 8 if proportional else None)


def _scaling(keys: Keys) -> RopeScaling | None:
    kind = keys.get("rope.scaling.type", "none")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    if kind == "none" or factor == 1.0:
        return None
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind == "yarn":
        original = keys.integer("rope.scaling.original_context_length", keys.integer("context_length"))
        attention = keys.number("rope.scaling.attn_factor", 1.0) * (0.1 * math.log(factor) + 1.0)
        return RopeScaling("yarn", factor, original_context=original, attention_factor=attention)
    raise ConfigError(f"{SOURCE}: {keys.prefix}rope.scaling.type {kind!r} is not one of none, linear, yarn")

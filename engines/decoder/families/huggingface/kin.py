"""Llama 2 and 3, Mistral, Qwen 2 to 3: layers alike, one RoPE."""

from __future__ import annotations

from engines.decoder.config import ConfigError, DecoderConfig, LayerKind
from engines.decoder.families.huggingface.common import (
    SOURCE,
    activation_of,
    all_global,
    build_config,
    head_dim_of,
    layer_kinds,
    plain_layers,
)
from engines.decoder.families.huggingface.rope import single_rope
from engines.decoder.families.keys import Keys


def llama(keys: Keys) -> DecoderConfig:
    if keys.boolean("mlp_bias", False):
        raise ConfigError(f"{SOURCE}: mlp_bias is not supported")
    rope = single_rope(keys, head_dim_of(keys))
    layers = plain_layers(keys, layer_kinds(keys, all_global), 0, rope)
    bias = keys.boolean("attention_bias", False)
    return build_config(
        keys,
        "llama",
        layers,
        attention_scale=head_dim_of(keys) ** -0.5,
        activation=activation_of(keys, "silu"),
        attention_bias=bias,
        output_bias=bias,
        tied_head=keys.boolean("tie_word_embeddings", False),
    )


def mistral(keys: Keys) -> DecoderConfig:
    window = keys.integer("sliding_window", 0)
    rope = single_rope(keys, head_dim_of(keys))
    kinds = layer_kinds(keys, lambda _: "sliding" if window else "global")
    return build_config(
        keys,
        "mistral",
        plain_layers(keys, kinds, window, rope),
        attention_scale=head_dim_of(keys) ** -0.5,
        activation=activation_of(keys, "silu"),
        tied_head=keys.boolean("tie_word_embeddings", False),
    )


def _qwen_kinds(keys: Keys) -> tuple[LayerKind, ...]:
    slides = keys.boolean("use_sliding_window", False)
    first = keys.integer("max_window_layers", 28)
    return layer_kinds(keys, lambda index: "sliding" if slides and index >= first else "global")


def qwen2(keys: Keys) -> DecoderConfig:
    rope = single_rope(keys, head_dim_of(keys))
    return build_config(
        keys,
        "qwen2",
        plain_layers(keys, _qwen_kinds(keys), keys.integer("sliding_window", 0), rope),
        attention_scale=head_dim_of(keys) ** -0.5,
        activation=activation_of(keys, "silu"),
        attention_bias=True,
        tied_head=keys.boolean("tie_word_embeddings", False),
    )


def qwen3(keys: Keys) -> DecoderConfig:
    head_dim = keys.integer("head_dim", 128)
    filled = Keys({**keys.values, "head_dim": head_dim}, SOURCE)
    rope = single_rope(filled, head_dim)
    bias = keys.boolean("attention_bias", False)
    return build_config(
        filled,
        "qwen3",
        plain_layers(filled, _qwen_kinds(filled), keys.integer("sliding_window", 0), rope),
        attention_scale=head_dim**-0.5,
        activation=activation_of(keys, "silu"),
        qk_norm=True,
        attention_bias=bias,
        output_bias=bias,
        tied_head=keys.boolean("tie_word_embeddings", False),
    )

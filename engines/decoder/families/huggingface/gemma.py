"""Gemma 1 to 3, and EmbeddingGemma, which is a Gemma 3 that looks both ways."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from engines.decoder.config import DecoderConfig
from engines.decoder.families.huggingface.common import (
    SOURCE,
    activation_of,
    all_global,
    build_config,
    every,
    head_dim_of,
    layer_kinds,
    plain_layers,
    without_nulls,
)
from engines.decoder.families.huggingface.rope import ropes_by_kind, single_rope
from engines.decoder.families.keys import Keys


def gemma(keys: Keys) -> DecoderConfig:
    filled = Keys({"head_dim": 256, **without_nulls(keys.values)}, SOURCE)
    rope = single_rope(filled, head_dim_of(filled))
    return build_config(
        filled,
        "gemma",
        plain_layers(filled, layer_kinds(filled, all_global), 0, rope),
        attention_scale=head_dim_of(filled) ** -0.5,
        embedding_scale=math.sqrt(keys.integer("hidden_size")),
        activation="gelu_tanh",  # old files say "gelu", but the weights were trained with the tanh form
        tied_head=keys.boolean("tie_word_embeddings", True),
    )


def gemma2(keys: Keys) -> DecoderConfig:
    filled = Keys({"head_dim": 256, **without_nulls(keys.values)}, SOURCE)
    rope = single_rope(filled, head_dim_of(filled))
    kinds = layer_kinds(filled, every(2))
    return build_config(
        filled,
        "gemma2",
        plain_layers(filled, kinds, keys.integer("sliding_window", 4096), rope),
        attention_scale=keys.number("query_pre_attn_scalar", 256) ** -0.5,
        embedding_scale=math.sqrt(keys.integer("hidden_size")),
        activation=activation_of(keys, "gelu_pytorch_tanh"),
        post_norms=True,
        attention_softcap=filled.optional_number("attn_logit_softcapping"),
        final_softcap=filled.optional_number("final_logit_softcapping"),
        tied_head=keys.boolean("tie_word_embeddings", True),
    )


GEMMA3_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}
GEMMA3_ROPES = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}


def gemma3(keys: Keys) -> DecoderConfig:
    filled = Keys({**GEMMA3_DEFAULTS, **without_nulls(keys.values)}, SOURCE)
    head_dim = filled.integer("head_dim")
    bidirectional = keys.boolean("use_bidirectional_attention", False)
    window = filled.integer("sliding_window")
    if bidirectional:
        window = window // 2 + 1  # the file's window spans both sides; ours counts one side, self included
    ropes = ropes_by_kind(filled, {"global": head_dim, "sliding": head_dim}, GEMMA3_ROPES)
    kinds = layer_kinds(filled, every(filled.integer("sliding_window_pattern", 6)))
    layers = plain_layers(filled, kinds, window, ropes["sliding"])
    return build_config(
        filled,
        "gemma3",
        tuple(replace(layer, rope=ropes[layer.kind]) for layer in layers),
        attention_scale=filled.number("query_pre_attn_scalar") ** -0.5,
        embedding_scale=math.sqrt(filled.integer("hidden_size")),
        activation=activation_of(filled, "gelu_pytorch_tanh"),
        post_norms=True,
        qk_norm=True,
        attention_softcap=filled.optional_number("attn_logit_softcapping"),
        final_softcap=filled.optional_number("final_logit_softcapping"),
        bidirectional=bidirectional,
        tied_head=filled.boolean("tie_word_embeddings", True),
    )

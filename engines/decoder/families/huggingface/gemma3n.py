"""Gemma 3n: AltUp, LAuReL, sparse activations, per-layer embeddings, shared keys."""

from __future__ import annotations

import math
from typing import Any

from engines.decoder.config import ConfigError, DecoderConfig, LayerConfig
from engines.decoder.families.huggingface.common import (
    SOURCE,
    activation_of,
    build_config,
    every,
    layer_kinds,
    without_nulls,
)
from engines.decoder.families.huggingface.gemma import GEMMA3_ROPES
from engines.decoder.families.huggingface.rope import ropes_by_kind
from engines.decoder.families.keys import Keys
from engines.decoder.families.sharing import kv_sources

GEMMA3N_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_400,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size": 2048,
    "hidden_size_per_layer_input": 256,
    "intermediate_size": 16_384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32_768,
    "sliding_window": 512,
    "final_logit_softcapping": 30.0,
    "altup_num_inputs": 4,
    "num_kv_shared_layers": 15,
    "laurel_rank": 64,
}


def gemma3n(keys: Keys) -> DecoderConfig:
    filled = Keys({**GEMMA3N_DEFAULTS, **without_nulls(keys.values)}, SOURCE)
    if filled.integer("altup_active_idx", 0) != 0 or not filled.boolean("altup_correct_scale", True):
        raise ConfigError(f"{SOURCE}: only altup_active_idx 0 with altup_correct_scale is supported")
    return build_config(
        filled,
        "gemma3n",
        _gemma3n_layers(filled),
        attention_scale=1.0,
        embedding_scale=math.sqrt(filled.integer("hidden_size")),
        activation=activation_of(filled, "gelu_pytorch_tanh"),
        post_norms=True,
        qk_norm=True,
        v_norm=True,
        final_softcap=filled.optional_number("final_logit_softcapping"),
        per_layer_width=filled.integer("hidden_size_per_layer_input"),
        per_layer_vocabulary=filled.integer("vocab_size_per_layer_input"),
        altup_streams=filled.integer("altup_num_inputs"),
        laurel_rank=filled.integer("laurel_rank"),
        tied_head=filled.boolean("tie_word_embeddings", True),
    )


def _gemma3n_layers(keys: Keys) -> tuple[LayerConfig, ...]:
    kinds = layer_kinds(keys, every(5))
    count, head_dim = len(kinds), keys.integer("head_dim")
    ropes = ropes_by_kind(keys, {"global": head_dim, "sliding": head_dim}, GEMMA3_ROPES)
    widths = keys.per_layer("intermediate_size", count)
    sparsities = keys.get("activation_sparsity_pattern")
    if sparsities is None:
        sparsities = [0.95 if count > 10 and index < 10 else 0.0 for index in range(count)]
    if len(sparsities) != count or not all(0.0 <= share < 1.0 for share in sparsities):
        raise ConfigError(f"{SOURCE}: activation_sparsity_pattern must have {count} shares below 1")
    sources = kv_sources(kinds, keys.integer("num_kv_shared_layers"))
    return tuple(
        LayerConfig(
            kind=kind,
            head_dim=head_dim,
            kv_heads=keys.integer("num_key_value_heads"),
            ffn_width=width,
            rope=ropes[kind],
            window=keys.integer("sliding_window") if kind == "sliding" else 0,
            kv_source=source,
            sparsity=float(sparsity),
        )
        for kind, width, sparsity, source in zip(kinds, widths, sparsities, sources, strict=True)
    )

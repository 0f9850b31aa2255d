"""Gemma 4: wider global heads, shared keys, per-layer embeddings or a mixture of experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engines.decoder.config import DecoderConfig, Experts, LayerConfig, LayerKind
from engines.decoder.families.huggingface.common import (
    SOURCE,
    activation_of,
    build_config,
    every,
    layer_kinds,
    without_nulls,
)
from engines.decoder.families.huggingface.gemma import GEMMA3_DEFAULTS
from engines.decoder.families.huggingface.rope import ropes_by_kind
from engines.decoder.families.keys import Keys
from engines.decoder.families.sharing import kv_sources

GEMMA4_DEFAULTS: dict[str, Any] = {
    **GEMMA3_DEFAULTS,
    "vocab_size": 262_144,
    "num_hidden_layers": 30,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262_144,
}
GEMMA4_ROPES: dict[str, dict[str, Any]] = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    "sliding_attention": {"rope_theta": 1e4},
}


def gemma4(keys: Keys) -> DecoderConfig:
    filled = Keys({**GEMMA4_DEFAULTS, **without_nulls(keys.values)}, SOURCE)
    kinds = (
        *layer_kinds(filled, every(6))[:-1],
        "global",
    )  # the reference forces the last
    layers = _gemma4_layers(filled, kinds)
    per_layer_width = filled.integer("hidden_size_per_layer_input")
    return build_config(
        filled,
        "gemma4",
        layers,
        attention_scale=1.0,
        embedding_scale=math.sqrt(filled.integer("hidden_size")),
        activation=activation_of(filled, "gelu_pytorch_tanh"),
        post_norms=True,
        qk_norm=True,
        v_norm=True,
        final_softcap=filled.optional_number("final_logit_softcapping"),
        layer_scale=True,
        per_layer_width=per_layer_width,
        per_layer_vocabulary=filled.integer("vocab_size_per_layer_input") if per_layer_width else 0,
        tied_head=filled.boolean("tie_word_embeddings", True),
    )


def _gemma4_layers(keys: Keys, kinds: tuple[LayerKind, ...]) -> tuple[LayerConfig, ...]:
    overrides = _gemma4_overrides(keys, kinds)
    head_dims = [int(own.get("head_dim", keys.integer("head_dim"))) for own in overrides]
    by_kind: dict[LayerKind, int] = {"global": keys.integer("head_dim"), "sliding": keys.integer("head_dim")}
    by_kind.update(dict(zip(kinds, head_dims, strict=True)))
    ropes = ropes_by_kind(keys, by_kind, GEMMA4_ROPES)
    sources = kv_sources(kinds, keys.integer("num_kv_shared_layers", 0))
    wide = keys.boolean("use_double_wide_mlp", False)
    same = keys.boolean("attention_k_eq_v", False)
    experts = _gemma4_experts(keys)
    return tuple(
        LayerConfig(
            kind=kind,
            head_dim=head_dim,
            kv_heads=int(own.get("num_key_value_heads", keys.integer("num_key_value_heads"))),
            ffn_width=keys.integer("intermediate_size") * (2 if wide and source is not None else 1),
            rope=ropes[kind],
            window=keys.integer("sliding_window") if kind == "sliding" else 0,
            kv_source=source,
            value_from_key=same and kind == "global" and source is None,
            experts=experts,
        )
        for kind, head_dim, own, source in zip(kinds, head_dims, overrides, sources, strict=True)
    )


def _gemma4_overrides(keys: Keys, kinds: tuple[LayerKind, ...]) -> list[Mapping[str, Any]]:
    """What differs per layer: `per_layer_config` of newer files, the `global_*` keys of older ones."""
    given = keys.get("per_layer_config")
    if given is not None:
        return [given.get(str(index), given.get(index)) or {} for index in range(len(kinds))]
    own: dict[str, Any] = {"head_dim": keys.integer("global_head_dim", 512)}
    kv_heads = keys.get("num_global_key_value_heads")
    if kv_heads is not None and keys.boolean("attention_k_eq_v", False):
        own["num_key_value_heads"] = kv_heads
    return [own if kind == "global" else {} for kind in kinds]


def _gemma4_experts(keys: Keys) -> Experts | None:
    if not keys.boolean("enable_moe_block", False):
        return None
    return Experts(
        keys.integer("num_experts"), keys.integer("top_k_experts"), keys.integer("moe_intermediate_size")
    )

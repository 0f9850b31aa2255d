"""Reads a Hugging Face config.json, of today's layout and of the older ones still on the Hub.

Facts: the configuration and modelling code of transformers 5.23. Multimodal configs nest the decoder under
`text_config`, whose omitted keys mean the family's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
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

SOURCE = "config.json"
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
KINDS: dict[str, LayerKind] = {"full_attention": "global", "sliding_attention": "sliding"}


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The decoder described by a config.json. Raises UnknownArchitecture or ConfigError."""
    nested = config.get("text_config")
    text = dict(nested) if isinstance(nested, Mapping) else dict(config)
    outer = config.get("model_type")
    name = str(text.get("model_type") or outer)
    family = FAMILIES.get(name) or FAMILIES.get(str(outer))
    if family is None:
        raise UnknownArchitecture(outer or name, tuple(FAMILIES))
    if isinstance(nested, Mapping) and "tie_word_embeddings" in config:
        text.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
    return family(Keys(text, SOURCE))


def _common(keys: Keys, architecture: str, layers: tuple[LayerConfig, ...], **more: Any) -> DecoderConfig:
    heads = keys.integer("num_attention_heads")
    config = DecoderConfig(
        architecture=architecture,
        width=keys.integer("hidden_size"),
        heads=heads,
        layers=layers,
        vocabulary_size=keys.integer("vocab_size"),
        max_context=keys.integer("max_position_embeddings", 8192),
        norm_epsilon=keys.number("rms_norm_eps", 1e-6),
        **more,
    )
    kv_heads = {layer.kv_heads for layer in layers}
    check_sizes(
        SOURCE, width=config.width, heads=heads, layers=len(layers), vocabulary=config.vocabulary_size
    )
    if any(heads % count for count in kv_heads):
        raise ConfigError(
            f"{SOURCE}: {heads} attention heads cannot share {sorted(kv_heads)} key-value heads"
        )
    return config


def _head_dim(keys: Keys) -> int:
    return keys.integer("head_dim", keys.integer("hidden_size") // keys.integer("num_attention_heads"))


def _kinds(keys: Keys, otherwise: Callable[[int], LayerKind]) -> tuple[LayerKind, ...]:
    """One kind per layer: `layer_types` where the file has it, the family's pattern otherwise."""
    count = keys.integer("num_hidden_layers")
    check_sizes(SOURCE, num_hidden_layers=count)
    if count > 1024:
        raise ConfigError(f"{SOURCE}: num_hidden_layers is {count}; at most 1024 are supported")
    named = keys.get("layer_types")
    if named is None:
        return tuple(otherwise(index) for index in range(count))
    if len(named) != count or any(kind not in KINDS for kind in named):
        raise ConfigError(f"{SOURCE}: layer_types must name {count} layers, each one of {', '.join(KINDS)}")
    return tuple(KINDS[kind] for kind in named)


def _every(period: int) -> Callable[[int], LayerKind]:
    """Global on every `period`-th layer, sliding on the others."""
    return lambda index: "sliding" if (index + 1) % period else "global"


def _all_global(_: int) -> LayerKind:
    return "global"


# Rotary embedding ---------------------------------------------------------------------------------------


def _linear(values: Keys, _: Keys) -> RopeScaling:
    return RopeScaling("linear", values.number("factor"))


def _llama3(values: Keys, keys: Keys) -> RopeScaling:
    return RopeScaling(
        "llama3",
        factor=values.number("factor"),
        low_frequency=values.number("low_freq_factor", 1.0),
        high_frequency=values.number("high_freq_factor", 4.0),
        original_context=values.integer("original_max_position_embeddings", 8192),
    )


def _yarn(values: Keys, keys: Keys) -> RopeScaling:
    original = values.integer("original_max_position_embeddings", keys.integer("max_position_embeddings"))
    factor = values.number("factor")
    return RopeScaling(
        "yarn",
        factor=factor,
        original_context=original,
        beta_fast=values.number("beta_fast", 32.0),
        beta_slow=values.number("beta_slow", 1.0),
        attention_factor=values.number("attention_factor", 0.1 * math.log(factor) + 1.0),
        truncate=values.boolean("truncate", True),
    )


def _unscaled(_values: Keys, _keys: Keys) -> None:
    return None


SCALINGS: dict[str, Callable[[Keys, Keys], RopeScaling | None]] = {
    "default": _unscaled,
    "proportional": _unscaled,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def _rope(keys: Keys, parameters: Mapping[str, Any], base: float, head_dim: int) -> Rope:
    """The `Rope` of one `rope_parameters` (or older `rope_scaling`) mapping."""
    values = Keys(parameters, f"{SOURCE} rope_parameters")
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in SCALINGS:
        raise ConfigError(f"{SOURCE}: rope type {kind!r} is not one of {', '.join(SCALINGS)}")
    partial = values.number("partial_rotary_factor", keys.number("partial_rotary_factor", 1.0))
    if partial != 1.0 and kind != "proportional":
        raise ConfigError(f"{SOURCE}: partial_rotary_factor {partial} needs rope type 'proportional'")
    rotated = int(partial * head_dim // 2) if partial != 1.0 else None
    return Rope(values.number("rope_theta", base), SCALINGS[kind](values, keys), rotated)


def _single_rope(keys: Keys, head_dim: int, base: float = 10_000.0) -> Rope:
    parameters = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    return _rope(keys, parameters, keys.number("rope_theta", base), head_dim)


def _ropes_by_kind(
    keys: Keys, head_dims: Mapping[LayerKind, int], defaults: Mapping[str, Mapping[str, Any]]
) -> dict[LayerKind, Rope]:
    """Gemma 3, 3n and 4: global and sliding layers turn at different speeds."""
    given = keys.get("rope_parameters") or {}
    older_global = {**(keys.get("rope_scaling") or {}), "rope_theta": keys.get("rope_theta")}
    older = {
        "full_attention": {name: value for name, value in older_global.items() if value is not None},
        "sliding_attention": {"rope_theta": keys.get("rope_local_base_freq")},
    }
    ropes: dict[LayerKind, Rope] = {}
    for name, kind in KINDS.items():
        parameters = {
            **defaults[name],
            **_without_nulls(older[name]),
            **_without_nulls(given.get(name) or {}),
        }
        ropes[kind] = _rope(keys, parameters, 10_000.0, head_dims[kind])
    return ropes


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


# Families -----------------------------------------------------------------------------------------------


def _plain_layers(
    keys: Keys, kinds: tuple[LayerKind, ...], window: int, rope: Rope
) -> tuple[LayerConfig, ...]:
    """Layers alike but for their kind."""
    heads = keys.integer("num_attention_heads")
    return tuple(
        LayerConfig(
            kind=kind,
            head_dim=_head_dim(keys),
            kv_heads=keys.integer("num_key_value_heads", heads),
            ffn_width=keys.integer("intermediate_size"),
            rope=rope,
            window=window if kind == "sliding" else 0,
        )
        for kind in kinds
    )


def _activation(keys: Keys, default: str) -> Activation:
    name = keys.get("hidden_activation", keys.get("hidden_act", default))
    if name not in ACTIVATIONS:
        raise ConfigError(f"{SOURCE}: activation {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _llama(keys: Keys) -> DecoderConfig:
    if keys.boolean("mlp_bias", False):
        raise ConfigError(f"{SOURCE}: mlp_bias is not supported")
    rope = _single_rope(keys, _head_dim(keys))
    layers = _plain_layers(keys, _kinds(keys, _all_global), 0, rope)
    bias = keys.boolean("attention_bias", False)
    return _common(
        keys,
        "llama",
        layers,
        attention_scale=_head_dim(keys) ** -0.5,
        activation=_activation(keys, "silu"),
        attention_bias=bias,
        output_bias=bias,
        tied_head=keys.boolean("tie_word_embeddings", False),
    )


def _mistral(keys: Keys) -> DecoderConfig:
    window = keys.integer("sliding_window", 0)
    rope = _single_rope(keys, _head_dim(keys))
    kinds = _kinds(keys, lambda _: "sliding" if window else "global")
    return _common(
        keys,
        "mistral",
        _plain_layers(keys, kinds, window, rope),
        attention_scale=_head_dim(keys) ** -0.5,
        activation=_activation(keys, "silu"),
        tied_head=keys.boolean("tie_word_embeddings", False),
    )


def _qwen_kinds(keys: Keys) -> tuple[LayerKind, ...]:
    slides = keys.boolean("use_sliding_window", False)
    first = keys.integer("max_window_layers", 28)
    return _kinds(keys, lambda index: "sliding" if slides and index >= first else "global")


def _qwen2(keys: Keys) -> DecoderConfig:
    rope = _single_rope(keys, _head_dim(keys))
    return _common(
        keys,
        "qwen2",
        _plain_layers(keys, _qwen_kinds(keys), keys.integer("sliding_window", 0), rope),
        attention_scale=_head_dim(keys) ** -0.5,
        activation=_activation(keys, "silu"),
        attention_bias=True,
        tied_head=keys.boolean("tie_word_embeddings", False),
    )


def _qwen3(keys: Keys) -> DecoderConfig:
    head_dim = keys.integer("head_dim", 128)
    filled = Keys({**keys.values, "head_dim": head_dim}, SOURCE)
    rope = _single_rope(filled, head_dim)
    bias = keys.boolean("attention_bias", False)
    return _common(
        filled,
        "qwen3",
        _plain_layers(filled, _qwen_kinds(filled), keys.integer("sliding_window", 0), rope),
        attention_scale=head_dim**-0.5,
        activation=_activation(keys, "silu"),
        qk_norm=True,
        attention_bias=bias,
        output_bias=bias,
        tied_head=keys.boolean("tie_word_embeddings", False),
    )


def _gemma(keys: Keys) -> DecoderConfig:
    filled = Keys({"head_dim": 256, **_without_nulls(keys.values)}, SOURCE)
    rope = _single_rope(filled, _head_dim(filled))
    return _common(
        filled,
        "gemma",
        _plain_layers(filled, _kinds(filled, _all_global), 0, rope),
        attention_scale=_head_dim(filled) ** -0.5,
        embedding_scale=math.sqrt(keys.integer("hidden_size")),
        activation="gelu_tanh",  # old files say "gelu", but the weights were trained with the tanh form
        tied_head=keys.boolean("tie_word_embeddings", True),
    )


def _gemma2(keys: Keys) -> DecoderConfig:
    filled = Keys({"head_dim": 256, **_without_nulls(keys.values)}, SOURCE)
    rope = _single_rope(filled, _head_dim(filled))
    kinds = _kinds(filled, _every(2))
    return _common(
        filled,
        "gemma2",
        _plain_layers(filled, kinds, keys.integer("sliding_window", 4096), rope),
        attention_scale=keys.number("query_pre_attn_scalar", 256) ** -0.5,
        embedding_scale=math.sqrt(keys.integer("hidden_size")),
        activation=_activation(keys, "gelu_pytorch_tanh"),
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


def _gemma3(keys: Keys) -> DecoderConfig:
    filled = Keys({**GEMMA3_DEFAULTS, **_without_nulls(keys.values)}, SOURCE)
    head_dim = filled.integer("head_dim")
    bidirectional = keys.boolean("use_bidirectional_attention", False)
    window = filled.integer("sliding_window")
    if bidirectional:
        window = window // 2 + 1  # the file's window spans both sides; ours counts one side, self included
    ropes = _ropes_by_kind(filled, {"global": head_dim, "sliding": head_dim}, GEMMA3_ROPES)
    kinds = _kinds(filled, _every(filled.integer("sliding_window_pattern", 6)))
    layers = _plain_layers(filled, kinds, window, ropes["sliding"])
    return _common(
        filled,
        "gemma3",
        tuple(replace(layer, rope=ropes[layer.kind]) for layer in layers),
        attention_scale=filled.number("query_pre_attn_scalar") ** -0.5,
        embedding_scale=math.sqrt(filled.integer("hidden_size")),
        activation=_activation(filled, "gelu_pytorch_tanh"),
        post_norms=True,
        qk_norm=True,
        attention_softcap=filled.optional_number("attn_logit_softcapping"),
        final_softcap=filled.optional_number("final_logit_softcapping"),
        bidirectional=bidirectional,
        tied_head=filled.boolean("tie_word_embeddings", True),
    )


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


def kv_sources(kinds: tuple[LayerKind, ...], shared: int) -> tuple[int | None, ...]:
    """Whose keys each layer reads when the last `shared` layers have none of their own.

    A sharing layer reads the last layer of its own kind before the sharing begins.
    """
    first = len(kinds) - shared
    if not 0 <= shared < len(kinds) or any(kind not in kinds[:first] for kind in kinds[first:]):
        raise ConfigError(
            f"{shared} of {len(kinds)} layers share keys, but no layer of their kind has its own"
        )
    last = {kind: index for index, kind in enumerate(kinds[:first])}
    return tuple(last[kind] if index >= first else None for index, kind in enumerate(kinds))


def _gemma4(keys: Keys) -> DecoderConfig:
    filled = Keys({**GEMMA4_DEFAULTS, **_without_nulls(keys.values)}, SOURCE)
    kinds = (*_kinds(filled, _every(6))[:-1], "global")  # the reference forces the last layer to be global
    layers = _gemma4_layers(filled, kinds)
    per_layer_width = filled.integer("hidden_size_per_layer_input")
    return _common(
        filled,
        "gemma4",
        layers,
        attention_scale=1.0,
        embedding_scale=math.sqrt(filled.integer("hidden_size")),
        activation=_activation(filled, "gelu_pytorch_tanh"),
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
    ropes = _ropes_by_kind(keys, by_kind, GEMMA4_ROPES)
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


def _gemma3n(keys: Keys) -> DecoderConfig:
    filled = Keys({**GEMMA3N_DEFAULTS, **_without_nulls(keys.values)}, SOURCE)
    if filled.integer("altup_active_idx", 0) != 0 or not filled.boolean("altup_correct_scale", True):
        raise ConfigError(f"{SOURCE}: only altup_active_idx 0 with altup_correct_scale is supported")
    return _common(
        filled,
        "gemma3n",
        _gemma3n_layers(filled),
        attention_scale=1.0,
        embedding_scale=math.sqrt(filled.integer("hidden_size")),
        activation=_activation(filled, "gelu_pytorch_tanh"),
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
    kinds = _kinds(keys, _every(5))
    count, head_dim = len(kinds), keys.integer("head_dim")
    ropes = _ropes_by_kind(keys, {"global": head_dim, "sliding": head_dim}, GEMMA3_ROPES)
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


FAMILIES: dict[str, Callable[[Keys], DecoderConfig]] = {
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma3_text": _gemma3,
    "gemma3n": _gemma3n,
    "gemma3n_text": _gemma3n,
    "gemma4": _gemma4,
    "gemma4_text": _gemma4,
    "gemma4_unified": _gemma4,
    "gemma4_unified_text": _gemma4,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}

"""What the families' readers share: sizes, layer kinds, activations, and the checks on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engines.decoder.config import Activation, ConfigError, DecoderConfig, LayerConfig, LayerKind, Rope
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


def build_config(
    keys: Keys, architecture: str, layers: tuple[LayerConfig, ...], **more: Any
) -> DecoderConfig:
    """The checked configuration from the keys all families have; `more` are the fields of this one."""
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


def head_dim_of(keys: Keys) -> int:
    return keys.integer("head_dim", keys.integer("hidden_size") // keys.integer("num_attention_heads"))


def layer_kinds(keys: Keys, otherwise: Callable[[int], LayerKind]) -> tuple[LayerKind, ...]:
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


def every(period: int) -> Callable[[int], LayerKind]:
    """Global on every `period`-th layer, sliding on the others."""
    return lambda index: "sliding" if (index + 1) % period else "global"


def all_global(_: int) -> LayerKind:
    return "global"


def plain_layers(
    keys: Keys, kinds: tuple[LayerKind, ...], window: int, rope: Rope
) -> tuple[LayerConfig, ...]:
    """Layers alike but for their kind."""
    heads = keys.integer("num_attention_heads")
    return tuple(
        LayerConfig(
            kind=kind,
            head_dim=head_dim_of(keys),
            kv_heads=keys.integer("num_key_value_heads", heads),
            ffn_width=keys.integer("intermediate_size"),
            rope=rope,
            window=window if kind == "sliding" else 0,
        )
        for kind in kinds
    )


def activation_of(keys: Keys, default: str) -> Activation:
    name = keys.get("hidden_activation", keys.get("hidden_act", default))
    if name not in ACTIVATIONS:
        raise ConfigError(f"{SOURCE}: activation {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}

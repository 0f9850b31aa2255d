"""Published full-size configurations: parameter counts, memory, and the traps of older and newer files."""

from __future__ import annotations

import math
from typing import Any

import pytest

from engines.decoder.config import ConfigError, DecoderConfig, UnknownArchitecture
from engines.decoder.params import (
    cache_bytes,
    param_specs,
    parameter_count,
    ring_length,
    stored_bytes,
    weight_bytes,
)
from engines.decoder.quantize import mixture


def hf(
    model_type: str, layers: int, width: int, heads: int, kv: int, ffn: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "max_position_embeddings": 8192,
    } | more


def gemma3(layers: int, width: int, heads: int, kv: int, ffn: int, **more: Any) -> dict[str, Any]:
    return hf("gemma3_text", layers, width, heads, kv, ffn, vocab_size=262_208, sliding_window=1024, **more)


def gemma4(layers: int, width: int, heads: int, kv: int, ffn: int, **more: Any) -> dict[str, Any]:
    base = {"vocab_size": 262_144, "head_dim": 256, "global_head_dim": 512, "final_logit_softcapping": 30.0}
    return hf("gemma4_text", layers, width, heads, kv, ffn, **(base | more))


FIVE_TO_ONE = {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "sliding_window": 1024}
FOUR_TO_ONE = [("sliding_attention" if (index + 1) % 5 else "full_attention") for index in range(35)]
TIED = {"tie_word_embeddings": True}

EXACT: dict[str, tuple[dict[str, Any], int]] = {
    "gemma 2b": (hf("gemma", 18, 2048, 8, 1, 16384, vocab_size=256_000, head_dim=256), 2_506_172_416),
    "gemma 7b": (hf("gemma", 28, 3072, 16, 16, 24576, vocab_size=256_000, head_dim=256), 8_537_680_896),
    "gemma-2 2b": (hf("gemma2", 26, 2304, 8, 4, 9216, vocab_size=256_000, head_dim=256), 2_614_341_888),
    "gemma-2 9b": (hf("gemma2", 42, 3584, 16, 8, 14336, vocab_size=256_000, head_dim=256), 9_241_705_984),
    "gemma-2 27b": (
        hf("gemma2", 46, 4608, 32, 16, 36864, vocab_size=256_000, head_dim=128, query_pre_attn_scalar=144),
        27_227_128_320,
    ),
    "gemma-3 270m": (
        hf("gemma3_text", 18, 640, 4, 1, 2048, vocab_size=262_144, head_dim=256, sliding_window=512),
        268_098_176,
    ),
    "gemma-3 1b": (
        hf("gemma3_text", 26, 1152, 4, 1, 6912, vocab_size=262_144, head_dim=256, sliding_window=512),
        999_885_952,
    ),
    "gemma-3 4b": (gemma3(34, 2560, 8, 4, 10240), 3_880_263_168),
    "gemma-3 12b": (gemma3(48, 3840, 16, 8, 15360), 11_766_034_176),
    "gemma-3 27b": (
        gemma3(62, 5376, 32, 16, 21504, head_dim=128, query_pre_attn_scalar=168),
        27_009_346_304,
    ),
    "llama-2 7b": (hf("llama", 32, 4096, 32, 32, 11008, vocab_size=32_000), 6_738_415_616),
    "llama-3.1 8b": (hf("llama", 32, 4096, 32, 8, 14336, vocab_size=128_256), 8_030_261_248),
    "llama-3.2 1b": (
        hf("llama", 16, 2048, 32, 8, 8192, vocab_size=128_256, head_dim=64, **TIED),
        1_235_814_400,
    ),
    "mistral 7b": (hf("mistral", 32, 4096, 32, 8, 14336, vocab_size=32_000), 7_241_732_096),
    "qwen2.5 0.5b": (hf("qwen2", 24, 896, 14, 2, 4864, vocab_size=151_936, **TIED), 494_032_768),
    "qwen2.5 7b": (hf("qwen2", 28, 3584, 28, 4, 18944, vocab_size=152_064), 7_615_616_512),
    "qwen3 0.6b": (hf("qwen3", 28, 1024, 16, 8, 3072, vocab_size=151_936, head_dim=128, **TIED), 596_049_920),
    "qwen3 8b": (hf("qwen3", 36, 4096, 32, 8, 12288, vocab_size=151_936, head_dim=128), 8_190_735_360),
}
"""Decoder weights alone, tied heads once; multimodal models without their towers."""

ROUNDED: dict[str, tuple[dict[str, Any], float]] = {
    "gemma-4 E2B": (
        gemma4(
            35, 1536, 8, 1, 6144, num_kv_shared_layers=20, use_double_wide_mlp=True, layer_types=FOUR_TO_ONE
        ),
        4.63e9,
    ),
    "gemma-4 E4B": (gemma4(42, 2560, 8, 2, 10240, num_kv_shared_layers=18), 7.46e9),
    "gemma-4 12B": (gemma4(48, 3840, 16, 8, 15360, num_global_key_value_heads=1, **FIVE_TO_ONE), 11.9e9),
    "gemma-4 26B-A4B": (
        gemma4(
            30,
            2816,
            16,
            8,
            2112,
            num_global_key_value_heads=2,
            enable_moe_block=True,
            num_experts=128,
            top_k_experts=8,
            moe_intermediate_size=704,
            **FIVE_TO_ONE,
        ),
        25.2e9,
    ),
    "gemma-3n E2B": (
        {"model_type": "gemma3n_text", "num_hidden_layers": 30, "intermediate_size": 8192}
        | {"num_kv_shared_layers": 10},
        4.46e9,
    ),
    "gemma-3n E4B": ({"model_type": "gemma3n_text"}, 6.87e9),
    "gemma-4 31B": (gemma4(60, 5376, 32, 16, 21504, num_global_key_value_heads=4, **FIVE_TO_ONE), 30.7e9),
}
"""Published to three digits only (E-models: decoder with its per-layer table, without towers).

Gemma 3n as llama.cpp counts it, with the half a percent of keys and values that no layer reads.
"""


@pytest.mark.parametrize("name", EXACT)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    config, expected = EXACT[name]
    assert parameter_count(DecoderConfig.from_hf(config)) == expected


@pytest.mark.parametrize("name", ROUNDED)
def test_parameter_counts_agree_to_three_digits(name: str) -> None:
    config, expected = ROUNDED[name]
    assert parameter_count(DecoderConfig.from_hf(config)) == pytest.approx(expected, rel=6e-3)


def test_a_config_is_hashable_and_static() -> None:
    first, second = (DecoderConfig.from_hf(EXACT["gemma-3 1b"][0]) for _ in range(2))
    assert hash(first) == hash(second)
    assert first == second


def test_omitted_keys_of_a_multimodal_file_mean_the_familys_defaults() -> None:
    nested = {
        "model_type": "gemma3",
        "vision_config": {"model_type": "siglip_vision_model"},
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    }
    config = DecoderConfig.from_hf(nested)
    assert parameter_count(config) == EXACT["gemma-3 4b"][1]
    globals_ = [index for index, layer in enumerate(config.layers) if layer.kind == "global"]
    assert globals_ == [5, 11, 17, 23, 29]
    rope, local = config.layers[5].rope, config.layers[0].rope
    assert (rope.base, rope.scaling and rope.scaling.factor) == (1e6, 8.0)
    assert (local.base, local.scaling) == (1e4, None)


def test_old_and_new_rope_keys_mean_the_same() -> None:
    old = EXACT["llama-3.1 8b"][0]
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    first = DecoderConfig.from_hf(old | {"rope_theta": 500_000.0, "rope_scaling": scaling})
    second = DecoderConfig.from_hf(old | {"rope_parameters": scaling | {"rope_theta": 500_000.0}})
    assert first == second
    assert first.layers[0].rope.base == 500_000.0


def test_the_attention_scale_comes_from_the_query_scalar() -> None:
    config = DecoderConfig.from_hf(EXACT["gemma-2 27b"][0])
    assert config.attention_scale == pytest.approx(1 / 12)
    assert [layer.kind for layer in config.layers[:4]] == ["sliding", "global"] * 2


def test_a_bidirectional_model_counts_half_its_window() -> None:
    config = DecoderConfig.from_hf(gemma3(6, 64, 4, 1, 128, use_bidirectional_attention=True))
    assert config.bidirectional
    assert config.layers[0].window == 513


def test_sharing_layers_read_the_last_layer_of_their_kind() -> None:
    config = DecoderConfig.from_hf(ROUNDED["gemma-4 E2B"][0])
    assert {layer.kv_source for layer in config.layers[15:] if layer.kind == "global"} == {14}
    assert {layer.kv_source for layer in config.layers[15:] if layer.kind == "sliding"} == {13}
    assert [layer.ffn_width for layer in config.layers[13:17]] == [6144, 6144, 12288, 12288]
    assert config.layers[14].rope.rotated_pairs == 64
    assert "layers.20.k" not in param_specs(config)


def test_gguf_files_leave_the_27b_attention_scale_out() -> None:
    shapes = {"token_embd.weight": (262_144, 5376)}
    keys = {
        "general.architecture": "gemma3",
        "gemma3.block_count": 62,
        "gemma3.embedding_length": 5376,
        "gemma3.feed_forward_length": 21504,
        "gemma3.attention.head_count": 32,
        "gemma3.attention.head_count_kv": 16,
        "gemma3.attention.key_length": 128,
        "gemma3.attention.sliding_window": 1024,
        "gemma3.rope.freq_base": 1e6,
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
    }
    config = DecoderConfig.from_gguf(keys, shapes)
    assert config.attention_scale == pytest.approx(168**-0.5)
    assert [layer.kind for layer in config.layers[:6]] == ["sliding"] * 5 + ["global"]
    assert config.layers[0].rope.base == 1e4
    ollama = keys | {
        "gemma3.attention.sliding_window_pattern": [index % 2 == 0 for index in range(62)],
        "gemma3.rope.local.freq_base": 5e3,
    }
    other = DecoderConfig.from_gguf(ollama, shapes)
    assert [layer.kind for layer in other.layers[:3]] == ["sliding", "global", "sliding"]
    assert other.layers[0].rope.base == 5e3


def test_unknown_architectures_name_the_known_ones() -> None:
    with pytest.raises(UnknownArchitecture, match=r"'mamba'.*gemma3.*llama"):
        DecoderConfig.from_hf({"model_type": "mamba"})
    with pytest.raises(UnknownArchitecture, match=r"'bert'.*gemma4"):
        DecoderConfig.from_gguf({"general.architecture": "bert"}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide', not a number"),
        ({"num_hidden_layers": 10**9}, "at most 1024"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 5}, "32 attention heads cannot share"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "rope type 'longrope'"),
        ({"vocab_size": -4}, "vocabulary is -4"),
        ({"layer_types": ["full_attention"]}, "layer_types must name 32 layers"),
    ],
)
def test_impossible_values_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecoderConfig.from_hf(EXACT["llama-3.1 8b"][0] | change)


def test_memory_is_arithmetic() -> None:
    config = DecoderConfig.from_hf(EXACT["gemma-3 1b"][0])
    assert weight_bytes(config, "BF16") == pytest.approx(2 * parameter_count(config), rel=1e-3)
    assert weight_bytes(config, "Q8_0") == pytest.approx(34 / 32 * parameter_count(config), rel=1e-3)
    assert stored_bytes((2, 512), "Q4_K") == 2 * 2 * 144
    with pytest.raises(ValueError, match="whole Q4_K blocks"):
        stored_bytes((2, 128), "Q4_K")
    small, large = (cache_bytes(config, 4, context, "bf16") for context in (8192, 16384))
    globals_ = sum(layer.kind == "global" for layer in config.layers)
    assert large - small == 5 * 8192 * globals_ * 2 * 256 * 2
    assert ring_length(512, 8192, 512) == 1024
    assert cache_bytes(config, 4, 8192, "int8") < 0.55 * small


@pytest.mark.parametrize("name", [*EXACT, *ROUNDED])
def test_every_published_size_says_what_memory_it_needs(name: str) -> None:
    config = DecoderConfig.from_hf((EXACT | ROUNDED)[name][0])  # type: ignore[operator]
    packed = weight_bytes(config, mixture(config, "q4_K_M"))
    # rows of 640 and 1152 hold no blocks of 256: those of the smallest models fall back to 5 and 8 bits
    assert 0.55 < packed / parameter_count(config) < (0.95 if config.width % 256 else 0.8)
    assert packed < weight_bytes(config, mixture(config, "q8_0")) < weight_bytes(config, "BF16")
    caches = [cache_bytes(config, 1, context) for context in (1024, 8192)]
    assert 0 < caches[0] < caches[1]


def flax_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The leaves of a Gemma 3n or 4 tree that say what it is."""
    width, per_layer = config.width, config.per_layer_width
    shapes: dict[str, tuple[int, ...]] = {"embedder/input_embedding": (config.vocabulary_size, width)}
    if per_layer:
        name = "per_layer_input_embedding" if config.altup_streams else "per_layer_embeddings"
        shapes[f"embedder/{name}"] = (config.per_layer_vocabulary, len(config.layers), per_layer)
    for index, layer in enumerate(config.layers):
        prefix, heads = f"layer_{index}/", layer.kv_heads
        shapes[prefix + "attn/q_einsum"] = (config.heads, width, layer.head_dim)
        if layer.value_from_key:
            shapes[prefix + "attn/k_einsum"] = (heads, width, layer.head_dim)
        elif layer.kv_source is None:
            shapes[prefix + "attn/kv_einsum"] = (2, heads, width, layer.head_dim)
        if layer.experts is not None:
            shapes[prefix + "mlp/router_logits"] = (width, layer.experts.count)
            shapes[prefix + "mlp/linear"] = (layer.experts.count, layer.experts.width, width)
        dense = "mlp2" if layer.experts is not None else "mlp"
        shapes[prefix + f"{dense}/linear"] = (layer.ffn_width, width)
        if config.layer_scale:
            shapes[prefix + "skip_scale"] = (1,)
        if config.altup_streams:
            shapes[prefix + "altup/correction_coefs"] = (config.altup_streams,) * 2
            shapes[prefix + "laurel/linear_left"] = (width, config.laurel_rank)
    return shapes


CONTEXTS = {
    "gemma-4 26B-A4B": 262_144,
    "gemma-4 31B": 262_144,
    "gemma-4 E2B": 131_072,
    "gemma-4 E4B": 131_072,
}


@pytest.mark.parametrize("name", [*CONTEXTS, "gemma-3n E2B", "gemma-3n E4B"])
def test_flax_trees_of_published_sizes_give_the_configuration_of_their_folder(name: str) -> None:
    given = ROUNDED[name][0] | ({"max_position_embeddings": CONTEXTS[name]} if name in CONTEXTS else {})
    expected = DecoderConfig.from_hf(given)
    assert DecoderConfig.from_orbax(flax_shapes(expected)) == expected


def test_embedding_scales_are_the_root_of_the_width() -> None:
    config = DecoderConfig.from_hf(EXACT["gemma-3 1b"][0])
    assert config.embedding_scale == math.sqrt(1152)

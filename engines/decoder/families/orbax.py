"""Infers a Gemma from the shapes of its Flax parameter tree: Orbax checkpoints carry no configuration.

Facts: the parameter trees and configurations of google-deepmind/gemma 2.x to 3.x. What shapes cannot say
(window, attention scale, RoPE factor) follows from the layer count, as it does there; a count that no
published model has is refused rather than guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from engines.decoder.config import (
    ConfigError,
    DecoderConfig,
    LayerConfig,
    LayerKind,
    Rope,
    RopeScaling,
    UnknownArchitecture,
)
from engines.decoder.families.keys import check_sizes

SOURCE = "the checkpoint"
_LAYER = re.compile(r"^layer_(\d+)/")


@dataclass(frozen=True, slots=True)
class Size:
    """What a published model of a layer count has beyond its shapes. `scale_by_width`: (D / N) ** -0.5."""

    context: int
    window: int = 0
    rope_factor: float = 1.0
    scale_by_width: bool = False


GEMMA_SIZES = {18: Size(8192), 28: Size(8192)}
GEMMA2_SIZES = {26: Size(8192, 4096), 42: Size(8192, 4096), 46: Size(8192, 4096, scale_by_width=True)}
GEMMA3_SIZES = {
    18: Size(32_768, 512),
    26: Size(32_768, 512),
    34: Size(131_072, 1024, 8.0),
    48: Size(131_072, 1024, 8.0),
    62: Size(131_072, 1024, 8.0, scale_by_width=True),
}


@dataclass(frozen=True, slots=True)
class Family:
    """A generation: its published sizes by layer count, and how often a layer is global."""

    sizes: Mapping[int, Size]
    period: int = 1


FAMILIES = {
    "gemma": Family(GEMMA_SIZES),
    "gemma2": Family(GEMMA2_SIZES, period=2),
    "gemma3": Family(GEMMA3_SIZES, period=6),
}


def read_shapes(shapes: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
    """The decoder whose Flax tree has these shapes. Raises UnknownArchitecture or ConfigError.

    Leaf names are joined with '/', without `transformer` in front and `w` behind (`layer_0/attn/q_einsum`).
    """
    name = _generation(shapes)
    family = FAMILIES[name]
    count = 1 + max((int(found[1]) for found in map(_LAYER.match, shapes) if found), default=-1)
    size = family.sizes.get(count)
    if size is None:
        known = ", ".join(map(str, sorted(family.sizes)))
        raise ConfigError(f"{SOURCE} is a {name} of {count} layers; published ones have {known}")
    vocabulary, width = _shape(shapes, "embedder/input_embedding", 2)
    heads, head_dim, kv_heads = _heads(shapes)
    check_sizes(SOURCE, width=width, heads=heads, vocabulary=vocabulary)
    fan_in = width / heads if size.scale_by_width else head_dim
    kinds: list[LayerKind] = [
        "sliding" if (index + 1) % family.period else "global" for index in range(count)
    ]
    return DecoderConfig(
        architecture=name,
        width=width,
        heads=heads,
        layers=tuple(
            LayerConfig(
                kind=kind,
                head_dim=head_dim,
                kv_heads=kv_heads,
                ffn_width=_shape(shapes, f"layer_{index}/mlp/linear", 2)[0],
                rope=_rope(name, kind, size),
                window=size.window if kind == "sliding" else 0,
            )
            for index, kind in enumerate(kinds)
        ),
        vocabulary_size=vocabulary,
        max_context=size.context,
        attention_scale=fan_in**-0.5,
        embedding_scale=math.sqrt(width),
        activation="gelu_tanh",
        post_norms=name != "gemma",
        qk_norm=name == "gemma3",
        attention_softcap=50.0 if name == "gemma2" else None,
        final_softcap=30.0 if name == "gemma2" else None,
    )


def _generation(shapes: Mapping[str, tuple[int, ...]]) -> str:
    if "embedder/input_embedding" not in shapes or "layer_0/mlp/linear" not in shapes:
        raise UnknownArchitecture("a tree of " + ", ".join(sorted(shapes)[:3]), tuple(FAMILIES))
    if any(name.startswith(("layer_0/altup", "layer_0/skip_scale")) for name in shapes):
        raise UnknownArchitecture("a Flax tree of Gemma 3n or 4", tuple(FAMILIES))
    if "layer_0/attn/_query_norm/scale" in shapes:
        return "gemma3"
    return "gemma2" if "layer_0/post_attention_norm/scale" in shapes else "gemma"


def _heads(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
    """Query heads, head size, key-value heads; the two are one einsum where they are as many."""
    joint = shapes.get("layer_0/attn/qkv_einsum")
    if joint is not None:
        heads = joint[1]
        return heads, joint[3], heads
    queries = _shape(shapes, "layer_0/attn/q_einsum", 3)
    return queries[0], queries[2], _shape(shapes, "layer_0/attn/kv_einsum", 4)[1]


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, rank: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) != rank:
        raise ConfigError(f"{SOURCE}: {name} has shape {shape}; expected {rank} dimensions")
    return shape


def _rope(name: str, kind: LayerKind, size: Size) -> Rope:
    if name != "gemma3" or kind == "sliding":
        return Rope(10_000.0)
    scaling = RopeScaling("linear", size.rope_factor) if size.rope_factor != 1.0 else None
    return Rope(1_000_000.0, scaling)

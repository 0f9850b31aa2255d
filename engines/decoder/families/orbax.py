"""Infers a Gemma from the shapes of its Flax parameter tree: Orbax checkpoints carry no configuration.

Facts: the parameter trees and configurations of google-deepmind/gemma 2.x to 4.x. What shapes cannot say
(window, attention scale, RoPE factor, shared keys) follows from the layer count, as it does there; a count
that no published model has is refused rather than guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from engines.decoder.config import (
    ConfigError,
    DecoderConfig,
    Experts,
    LayerConfig,
    LayerKind,
    Rope,
    RopeScaling,
    UnknownArchitecture,
)
from engines.decoder.families.keys import check_sizes
from engines.decoder.families.sharing import kv_sources

SOURCE = "the checkpoint"
_LAYER = re.compile(r"^layer_(\d+)/")


@dataclass(frozen=True, slots=True)
class Size:
    """What a published model of a layer count has beyond its shapes. `scale_by_width`: (D / N) ** -0.5.

    Every `period`-th layer is global; the last `shared` layers read keys of earlier ones; the first `sparse`
    layers zero 95 % of their feed-forward activations.
    """

    context: int
    window: int = 0
    rope_factor: float = 1.0
    scale_by_width: bool = False
    period: int = 1
    shared: int = 0
    sparse: int = 0


@dataclass(frozen=True, slots=True)
class Family:
    """A generation: its published sizes by layer count, and what all of them have."""

    sizes: Mapping[int, Size]
    post_norms: bool = True
    qk_norm: bool = False
    v_norm: bool = False
    unit_scale: bool = False
    attention_softcap: float | None = None
    final_softcap: float | None = None
    global_base: float = 10_000.0
    layer_scale: bool = False


FAMILIES = {
    "gemma": Family({18: Size(8192), 28: Size(8192)}, post_norms=False),
    "gemma2": Family(
        {
            26: Size(8192, 4096, period=2),
            42: Size(8192, 4096, period=2),
            46: Size(8192, 4096, period=2, scale_by_width=True),
        },
        attention_softcap=50.0,
        final_softcap=30.0,
    ),
    "gemma3": Family(
        {
            18: Size(32_768, 512, period=6),
            26: Size(32_768, 512, period=6),
            34: Size(131_072, 1024, 8.0, period=6),
            48: Size(131_072, 1024, 8.0, period=6),
            62: Size(131_072, 1024, 8.0, period=6, scale_by_width=True),
        },
        qk_norm=True,
        global_base=1_000_000.0,
    ),
    "gemma3n": Family(
        {
            30: Size(32_768, 512, period=5, shared=10, sparse=10),
            35: Size(32_768, 512, period=5, shared=15, sparse=10),
        },
        qk_norm=True,
        v_norm=True,
        unit_scale=True,
        final_softcap=30.0,  # published with the weights, though the package leaves it out
        global_base=1_000_000.0,
    ),
    "gemma4": Family(
        {
            30: Size(262_144, 1024, period=6),
            35: Size(131_072, 512, period=5, shared=20),
            42: Size(131_072, 512, period=6, shared=18),
            60: Size(262_144, 1024, period=6),
        },
        qk_norm=True,
        v_norm=True,
        unit_scale=True,
        final_softcap=30.0,
        global_base=1_000_000.0,
        layer_scale=True,
    ),
}
SPARSITY = 0.95
CHOSEN_EXPERTS = 8


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
    layers = _layers(shapes, name, size, count)
    heads = _heads(shapes, 0)[0]
    check_sizes(SOURCE, width=width, heads=heads, vocabulary=vocabulary)
    fan_in = width / heads if size.scale_by_width else layers[0].head_dim
    table = _per_layer_table(shapes)
    return DecoderConfig(
        architecture=name,
        width=width,
        heads=heads,
        layers=layers,
        vocabulary_size=vocabulary,
        max_context=size.context,
        attention_scale=1.0 if family.unit_scale else fan_in**-0.5,
        embedding_scale=math.sqrt(width),
        activation="gelu_tanh",
        post_norms=family.post_norms,
        qk_norm=family.qk_norm,
        v_norm=family.v_norm,
        attention_softcap=family.attention_softcap,
        final_softcap=family.final_softcap,
        layer_scale=family.layer_scale,
        per_layer_width=table[2] if table else 0,
        per_layer_vocabulary=table[0] if table else 0,
        altup_streams=shapes.get("layer_0/altup/correction_coefs", (0,))[0],
        laurel_rank=shapes.get("layer_0/laurel/linear_left", (0, 0))[1],
    )


def _layers(
    shapes: Mapping[str, tuple[int, ...]], name: str, size: Size, count: int
) -> tuple[LayerConfig, ...]:
    kinds: list[LayerKind] = ["sliding" if (index + 1) % size.period else "global" for index in range(count)]
    sources = kv_sources(tuple(kinds), size.shared)
    layers = []
    for index, (kind, source) in enumerate(zip(kinds, sources, strict=True)):
        _, head_dim, kv_heads = _heads(shapes, index if source is None else source)
        layers.append(
            LayerConfig(
                kind=kind,
                head_dim=head_dim,
                kv_heads=kv_heads,
                ffn_width=_shape(shapes, f"layer_{index}/{_dense(shapes, index)}/linear", 2)[0],
                rope=_rope(name, kind, size, head_dim),
                window=size.window if kind == "sliding" else 0,
                kv_source=source,
                value_from_key=f"layer_{index}/attn/k_einsum" in shapes,
                experts=_experts(shapes, index),
                sparsity=SPARSITY if index < size.sparse else 0.0,
            )
        )
    return tuple(layers)


def _dense(shapes: Mapping[str, tuple[int, ...]], index: int) -> str:
    """The dense feed-forward block: where there are experts, they have the usual name."""
    return "mlp2" if f"layer_{index}/mlp/router_logits" in shapes else "mlp"


def _experts(shapes: Mapping[str, tuple[int, ...]], index: int) -> Experts | None:
    if f"layer_{index}/mlp/router_logits" not in shapes:
        return None
    count, width, _ = _shape(shapes, f"layer_{index}/mlp/linear", 3)
    return Experts(count, CHOSEN_EXPERTS, width)


def _per_layer_table(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Shape [V, L, P] of the per-layer embeddings: Gemma 3n and 4 name them differently."""
    for name in ("per_layer_input_embedding", "per_layer_embeddings"):
        if f"embedder/{name}" in shapes:
            return _shape(shapes, f"embedder/{name}", 3)
    return None


def _generation(shapes: Mapping[str, tuple[int, ...]]) -> str:
    if "embedder/input_embedding" not in shapes or "layer_0/mlp/linear" not in shapes:
        raise UnknownArchitecture("a tree of " + ", ".join(sorted(shapes)[:3]), tuple(FAMILIES))
    if "layer_0/skip_scale" in shapes:
        return "gemma4"
    if "layer_0/altup/correction_coefs" in shapes:
        return "gemma3n"
    if "layer_0/attn/_query_norm/scale" in shapes:
        return "gemma3"
    return "gemma2" if "layer_0/post_attention_norm/scale" in shapes else "gemma"


def _heads(shapes: Mapping[str, tuple[int, ...]], index: int) -> tuple[int, int, int]:
    """Query heads, head size, key-value heads of a layer; one einsum for all where they are as many."""
    prefix = f"layer_{index}/attn/"
    joint = shapes.get(prefix + "qkv_einsum")
    if joint is not None:
        return joint[1], joint[3], joint[1]
    queries = _shape(shapes, prefix + "q_einsum", 3)
    keys = shapes.get(prefix + "k_einsum") or _shape(shapes, prefix + "kv_einsum", 4)[1:]
    return queries[0], queries[2], keys[0]


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, rank: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) != rank:
        raise ConfigError(f"{SOURCE}: {name} has shape {shape}; expected {rank} dimensions")
    return shape


def _rope(name: str, kind: LayerKind, size: Size, head_dim: int) -> Rope:
    """Global layers of Gemma 4 turn a quarter of their pairs."""
    if kind == "sliding":
        return Rope(10_000.0)
    scaling = RopeScaling("linear", size.rope_factor) if size.rope_factor != 1.0 else None
    rotated = head_dim // 8 if FAMILIES[name].layer_scale else None
    return Rope(FAMILIES[name].global_base, scaling, rotated)

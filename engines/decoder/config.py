"""One static, hashable description of a decoder: everything about the architecture that programs compile in.

Imports no JAX: the gateway computes memory from it before a runner starts. Foreign keys (config.json, GGUF
metadata, Orbax shapes) are read only by `engines.decoder.families`, through the three constructors here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

LayerKind = Literal["global", "sliding"]
Activation = Literal["gelu_tanh", "gelu", "silu"]


class UnknownArchitecture(ValueError):
    """The files describe a model this engine has no code for; the message lists the ones it has."""

    def __init__(self, name: object, known: tuple[str, ...]) -> None:
        super().__init__(f"architecture {name!r} is not supported; supported are: {', '.join(known)}")
        self.name = name


class ConfigError(ValueError):
    """A known architecture whose description lacks a value or holds an impossible one."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How angles are stretched beyond the trained length.

    `linear` divides every frequency by `factor`. `llama3` (Llama 3.1) divides long wavelengths by `factor`,
    leaves short ones, and blends between `low_frequency` and `high_frequency` turns over `original_context`.
    `yarn` (arXiv:2309.00071) blends by dimension between `beta_slow` and `beta_fast` turns and scales cosine
    and sine by `attention_factor`. `factors` divides each pair's frequency by its own number, which a GGUF
    file carries as a tensor: the loader fills them in.
    """

    kind: Literal["linear", "llama3", "yarn", "factors"]
    factor: float
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_context: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding over half-split pairs (i, i + head_dim / 2).

    Only the first `rotated_pairs` pairs turn (None: all). The exponent's denominator is `head_dim` in either
    case, as Gemma 4's proportional form has it.
    """

    base: float = 10_000.0
    scaling: RopeScaling | None = None
    rotated_pairs: int | None = None


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts beside the dense feed-forward block: `count` of `width`, `chosen` per token."""

    count: int
    chosen: int
    width: int


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One layer. `window` counts the tokens a sliding layer sees, the newest included; 0 on global layers.

    `kv_source` is the layer whose keys and values this one reads instead of its own (None: its own).
    `value_from_key` takes values from the key projection (no `v` weight). `sparsity` is the share of
    feed-forward activations zeroed by Gemma 3n's gaussian top-k, 0 for none.
    """

    kind: LayerKind
    head_dim: int
    kv_heads: int
    ffn_width: int
    rope: Rope
    window: int = 0
    kv_source: int | None = None
    value_from_key: bool = False
    experts: Experts | None = None
    sparsity: float = 0.0


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The whole model. Widths are in elements, contexts in tokens; `architecture` is our name of the family.

    `embedding_scale` multiplies looked-up embeddings (1: none). `attention_scale` multiplies query-key
    products. `post_norms` adds a norm after attention and after the feed-forward block (Gemma 2 onward).
    `qk_norm` and `v_norm` normalise heads (`v_norm` has no weight). `per_layer_width` > 0 adds the per-layer
    embeddings of Gemma 3n and 4. `altup_streams` > 0 is Gemma 3n's AltUp with LAuReL of `laurel_rank`.
    `bidirectional` models are encoders: they only embed. `dense_layers` are the widths of the projections
    after pooling (EmbeddingGemma).
    """

    architecture: str
    width: int
    heads: int
    layers: tuple[LayerConfig, ...]
    vocabulary_size: int
    max_context: int
    attention_scale: float
    embedding_scale: float = 1.0
    norm_epsilon: float = 1e-6
    activation: Activation = "silu"
    post_norms: bool = False
    qk_norm: bool = False
    v_norm: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    attention_softcap: float | None = None
    final_softcap: float | None = None
    tied_head: bool = True
    layer_scale: bool = False
    per_layer_width: int = 0
    per_layer_vocabulary: int = 0
    altup_streams: int = 0
    laurel_rank: int = 0
    bidirectional: bool = False
    dense_layers: tuple[int, ...] = ()

    @property
    def hidden_size(self) -> int:
        """The width of the vectors between layers (the field's other name for `width`)."""
        return self.width

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> DecoderConfig:
        """Reads a Hugging Face config.json. Raises UnknownArchitecture or ConfigError."""
        from engines.decoder.families.huggingface import read_config

        return read_config(config)

    @staticmethod
    def from_gguf(metadata: Mapping[str, Any], tensor_shapes: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
        """Reads GGUF metadata. `tensor_shapes` are in row-major order ([rows, columns]).

        Raises UnknownArchitecture or ConfigError.
        """
        from engines.decoder.families.gguf import read_metadata

        return read_metadata(metadata, tensor_shapes)

    @staticmethod
    def from_orbax(shapes: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
        """Infers a Gemma from the shapes of its Flax tree, whose leaf names are joined with '/'.

        Raises UnknownArchitecture or ConfigError.
        """
        from engines.decoder.families.orbax import read_shapes

        return read_shapes(shapes)

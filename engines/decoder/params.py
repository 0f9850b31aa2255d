"""What weights a decoder has, and what it needs of memory: arithmetic on its configuration. No JAX.

`param_specs` is the one table of names, shapes and roles: random weights, load checks and memory estimates
all derive from it. Called by the loader, and by the gateway before a runner starts.

Canonical names are paths of the parameter tree: `embedding`, `final_norm`, `head`, `layers.<i>.<name>`.
Matrices are [outputs, inputs] as the files have them; norms are the final multiplier (Gemma's 1 + w added).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from engines.decoder.config import DecoderConfig, LayerConfig
from modelfiles.files import ModelFile
from modelfiles.gguf_types import GGML_TYPES

Role = Literal["embedding", "matrix", "norm", "vector", "experts"]
"""`matrix` and `embedding` may be stored quantised; `experts` are stacked matrices; the rest are float32."""

KvType = Literal["bf16", "f32", "int8"]
Device = Literal["cpu", "gpu"]

PREFILL_CHUNK = 512
"""Most tokens one forward pass writes per sequence; rings are this much longer than their window."""
RING_MULTIPLE = 128

BLOCKS: dict[str, tuple[int, int]] = {
    kind.name: (kind.block_size, kind.block_bytes) for kind in GGML_TYPES.values()
}
"""Storage types by GGUF's names: elements and bytes of one block. Rows hold whole blocks."""

KV_BYTES: dict[str, int] = {"bf16": 2, "f32": 4, "int8": 1}


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """One weight: its shape in elements, and its role. `optional` ones have a neutral default of ones."""

    shape: tuple[int, ...]
    role: Role
    optional: bool = False

    @property
    def elements(self) -> int:
        return prod(self.shape)


def param_specs(config: DecoderConfig) -> dict[str, ParamSpec]:
    """Every weight of the model by canonical name, in the order the model uses them."""
    specs = {"embedding": ParamSpec((config.vocabulary_size, config.width), "embedding")}
    specs |= _per_layer_input_specs(config)
    specs |= _altup_specs(config)
    for index, layer in enumerate(config.layers):
        own = (
            _attention_specs(config, layer)
            | _feed_forward_specs(config, layer)
            | _expert_specs(config, layer)
            | _layer_extras(config)
        )
        specs |= {f"layers.{index}.{name}": spec for name, spec in own.items()}
    specs["final_norm"] = ParamSpec((config.width,), "norm")
    if not config.tied_head:
        specs["head"] = ParamSpec((config.vocabulary_size, config.width), "matrix")
    width = config.width
    for index, size in enumerate(config.dense_layers):
        specs[f"dense.{index}"] = ParamSpec((size, width), "matrix")
        width = size
    return specs


def _attention_specs(config: DecoderConfig, layer: LayerConfig) -> dict[str, ParamSpec]:
    width, head_dim = config.width, layer.head_dim
    queries, keys = config.heads * head_dim, layer.kv_heads * head_dim
    specs = {
        "attention_norm": ParamSpec((width,), "norm"),
        "q": ParamSpec((queries, width), "matrix"),
        "o": ParamSpec((width, queries), "matrix"),
    }
    own_keys = layer.kv_source is None
    if own_keys:
        specs["k"] = ParamSpec((keys, width), "matrix")
    if own_keys and not layer.value_from_key:
        specs["v"] = ParamSpec((keys, width), "matrix")
    if config.qk_norm:
        specs["q_norm"] = ParamSpec((head_dim,), "norm")
        if own_keys:
            specs["k_norm"] = ParamSpec((head_dim,), "norm")
    if config.attention_bias:
        specs |= {
            f"{name}_bias": ParamSpec(specs[name].shape[:1], "vector") for name in "qkv" if name in specs
        }
    if config.output_bias:
        specs["o_bias"] = ParamSpec((width,), "vector")
    if config.post_norms:
        specs["post_attention_norm"] = ParamSpec((width,), "norm")
    return specs


def _feed_forward_specs(config: DecoderConfig, layer: LayerConfig) -> dict[str, ParamSpec]:
    width, inner = config.width, layer.ffn_width
    specs = {
        "ffn_norm": ParamSpec((width,), "norm"),
        "gate": ParamSpec((inner, width), "matrix"),
        "up": ParamSpec((inner, width), "matrix"),
        "down": ParamSpec((width, inner), "matrix"),
    }
    if config.post_norms:
        specs["post_ffn_norm"] = ParamSpec((width,), "norm")
    return specs


def _expert_specs(config: DecoderConfig, layer: LayerConfig) -> dict[str, ParamSpec]:
    """Gemma 4's mixture beside the dense block, with a norm before it and one after each branch."""
    experts, width = layer.experts, config.width
    if experts is None:
        return {}
    return {
        "post_dense_norm": ParamSpec((width,), "norm"),
        "pre_experts_norm": ParamSpec((width,), "norm"),
        "post_experts_norm": ParamSpec((width,), "norm"),
        "router": ParamSpec((experts.count, width), "matrix"),
        "router_scale": ParamSpec((width,), "vector"),
        "expert_scale": ParamSpec((experts.count,), "vector"),
        "experts_gate_up": ParamSpec((experts.count, 2 * experts.width, width), "experts"),
        "experts_down": ParamSpec((experts.count, width, experts.width), "experts"),
    }


def _layer_extras(config: DecoderConfig) -> dict[str, ParamSpec]:
    width, streams, per_layer = config.width, config.altup_streams, config.per_layer_width
    specs: dict[str, ParamSpec] = {}
    if per_layer:
        specs |= {
            "per_layer_gate": ParamSpec((per_layer, width), "matrix"),
            "per_layer_projection": ParamSpec((width, per_layer), "matrix"),
            "post_per_layer_norm": ParamSpec((width,), "norm"),
        }
    if config.layer_scale:
        specs["layer_scale"] = ParamSpec((1,), "vector")
    if streams:
        specs |= {
            "altup_correct": ParamSpec((streams, streams), "vector"),
            "altup_predict": ParamSpec((streams * streams, streams), "vector"),
            "altup_scale": ParamSpec((width,), "vector"),
            "altup_router": ParamSpec((streams, width), "vector"),
            "altup_router_norm": ParamSpec((width,), "norm"),
            "laurel_left": ParamSpec((config.laurel_rank, width), "matrix"),
            "laurel_right": ParamSpec((width, config.laurel_rank), "matrix"),
            "post_laurel_norm": ParamSpec((width,), "norm"),
        }
    return specs


def _per_layer_input_specs(config: DecoderConfig) -> dict[str, ParamSpec]:
    if not config.per_layer_width:
        return {}
    total = len(config.layers) * config.per_layer_width
    return {
        "per_layer_embedding": ParamSpec((config.per_layer_vocabulary, total), "embedding"),
        "per_layer_model_projection": ParamSpec((total, config.width), "matrix"),
        "per_layer_projection_norm": ParamSpec((config.per_layer_width,), "norm"),
    }


def _altup_specs(config: DecoderConfig) -> dict[str, ParamSpec]:
    square = ParamSpec((config.width, config.width), "matrix")
    names = ("altup_projection", "altup_unembed")
    return {f"{name}.{index}": square for name in names for index in range(max(config.altup_streams - 1, 0))}


def parameter_count(config: DecoderConfig) -> int:
    """Number of weights, each counted once (a tied head is the embedding)."""
    return sum(spec.elements for spec in param_specs(config).values())


# Bytes --------------------------------------------------------------------------------------------------


def stored_bytes(shape: Sequence[int], block_type: str) -> int:
    """Bytes of a tensor of `shape` in a storage type; its rows must hold whole blocks."""
    elements, size = BLOCKS[block_type]
    if shape[-1] % elements:
        raise ValueError(f"rows of {shape[-1]} do not hold whole {block_type} blocks of {elements}")
    return prod(shape) // elements * size


def weight_bytes(config: DecoderConfig, stored_types: Mapping[str, str] | str) -> int:
    """Bytes of all weights, given each one's storage type by canonical name, or one type for all matrices."""
    total = 0
    for name, spec in param_specs(config).items():
        packed = spec.role in ("matrix", "embedding", "experts")
        one = stored_types if isinstance(stored_types, str) else stored_types.get(name, "F32")
        total += stored_bytes(spec.shape, one if packed else "F32")
    return total


def ring_length(window: int, context: int, chunk: int = PREFILL_CHUNK) -> int:
    """Positions a sliding layer keeps: its window and one chunk being written, at most the context."""
    return min(rounded_length(window + chunk), rounded_length(context))


def layer_length(layer: LayerConfig, context: int, chunk: int = PREFILL_CHUNK) -> int:
    """Positions the cache of a layer holds per slot."""
    return ring_length(layer.window, context, chunk) if layer.window else rounded_length(context)


def rounded_length(count: int) -> int:
    """Positions a cache has for `count` tokens: a whole number of vectors of any machine."""
    return -(-count // RING_MULTIPLE) * RING_MULTIPLE


def cache_bytes(
    config: DecoderConfig, slots: int, context: int, kv_type: KvType = "bf16", chunk: int = PREFILL_CHUNK
) -> int:
    """Bytes of the key-value cache for `slots` sequences of `context` tokens, trash slot included."""
    total = 0
    for layer in config.layers:
        if layer.kv_source is None:
            vectors = (slots + 1) * layer_length(layer, context, chunk) * layer.kv_heads
            scale = 4 if kv_type == "int8" else 0
            total += 2 * vectors * (layer.head_dim * KV_BYTES[kv_type] + scale)
    return total


def activation_bytes(config: DecoderConfig, slots: int, chunk: int = PREFILL_CHUNK) -> int:
    """Upper estimate of what one forward pass needs beside weights and cache: its widest float32 values."""
    inner = max(layer.ffn_width for layer in config.layers)
    queries = max(config.heads * layer.head_dim for layer in config.layers)
    per_token = 4 * (6 * config.width + 3 * inner + 4 * queries + config.altup_streams * config.width)
    scores = 4 * config.heads * chunk * 4096
    return chunk * per_token + 2 * scores + 3 * slots * config.vocabulary_size * 4


KERNEL_TYPES: dict[str, str] = {
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q4_0": "Q4_0",
    "Q4_K": "Q4_K",
    "Q6_K": "Q6_K",
    "Q5_0": "Q8_0",
    "IQ4_NL": "Q8_0",
}
"""Storage types the C++ kernels multiply on a CPU, and what each is packed as; others become float32."""


GPU_BLOCK_BYTES: dict[str, int] = {
    "Q5_0": 34,
    "IQ4_NL": 34,
    "Q5_1": 36,
    "Q2_K": 256 + 2 * 16 + 4,
    "Q3_K": 256 + 16 + 2,
    "Q4_K": 128 + 2 * 8 + 4,
    "Q5_K": 256 + 2 * 8 + 4,
    "Q6_K": 256 + 16 + 2,
}
"""Bytes of a block as a GPU holds it (`gpu.packing`), where that is not what the file has."""

GPU_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "MXFP4", *GPU_BLOCK_BYTES)
"""Storage types a GPU holds as they are or packed; others become bfloat16."""


def held_bytes(shape: Sequence[int], block_type: str, device: Device, kernels: bool = True) -> int:
    """Bytes a matrix of a storage type takes on a device, once loaded."""
    if device == "gpu":
        size = BLOCKS[block_type][1]
        if block_type not in GPU_TYPES:
            return stored_bytes(shape, "BF16")
        return stored_bytes(shape, block_type) // size * GPU_BLOCK_BYTES.get(block_type, size)
    packed = KERNEL_TYPES.get(block_type) if kernels else None
    return stored_bytes(shape, packed or "F32")


RUNTIME_BYTES: dict[Device, int] = {"cpu": 192 << 20, "gpu": 768 << 20}
"""What a runner holds beside the model: on a CPU interpreter, JAX and compiled programs (measured: about 180
MiB); on a GPU the CUDA context, libraries, loaded programs and the allocator's gaps (not measured)."""

PART_BYTES = 256 << 20
"""On a GPU, larger packed matrices are unpacked and multiplied in parts of this size. Two of them, or the
largest matrix of floats, are also the room that XLA needs there to try products out while it compiles."""


def memory_needed(
    files: Sequence[ModelFile],
    slots: int,
    context: int,
    kv_type: KvType = "bf16",
    device: Device = "cpu",
) -> int:
    """Bytes a runner needs to serve `slots` sequences of `context` tokens from these files.

    Header reading and arithmetic only; on a CPU with the C++ kernels. Raises the errors of `read_headers`.
    """
    config, fixed = _fixed(files, slots, device)
    return fixed + cache_bytes(config, slots, context, kv_type)


MAX_STORED_PREFIXES = 2
"""Most prefixes kept aside at a time (`prefix`), each the size of one sequence's cache."""


def prefix_bytes(files: Sequence[ModelFile], context: int, spare: int, kv_type: KvType = "bf16") -> int:
    """Bytes of the stored prefixes that fit `spare`: whole ones, and none for models without rings."""
    from engines.decoder.weights.headers import read_headers

    config = read_headers(files).config
    if config.bidirectional or not any(layer.window for layer in config.layers):
        return 0
    one = one_slot_bytes(config, context, kv_type)
    return one * max(0, min(MAX_STORED_PREFIXES, spare // one))


def one_slot_bytes(config: DecoderConfig, context: int, kv_type: KvType = "bf16") -> int:
    """What one more sequence adds to the cache."""
    return cache_bytes(config, 1, context, kv_type) - cache_bytes(config, 0, context, kv_type)


def _fixed(files: Sequence[ModelFile], slots: int, device: Device) -> tuple[DecoderConfig, int]:
    """The configuration, and the bytes of everything but the cache, from the files' headers."""
    from engines.decoder.weights.headers import read_headers

    headers = read_headers(files)
    specs, weights, largest_float = param_specs(headers.config), 0, 0
    for name, tensor in headers.used.items():
        packed = specs[name].role in ("matrix", "embedding", "experts")
        size = held_bytes(tensor.shape, tensor.block_type if packed else "F32", device)
        weights += size
        if BLOCKS[tensor.block_type][0] == 1:
            largest_float = max(largest_float, size)
    scratch = max(largest_float, 2 * PART_BYTES) if device == "gpu" else 0
    return headers.config, weights + scratch + activation_bytes(headers.config, slots) + RUNTIME_BYTES[device]


def largest_context(
    files: Sequence[ModelFile],
    slots: int,
    budget_bytes: int,
    kv_type: KvType = "bf16",
    device: Device = "cpu",
) -> int:
    """The longest context that fits `budget_bytes`, at most the model's own; 0 when nothing fits."""
    config, fixed = _fixed(files, slots, device)

    def fits(context: int) -> bool:
        return fixed + cache_bytes(config, slots, context, kv_type) <= budget_bytes

    low, high = 0, config.max_context
    while low < high:  # cache_bytes never falls as the context grows
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low if low >= min(config.max_context, RING_MULTIPLE) else 0

"""The C++ kernels of whole blocks of a layer: their arrays in the order of the custom calls.

Knows the names of a layer's weights and the shapes in `fused`; called through the registry only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engines.decoder.fused import AttentionShape, FeedForwardShape
from engines.decoder.native.library import packed_format
from engines.decoder.quant import QuantizedMatrix

Weights = Mapping[str, Any]
Parts = Sequence[QuantizedMatrix | None]

ATTENTION_VECTORS = (
    "attention_norm",
    "q_bias",
    "k_bias",
    "v_bias",
    "q_norm",
    "k_norm",
    "o_bias",
    "post_attention_norm",
)
FEED_FORWARD_VECTORS = ("ffn_norm", "post_ffn_norm")

ACTIVATIONS = {"gelu_tanh": 0, "silu": 1}
"""Activations with a kernel, by the numbers of `src/glue.h`."""


def attention_block(
    hidden: jax.Array,
    weights: Weights,
    parts: Parts,
    cosine: jax.Array,
    sine: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    slots: jax.Array,
    positions: jax.Array,
    shape: AttentionShape,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The residual [B, T, D] after attention, and keys and values with the batch's own in them.

    Rounds activations as `quantized_matmul` does; a row's result is the same in any batch or chunk. The cache
    is written in place where the program donates it, copied first elsewhere.
    """
    matrices = [*parts, weights["o"]]
    writes = shape.widths[1] > 0
    results = [_like(hidden), *([_like(keys), _like(values)] if writes else [])]
    call = jax.ffi.ffi_call(
        "gemmule_attention_block", results, input_output_aliases={5: 1, 6: 2} if writes else None
    )
    out = call(
        hidden,
        slots,
        positions,
        cosine,
        sine,
        keys,
        values,
        *_vectors(weights, ATTENTION_VECTORS),
        *_matrices(matrices),
        heads=np.int64(shape.heads),
        window=np.int64(shape.window),
        scale=np.float32(shape.scale),
        softcap=np.float32(shape.softcap or 0.0),
        epsilon=np.float32(shape.epsilon),
        norm_values=np.int64(shape.norm_values),
        widths=np.array(shape.widths, np.int64),
        formats=_formats(matrices),
    )
    return (out[0], out[1], out[2]) if writes else (out[0], keys, values)


def feed_forward_block(
    hidden: jax.Array, weights: Weights, parts: Parts, shape: FeedForwardShape
) -> jax.Array:
    """The residual [B, T, D] after the gated feed-forward network."""
    matrices = [*parts, weights["down"]]
    flat = hidden.reshape(-1, hidden.shape[-1])
    out: jax.Array = jax.ffi.ffi_call("gemmule_feed_forward_block", _like(flat))(
        flat,
        *_vectors(weights, FEED_FORWARD_VECTORS),
        *_matrices(matrices),
        inner=np.int64(shape.inner),
        activation=np.int64(ACTIVATIONS[shape.activation]),
        epsilon=np.float32(shape.epsilon),
        formats=_formats(matrices),
    )
    return out.reshape(hidden.shape)


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
    made: jax.ShapeDtypeStruct = jax.ShapeDtypeStruct(array.shape, array.dtype)  # type: ignore[no-untyped-call]
    return made


def _absent(dtype: Any) -> jax.Array:
    return jnp.zeros(0, dtype)


def _vectors(weights: Weights, names: Sequence[str]) -> list[jax.Array]:
    return [weights[name] if name in weights else _absent(np.float32) for name in names]


def _matrices(matrices: Parts) -> list[jax.Array]:
    return [_absent(np.uint8) if matrix is None else matrix.data[0] for matrix in matrices]


def _formats(matrices: Parts) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([-1 if m is None else packed_format(m.block_type) for m in matrices], np.int64)

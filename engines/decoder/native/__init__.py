"""The C++ kernels for a CPU: products with block-quantised weights, and attention to the cache.

Optional: without a compiler at installation the library is missing, `available()` is None and XLA serves.
Knows storage types and shapes, not models. `register_all` offers the kernels to `engines.decoder.ops`.
"""

from __future__ import annotations

import jax
import numpy as np
import numpy.typing as npt

from engines.decoder import ops
from engines.decoder.native import layers
from engines.decoder.native.library import (
    BLOCK_TYPES,
    available,
    library,
    packed_format,
    set_threads,
    storage_number,
)
from engines.decoder.params import BLOCKS

__all__ = ["BLOCK_TYPES", "CACHE_TYPES", "available", "pack", "register_all", "set_threads"]

CACHE_TYPES = ("bfloat16", "float32")
"""Types of the key-value cache that the attention kernel reads."""

ALIGNMENT = 64

Bytes = npt.NDArray[np.uint8]


def pack(blocks: Bytes, block_type: str, shape: tuple[int, int]) -> Bytes:
    """Rows of a GGUF tensor, uint8 [outputs, row bytes], in the kernels' layout: uint8 [groups, group bytes].

    Sixteen rows make a group; `shape` is (outputs, inputs) in elements. ValueError where they do not fit.
    """
    kernels = library()
    if kernels is None:
        raise RuntimeError("the C++ kernels are not built")
    storage = storage_number(block_type)
    outputs, inputs = shape
    size, bytes_per_block = BLOCKS[block_type]
    if inputs % size or blocks.size != outputs * (inputs // size) * bytes_per_block:
        raise ValueError(f"{blocks.size} bytes of {block_type} do not make the shape {outputs} x {inputs}")
    source = np.ascontiguousarray(blocks)
    packed = _aligned_zeros(int(kernels.gemmule_packed_bytes(storage, outputs, inputs)))
    kernels.gemmule_pack(storage, source.ctypes.data, outputs, inputs, packed.ctypes.data)
    return packed.reshape(-(-outputs // 16), -1)


def _aligned_zeros(size: int) -> Bytes:
    """Zeros that JAX can take over without a copy, which needs the alignment of its own buffers."""
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def quantized_matmul(x: jax.Array, packed: jax.Array, block_type: str, shape: tuple[int, int]) -> jax.Array:
    """x float32 [M, inputs] times packed weights of `shape` (outputs, inputs) -> float32 [M, outputs].

    For all types but BF16 the activations are rounded to int8 with one scale for 32 inputs. A row's result
    is the same whatever other rows are computed with it.
    """
    result = jax.ShapeDtypeStruct((x.shape[0], shape[0]), np.float32)  # type: ignore[no-untyped-call]
    product: jax.Array = jax.ffi.ffi_call("gemmule_matmul", result)(
        x, packed, format=packed_format(block_type)
    )
    return product


def quantized_rows(packed: jax.Array, block_type: str, shape: tuple[int, int], ids: jax.Array) -> jax.Array:
    """Rows `ids` int32 [M] of packed weights -> float32 [M, inputs]; ids outside are clamped."""
    result = jax.ShapeDtypeStruct((ids.shape[0], shape[1]), np.float32)  # type: ignore[no-untyped-call]
    rows: jax.Array = jax.ffi.ffi_call("gemmule_rows", result)(
        packed, ids, format=packed_format(block_type), outputs=np.int64(shape[0])
    )
    return rows


def cache_write(cache: jax.Array, fresh: jax.Array, slots: jax.Array, positions: jax.Array) -> jax.Array:
    """The cache [slots + 1, kv heads, length, head size] with float32 `fresh` [B, T, kv heads, size] in it.

    Position p of `positions` int32 [B, T] goes to cell p % length of its row's slot, rounded to the cache's
    type; -1 is skipped. The cache is written in place where the program donates it, copied first elsewhere.
    """
    result = jax.ShapeDtypeStruct(cache.shape, cache.dtype)  # type: ignore[no-untyped-call]
    written: jax.Array = jax.ffi.ffi_call("gemmule_write", result, input_output_aliases={0: 0})(
        cache, fresh.astype(np.float32), slots, positions
    )
    return written


def cached_attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    slots: jax.Array,
    positions: jax.Array,
    *,
    scale: float,
    softcap: float | None,
    window: int,
) -> jax.Array:
    """Attention of query float32 [B, T, heads, head size] to the cached positions up to its own.

    `keys` and `values` are [slots + 1, kv heads, length, head size], bfloat16 or float32; position p of a
    slot lies in cell p % length. `positions` int32 [B, T] is -1 for padding, whose result is 0. `window`
    counts the query's own position (0: no limit). Head sizes are multiples of 16.
    """
    result = jax.ShapeDtypeStruct(query.shape, np.float32)  # type: ignore[no-untyped-call]
    attended: jax.Array = jax.ffi.ffi_call("gemmule_attention", result)(
        query.astype(np.float32),
        keys,
        values,
        slots,
        positions,
        scale=np.float32(scale),
        softcap=np.float32(softcap or 0.0),
        window=np.int64(window),
    )
    return attended


def register_all() -> str | None:
    """Offers every kernel to the registry; returns `available()`. Safe to call again."""
    path = available()
    if path is None:
        return None
    set_threads()
    name = f"native-{path}"
    for block_type in BLOCK_TYPES:
        ops.register("pack", block_type, "cpu", _packer(block_type), name)
        ops.register("matmul", block_type, "cpu", _matmul(block_type), name)
        ops.register("rows", block_type, "cpu", _rows(block_type), name)
    for cache_type in CACHE_TYPES:
        ops.register("attention", cache_type, "cpu", cached_attention, name)
        ops.register("write", cache_type, "cpu", cache_write, name)
        ops.register("attention_block", cache_type, "cpu", layers.attention_block, name)
    for activation in layers.ACTIVATIONS:
        ops.register("feed_forward_block", activation, "cpu", layers.feed_forward_block, name)
    return path


def _packer(block_type: str) -> ops.Kernel:
    return lambda rows, shape: pack(rows, block_type, shape)


def _matmul(block_type: str) -> ops.Kernel:
    return lambda x, packed, shape: quantized_matmul(x, packed, block_type, shape)


def _rows(block_type: str) -> ops.Kernel:
    return lambda packed, shape, ids: quantized_rows(packed, block_type, shape, ids)

"""The C++ kernels for a CPU: products with block-quantised weights, and attention to the cache.

Optional: without a compiler at installation the library is missing, `available()` is None and XLA serves.
Knows storage types and shapes, not models. `register_all` offers the kernels to `engines.decoder.ops`.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

import jax
import numpy as np
import numpy.typing as npt

from engines.decoder import ops
from engines.decoder.params import BLOCKS
from modelfiles.gguf_types import GGML_TYPE_BY_NAME

logger = logging.getLogger(__name__)

BLOCK_TYPES = ("Q8_0", "Q4_0", "Q4_K", "Q6_K", "BF16", "Q5_0", "IQ4_NL")
"""Storage types with a kernel. Q5_0 and IQ4_NL are packed as 8-bit codes, which hold them exactly."""

CACHE_TYPES = ("bfloat16", "float32")
"""Types of the key-value cache that the attention kernel reads."""

ALIGNMENT = 64
CUSTOM_CALLS = ("gemmule_matmul", "gemmule_rows", "gemmule_attention", "gemmule_write")

Bytes = npt.NDArray[np.uint8]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled library with its custom calls registered, or None; says once why it is missing."""
    found = sorted(Path(__file__).parent.glob("_kernels*.so")) + sorted(
        Path(__file__).parent.glob("_kernels*.pyd")
    )
    if not found:
        logger.warning(
            "the C++ kernels are not built, so weights are unpacked to float32 and decoding is several times "
            "slower; install a C++ compiler and run `python setup.py build_ext --inplace`"
        )
        return None
    try:
        library = ctypes.CDLL(str(found[-1]))
    except OSError as error:
        logger.warning("the C++ kernels cannot be loaded (%s); XLA serves instead", error)
        return None
    library.gemmule_path.restype = ctypes.c_char_p
    library.gemmule_packed_bytes.restype = ctypes.c_int64
    library.gemmule_packed_bytes.argtypes = [ctypes.c_int32, ctypes.c_int64, ctypes.c_int64]
    library.gemmule_pack.restype = None
    library.gemmule_pack.argtypes = [
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    for name in CUSTOM_CALLS:
        capsule = jax.ffi.pycapsule(getattr(library, name))  # type: ignore[no-untyped-call]
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return library


def available() -> str | None:
    """The instruction-set path in use (`avx512-vnni`, `avx2`, `neon-dotprod`, `portable`), or None."""
    library = _library()
    return None if library is None else str(library.gemmule_path().decode())


def pack(blocks: Bytes, block_type: str, shape: tuple[int, int]) -> Bytes:
    """Rows of a GGUF tensor, uint8 [outputs, row bytes], in the kernels' layout: uint8 [groups, group bytes].

    Sixteen rows make a group; `shape` is (outputs, inputs) in elements. ValueError where they do not fit.
    """
    library = _library()
    if library is None:
        raise RuntimeError("the C++ kernels are not built")
    storage = _storage(block_type)
    outputs, inputs = shape
    size, bytes_per_block = BLOCKS[block_type]
    if inputs % size or blocks.size != outputs * (inputs // size) * bytes_per_block:
        raise ValueError(f"{blocks.size} bytes of {block_type} do not make the shape {outputs} x {inputs}")
    source = np.ascontiguousarray(blocks)
    packed = _aligned_zeros(int(library.gemmule_packed_bytes(storage, outputs, inputs)))
    library.gemmule_pack(storage, source.ctypes.data, outputs, inputs, packed.ctypes.data)
    return packed.reshape(-(-outputs // 16), -1)


def _storage(block_type: str) -> int:
    if block_type not in BLOCK_TYPES:
        raise ValueError(f"no kernel for {block_type}; there are kernels for {', '.join(BLOCK_TYPES)}")
    return int(GGML_TYPE_BY_NAME[block_type].id)


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
    product: jax.Array = jax.ffi.ffi_call("gemmule_matmul", result)(x, packed, format=_format(block_type))
    return product


def quantized_rows(packed: jax.Array, block_type: str, shape: tuple[int, int], ids: jax.Array) -> jax.Array:
    """Rows `ids` int32 [M] of packed weights -> float32 [M, inputs]; ids outside are clamped."""
    result = jax.ShapeDtypeStruct((ids.shape[0], shape[1]), np.float32)  # type: ignore[no-untyped-call]
    rows: jax.Array = jax.ffi.ffi_call("gemmule_rows", result)(
        packed, ids, format=_format(block_type), outputs=np.int64(shape[0])
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


@functools.cache
def _format(block_type: str) -> np.int64:
    library = _library()
    assert library is not None, "a packed matrix exists, so the library does"
    return np.int64(library.gemmule_format(_storage(block_type)))


def register_all() -> str | None:
    """Offers every kernel to the registry; returns `available()`. Safe to call again."""
    path = available()
    if path is None:
        return None
    name = f"native-{path}"
    for block_type in BLOCK_TYPES:
        ops.register("pack", block_type, "cpu", _packer(block_type), name)
        ops.register("matmul", block_type, "cpu", _matmul(block_type), name)
        ops.register("rows", block_type, "cpu", _rows(block_type), name)
    for cache_type in CACHE_TYPES:
        ops.register("attention", cache_type, "cpu", cached_attention, name)
        ops.register("write", cache_type, "cpu", cache_write, name)
    return path


def _packer(block_type: str) -> ops.Kernel:
    return lambda rows, shape: pack(rows, block_type, shape)


def _matmul(block_type: str) -> ops.Kernel:
    return lambda x, packed, shape: quantized_matmul(x, packed, block_type, shape)


def _rows(block_type: str) -> ops.Kernel:
    return lambda packed, shape, ids: quantized_rows(packed, block_type, shape, ids)

"""Offers the GPU's forms to the registry of kernels. Called by the loader when weights go to a GPU."""

from __future__ import annotations

from engines.decoder import ops
from engines.decoder.gpu import attention, packing, products

NAME = "xla-packed"
CACHE_TYPES = ("bfloat16", "float32", "int8")


def register_all() -> None:
    """Safe to call again."""
    for block_type in packing.FORMATS:
        ops.register("pack", block_type, "gpu", _pack(block_type), NAME)
        ops.register("matmul", block_type, "gpu", _matmul(block_type), NAME)
        ops.register("rows", block_type, "gpu", _rows(block_type), NAME)
    for cache_type in CACHE_TYPES:
        ops.register("attention", cache_type, "gpu", attention.attend_cache, NAME)


def unregister_all() -> None:
    """Takes them back (tests and benches compare with and without)."""
    for block_type in packing.FORMATS:
        for op in ("pack", "matmul", "rows"):
            ops.unregister(op, block_type, "gpu")
    for cache_type in CACHE_TYPES:
        ops.unregister("attention", cache_type, "gpu")


def _pack(block_type: str) -> ops.Kernel:
    return lambda rows, shape: packing.pack(rows, block_type, shape)


def _matmul(block_type: str) -> ops.Kernel:
    return lambda x, packed, shape: products.matmul(x, packed, block_type, shape)


def _rows(block_type: str) -> ops.Kernel:
    return lambda packed, shape, ids: products.rows(packed, block_type, shape, ids)

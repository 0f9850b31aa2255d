"""Products with packed weights on a GPU: a reduction for few rows, unpacking and a dot for many.

`reduce` reads every code once and sums float32 products in the same kernel: exact, nothing is written beside
the result, but each weight costs a few instructions for every row. `dot` unpacks to bfloat16 in memory and
leaves the product to the tensor cores: 5 bytes moved where an 8-bit weight has one, for any number of rows.
Registered by `forms`; the oracle is `blocks.unpack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp

from engines.decoder.gpu import packing
from engines.decoder.params import PART_BYTES

REDUCE_ROWS: Final = 4
"""Most rows that take the `reduce` form. By arithmetic, not measured: on an H200 (28 TB/s from L1, 4.3 TB/s
from memory) R rows read 4 R bytes of activations from L1 per weight, so that 4.3e12 8-bit weights a second
become 28e12 / (4 R + 3); the dot form moves 5 bytes a weight, 0.86e12 a second. They cross at R = 7; 4 leaves
room for cards with less L1 for their memory. `make bench-gpu` times both around this line."""


def matmul(x: jax.Array, arrays: Sequence[Any], block_type: str, shape: tuple[int, int]) -> jax.Array:
    """x float32 [M, K] times packed weights of `shape` (N, K) -> float32 [M, N]."""
    form = reduce if x.shape[0] <= REDUCE_ROWS else dot
    return form(x, arrays, block_type, shape)


def reduce(x: jax.Array, arrays: Sequence[Any], block_type: str, shape: tuple[int, int]) -> jax.Array:
    """The product as sums over each output's inputs, all rows in one pass over the codes."""
    packed = packing.named(arrays, block_type)
    scales, offsets = packing.by_group(packed, block_type)
    codes = packing.halves(packed, block_type)
    sums = []
    for row in x:
        inputs = jnp.split(row.reshape(scales.shape[1], -1), len(codes), axis=-1)  # each [groups, part]
        total = sum(part * values for part, values in zip(codes, inputs, strict=True)) * scales[:, :, None]
        if offsets is not None:
            total = total + sum(inputs) * offsets[:, :, None]
        sums.append(jnp.sum(total, axis=(1, 2)))
    return jnp.stack(apart(sums))


def apart(results: list[jax.Array]) -> list[jax.Array]:
    """The same, not to be fused with what comes after: XLA would compute one of them again there."""
    kept: list[jax.Array] = jax.lax.optimization_barrier(results)  # type: ignore[no-untyped-call]
    return kept


def dot(x: jax.Array, arrays: Sequence[Any], block_type: str, shape: tuple[int, int]) -> jax.Array:
    """The product of bfloat16 values, summed in float32; large matrices in parts, one after the other."""
    narrow = x.astype(jnp.bfloat16)

    def multiply(part: Sequence[Any]) -> jax.Array:
        weights = packing.unpacked(packing.named(part, block_type), block_type).astype(jnp.bfloat16)
        over = (((1,), (1,)), ((), ()))
        product: jax.Array = jax.lax.dot_general(narrow, weights, over, preferred_element_type=jnp.float32)
        return product

    parts = _parts(shape)
    if parts == 1:
        return multiply(arrays)
    split = [array.reshape(parts, -1, *array.shape[1:]) for array in arrays]
    products: jax.Array = jax.lax.map(
        multiply, split
    )  # a loop: side by side, all parts would be unpacked first
    return products.transpose(1, 0, 2).reshape(x.shape[0], -1)


def _parts(shape: tuple[int, int]) -> int:
    """The fewest equal parts that are small enough; 1 where a matrix cannot be divided so."""
    outputs, inputs = shape
    fewest = -(-outputs * inputs * 2 // PART_BYTES)
    return next((parts for parts in range(fewest, 8 * fewest) if outputs % parts == 0), 1)


def rows(arrays: Sequence[Any], block_type: str, shape: tuple[int, int], ids: jax.Array) -> jax.Array:
    """Rows `ids` int32 [M] of packed weights -> float32 [M, K]."""
    taken = [jnp.take(array, ids, axis=0) for array in arrays]
    return packing.unpacked(packing.named(taken, block_type), block_type)

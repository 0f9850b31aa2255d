"""Weight matrices in the precision they came in, and the product that unpacks them where they are used.

A `QuantizedMatrix` is a pytree whose layout was decided once, at load, for its device: a native kernel's
packing, blocks as they lie in the file, or plain floats. Called by `model` (products, look-ups) and by the
loader (`place`). Knows nothing of layers or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt

from engines.decoder import ops
from engines.decoder.blocks import FLOAT_TYPES, UNPACKERS, dequantize, unpack

Layout = Literal["columns", "rows", "blocks", "native"]
"""`columns` floats [in, out]; `rows` floats [out, in]; `blocks` bytes [out, row]; `native` a kernel's own."""

Platform = Literal["cpu", "gpu"]
"""What programs are made for: decides layouts and kernels."""

Rows = npt.NDArray[np.uint8]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["data"],
    meta_fields=["block_type", "layout", "shape", "platform"],
)
@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix of `shape` (outputs, inputs), stored as `block_type`, held in `layout`.

    `data` are the device arrays of the layout, one or several.
    """

    data: tuple[jax.Array, ...]
    block_type: str
    layout: Layout
    shape: tuple[int, int]
    platform: Platform = "cpu"

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.data)


def matmul(x: jax.Array, matrix: QuantizedMatrix) -> jax.Array:
    """x float32 [..., in] times the matrix -> float32 [..., out]."""
    flat = x.reshape(-1, x.shape[-1])
    return _PRODUCTS[matrix.layout](flat, matrix).reshape(*x.shape[:-1], matrix.shape[0])


def take_rows(matrix: QuantizedMatrix, ids: jax.Array) -> jax.Array:
    """Rows `ids` int32 [...] of the matrix as float32 [..., in]: the look-up of an embedding table."""
    flat = _LOOK_UPS[matrix.layout](matrix, ids.reshape(-1))
    return flat.reshape(*ids.shape, matrix.shape[1])


def to_float(matrix: QuantizedMatrix) -> jax.Array:
    """The whole matrix as float32 [out, in] (checks and tests)."""
    return take_rows(matrix, jnp.arange(matrix.shape[0], dtype=jnp.int32))


def select(stack: QuantizedMatrix, index: jax.Array) -> QuantizedMatrix:
    """One matrix of a stack made by `place_stack`; `index` is a traced scalar."""
    chosen = tuple(jax.lax.dynamic_index_in_dim(array, index, 0, keepdims=False) for array in stack.data)
    return replace(stack, data=chosen)


# Products -----------------------------------------------------------------------------------------------


def _columns_product(x: jax.Array, matrix: QuantizedMatrix) -> jax.Array:
    return jnp.dot(x, matrix.data[0], preferred_element_type=jnp.float32)


def _rows_product(x: jax.Array, matrix: QuantizedMatrix) -> jax.Array:
    weights = matrix.data[0]
    if weights.dtype == jnp.float16:
        weights = weights.astype(jnp.float32)  # activations may exceed float16; TF32 keeps its ten bits
    exact = jax.lax.Precision.HIGHEST if matrix.block_type == "F32" else None
    return jax.lax.dot_general(
        x.astype(weights.dtype),
        weights,
        (((1,), (1,)), ((), ())),
        precision=exact,
        preferred_element_type=jnp.float32,
    )


def _blocks_product(x: jax.Array, matrix: QuantizedMatrix) -> jax.Array:
    weights = unpack(matrix.data[0], matrix.block_type, jnp)
    if matrix.platform == "gpu":
        x, weights = x.astype(jnp.bfloat16), weights.astype(jnp.bfloat16)
    return jax.lax.dot_general(x, weights, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _native_product(x: jax.Array, matrix: QuantizedMatrix) -> jax.Array:
    kernel = ops.lookup("matmul", matrix.block_type, matrix.platform)
    if kernel is None:
        raise RuntimeError(f"the native {matrix.block_type} kernel that packed these weights is gone")
    product: jax.Array = kernel(x.astype(jnp.float32), _packed(matrix), matrix.shape)
    return product


def _packed(matrix: QuantizedMatrix) -> Any:
    return matrix.data[0] if len(matrix.data) == 1 else matrix.data


_PRODUCTS: dict[str, Callable[[jax.Array, QuantizedMatrix], jax.Array]] = {
    "columns": _columns_product,
    "rows": _rows_product,
    "blocks": _blocks_product,
    "native": _native_product,
}


# Look-ups -----------------------------------------------------------------------------------------------


def _columns_rows(matrix: QuantizedMatrix, ids: jax.Array) -> jax.Array:
    return jnp.take(matrix.data[0], ids, axis=1).T.astype(jnp.float32)


def _rows_rows(matrix: QuantizedMatrix, ids: jax.Array) -> jax.Array:
    return jnp.take(matrix.data[0], ids, axis=0).astype(jnp.float32)


def _blocks_rows(matrix: QuantizedMatrix, ids: jax.Array) -> jax.Array:
    rows: jax.Array = unpack(jnp.take(matrix.data[0], ids, axis=0), matrix.block_type, jnp)
    return rows


def _native_rows(matrix: QuantizedMatrix, ids: jax.Array) -> jax.Array:
    kernel = ops.lookup("rows", matrix.block_type, matrix.platform)
    if kernel is None:
        raise RuntimeError(f"the native {matrix.block_type} kernel cannot look up rows")
    rows: jax.Array = kernel(_packed(matrix), matrix.shape, ids)
    return rows


_LOOK_UPS: dict[str, Callable[[QuantizedMatrix, jax.Array], jax.Array]] = {
    "columns": _columns_rows,
    "rows": _rows_rows,
    "blocks": _blocks_rows,
    "native": _native_rows,
}


# Placement ----------------------------------------------------------------------------------------------


def layout_for(block_type: str, platform: str, look_up: bool) -> Layout:
    """Where a matrix of this storage type goes; `look_up` for tables whose rows are also gathered."""
    if ops.lookup("matmul", block_type, platform) and not (
        look_up and ops.lookup("rows", block_type, platform) is None
    ):
        return "native"
    if platform == "cpu":
        return "columns"  # XLA's narrow products on a CPU copy the whole matrix to float32 at every call
    return "blocks" if block_type in UNPACKERS else "rows"


def platform_of(device: jax.Device) -> Platform:
    """`cpu`, or `gpu` for whatever else JAX calls a device (`cuda`, `rocm`, `gpu`)."""
    return "cpu" if device.platform == "cpu" else "gpu"


def place(
    rows: Rows,
    block_type: str,
    shape: tuple[int, int],
    device: jax.Device,
    *,
    look_up: bool = False,
    platform: Platform | None = None,
) -> QuantizedMatrix:
    """Puts a matrix on a device: `rows` are its bytes [out, row bytes] as stored in the file.

    `platform` says whose layout and products to use (default: the device's own); tests trace a GPU's programs
    on a machine without one.
    """
    platform = platform or platform_of(device)
    layout = layout_for(block_type, platform, look_up)
    host = _HOST_FORMS[layout](rows, block_type, shape, platform)
    data = tuple(jax.device_put(array, device) for array in host)
    return QuantizedMatrix(data, block_type, layout, shape, platform)


def place_stack(
    rows: Rows,
    block_type: str,
    shape: tuple[int, int, int],
    device: jax.Device,
    *,
    platform: Platform | None = None,
) -> QuantizedMatrix:
    """Puts a stack of matrices [count, out, in] on a device, for `select`; `rows` [count, out, row bytes]."""
    platform = platform or platform_of(device)
    layout = layout_for(block_type, platform, look_up=False)
    single = (shape[1], shape[2])
    forms = [_HOST_FORMS[layout](one, block_type, single, platform) for one in rows]
    data = tuple(jax.device_put(np.stack(parts), device) for parts in zip(*forms, strict=True))
    return QuantizedMatrix(data, block_type, layout, single, platform)


def _native_host(rows: Rows, block_type: str, shape: tuple[int, int], platform: str) -> tuple[Any, ...]:
    pack = ops.lookup("pack", block_type, platform)
    packed = rows if pack is None else pack(rows, shape)
    return packed if isinstance(packed, tuple) else (packed,)


def _blocks_host(rows: Rows, block_type: str, shape: tuple[int, int], platform: str) -> tuple[Any, ...]:
    return (rows,)


def _rows_host(rows: Rows, block_type: str, shape: tuple[int, int], platform: str) -> tuple[Any, ...]:
    if block_type in FLOAT_TYPES:
        dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
        return (rows.view(dtypes[block_type]),)
    return (dequantize(rows, block_type).astype(ml_dtypes.bfloat16),)


CHUNK_BYTES = 8 << 20


def _columns_host(rows: Rows, block_type: str, shape: tuple[int, int], platform: str) -> tuple[Any, ...]:
    """float32 [in, out], filled a few rows at a time so that no second copy of the matrix exists."""
    columns = np.empty((shape[1], shape[0]), np.float32)
    step = max(16, CHUNK_BYTES // (4 * shape[1]))
    for start in range(0, shape[0], step):
        columns[:, start : start + step] = dequantize(rows[start : start + step], block_type).T
    return (columns,)


_HOST_FORMS: dict[str, Callable[[Rows, str, tuple[int, int], str], tuple[Any, ...]]] = {
    "native": _native_host,
    "blocks": _blocks_host,
    "rows": _rows_host,
    "columns": _columns_host,
}

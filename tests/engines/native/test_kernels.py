"""The C++ kernels against numpy on random blocks and odd shapes, on every path that this processor has."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from engines.decoder import native, ops
from engines.decoder.blocks import dequantize
from engines.decoder.native.library import library, storage_number
from engines.decoder.params import BLOCKS
from modelfiles.gguf_types import GGML_TYPE_BY_NAME
from tests.engines.native.conftest import PATHS

if library() is None:
    pytest.skip("the C++ kernels are not built (no compiler?)", allow_module_level=True)

SHAPES = {
    32: [(1, 32), (16, 96), (35, 64), (130, 640)],
    256: [(1, 256), (35, 512), (64, 768)],
    1: [(19, 33), (64, 70)],
}
CASES = [(kind, shape) for kind in native.BLOCK_TYPES for shape in SHAPES[BLOCKS[kind][0]]]


def random_rows(block_type: str, shape: tuple[int, int], seed: int = 0) -> npt.NDArray[np.uint8]:
    """Random blocks: any codes and small scales, finite half-precision scales of either sign."""
    random = np.random.default_rng(seed)
    size, width = BLOCKS[block_type]
    if block_type == "BF16":
        values = random.normal(size=shape).astype(np.float32)
        return np.ascontiguousarray(values.view(np.uint16)[:, 1::2]).view(np.uint8)
    blocks = random.integers(0, 256, (shape[0] * shape[1] // size, width), dtype=np.uint8)
    places = {"Q4_K": (0, 2), "Q6_K": (208,)}.get(block_type, (0,))
    for place in places:
        scales = random.normal(size=len(blocks)).astype(np.float16) * np.float16(0.05)
        blocks[:, place : place + 2] = scales[:, None].view(np.uint8)
    return blocks.reshape(shape[0], -1)


def rounded(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Activations as the kernels take them: int8 with one scale for 32, ties to even."""
    groups = x.reshape(-1, 32)
    most = np.abs(groups).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    codes = np.rint(groups * inverse).astype(np.float64)
    return (codes * (most / np.float32(127))).reshape(x.shape)


def oracle(
    x: npt.NDArray[np.float32], rows: npt.NDArray[np.uint8], block_type: str
) -> npt.NDArray[np.float64]:
    weights = dequantize(rows, block_type).astype(np.float64)
    if block_type != "BF16":
        return rounded(x) @ weights.T
    return x @ weights.T


def product(
    block_type: str,
    x: npt.NDArray[np.float32],
    packed: npt.NDArray[np.uint8],
    outputs: int,
) -> npt.NDArray[np.float32]:
    loaded: Any = library()
    out = np.full((x.shape[0], outputs), np.nan, np.float32)
    loaded.gemmule_product(
        ctypes.c_int32(GGML_TYPE_BY_NAME[block_type].id),
        ctypes.c_void_p(x.ctypes.data),
        ctypes.c_int64(x.shape[0]),
        ctypes.c_int64(x.shape[1]),
        ctypes.c_void_p(packed.ctypes.data),
        ctypes.c_int64(outputs),
        ctypes.c_void_p(out.ctypes.data),
    )
    return out


def inputs(count: int, width: int, seed: int = 1) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, width)).astype(np.float32)
    x[:, : min(width, 32)] *= 0  # a block of zeros has no scale
    return x


@pytest.mark.parametrize(("block_type", "shape"), CASES)
def test_products_equal_the_numpy_oracle(path: str, block_type: str, shape: tuple[int, int]) -> None:
    rows = random_rows(block_type, shape)
    packed = native.pack(rows, block_type, shape)
    x = inputs(11, shape[1])
    expected = oracle(x, rows, block_type)
    found = product(block_type, x, packed, shape[0])
    # float32 sums of a few hundred products against float64
    scale = np.abs(x) @ np.abs(dequantize(rows, block_type)).T + 1e-6
    assert np.max(np.abs(found - expected) / scale) < 2e-6


@pytest.mark.parametrize("block_type", native.BLOCK_TYPES)
def test_a_rows_result_is_the_same_in_any_batch(path: str, block_type: str) -> None:
    shape = (150, 512)
    packed = native.pack(random_rows(block_type, shape), block_type, shape)
    x = inputs(70, shape[1])
    together = product(block_type, x, packed, shape[0])
    for count in (1, 2, 3, 4, 5, 8, 9, 33):
        assert np.array_equal(product(block_type, x[:count], packed, shape[0]), together[:count])
    assert np.array_equal(product(block_type, x[13:14], packed, shape[0])[0], together[13])


@pytest.mark.parametrize("block_type", [kind for kind in native.BLOCK_TYPES if kind != "BF16"])
def test_vector_paths_agree_to_the_bit(block_type: str, use_path: Callable[[str], str]) -> None:
    shape = (48, 512)
    packed = native.pack(random_rows(block_type, shape), block_type, shape)
    x = inputs(5, shape[1])
    paths = [path for path in ("avx512-bf16", "avx512-vnni", "avx2") if use_path(path)]
    found = [product(block_type, x, packed, 48) for path in paths if use_path(path)]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[1], found[2])


@pytest.mark.parametrize("block_type", native.BLOCK_TYPES)
def test_rows_come_back_exactly(block_type: str) -> None:
    shape = (35, 256)
    rows = random_rows(block_type, shape)
    packed = jnp.asarray(native.pack(rows, block_type, shape))
    ids = jnp.array([0, 34, 17, 16, 15, 34, 99, -1], jnp.int32)
    found = jax.jit(lambda p, i: native.quantized_rows(p, block_type, shape, i))(packed, ids)
    expected = dequantize(rows, block_type)[np.clip(np.asarray(ids), 0, 34)]
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-6, atol=1e-7)


def test_the_custom_call_runs_inside_a_program(path: str) -> None:
    shape = (40, 96)
    rows = random_rows("Q8_0", shape)
    packed = jnp.asarray(native.pack(rows, "Q8_0", shape))
    x = inputs(3, 96)
    call = jax.jit(lambda x, p: native.quantized_matmul(x * 1.0, p, "Q8_0", shape) + 1.0)
    np.testing.assert_allclose(np.asarray(call(x, packed)), oracle(x, rows, "Q8_0") + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block_type", ["Q8_0", "BF16"])
def test_not_a_number_is_not_hidden(path: str, block_type: str) -> None:
    packed = native.pack(random_rows(block_type, (16, 64)), block_type, (16, 64))
    x = inputs(2, 64)
    x[0, 40] = np.nan
    found = product(block_type, x, packed, 16)
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


@pytest.mark.parametrize(("block_type", "shape"), [("Q8_0", (4, 40)), ("Q4_K", (4, 128)), ("Q8_0", (5, 64))])
def test_shapes_that_do_not_fit_are_refused(block_type: str, shape: tuple[int, int]) -> None:
    rows = np.zeros((4, 68), np.uint8)
    with pytest.raises(ValueError, match="do not make the shape"):
        native.pack(rows, block_type, shape)


def test_types_without_a_kernel_are_named() -> None:
    with pytest.raises(ValueError, match="no kernel for Q2_K"):
        storage_number("Q2_K")


def test_registration_offers_every_kernel() -> None:
    assert native.register_all() in PATHS
    for block_type in native.BLOCK_TYPES:
        for op in ("pack", "matmul", "rows"):
            assert ops.lookup(op, block_type, "cpu")
            ops.unregister(op, block_type, "cpu")
    for cache_type in native.CACHE_TYPES:
        for op in ("attention", "attention_block", "write"):
            assert ops.lookup(op, cache_type, "cpu")
            ops.unregister(op, cache_type, "cpu")
    native.register_all()

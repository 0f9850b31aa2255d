"""The GPU's forms run on the CPU, against the generic ones: same numbers, whatever the platform."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.base import LoadFailed
from engines.decoder import blocks
from engines.decoder.attention import attend_cache
from engines.decoder.cache import LayerCache, write
from engines.decoder.config import LayerConfig, Rope
from engines.decoder.gpu import forms, packing, products
from engines.decoder.params import held_bytes
from engines.decoder.quant import matmul, place, place_stack, select, take_rows
from engines.decoder.weights.loading import load_model
from modelfiles.files import ModelFile
from tests.engines.decoder.test_quant import random_rows

pytestmark = pytest.mark.slow

CPU = jax.devices("cpu")[0]
ROWS, BLOCKS_A_ROW = 16, 3


@pytest.fixture(autouse=True)
def gpu_forms() -> Iterator[None]:
    forms.register_all()
    yield
    forms.unregister_all()


def shape_of(block_type: str) -> tuple[int, int]:
    return ROWS, BLOCKS_A_ROW * blocks.BLOCKS[block_type][0]


@pytest.mark.parametrize("block_type", packing.FORMATS)
def test_packing_loses_nothing(block_type: str) -> None:
    rows, shape = random_rows(block_type), shape_of(block_type)
    arrays = packing.named(packing.pack(rows, block_type, shape), block_type)
    exact = blocks.dequantize(rows, block_type)
    found = np.asarray(packing.unpacked(packing.Packed(*arrays), block_type))
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize("block_type", packing.FORMATS)
@pytest.mark.parametrize("rows", [1, products.REDUCE_ROWS, products.REDUCE_ROWS + 1, 19])
def test_products_equal_those_of_the_unpacked_weights(block_type: str, rows: int) -> None:
    raw, shape = random_rows(block_type), shape_of(block_type)
    matrix = place(raw, block_type, shape, CPU, platform="gpu")
    assert matrix.layout == "native"
    x = np.random.default_rng(1).standard_normal((rows, shape[1])).astype(np.float32)
    expected = x @ blocks.dequantize(raw, block_type).T
    product = np.asarray(jax.jit(matmul)(jnp.asarray(x), matrix))
    # few rows are summed in float32; many round weights and activations to the 8 bits of bfloat16
    tolerance = 1e-5 if rows <= products.REDUCE_ROWS else 2e-2
    assert np.abs(product - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("block_type", packing.FORMATS)
def test_rows_are_looked_up_and_experts_selected(block_type: str) -> None:
    raw, shape = random_rows(block_type), shape_of(block_type)
    exact = blocks.dequantize(raw, block_type)
    table = place(raw, block_type, shape, CPU, look_up=True, platform="gpu")
    ids = jnp.asarray([[3, 0], [15, 3]], jnp.int32)
    np.testing.assert_allclose(take_rows(table, ids), exact[np.asarray(ids)], rtol=1e-6, atol=1e-4)
    stack = place_stack(np.stack([raw, raw[::-1]]), block_type, (2, *shape), CPU, platform="gpu")
    second = take_rows(select(stack, jnp.int32(1)), jnp.arange(ROWS))
    np.testing.assert_allclose(second, exact[::-1], rtol=1e-6, atol=1e-4)


def test_a_large_matrix_is_multiplied_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, shape = random_rows("Q4_K"), shape_of("Q4_K")
    arrays = tuple(map(jnp.asarray, packing.pack(raw, "Q4_K", shape)))
    x = jnp.asarray(np.random.default_rng(2).standard_normal((9, shape[1])), jnp.float32)
    whole = products.dot(x, arrays, "Q4_K", shape)
    monkeypatch.setattr(products, "PART_BYTES", 5 * shape[1] * 2)
    np.testing.assert_allclose(products.dot(x, arrays, "Q4_K", shape), whole, rtol=1e-6, atol=1e-5)


def test_a_driver_that_does_not_answer_is_named(
    stories_gguf: list[ModelFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver() -> list[jax.Device]:
        raise AssertionError  # what JAX does when its plugin finds no CUDA

    monkeypatch.setattr(jax, "devices", no_driver)
    with pytest.raises(LoadFailed, match="update the driver"):
        load_model(stories_gguf)


@pytest.mark.parametrize("block_type", [*packing.FORMATS, "BF16", "MXFP4"])
def test_memory_is_counted_as_it_is_taken(block_type: str) -> None:
    elements, size = blocks.BLOCKS[block_type]
    shape = (ROWS, BLOCKS_A_ROW * elements if elements > 1 else 96)
    matrix = place(
        np.zeros((ROWS, shape[1] // elements * size), np.uint8), block_type, shape, CPU, platform="gpu"
    )
    assert matrix.nbytes == held_bytes(shape, block_type, "gpu")


@pytest.mark.parametrize("kind", ["bfloat16", "float32", "int8"])
@pytest.mark.parametrize(("window", "length"), [(0, 64), (24, 48)])
@pytest.mark.parametrize("time", [1, 7])
def test_attention_equals_the_generic_form(kind: str, window: int, length: int, time: int) -> None:
    """Two slots of different age beside a padded row, on a full layer and on a ring that has wrapped."""
    layer = LayerConfig("sliding" if window else "global", 16, 2, 32, Rope(), window=window)
    cache = filled_cache(kind, length, wraps=bool(window))
    random = np.random.default_rng(3)
    query = jnp.asarray(random.standard_normal((3, time, 4, 16)), jnp.float32)
    steps = np.arange(time)
    positions = jnp.asarray(np.stack([52 + steps, 3 + steps, np.full(time, -1)]), jnp.int32)
    slots = jnp.asarray([1, 0, 2], jnp.int32)

    def attended(platform: str) -> np.ndarray[Any, Any]:
        found = attend_cache(query, cache, slots, positions, layer, scale=0.3, softcap=7.0, platform=platform)
        return np.asarray(found)[:2]

    generic, ours = attended("none"), attended("gpu")
    # the generic form rounds queries and weights to the cache's type, the one-token form does not
    tolerance = 1e-5 if kind == "float32" or (kind == "int8" and time == 1) else 2e-2
    assert np.abs(ours - generic).max() < tolerance * np.abs(generic).max()


def filled_cache(kind: str, length: int, wraps: bool) -> LayerCache:
    shape = (3, 2, length, 16)
    scales = [jnp.zeros(shape[:3], jnp.float32)] * 2 if kind == "int8" else [None, None]
    cache = LayerCache(jnp.zeros(shape, kind), jnp.zeros(shape, kind), *scales, wraps)
    random = np.random.default_rng(4)
    for start in range(0, 60, 10):
        fresh = [jnp.asarray(random.standard_normal((2, 10, 2, 16)), jnp.float32) for _ in range(2)]
        positions = np.stack([np.arange(start, start + 10)] * 2)
        positions[0, positions[0] > 9] = -1
        cache = write(cache, *fresh, jnp.asarray([0, 1], jnp.int32), jnp.asarray(positions, jnp.int32))
    return cache

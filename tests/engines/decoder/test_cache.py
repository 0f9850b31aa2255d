"""Where positions live: rings against an uncached oracle, padding, int8 storage, and no hidden copies."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder.attention import attend_batch, attend_cache
from engines.decoder.cache import LayerCache, cell_positions, init_cache, longest_chunk, write
from engines.decoder.config import DecoderConfig, LayerConfig, Rope
from engines.decoder.model import Batch, forward
from engines.decoder.params import cache_bytes, param_specs
from engines.decoder.quant import QuantizedMatrix
from engines.decoder.weights.loading import build_tree

WINDOW = 40
SLIDING = LayerConfig("sliding", head_dim=8, kv_heads=2, ffn_width=16, rope=Rope(), window=WINDOW)
GLOBAL = LayerConfig("global", head_dim=8, kv_heads=2, ffn_width=16, rope=Rope())


def config_of(*layers: LayerConfig) -> DecoderConfig:
    return DecoderConfig(
        "llama", width=16, heads=4, layers=layers, vocabulary_size=32, max_context=4096, attention_scale=0.3
    )


def random_params(config: DecoderConfig) -> Any:
    generator = np.random.default_rng(0)
    flat = {}
    for name, spec in param_specs(config).items():
        values = generator.standard_normal(spec.shape).astype(np.float32) / 4
        if spec.role in ("matrix", "embedding"):
            shape = (spec.shape[0], spec.shape[1])
            flat[name] = QuantizedMatrix((jnp.asarray(values.T),), "F32", "columns", shape)
        else:
            flat[name] = jnp.asarray(1 + values)
    return build_tree(flat)


@pytest.mark.parametrize("layer", [SLIDING, GLOBAL], ids=["sliding", "global"])
@pytest.mark.parametrize(
    "sizes", [pytest.param([1] * 300, id="one by one"), [128, 1, 1, 100, 70], [7, 89, 128, 3, 73]], ids=str
)
def test_any_chunking_equals_attention_without_a_cache(layer: LayerConfig, sizes: list[int]) -> None:
    total, generator = sum(sizes), np.random.default_rng(1)
    query = generator.standard_normal((1, total, 4, 8)).astype(np.float32)
    keys, values = generator.standard_normal((2, 1, total, 2, 8)).astype(np.float32)
    positions = np.arange(total, dtype=np.int32)[None]
    expected = _attend_uncached(layer, query, keys, values, positions)
    cache = init_cache(config_of(layer), 3, 512, jnp.float32, chunk=128)[0]
    assert cache is not None
    if layer.window:
        assert cache.length < total  # the ring wraps
    out, start = [], 0
    for size in sizes:
        width = 1 if size == 1 else 128
        padded = [np.zeros((1, width, *a.shape[2:]), np.float32) for a in (query, keys, values)]
        at = np.full((1, width), -1, np.int32)
        for target, source in zip(padded, (query, keys, values), strict=True):
            target[:, :size] = source[:, start : start + size]
        at[:, :size] = positions[:, start : start + size]
        attended, cache = _write_and_attend(layer, cache, *padded, at)
        out.append(np.asarray(attended)[:, :size])
        start += size
    np.testing.assert_allclose(np.concatenate(out, axis=1), expected, atol=2e-5)


@partial(jax.jit, static_argnums=0)
def _attend_uncached(layer: LayerConfig, query: Any, keys: Any, values: Any, positions: Any) -> Any:
    return attend_batch(query, keys, values, positions, layer, scale=0.3, softcap=5.0, bidirectional=False)


@partial(jax.jit, static_argnums=0)
def _write_and_attend(
    layer: LayerConfig, cache: LayerCache, query: Any, keys: Any, values: Any, positions: Any
) -> Any:
    slots = jnp.array([1], jnp.int32)
    cache = write(cache, keys, values, slots, positions)
    attended = attend_cache(
        query, cache, slots, positions, layer, scale=0.3, softcap=5.0, platform="cpu", longest=None
    )
    return attended, cache


def test_padding_goes_to_the_trash_row_only() -> None:
    cache = init_cache(config_of(GLOBAL), 2, 128, jnp.float32)[0]
    assert cache is not None
    ones = jnp.ones((2, 3, 2, 8))
    positions = jnp.array([[0, 1, -1], [-1, -1, -1]])
    written = write(cache, ones, ones, jnp.array([0, 1]), positions)
    filled = np.asarray(written.keys).any(axis=(1, 3))  # [slot, cell]
    assert filled[0].tolist() == [True, True] + [False] * 126
    assert not filled[1].any()


def test_cells_hold_the_newest_position_that_maps_to_them() -> None:
    newest = jnp.array([5, 2, -1])
    expected = [[4, 5, 2, 3], [0, 1, 2, -1], [-4, -3, -2, -1]]
    assert cell_positions(4, newest).tolist() == expected


def test_a_chunk_that_would_overwrite_the_window_is_refused() -> None:
    config = config_of(SLIDING)
    params = random_params(config)
    cache = init_cache(config, 1, 4096, jnp.float32, chunk=64)
    assert cache[0] is not None
    limit = longest_chunk(SLIDING, cache[0])
    assert limit == 128 - WINDOW + 1
    tokens = jnp.zeros((1, limit + 1), jnp.int32)
    with pytest.raises(ValueError, match=f"a chunk of {limit + 1} tokens .* made for {limit}"):
        forward(config, params, cache, Batch(tokens, tokens, jnp.zeros(1, jnp.int32)))


def test_int8_storage_is_close_and_smaller() -> None:
    generator = np.random.default_rng(2)
    keys, values = (jnp.asarray(generator.standard_normal((1, 20, 2, 8)), jnp.float32) for _ in range(2))
    query = jnp.asarray(generator.standard_normal((1, 20, 4, 8)), jnp.float32)
    positions = jnp.arange(20, dtype=jnp.int32)[None]
    results = []
    for dtype in (jnp.float32, jnp.int8):
        cache = init_cache(config_of(GLOBAL), 1, 128, dtype)[0]
        results.append(_write_and_attend(GLOBAL, cache, query, keys, values, positions)[0])
    assert 0 < np.abs(results[0] - results[1]).max() < 0.05


@pytest.mark.parametrize("kind", ["bf16", "f32", "int8"])
def test_the_bytes_are_those_of_the_arithmetic(kind: Any) -> None:
    config = config_of(SLIDING, GLOBAL)
    dtype = {"bf16": jnp.bfloat16, "f32": jnp.float32, "int8": jnp.int8}[kind]
    cache = init_cache(config, 3, 1000, dtype)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) == cache_bytes(config, 3, 1000, kind)


@pytest.mark.parametrize("time", [1, 64])
def test_a_donated_cache_is_updated_in_place(time: int) -> None:
    """The temporary memory of a step holds no copy of the cache."""
    config = config_of(SLIDING, GLOBAL, GLOBAL)
    params = random_params(config)
    slots, context = 63, 2048
    cache = jax.eval_shape(lambda: init_cache(config, slots, context, jnp.float32))
    shape = jax.ShapeDtypeStruct((2, time), jnp.int32)
    batch = Batch(shape, shape, jax.ShapeDtypeStruct((2,), jnp.int32))
    compiled = jax.jit(partial(forward, config), donate_argnums=1).lower(params, cache, batch).compile()
    analysis = compiled.memory_analysis()
    total = cache_bytes(config, slots, context, "f32")
    assert analysis.alias_size_in_bytes >= total
    one_row = total // (slots + 1)
    assert analysis.temp_size_in_bytes < 6 * one_row + time * 2 * 4 * context * 16

"""The C++ attention against a plain float64 one: rings, windows, spans, padding, grouped heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder import native
from engines.decoder.native.library import library

if library() is None:
    pytest.skip("the C++ kernels are not built (no compiler?)", allow_module_level=True)


def reference(query, keys, values, slots, positions, scale, softcap, window):
    """One query and head at a time, in float64."""
    batch, time, heads, _ = query.shape
    kv_heads, length = keys.shape[1:3]
    out = np.zeros(query.shape)
    for b, t, n in np.ndindex(batch, time, heads):
        position = positions[b, t]
        if position < 0:
            continue
        first = max(0, position - min(window or length, length) + 1)
        cells = np.arange(first, position + 1) % length
        kv = n // (heads // kv_heads)
        scores = keys[slots[b], kv, cells].astype(np.float64) @ query[b, t, n].astype(np.float64) * scale
        if softcap:
            scores = np.tanh(scores / softcap) * softcap
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ values[slots[b], kv, cells].astype(np.float64) / weights.sum()
    return out


def case(seed, batch, time, heads, kv_heads, length, size, last, dtype):
    random = np.random.default_rng(seed)
    query = random.normal(size=(batch, time, heads, size)).astype(np.float32)
    keys, values = (
        jnp.asarray(random.normal(size=(batch + 2, kv_heads, length, size)), dtype) for _ in range(2)
    )
    slots = random.permutation(batch + 1)[:batch].astype(np.int32)
    positions = (last - time + 1 + np.arange(time))[None].repeat(batch, 0).astype(np.int32)
    return query, keys, values, slots, np.maximum(positions, -1)


CASES = {
    # batch, time, heads, kv heads, length, head size, newest position, window, softcap
    "first token": (1, 1, 3, 1, 64, 64, 0, 0, None),
    "decode": (3, 1, 4, 1, 256, 64, 200, 0, None),
    "ring": (2, 1, 4, 2, 48, 32, 1000, 32, None),
    "chunk in a ring": (2, 9, 4, 2, 64, 32, 130, 32, None),
    "several spans": (1, 1, 4, 1, 2048, 16, 1800, 0, None),
    "spans of a chunk": (1, 40, 2, 1, 1536, 16, 1500, 0, None),
    "span border": (2, 3, 2, 2, 1024, 16, 512, 0, None),
    "window over a span border": (1, 1, 2, 1, 700, 16, 1100, 600, None),
    "soft cap": (2, 2, 4, 2, 64, 32, 40, 0, 5.0),
    "many query heads": (1, 1, 18, 2, 64, 16, 50, 0, None),
    "ten heads in long context": (1, 1, 10, 1, 2048, 16, 2000, 0, None),
    "padding": (2, 6, 2, 1, 64, 16, 3, 0, None),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_attention_equals_the_reference(name: str, dtype: str) -> None:
    *shape, window, softcap = CASES[name]
    arguments = case(0, *shape, dtype)
    call = jax.jit(lambda *args: native.cached_attention(*args, scale=0.25, softcap=softcap, window=window))
    found = np.asarray(call(*arguments))
    query, keys, values, slots, positions = arguments
    expected = reference(
        query,
        np.asarray(keys, np.float64),
        np.asarray(values, np.float64),
        slots,
        positions,
        0.25,
        softcap,
        window,
    )
    np.testing.assert_allclose(found, expected, atol=3e-6, rtol=3e-5)


def test_a_rows_result_does_not_depend_on_batch_or_chunk() -> None:
    query, keys, values, slots, positions = case(1, 3, 20, 4, 2, 1400, 32, 1300, "bfloat16")

    def attend(*args: object) -> np.ndarray:
        return np.asarray(native.cached_attention(*args, scale=0.2, softcap=None, window=0))

    together = attend(query, keys, values, slots, positions)
    alone = attend(query[1:2, 7:8], keys, values, slots[1:2], positions[1:2, 7:8])
    assert np.array_equal(alone[0, 0], together[1, 7])
    half = attend(query[:, 10:], keys, values, slots, positions[:, 10:])
    assert np.array_equal(half, together[:, 10:])


def test_heads_that_do_not_fit_are_refused() -> None:
    query, keys, values, slots, positions = case(0, 1, 1, 2, 1, 16, 16, 3, "bfloat16")
    with pytest.raises(Exception, match="heads do not fit"):
        native.cached_attention(
            query[..., :8],
            keys[..., :8],
            values[..., :8],
            slots,
            positions,
            scale=1.0,
            softcap=None,
            window=0,
        ).block_until_ready()


@pytest.mark.parametrize("donated", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_new_keys_are_written_where_attention_looks_for_them(dtype: str, donated: bool) -> None:
    random = np.random.default_rng(0)
    cache = jnp.asarray(random.normal(size=(4, 2, 8, 16)), dtype)
    fresh = random.normal(size=(2, 3, 2, 16)).astype(np.float32)
    slots, positions = np.array([2, 0], np.int32), np.array([[6, 7, 8], [21, -1, -1]], np.int32)
    expected = np.array(cache.astype(jnp.float32))
    for row, column in [(0, 0), (0, 1), (0, 2), (1, 0)]:
        rounded = np.asarray(jnp.asarray(fresh[row, column], dtype).astype(jnp.float32))
        expected[slots[row], :, positions[row, column] % 8] = rounded
    before = np.array(cache.astype(jnp.float32))
    written = jax.jit(native.cache_write, donate_argnums=(0,) if donated else ())(
        cache, fresh, slots, positions
    )
    assert written.dtype == dtype
    assert np.array_equal(np.asarray(written.astype(jnp.float32)), expected)
    assert donated or np.array_equal(np.asarray(cache.astype(jnp.float32)), before)


def test_values_that_are_no_numbers_keep_their_kind() -> None:
    fresh = np.array([np.nan, np.inf, -np.inf, 3.4e38, -0.0, 1e-40] + [1.0] * 10, np.float32).reshape(
        1, 1, 1, 16
    )
    zeros = np.zeros(1, np.int32)
    written = native.cache_write(jnp.zeros((2, 1, 4, 16), jnp.bfloat16), fresh, zeros, zeros[:, None])
    expected = jnp.asarray(fresh, jnp.bfloat16)[0, 0, 0].astype(jnp.float32)
    assert np.array_equal(
        np.asarray(written[0, 0, 0].astype(jnp.float32)), np.asarray(expected), equal_nan=True
    )

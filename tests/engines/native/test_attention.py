"""The C++ attention against a plain float64 one: rings, windows, spans, padding, grouped heads."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder import native
from engines.decoder.native.library import library
from tests.engines.native.conftest import NARROW

if library() is None:
    pytest.skip("the C++ kernels are not built (no compiler?)", allow_module_level=True)


def reference(query, keys, values, slots, positions, scale, softcap, window):
    """One query and head at a time, in float64; and the same with every value's size in its place."""
    batch, time, heads, _ = query.shape
    kv_heads, length = keys.shape[1:3]
    out, sizes = np.zeros(query.shape), np.zeros(query.shape)
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
        weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        out[b, t, n] = weights @ values[slots[b], kv, cells].astype(np.float64)
        sizes[b, t, n] = weights @ np.abs(values[slots[b], kv, cells].astype(np.float64))
    return out, sizes


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
def test_attention_equals_the_reference(name: str, dtype: str, path: str) -> None:
    *shape, window, softcap = CASES[name]
    query, *arguments = case(0, *shape, dtype)
    narrow = dtype == "bfloat16" and path in NARROW
    if narrow:  # so that only the weights' rounding is left: half a unit in the last of eight bits
        query = query.astype(jnp.bfloat16).astype(np.float32)
    found = np.asarray(native.cached_attention(query, *arguments, scale=0.25, softcap=softcap, window=window))
    keys, values = (np.asarray(array, np.float64) for array in arguments[:2])
    expected, sizes = reference(query, keys, values, *arguments[2:], 0.25, softcap, window)
    allowed = 2.0**-8 * sizes if narrow else 0.0
    assert (np.abs(found - expected) <= allowed + 3e-6 + 3e-5 * np.abs(expected)).all()


def test_cells_that_a_row_must_not_see_may_hold_anything(path: str) -> None:
    query, keys, values, slots, positions = case(3, 1, 5, 4, 2, 64, 32, 37, "bfloat16")
    unseen = np.r_[0:8, 38:64]  # older than the window, or not yet written
    spoilt = [array.at[:, :, unseen].set(jnp.nan) for array in (keys, values)]
    run = partial(native.cached_attention, scale=0.2, softcap=None, window=26)
    clean = run(query, keys, values, slots, positions)
    assert np.array_equal(np.asarray(clean), np.asarray(run(query, *spoilt, slots, positions)))


@pytest.mark.parametrize("heads", [2, 4, 10])
@pytest.mark.parametrize("window", [0, 300])
def test_a_rows_result_does_not_depend_on_batch_or_chunk(path: str, heads: int, window: int) -> None:
    query, keys, values, slots, positions = case(1, 3, 20, heads, 2, 1400, 48, 1290, "bfloat16")

    def attend(*args: object) -> np.ndarray:
        return np.asarray(native.cached_attention(*args, scale=0.2, softcap=None, window=window))

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

"""Blocks of a layer as one kernel against the plain form, for every kind of layer they cover.

With bfloat16 weights both compute in float32, so they agree to rounding. With quantised ones a sum in another
order now and then puts an activation on the other side of a half; that is counted, not hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder import native, ops
from engines.decoder.cache import init_cache
from engines.decoder.config import DecoderConfig, LayerConfig, Rope
from engines.decoder.model import Batch, forward
from engines.decoder.params import param_specs
from engines.decoder.quant import place
from engines.decoder.quantize import quantize
from engines.decoder.weights.loading import build_tree

if native.register_all() is None:
    pytest.skip("the C++ kernels are not built (no compiler?)", allow_module_level=True)

GLOBAL = LayerConfig("global", head_dim=32, kv_heads=2, ffn_width=96, rope=Rope())
SLIDING = replace(GLOBAL, kind="sliding", window=6, rope=Rope(base=1e6))
LLAMA = DecoderConfig("llama", 64, 4, (GLOBAL, GLOBAL), 32, 64, attention_scale=32**-0.5)
GEMMA = replace(LLAMA, layers=(SLIDING, GLOBAL), post_norms=True, activation="gelu_tanh")
SHARED = replace(GLOBAL, kv_source=1)
FAMILIES = {
    "llama": LLAMA,
    "qwen2": replace(LLAMA, attention_bias=True),
    "qwen3": replace(LLAMA, qk_norm=True),
    "all biases": replace(LLAMA, attention_bias=True, output_bias=True),
    "one query head for each key head": replace(LLAMA, heads=2),
    "gemma2": replace(GEMMA, attention_softcap=5.0),
    "gemma3": replace(GEMMA, qk_norm=True),
    "gemma4": replace(
        GEMMA,
        layers=(SLIDING, replace(GLOBAL, value_from_key=True), SHARED),
        qk_norm=True,
        v_norm=True,
        layer_scale=True,
    ),
    "per-layer embeddings": replace(
        GEMMA, qk_norm=True, layer_scale=True, per_layer_width=32, per_layer_vocabulary=32
    ),
}
BLOCKS = ("attention_block", "feed_forward_block")


def model(config: DecoderConfig, block_type: str = "BF16", joined: int = 2, seed: int = 0) -> dict[str, Any]:
    """Random weights; `joined` 2: q, k and v in one matrix, gate and up too; 1: v and up apart; 0: none."""
    random, device = np.random.default_rng(seed), jax.devices()[0]
    flat: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    for name, spec in param_specs(config).items():
        values = random.normal(size=spec.shape).astype(np.float32)
        if spec.role in ("matrix", "embedding"):
            rows[name] = stored(values / spec.shape[-1] ** 0.5, block_type), spec
        else:
            flat[name] = jnp.asarray(1 + 0.1 * values)
    for name, (blocks, spec) in list(rows.items()):
        prefix, _, part = name.rpartition(".")
        together = {"q": "qkv"[: joined + 1], "gate": ["gate", "up"][:joined]}.get(part, [])
        names = [one for one in together if f"{prefix}.{one}" in rows]
        if len(names) > 1:
            blocks = np.concatenate([rows.pop(f"{prefix}.{one}")[0] for one in names])
            name = prefix + "." + "+".join(names)
            flat[name] = place(blocks, block_type, (len(blocks), spec.shape[1]), device)
        elif name in rows:
            look_up = spec.role == "embedding"
            flat[name] = place(blocks, block_type, (spec.shape[0], spec.shape[1]), device, look_up=look_up)
    return build_tree(flat)


def stored(values: np.ndarray[Any, Any], block_type: str) -> np.ndarray[Any, Any]:
    if block_type != "BF16":
        return quantize(values, block_type)
    return np.ascontiguousarray(values.view(np.uint16)[:, 1::2]).view(np.uint8)


@pytest.fixture(autouse=True)
def registered() -> None:
    native.register_all()


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Inside, programs are traced as if there were no such kernels."""
    kept = {key: value for key, value in ops._kernels.items() if key[0] in names}
    for key in kept:
        ops.unregister(*key)
    yield
    ops._kernels.update(kept)


def run(
    config: DecoderConfig, params: Any, cache: Any, tokens: Any, positions: Any, slots: Any
) -> tuple[np.ndarray[Any, Any], Any]:
    """Hidden states and the cache after one pass."""
    batch = Batch(*(jnp.asarray(array, jnp.int32) for array in (tokens, positions, slots)))
    hidden, cache = jax.jit(forward, static_argnums=0)(config, params, cache, batch)
    return np.asarray(hidden), cache


def chunk_and_step(config: DecoderConfig, params: Any, dtype: str = "float32") -> np.ndarray[Any, Any]:
    """Hidden states of a chunk of nine tokens in two slots, one shorter, and of one more token each."""
    random = np.random.default_rng(1)
    cache = init_cache(config, 3, 64, dtype, chunk=9)
    positions = np.stack([np.arange(9), np.where(np.arange(9) < 5, np.arange(9), -1)])
    tokens = random.integers(0, 32, (2, 9))
    first, cache = run(config, params, cache, tokens, positions, [2, 0])
    second, _ = run(config, params, cache, tokens[:, :1], [[9], [5]], [2, 0])
    return np.concatenate([first[0], first[1, :5], second[:, 0]])


@pytest.mark.parametrize("joined", [2, 1, 0])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_equal_the_plain_form(family: str, joined: int) -> None:
    if joined == 0 and family not in ("qwen2", "gemma4"):
        pytest.skip("matrices apart are the same for all")
    config = FAMILIES[family]
    params = model(config, joined=joined)
    fused = chunk_and_step(config, params)
    with without(*BLOCKS):
        plain = chunk_and_step(config, params)
    np.testing.assert_allclose(fused, plain, rtol=2e-5, atol=2e-5 * np.abs(plain).max())


@pytest.mark.parametrize("block_type", ["Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def test_blocks_of_quantised_weights_equal_the_plain_form(block_type: str) -> None:
    config = replace(FAMILIES["gemma3"], width=256, heads=8, layers=(replace(SLIDING, ffn_width=256), GLOBAL))
    config = replace(config, layers=tuple(replace(layer, ffn_width=256) for layer in config.layers))
    params = model(config, block_type)
    fused = chunk_and_step(config, params)
    with without(*BLOCKS):
        plain = chunk_and_step(config, params)
    difference = np.sqrt(((fused - plain) ** 2).mean(axis=-1) / (plain**2).mean(axis=-1))
    assert np.median(difference) < 1e-3 and difference.max() < 3e-2


@pytest.mark.parametrize("block_type", ["BF16", "Q8_0"])
def test_a_rows_result_does_not_depend_on_batch_or_chunk(block_type: str) -> None:
    config, random = FAMILIES["gemma3"], np.random.default_rng(2)
    params, tokens = model(config, block_type), random.integers(0, 32, (3, 12))

    def alone(cuts: list[int]) -> np.ndarray[Any, Any]:
        cache, found = init_cache(config, 3, 64, "bfloat16", chunk=12), []
        for first, last in pairwise(cuts):
            span = np.arange(first, last)[None]
            hidden, cache = run(config, params, cache, tokens[1:2, first:last], span, [1])
            found.append(hidden[0])
        return np.concatenate(found)

    positions = np.arange(12)[None].repeat(3, 0)
    cache = init_cache(config, 3, 64, "bfloat16", chunk=12)
    together, _ = run(config, params, cache, tokens, positions, [0, 1, 2])
    for cuts in ([0, 12], [0, 7, 12], [0, 11, 12], [0, 5, 6, 12]):
        assert np.array_equal(alone(cuts), together[1])


def calls(config: DecoderConfig, params: Any, dtype: str = "bfloat16", **batch: Any) -> dict[str, int]:
    """How many of each block kernel a decode step contains."""
    zeros = jnp.zeros((1, 1), jnp.int32)
    cache = init_cache(config, 1, 64, dtype)
    program = jax.jit(forward, static_argnums=0).lower(
        config, params, cache, Batch(zeros, zeros, zeros[0], **batch)
    )
    return {name: program.as_text().count(f"@gemmule_{name}") for name in BLOCKS}


def test_every_layer_of_a_plain_model_is_two_calls() -> None:
    assert calls(LLAMA, model(LLAMA)) == {"attention_block": 2, "feed_forward_block": 2}


def test_what_kernels_do_not_cover_is_left_to_the_plain_form() -> None:
    params = model(LLAMA)
    assert calls(LLAMA, params, "int8") == {"attention_block": 0, "feed_forward_block": 2}
    assert set(calls(LLAMA, params, adapters=jnp.zeros(1, jnp.int32)).values()) == {0}
    narrow = replace(LLAMA, heads=8, layers=(replace(GLOBAL, head_dim=8),), activation="gelu")
    assert set(calls(narrow, model(narrow)).values()) == {0}
    sparse = replace(LLAMA, layers=(replace(GLOBAL, sparsity=0.5),))
    assert calls(sparse, model(sparse)) == {"attention_block": 1, "feed_forward_block": 0}


def test_weights_of_another_shape_are_refused() -> None:
    params = model(LLAMA)
    wrong = {**params["layers"][0], "ffn_norm": jnp.ones(63)}
    with pytest.raises(Exception, match="another size"):
        chunk_and_step(LLAMA, {**params, "layers": (wrong, params["layers"][1])})

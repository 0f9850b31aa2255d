"""Packing, the training forward, the optimiser and the schedule, on small shapes."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder.bud import batches, network, optimizer, train
from engines.decoder.bud.network import Shape

SHAPE = Shape(
    vocabulary=50, width=16, hidden=32, layers=2, heads=2, head_width=8, window=4, pattern=2, context=32
)


make_params = jax.jit(network.init_params, static_argnums=0)


def test_documents_are_packed_whole_and_numbered() -> None:
    documents = [([1, 2, 3, 4], [0.0, 1.0, 1.0, 3.0]), ([5, 6, 7], [0.0, 1.0, 1.0]), ([8] * 9, [1.0] * 9)]
    batch = batches.pack(documents, rows=1, length=6)
    assert batch.tokens[0].tolist() == [1, 2, 3, 5, 6, 0]
    assert batch.targets[0].tolist() == [2, 3, 4, 6, 7, 0]
    assert batch.weights[0].tolist() == [1, 1, 3, 1, 1, 0]
    assert batch.segments[0].tolist() == [1, 1, 1, 2, 2, 0]


@pytest.mark.slow
def test_a_document_does_not_see_its_neighbour() -> None:
    params = make_params(SHAPE, 0)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 50, (1, 16)))
    segments = jnp.asarray([[1] * 6 + [2] * 10])
    forward = jax.jit(network.forward, static_argnums=3)
    packed = forward(params, tokens, segments, SHAPE)
    changed = forward(params, tokens.at[0, 3].set(7), segments, SHAPE)
    assert jnp.array_equal(packed[0, :3], changed[0, :3])
    assert not jnp.allclose(packed[0, 3], changed[0, 3])
    np.testing.assert_allclose(packed[0, 6:], changed[0, 6:], atol=1e-5)


def test_local_attention_is_masked_global_attention() -> None:
    random = np.random.default_rng(0)
    query = jnp.asarray(random.normal(size=(2, 24, 3, 8)), jnp.float32)
    key, value = (jnp.asarray(random.normal(size=(2, 24, 8)), jnp.float32) for _ in range(2))
    segments = jnp.sort(jnp.asarray(random.integers(0, 3, (2, 24))))
    time = jnp.arange(24)
    seen = (time[:, None] >= time) & (time[:, None] - time < 4)
    mask = seen & (segments[:, :, None] == segments[:, None])
    local = jax.jit(network.attend_locally, static_argnums=4)(query, key, value, segments, 4)
    np.testing.assert_allclose(local, jax.jit(network.attend)(query, key, value, mask), atol=1e-6)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    matrix = jax.random.normal(jax.random.key(0), (3, 24, 8))
    values = np.linalg.svd(np.asarray(jax.jit(optimizer.orthogonalise)(matrix)), compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.3


def test_the_schedule_rises_stays_and_falls_to_zero() -> None:
    plan = train.Plan(steps=100, warmup=10, decay_from=0.5)
    scales = [plan.scale(step) for step in range(100)]
    assert scales[0] == 0.1 and scales[9:50] == [1.0] * 41
    assert all(np.diff(scales[51:]) < 0) and scales[-1] < 0.05


@pytest.mark.slow
def test_checkpoints_come_back(tmp_path: Path) -> None:
    params = make_params(SHAPE, 1)
    state = optimizer.init_state(params)
    train.save_checkpoint(tmp_path / "checkpoint.npz", params, state, 7)
    found, moments, step = train.load_checkpoint(tmp_path / "checkpoint.npz")
    assert step == 7 and found.keys() == params.keys() and moments.keys() == state.keys()
    assert all(jnp.array_equal(found[name], params[name]) for name in params)


@pytest.mark.slow
def test_a_few_steps_learn_a_repeating_text() -> None:
    params = make_params(SHAPE, 0)
    state = optimizer.init_state(params)
    tokens = jnp.tile(jnp.arange(8), (4, 4))
    arrays = (tokens, jnp.roll(tokens, -1, axis=1), jnp.ones((4, 32)), jnp.ones((4, 32), jnp.int32))

    @jax.jit
    def step(params: network.Params, state: optimizer.State, count: jax.Array):
        nats, gradients = jax.value_and_grad(network.loss)(params, *arrays, SHAPE)
        return *optimizer.update(params, gradients, state, jnp.float32(1.0), count), nats

    losses = []
    for count in range(120):
        params, state, nats = step(params, state, jnp.float32(count))
        losses.append(float(nats))
    assert losses[0] > 3 and losses[-1] < 0.5

"""Gemma 4's mixture of experts: a router sends every token to a few small feed-forward networks.

Tokens are grouped by expert into blocks, and a scan over the blocks reads each chosen expert's matrices where
they lie, so that one token costs the experts it uses and nothing else. Called by `model`.

Axes: M tokens, C experts chosen per token, E experts, F an expert's width, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from engines.decoder.config import Experts
from engines.decoder.quant import QuantizedMatrix, matmul, select

BLOCK = 16
"""Tokens of one expert computed together when there are many."""


def route(scores: jax.Array, scale: jax.Array, experts: Experts) -> tuple[jax.Array, jax.Array]:
    """Experts int32 [M, C] and their weights float32 [M, C] for router scores [M, E].

    Softmax over all experts, the best C made to sum to 1, then each expert's own scale [E].
    """
    probabilities = jax.nn.softmax(scores, axis=-1)
    weights, chosen = jax.lax.top_k(probabilities, experts.chosen)
    return chosen, weights / weights.sum(axis=-1, keepdims=True) * scale[chosen]


def run_experts(
    x: jax.Array,
    chosen: jax.Array,
    weights: jax.Array,
    matrices: Mapping[str, Any],
    experts: Experts,
    activation: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The weighted sum of the chosen experts' outputs [M, D] for normalised tokens x [M, D]."""
    tokens, width = x.shape
    total = tokens * experts.chosen
    block = BLOCK if total > experts.count else 1
    places, owners, used = _group(chosen.reshape(-1), experts.count, block)
    token_of = jnp.arange(total, dtype=jnp.int32) // experts.chosen
    grouped = jnp.zeros((owners.shape[0] * block, width), x.dtype).at[places].set(x[token_of])

    def one(_: None, item: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        expert, inputs, active = item
        return None, jax.lax.cond(active, _feed_forward, lambda _, rows: jnp.zeros_like(rows), expert, inputs)

    def _feed_forward(expert: jax.Array, inputs: jax.Array) -> jax.Array:
        gate_up: QuantizedMatrix = select(matrices["experts_gate_up"], expert)
        gate, up = jnp.split(matmul(inputs, gate_up), 2, axis=-1)  # each [block, F]
        return matmul(activation(gate) * up, select(matrices["experts_down"], expert))

    blocks = grouped.reshape(-1, block, width)
    _, out = jax.lax.scan(one, None, (owners, blocks, used))
    chosen_out = out.reshape(-1, width)[places] * weights.reshape(-1, 1)
    return jnp.zeros_like(x).at[token_of].add(chosen_out)


def _group(chosen: jax.Array, count: int, block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives every assignment a place such that each block of places belongs to one expert.

    `chosen` int32 [A] are the assignments' experts. Returns places [A], the expert of each block, and
    whether a block is used at all.
    """
    total = chosen.shape[0]
    blocks = total if block == 1 else total // block + count
    sizes = jnp.bincount(chosen, length=count)
    ends = jnp.cumsum(-(-sizes // block) * block)  # [E], in places
    starts = ends - -(-sizes // block) * block
    order = jnp.argsort(chosen, stable=True)
    rank_in_order = jnp.arange(total) - (jnp.cumsum(sizes) - sizes)[chosen[order]]
    places = (
        jnp.zeros(total, jnp.int32).at[order].set((starts[chosen[order]] + rank_in_order).astype(jnp.int32))
    )
    first = jnp.arange(blocks) * block
    owners = jnp.minimum(jnp.searchsorted(ends, first, side="right"), count - 1)
    return places, owners.astype(jnp.int32), first < ends[-1]

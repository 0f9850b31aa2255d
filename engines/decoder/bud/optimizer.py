"""The two optimisers of bud: Muon for the matrices of the layers, AdamW for embedding and norms.

Muon (K. Jordan, 2024) steps along the orthogonalised momentum, found by five Newton-Schulz iterations.
Knows of the network its parameter names alone. Called by `train`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from engines.decoder.bud.network import MATRICES, Params

State = dict[str, Params]


@dataclass(frozen=True, slots=True)
class Rates:
    """Peak step sizes and decays; the schedule multiplies the step sizes."""

    matrix: float = 0.02
    momentum: float = 0.95
    matrix_decay: float = 0.01
    embedding: float = 3e-3
    norm: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.98


RATES = Rates()


def init_state(params: Params) -> State:
    """Zero moments: one for Muon's matrices, two for the others."""
    zeros = {name: jnp.zeros_like(value) for name, value in params.items()}
    second = {name: jnp.zeros_like(value) for name, value in params.items() if name not in MATRICES}
    return {"first": zeros, "second": second}


def orthogonalise(matrix: Array) -> Array:
    """Roughly the nearest semi-orthogonal matrix of each [.., rows, columns]: singular values near 1."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = jnp.swapaxes(matrix, -1, -2) if tall else matrix
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(5):
        square = x @ jnp.swapaxes(x, -1, -2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return jnp.swapaxes(x, -1, -2) if tall else x


def update(
    params: Params, gradients: Params, state: State, scale: Array, step: Array, rates: Rates = RATES
) -> tuple[Params, State]:
    """One step; `scale` in [0, 1] is the schedule's and `step` counts from 0."""
    norm = jnp.sqrt(sum(jnp.vdot(value, value) for value in gradients.values()))
    clip = jnp.minimum(1.0, 1.0 / (norm + 1e-6))
    fresh: Params = {}
    first: Params = {}
    second: Params = {}
    for name, gradient in gradients.items():
        if name in MATRICES:
            first[name] = rates.momentum * state["first"][name] + gradient
            direction = orthogonalise(gradient + rates.momentum * first[name])
            stretch = max(1.0, params[name].shape[-1] / params[name].shape[-2]) ** 0.5
            kept = params[name] * (1 - scale * rates.matrix_decay * rates.matrix)
            fresh[name] = kept - scale * rates.matrix * stretch * direction
            continue
        clipped = gradient * clip
        first[name] = rates.beta1 * state["first"][name] + (1 - rates.beta1) * clipped
        second[name] = rates.beta2 * state["second"][name] + (1 - rates.beta2) * clipped**2
        mean = first[name] / (1 - rates.beta1 ** (step + 1))
        deviation = jnp.sqrt(second[name] / (1 - rates.beta2 ** (step + 1))) + 1e-10
        rate = rates.embedding if name == "embedding" else rates.norm
        fresh[name] = params[name] - scale * rate * mean / deviation
    return fresh, {"first": first, "second": second}

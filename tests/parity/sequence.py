"""One sequence at a time, in our engine or in a reference with the same `feed`, and how far two are apart."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engines.decoder.cache import init_cache
from engines.decoder.model import Batch, forward, logits
from engines.decoder.weights.loading import LoadedModel
from tests.parity import recipe


@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def run(config: Any, params: Any, cache: Any, tokens: jax.Array, positions: jax.Array) -> Any:
    batch = Batch(tokens[None], positions[None], jnp.zeros(1, jnp.int32))
    hidden, cache = forward(config, params, cache, batch)
    return logits(config, params, hidden[0]), cache


class Ours:
    """One sequence in our engine: `feed` returns float32 logits [tokens, vocabulary]."""

    def __init__(self, model: LoadedModel) -> None:
        self.model, self.length = model, 0
        self.cache = init_cache(self.model.config, 1, 512, jnp.float32, chunk=recipe.PROMPT)

    def feed(self, ids: Any) -> np.ndarray[Any, Any]:
        positions = self.length + jnp.arange(len(ids))
        tokens = jnp.asarray(ids, jnp.int32)
        scores, self.cache = run(self.model.config, self.model.params, self.cache, tokens, positions)
        self.length += len(ids)
        return np.asarray(scores)


def answers(runner: Any, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits of a prefill of 96 tokens and 64 single steps."""
    prompt, rest = ids[: recipe.PROMPT], ids[recipe.PROMPT :]
    return np.concatenate([runner.feed(prompt), *(runner.feed([token]) for token in rest)])


def generate(runner: Any, prompt: np.ndarray[Any, Any], count: int) -> tuple[list[int], np.ndarray[Any, Any]]:
    """`count` greedy tokens, and how far each was ahead of the second likeliest."""
    scores, tokens, margins = runner.feed(prompt)[-1], [], []
    for _ in range(count):
        second, first = np.sort(scores)[-2:]
        margins.append(first - second)
        tokens.append(int(scores.argmax()))
        scores = runner.feed(tokens[-1:])[-1]
    return tokens, np.array(margins)


def relative(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def rms(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """Root of the mean square difference, in units of the expected values' own."""
    return float(np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean()))

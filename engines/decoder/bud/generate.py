"""Continues many prompts at once with the serving engine's own forward and sampler: how bud is evaluated.

Knows token ids only. Called by `__main__` and by the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from engines.base import SamplingParams
from engines.decoder.cache import Cache, init_cache
from engines.decoder.config import DecoderConfig
from engines.decoder.model import Batch, Params, forward, logits
from engines.decoder.sampling import MAX_BIAS, Settings, draw
from engines.decoder.weights.loading import LoadedModel, load_model
from modelfiles.files import ModelFile


@dataclass(frozen=True, slots=True)
class _Step:
    """One program for prefill and decoding alike: the tokens in, the next token of each row out."""

    config: DecoderConfig

    @partial(jax.jit, static_argnums=0, donate_argnums=(2, 5))
    def __call__(
        self,
        params: Params,
        cache: Cache,
        batch: Batch,
        settings: Settings,
        history: jax.Array,
        last: jax.Array,
    ) -> tuple[jax.Array, Cache, jax.Array]:
        hidden, cache = forward(self.config, params, cache, batch)
        rows = jnp.arange(history.shape[0])
        newest = jnp.take_along_axis(batch.positions, last[:, None], axis=1)[:, 0]
        scores = logits(self.config, params, hidden[rows, last])
        mask = jnp.zeros((len(history), -(-scores.shape[-1] // 32)), jnp.uint32)
        drawn = draw(scores, settings, mask, history, newest + 1).token_ids
        return drawn, cache, history.at[rows, newest + 1].set(drawn)


def load_gguf(path: Path) -> LoadedModel:
    """The model of one GGUF file on the default device."""
    file = ModelFile("weights", path.name, str(path), "sha256:" + "0" * 64, path.stat().st_size)
    return load_model([file])


def generate(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    max_tokens: int,
    end_ids: Sequence[int],
) -> list[list[int]]:
    """The tokens that follow each prompt, up to the first of `end_ids` or `max_tokens` of them.

    Row i draws with the seed (`sampling.seed`, i).
    """
    rows, longest = len(prompts), max(map(len, prompts))
    step = _Step(model.config)
    history = np.zeros((rows, longest + max_tokens + 2), np.int32)
    positions = np.full((rows, longest), -1, np.int32)
    for row, prompt in enumerate(prompts):
        history[row, : len(prompt)] = prompt
        positions[row, : len(prompt)] = np.arange(len(prompt))
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    settings = _settings(sampling, lengths, model.config.vocabulary_size)
    slots = jnp.arange(rows, dtype=jnp.int32)
    cache = init_cache(model.config, rows, history.shape[1], jnp.float32)
    batch = Batch(jnp.asarray(history[:, :longest]), jnp.asarray(positions), slots)
    drawn, cache, past = step(
        model.params, cache, batch, settings, jnp.asarray(history), jnp.asarray(lengths - 1)
    )
    outputs: list[list[int]] = [[] for _ in prompts]
    running = np.ones(rows, bool)
    for count in range(max_tokens):
        for row, token in enumerate(np.asarray(drawn).tolist()):
            if not running[row]:
                continue
            running[row] = token not in end_ids
            if running[row]:
                outputs[row].append(token)
        if not running.any():
            break
        at = jnp.asarray(lengths + count)[:, None]
        batch = Batch(drawn[:, None], at, slots)
        drawn, cache, past = step(model.params, cache, batch, settings, past, jnp.zeros(rows, jnp.int32))
    return outputs


def _settings(sampling: SamplingParams, lengths: np.ndarray, vocabulary: int) -> Settings:
    """The same sampling for every row, each with a seed of its own."""
    rows = len(lengths)

    def everywhere(value: float, dtype: type = np.float32) -> jax.Array:
        return jnp.full(rows, value, dtype)

    seeds = np.stack([np.full(rows, sampling.seed or 0), np.arange(rows)], axis=1).astype(np.uint32)
    return Settings(
        temperature=everywhere(sampling.temperature),
        top_k=everywhere(sampling.top_k, np.int32),
        top_p=everywhere(sampling.top_p),
        min_p=everywhere(sampling.min_p),
        typical_p=everywhere(sampling.typical_p),
        repeat_penalty=everywhere(sampling.repeat_penalty),
        repeat_last_n=everywhere(sampling.repeat_last_n, np.int32),
        presence_penalty=everywhere(sampling.presence_penalty),
        frequency_penalty=everywhere(sampling.frequency_penalty),
        generated_from=jnp.asarray(lengths),
        seed=jnp.asarray(seeds),
        bias_ids=jnp.full((rows, MAX_BIAS), vocabulary, jnp.int32),
        bias_values=jnp.zeros((rows, MAX_BIAS), jnp.float32),
        masked=everywhere(0, bool),
        logprobs=everywhere(0, bool),
    )

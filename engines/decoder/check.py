"""Does a loaded model make sense? Numbers for `gemmule check`, from a page of text the caller has encoded.

Wrong norms, a wrong RoPE or a wrong attention scale rarely crash: they show as text that surprises the model.
Called in a runner or a tool that has the weights; knows token ids and byte counts, not text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from engines.decoder.cache import Cache, init_cache
from engines.decoder.config import DecoderConfig
from engines.decoder.model import Batch, Params, encode, forward, logits

Ids = npt.NDArray[np.int32]

GOOD_BITS = 1.6
"""Bits per byte of plain English that a trained model stays below (a model of stories: on stories)."""
UNTRAINED_BITS = 2.2
"""Above this a model predicts hardly better than letter frequencies do."""
PIECE = 256


@dataclass(frozen=True, slots=True)
class Report:
    """`bits_per_byte` of the page, the largest hidden value, and what is wrong (empty: nothing seen)."""

    bits_per_byte: float
    largest_hidden: float
    findings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.findings


def examine(config: DecoderConfig, params: Params, token_ids: Sequence[int], byte_count: int) -> Report:
    """Scores a page: `token_ids` begin with BOS where the family has one, of `byte_count` UTF-8 bytes.

    The page is cut into pieces of 256 tokens, each predicted from its own beginning. ValueError for a page of
    fewer than two tokens or no bytes, and for an encoder, which predicts nothing.
    """
    if len(token_ids) < 2 or byte_count < 1 or config.bidirectional:
        raise ValueError("a page of at least two tokens and a model that predicts are needed")
    pieces = _pieces(np.asarray(token_ids, np.int32))
    nats, largest = _score(config, params, jnp.asarray(pieces[0]), jnp.asarray(pieces[1]))
    bits = float(nats) / math.log(2) / byte_count
    return Report(bits, float(largest), _findings(bits, float(largest)))


def _pieces(ids: Ids) -> tuple[Ids, Ids]:
    """Token ids and positions [pieces, 256], the last piece padded; pieces share one token of context."""
    starts = range(0, len(ids) - 1, PIECE - 1)
    tokens = np.zeros((len(starts), PIECE), np.int32)
    positions = np.full_like(tokens, -1)
    for row, start in enumerate(starts):
        part = ids[start : start + PIECE]
        tokens[row, : len(part)], positions[row, : len(part)] = part, np.arange(len(part))
    return tokens, positions


@partial(jax.jit, static_argnums=0)
def _score(
    config: DecoderConfig, params: Params, tokens: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Nats of all predicted tokens, and the largest magnitude of a hidden state (NaN if there is one)."""

    def one(piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        ids, at = piece
        hidden = encode(config, params, ids[None], at[None], _adapters(params))[0]
        scores = jax.nn.log_softmax(logits(config, params, hidden[:-1]), axis=-1)
        nats = -jnp.take_along_axis(scores, ids[1:, None], axis=-1)[:, 0]
        real = at >= 0
        size = jnp.where(real, jnp.abs(hidden).max(axis=-1), 0.0).max()
        return jnp.where(real[1:], nats, 0.0).sum(), size

    nats, sizes = jax.lax.map(one, (tokens, positions))
    return nats.sum(), sizes.max()


@dataclass(frozen=True, slots=True)
class Greedy:
    """The likeliest tokens after a prompt, and by how many nats each beat the second likeliest."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


def continue_greedily(config: DecoderConfig, params: Params, prompt: Sequence[int], count: int) -> Greedy:
    """`count` tokens after `prompt`, with a float32 cache: what another program's answer is held to."""
    ids = np.asarray(prompt, np.int32)
    cache = init_cache(config, 1, len(ids) + count, jnp.float32)
    tokens: list[int] = []
    margins: list[float] = []
    fed, start = ids, 0
    while len(tokens) < count:
        positions = np.arange(start, start + len(fed), dtype=np.int32)
        best, margin, cache = _advance(config, params, cache, fed[None], positions[None])
        tokens.append(int(best))
        margins.append(float(margin))
        start, fed = start + len(fed), np.array([tokens[-1]], np.int32)
    return Greedy(tuple(tokens), tuple(margins))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(
    config: DecoderConfig, params: Params, cache: Cache, tokens: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, Cache]:
    """The likeliest token after the last of `tokens` [1, T], its margin, and the cache with them in it."""
    batch = Batch(tokens, positions, jnp.zeros(1, jnp.int32), _adapters(params))
    hidden, cache = forward(config, params, cache, batch)
    scores = jax.nn.log_softmax(logits(config, params, hidden[0, -1]))
    (first, second), (best, _) = jax.lax.top_k(scores, 2)
    return best, first - second, cache


def _adapters(params: Params) -> jax.Array | None:
    """The adapter in slot 1 for the one row, where the parameters have any."""
    return jnp.ones(1, jnp.int32) if "lora" in params["layers"][0] else None


def _findings(bits: float, largest: float) -> tuple[str, ...]:
    if not (math.isfinite(bits) and math.isfinite(largest)):
        return ("the model computes NaN or infinity",)
    if bits > UNTRAINED_BITS:
        return (
            f"{bits:.2f} bits per byte of plain text: the weights or the tokenizer do not belong together",
        )
    if bits > GOOD_BITS:
        return (f"{bits:.2f} bits per byte of plain text, more than the {GOOD_BITS} of a working model",)
    return ()

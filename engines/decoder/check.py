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

from engines.decoder.config import DecoderConfig
from engines.decoder.model import Params, encode, logits

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
        hidden = encode(config, params, ids[None], at[None])[0]
        scores = jax.nn.log_softmax(logits(config, params, hidden[:-1]), axis=-1)
        nats = -jnp.take_along_axis(scores, ids[1:, None], axis=-1)[:, 0]
        real = at >= 0
        size = jnp.where(real, jnp.abs(hidden).max(axis=-1), 0.0).max()
        return jnp.where(real[1:], nats, 0.0).sum(), size

    nats, sizes = jax.lax.map(one, (tokens, positions))
    return nats.sum(), sizes.max()


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

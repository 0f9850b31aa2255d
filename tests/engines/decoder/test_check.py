"""`examine` tells a working model from one with a wrong norm or RoPE, on real weights and real stories."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import pytest

from engines.decoder import weights
from engines.decoder.check import examine
from engines.decoder.config import Rope
from modelfiles.files import ModelFile

TEXT = (
    " Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day,"
    " she saw a big, red ball. She wanted to play with it, but it was too high."
)


def encode_greedily(stories: Any, text: str) -> list[int]:
    """llama2.c's merges: the best-scored pair first, starting from characters."""
    pieces = [piece for piece, _ in stories.pieces]
    ids = [pieces.index(character.encode()) for character in text]
    while True:
        best: tuple[float, int, int] | None = None
        for at in range(len(ids) - 1):
            joined = pieces[ids[at]] + pieces[ids[at + 1]]
            if joined in pieces:
                token = pieces.index(joined)
                score = stories.pieces[token][1]
                if best is None or score > best[0]:
                    best = (score, at, token)
        if best is None:
            return [1, *ids]
        ids[best[1] : best[1] + 2] = [best[2]]


@pytest.mark.slow
def test_a_working_model_passes_and_a_broken_one_does_not(
    stories: Any, stories_folder: list[ModelFile]
) -> None:
    model, ids = weights.load(stories_folder), encode_greedily(stories, TEXT)
    good = examine(model.config, model.params, ids, len(TEXT))
    assert good.passed
    assert 0 < good.bits_per_byte < 1.0  # the text is one the model writes itself
    layers = tuple(replace(layer, rope=Rope(base=10.0)) for layer in model.config.layers)
    turned = examine(replace(model.config, layers=layers), model.params, ids, len(TEXT))
    assert turned.bits_per_byte > 1.3 * good.bits_per_byte
    shifted = {**model.params, "final_norm": model.params["final_norm"] * jnp.nan}
    broken = examine(model.config, shifted, ids, len(TEXT))
    assert "NaN" in broken.findings[0]
    scrambled = examine(model.config, model.params, [(token * 7 + 3) % 512 for token in ids], len(TEXT))
    assert not scrambled.passed
    assert math.isfinite(scrambled.largest_hidden)


def test_a_page_of_one_token_says_nothing(stories_folder: list[ModelFile]) -> None:
    model = weights.load(stories_folder)
    with pytest.raises(ValueError, match="at least two tokens"):
        examine(model.config, model.params, [1], 4)

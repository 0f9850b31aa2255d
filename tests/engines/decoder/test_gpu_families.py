"""Whole models by the GPU's forms, run on the CPU, against the stored answers of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.decoder.gpu import forms
from engines.decoder.weights.loading import load_model
from tests.engines.decoder.test_golden import CHUNK, TOLERANCE, Sequence, recipe, relative, stored

FAMILIES = ("gemma2", "gemma3", "gemma4_moe")
"""Soft caps, rings and head norms, experts: between them every path the forms take. The other families pass
too (all twelve were run), and take longer than they tell."""


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_and_single_tokens_equal_the_reference(family: str, tmp_path: Path) -> None:
    config, tensors, expected = stored(family)
    model = load_model(recipe.write_folder(tmp_path, config, tensors), platform="gpu")
    ids = recipe.token_ids()
    sizes = [CHUNK, 5, 1, CHUNK, 11, 1, 1, CHUNK, 7]
    sizes += [CHUNK] * ((len(ids) - sum(sizes)) // CHUNK)
    sizes += [len(ids) - sum(sizes)]
    sequence = Sequence(model)
    try:
        scores = sequence.feed_all(ids[:-8], _without(sizes, 8), CHUNK)
        singles = [sequence.feed(ids[at : at + 1], 1) for at in range(len(ids) - 8, len(ids))]
    finally:
        forms.unregister_all()
    assert relative(scores, expected[: len(scores)]) < TOLERANCE
    for at, single in enumerate(singles):
        assert relative(single, expected[len(scores) + at][None]) < TOLERANCE


def _without(sizes: list[int], tokens: int) -> list[int]:
    """The sizes of chunks that leave so many tokens for later."""
    kept = list(sizes)
    while tokens:
        taken = min(kept[-1], tokens)
        kept[-1], tokens = kept[-1] - taken, tokens - taken
        kept = [size for size in kept if size]
    return kept

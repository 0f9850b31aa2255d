"""The decoder end to end on real weights: published greedy text, and cached steps against whole sequences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from engines.decoder import weights
from engines.decoder.cache import init_cache
from engines.decoder.model import Batch, forward, logits
from engines.decoder.weights.loading import LoadedModel
from modelfiles.files import ModelFile


@pytest.fixture(scope="session")
def published(shared_data: Path) -> str:
    """The greedy sample printed in stories260K's model card."""
    card = (shared_data / "models" / "stories260K" / "UPSTREAM-stories260K.md").read_text()
    found = re.search(r"-t 0\.0\n(.*?)\n```", card, re.DOTALL)
    assert found
    return found[1]


def greedy(model: LoadedModel, first: int, count: int, stop: int) -> list[int]:
    """Token by token through the cache, in slot 1 of 2, beside a row of padding."""
    config = model.config

    @jax.jit
    def step(params: Any, cache: Any, token: jax.Array, position: jax.Array) -> Any:
        tokens = jnp.stack([jnp.zeros_like(token), token])[:, None]
        positions = jnp.stack([jnp.full_like(position, -1), position])[:, None]
        hidden, cache = forward(config, params, cache, Batch(tokens, positions, jnp.array([2, 1])))
        return jnp.argmax(logits(config, params, hidden[1, 0])).astype(jnp.int32), cache

    cache = init_cache(config, 2, 512, jnp.float32)
    token, out = jnp.int32(first), []
    for position in range(count):
        token, cache = step(model.params, cache, token, jnp.int32(position))
        if int(token) == stop:
            break
        out.append(int(token))
    return out


@pytest.mark.parametrize(
    "container", [pytest.param("stories_folder", marks=pytest.mark.slow), "stories_gguf"]
)
def test_the_published_greedy_text_is_reproduced(
    container: str, request: pytest.FixtureRequest, stories: Any, published: str
) -> None:
    files: list[ModelFile] = request.getfixturevalue(container)
    model = weights.load(files)
    text = stories.text(greedy(model, first=1, count=256, stop=1))
    assert text.strip() == published.strip()

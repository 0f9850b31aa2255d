"""Every family in every container against stored answers of transformers; no torch is needed here.

Models and answers come from tests/parity/recipe.py and make_golden.py. Float32 against float32: 1e-4 of the
largest logit, of which rounding in a different order uses about 1e-6.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder import weights
from engines.decoder.cache import init_cache
from engines.decoder.config import Rope
from engines.decoder.model import Batch, forward, logits
from engines.decoder.rope import inverse_frequencies
from engines.decoder.weights.loading import LoadedModel

TESTS = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4
CHUNK = 16


def load_recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe", TESTS / "parity" / "recipe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()
STORED = sorted(path.stem for path in (TESTS / "golden" / "logits").glob("*.npz"))
GOLDEN = [family for family in STORED if family not in recipe.ENCODERS]
QUICKEST = ("gemma", "gemma2", "gemma3")
"""Families compared in every check; the others take seconds each to compile."""

CHECKED = [pytest.param(family, marks=() if family in QUICKEST else pytest.mark.slow) for family in GOLDEN]

QUICK = {"xla_backend_optimization_level": 0}  # compiling is what these tests spend their time on


@partial(jax.jit, static_argnames="config", donate_argnames="cache", compiler_options=QUICK)
def run(config: Any, params: Any, cache: Any, tokens: jax.Array, positions: jax.Array) -> Any:
    """One chunk in slot 1 of a cache of two, beside a row of padding."""
    both = Batch(
        jnp.stack([jnp.zeros_like(tokens), tokens]),
        jnp.stack([jnp.full_like(positions, -1), positions]),
        jnp.array([0, 1], jnp.int32),
    )
    hidden, cache = forward(config, params, cache, both)
    return logits(config, params, hidden[1]), cache


class Sequence:
    """One sequence in the cache of a model; `feed` returns logits [tokens, vocabulary]."""

    def __init__(self, model: LoadedModel) -> None:
        self.model, self.start = model, 0
        self.cache = init_cache(model.config, 2, 256, jnp.float32, chunk=CHUNK)

    def feed(self, ids: np.ndarray[Any, Any], chunk: int) -> np.ndarray[Any, Any]:
        """Runs `ids` in one pass, padded to `chunk` tokens."""
        tokens, positions = np.zeros(chunk, np.int32), np.full(chunk, -1, np.int32)
        tokens[: len(ids)] = ids
        positions[: len(ids)] = np.arange(self.start, self.start + len(ids))
        self.start += len(ids)
        inputs = jnp.asarray(tokens), jnp.asarray(positions)
        scores, self.cache = run(self.model.config, self.model.params, self.cache, *inputs)
        return np.asarray(scores)[: len(ids)]

    def feed_all(self, ids: np.ndarray[Any, Any], sizes: list[int], chunk: int) -> np.ndarray[Any, Any]:
        """Several passes of `sizes` tokens."""
        cuts = np.cumsum(sizes)[:-1]
        return np.concatenate([self.feed(part, chunk) for part in np.split(ids, cuts)])


def stored(family: str) -> tuple[dict[str, Any], Any, np.ndarray[Any, Any]]:
    """config.json, weights by the recipe, and the stored logits."""
    with np.load(TESTS / "golden" / "logits" / f"{family}.npz") as golden:
        described, expected = json.loads(golden["model"].tobytes()), golden["logits"]
    config = described["config"]
    shifted = config["model_type"].removesuffix("_text") in recipe.SHIFTED
    return config, recipe.make_tensors(described["shapes"], shifted), expected


def relative(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("family", CHECKED)
def test_chunks_through_the_cache_equal_the_reference(family: str, tmp_path: Path) -> None:
    config, tensors, expected = stored(family)
    model = weights.load(recipe.write_folder(tmp_path, config, tensors))
    ids = recipe.token_ids()
    sizes = [CHUNK, 5, 1, CHUNK, 11, 1, 1, CHUNK, 7]
    sizes += [CHUNK] * ((len(ids) - sum(sizes)) // CHUNK)
    sizes += [len(ids) - sum(sizes)]
    assert relative(Sequence(model).feed_all(ids, sizes, CHUNK), expected) < TOLERANCE


@pytest.mark.parametrize("family", GOLDEN)
def test_the_gguf_of_a_family_gives_the_same_weights(family: str, tmp_path: Path) -> None:
    config, tensors, _ = stored(family)
    if config["model_type"] not in recipe.GGUF_ARCHITECTURES:
        pytest.skip(f"llama.cpp has no architecture that keeps every feature of {family}")
    folder = weights.load(recipe.write_folder(tmp_path / "folder", config, tensors))
    single = weights.load(recipe.write_gguf(tmp_path / "model.gguf", config, tensors))
    mine, theirs = jax.tree.flatten(folder.params), jax.tree.flatten(single.params)
    assert mine[1] == theirs[1]
    for ours, other in zip(mine[0], theirs[0], strict=True):
        np.testing.assert_allclose(ours, other, rtol=0, atol=1e-6)
    for ours, theirs in zip(folder.config.layers, single.config.layers, strict=True):
        assert replace(ours, rope=Rope()) == replace(theirs, rope=Rope())
        turns = [inverse_frequencies(layer.rope, layer.head_dim) for layer in (ours, theirs)]
        np.testing.assert_allclose(*turns, rtol=2e-6, atol=1e-12)
    for name in ("attention_scale", "final_softcap", "attention_softcap", "norm_epsilon"):
        assert getattr(folder.config, name) == pytest.approx(getattr(single.config, name))
    floats = dict.fromkeys(("attention_scale", "final_softcap", "attention_softcap", "norm_epsilon"), 1.0)
    plain = [replace(model.config, layers=(), **floats) for model in (folder, single)]
    assert plain[0] == plain[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", GOLDEN)
def test_prefill_then_64_greedy_steps_equal_the_reference(family: str, tmp_path: Path) -> None:
    config, tensors, expected = stored(family)
    if config["model_type"] in recipe.GGUF_ARCHITECTURES:
        files = recipe.write_gguf(tmp_path / "model.gguf", config, tensors)
    else:
        files = recipe.write_folder(tmp_path, config, tensors)
    sequence, ids, cut = Sequence(weights.load(files)), recipe.token_ids(), recipe.PROMPT
    prefill = sequence.feed_all(ids[:cut], [CHUNK] * (cut // CHUNK), CHUNK)
    assert relative(prefill, expected[:cut]) < TOLERANCE
    steps = sequence.feed_all(ids[cut:], [1] * recipe.STEPS, 1)
    assert relative(steps, expected[cut:]) < TOLERANCE
    margin = np.diff(np.sort(expected[cut:], axis=-1)[:, -2:])[:, 0]
    sure = margin > 1e-3
    assert sure.mean() > 0.9
    assert (steps.argmax(-1) == expected[cut:].argmax(-1))[sure].all()

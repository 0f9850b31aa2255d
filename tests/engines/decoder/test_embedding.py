"""Embedding vectors: EmbeddingGemma against stored hidden states of transformers, and any decoder's mean."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder import weights
from engines.decoder.embedding import embed, embedding_width
from modelfiles.files import ModelFile

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe", TESTS / "parity" / "recipe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden(recipe: ModuleType) -> tuple[dict[str, Any], Any, Any, np.ndarray[Any, Any]]:
    """config.json, weights, dense layers, and the unit vector that follows from the stored hidden states."""
    with np.load(TESTS / "golden" / "logits" / "embedding_gemma.npz") as stored:
        described, hidden = json.loads(stored["model"].tobytes()), stored["logits"]
    tensors = recipe.make_tensors(described["shapes"], shifted_norms=True)
    dense = recipe.make_tensors(recipe.DENSE, shifted_norms=False)
    vector = hidden.mean(axis=0)
    for matrix in dense.values():
        vector = matrix @ vector
    return described["config"], tensors, dense, vector / np.linalg.norm(vector)


def embed_padded(model: Any, ids: np.ndarray[Any, Any], padding: int) -> np.ndarray[Any, Any]:
    """The vector of `ids`, padded, beside a row of nothing but padding."""
    tokens = np.zeros((2, len(ids) + padding), np.int32)
    positions = np.full_like(tokens, -1)
    tokens[0, : len(ids)], positions[0, : len(ids)] = ids, np.arange(len(ids))
    run = jax.jit(embed, static_argnums=0)
    vectors = run(model.config, model.params, jnp.asarray(tokens), jnp.asarray(positions))
    assert not np.asarray(vectors[1]).any()
    return np.asarray(vectors[0])


@pytest.mark.parametrize("container", ["folder", pytest.param("gguf", marks=pytest.mark.slow)])
def test_embedding_gemma_equals_the_reference(
    container: str, golden: Any, recipe: ModuleType, tmp_path: Path
) -> None:
    config, tensors, dense, expected = golden
    if container == "folder":
        for name, matrix in dense.items():
            (tmp_path / name).mkdir()
            data = recipe.safetensors_bytes({"linear.weight": matrix})
            (tmp_path / name / "model.safetensors").write_bytes(data)
        files = recipe.write_folder(tmp_path, config, tensors)
    else:
        files = recipe.write_gguf(tmp_path / "model.gguf", config, tensors, dense=dense)
    model = weights.load(files)
    assert model.config.bidirectional
    assert embedding_width(model.config) == 48
    vector = embed_padded(model, recipe.token_ids(), padding=5)
    np.testing.assert_allclose(vector, expected, atol=2e-6)


@pytest.mark.slow
def test_any_decoder_gives_the_mean_of_its_hidden_states(stories_folder: list[ModelFile]) -> None:
    model = weights.load(stories_folder)
    vector = embed_padded(model, np.array([1, 403, 407, 261]), padding=0)
    longer = embed_padded(model, np.array([1, 403, 407, 261]), padding=9)
    assert vector.shape == (64,)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(vector, longer, atol=1e-5)

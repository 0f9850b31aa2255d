"""`create --quantize`: a folder or a GGUF of floats becomes one quantised GGUF that is the same model."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from engines.decoder import weights
from engines.decoder.config import DecoderConfig, Rope
from engines.decoder.quant import QuantizedMatrix, to_float
from engines.decoder.rope import inverse_frequencies
from engines.decoder.weights import WeightsError
from engines.decoder.weights.convert import describe, write_quantized
from modelfiles.files import ModelFile
from modelfiles.gguf import GgufFile

TESTS = Path(__file__).resolve().parents[2]
FAMILIES = ("gemma", "gemma2", "gemma3", "llama", "llama3", "qwen2", "qwen3")


def stored(family: str) -> tuple[Any, dict[str, Any], Any]:
    spec = importlib.util.spec_from_file_location("recipe", TESTS / "parity" / "recipe.py")
    assert spec and spec.loader
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    with np.load(TESTS / "golden" / "logits" / f"{family}.npz") as golden:
        described = json.loads(golden["model"].tobytes())
    return recipe, described["config"], described["shapes"]


def single(path: Path) -> list[ModelFile]:
    return [ModelFile("weights", path.name, str(path), "sha256:" + "0" * 64, path.stat().st_size)]


def dense(leaf: Any) -> np.ndarray[Any, Any]:
    return np.asarray(to_float(leaf) if isinstance(leaf, QuantizedMatrix) else leaf)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_becomes_the_same_model(family: str, tmp_path: Path) -> None:
    """Rows of 48 hold no blocks of 32: matrices are stored as float16, so that only layout is tested."""
    recipe, config, shapes = stored(family)
    tensors = recipe.make_tensors(shapes, config["model_type"].removesuffix("_text") in recipe.SHIFTED)
    source = recipe.write_folder(tmp_path / "folder", config, tensors)
    write_quantized(source, tmp_path / "out.gguf", "q8_0")
    before, after = weights.load(source), weights.load(single(tmp_path / "out.gguf"))
    for one, other in zip(before.config.layers, after.config.layers, strict=True):
        assert replace(one, rope=Rope()) == replace(other, rope=Rope())
        turns = [inverse_frequencies(layer.rope, layer.head_dim) for layer in (one, other)]
        np.testing.assert_allclose(*turns, rtol=1e-5)
    assert before.config.attention_scale == pytest.approx(after.config.attention_scale)
    assert before.config.final_softcap == after.config.final_softcap
    is_leaf = {"is_leaf": lambda leaf: isinstance(leaf, QuantizedMatrix)}
    mine, theirs = jax.tree.leaves(before.params, **is_leaf), jax.tree.leaves(after.params, **is_leaf)
    for ours, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(dense(ours), dense(other), rtol=5e-3, atol=5e-3)


def test_a_gguf_keeps_its_tokenizer_and_shrinks(stories_gguf: list[ModelFile], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = tmp_path / "q8.gguf"
    write_quantized(stories_gguf, path, "Q8_0", lambda done, total: seen.append((done, total)))
    before, after = GgufFile.open(stories_gguf[0].path), GgufFile.open(path)
    assert list(after.metadata["tokenizer.ggml.tokens"]) == list(before.metadata["tokenizer.ggml.tokens"])
    assert after.metadata["general.file_type"] == 7
    assert path.stat().st_size < 0.5 * stories_gguf[0].size
    assert seen[-1][0] == seen[-1][1]
    assert weights.check_files(single(path)) == ()
    kinds = {tensor.ggml_type.name for tensor in after.tensors.values()}
    assert kinds == {"Q8_0", "F16", "F32"}  # 172 inputs of the down projection hold no blocks


def test_what_is_quantised_is_not_quantised_again(stories_gguf: list[ModelFile], tmp_path: Path) -> None:
    path = tmp_path / "q8.gguf"
    write_quantized(stories_gguf, path, "q8_0")
    with pytest.raises(WeightsError, match="already; quantize from the float model"):
        write_quantized(single(path), tmp_path / "twice.gguf", "q4_0")


def test_a_family_without_gguf_keys_is_refused() -> None:
    config = DecoderConfig.from_hf(stored("mistral")[1])
    with pytest.raises(WeightsError, match="mistral cannot be written as GGUF"):
        describe(config)

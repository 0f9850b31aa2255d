"""Our reading of GGUF against the implementation that defines the format: llama.cpp, its converter included.

A tiny random model of each family, converted by llama.cpp's own converter from the folder transformers would
write, runs in llama.cpp and here. Two roundings of llama.cpp's are kept out of float32 comparisons: it looks
GELU up in a table of half floats for inputs within -10 .. 10, so the gates here are loud (most inputs lie
outside, where GELU is exact in both), and it divides Gemma 3n's variance by n - 1, so that ours does too.
"""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from types import ModuleType

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder import altup, weights
from engines.decoder.embedding import embed
from engines.decoder.model import encode, rms_norm
from engines.decoder.quant import matmul
from tests.parity import models, recipe
from tests.parity.conftest import Models, files_of
from tests.parity.sequence import Ours, answers, generate, relative, rms

pytestmark = pytest.mark.parity

OUR_NAMES = {"general.name", "general.type", "general.size_label", "general.file_type"}
OUR_NAMES |= {"general.quantization_version"}
"""Keys that describe a file, not its model: the recipe leaves them out."""


def keep_largest_of_a_sample(gate: jax.Array, sparsity: float) -> jax.Array:
    """`altup.keep_largest` with the variance of a sample, as llama.cpp has it (transformers: of all)."""
    mean = jnp.mean(gate, axis=-1, keepdims=True)
    deviation = jnp.std(gate, axis=-1, keepdims=True, ddof=1)
    return jax.nn.relu(gate - (mean + deviation * NormalDist().inv_cdf(sparsity)))


@pytest.fixture(autouse=True)
def variance_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(altup, "keep_largest", keep_largest_of_a_sample)


# Files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*models.FAMILIES, *models.ENCODERS])
def test_the_recipe_writes_what_the_converter_writes(family: str, made: Models, tmp_path: Path) -> None:
    """The default tier's files are the recipe's: this is what they are worth."""
    config, tensors, converted = made[family]
    dense = models.dense_layers() if family in models.ENCODERS else None
    named = config | ({"model_type": "llama"} if family == "mistral" else {})
    [own] = recipe.write_gguf(tmp_path / "own.gguf", named, tensors, dense=dense)
    theirs, ours = gguf.GGUFReader(converted), gguf.GGUFReader(own.path)
    keys = [
        {name: field.contents() for name, field in one.fields.items() if name not in OUR_NAMES}
        for one in (theirs, ours)
    ]
    for counted in keys:
        counted.pop("GGUF.kv_count")
    assert keys[0] == keys[1]
    assert {tensor.name for tensor in theirs.tensors} == {tensor.name for tensor in ours.tensors}
    by_name = {tensor.name: tensor for tensor in ours.tensors}
    for tensor in theirs.tensors:
        assert tensor.tensor_type == by_name[tensor.name].tensor_type
        np.testing.assert_array_max_ulp(tensor.data, by_name[tensor.name].data, 8)


# Float32 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", models.FAMILIES)
def test_float32_answers_and_64_greedy_tokens(family: str, made: Models, llamacpp: ModuleType) -> None:
    _, _, path = made[family]
    ids = recipe.token_ids()
    with llamacpp.opened(path) as reference:
        expected = answers(reference, ids)
    assert relative(answers(Ours(weights.load(files_of(path))), ids), expected) < 1e-4
    with llamacpp.opened(path) as reference:
        theirs, margins = generate(reference, ids[: recipe.PROMPT], 64)
    assert (margins > 1e-3).all(), "choose a seed with larger margins"
    produced, _ = generate(Ours(weights.load(files_of(path))), ids[: recipe.PROMPT], 64)
    assert produced == theirs


def test_an_encoder_gives_the_hidden_states_and_vectors(made: Models, llamacpp: ModuleType) -> None:
    _, _, path = made["embedding"]
    ids = recipe.token_ids()
    with llamacpp.opened(path, encoder=True) as reference:
        expected = reference.feed(ids)
    model = weights.load(files_of(path))
    tokens, positions = jnp.asarray(ids)[None], jnp.arange(len(ids))[None]
    hidden = encode(model.config, model.params, tokens, positions)[0]
    states = rms_norm(hidden, model.params["final_norm"], model.config.norm_epsilon)
    for dense in model.params["dense"]:  # llama.cpp applies them to every token where it does not pool
        states = matmul(states, dense)
    assert relative(np.asarray(states), expected) < 1e-4
    with llamacpp.opened(path, pooled=True) as reference:
        pooled = reference.feed(ids)[0]
    vector = np.asarray(embed(model.config, model.params, tokens)[0])
    assert relative(vector, pooled / np.linalg.norm(pooled)) < 1e-4


# Quantised --------------------------------------------------------------------------------------------------


def as_float32(source: Path, out: Path) -> Path:
    """The same file with every block unpacked."""
    read = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(str(out), read.fields["general.architecture"].contents())
    for name, field in read.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in read.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def deviations(llamacpp: ModuleType, packed: Path) -> tuple[float, float]:
    """How far llama.cpp's logits of a quantised file, and ours, are from those of its unpacked weights."""
    ids = recipe.token_ids()
    plain = as_float32(packed, packed.with_suffix(".f32"))
    with llamacpp.opened(plain) as reference:
        expected = answers(reference, ids)
    with llamacpp.opened(packed) as reference:
        theirs = rms(answers(reference, ids), expected)
    return theirs, rms(answers(Ours(weights.load(files_of(packed))), ids), expected)


BLOCK_TYPES = {
    "Q8_0": 1e-2,
    "Q4_0": 1e-2,
    "Q4_1": 1e-2,
    "Q5_0": 1e-2,
    "Q5_1": 1e-2,
    "Q2_K": 1e-2,
    "Q3_K": 1e-2,
    "Q4_K": 1e-2,
    "Q5_K": 1e-2,
    "Q6_K": 1e-2,
    "IQ4_NL": 1e-2,
    "IQ4_XS": 1e-2,
}
"""What llama.cpp's own rounding of activations to 8 bits costs on Gemma 3 with every matrix of one type."""


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_blocks_answer_as_exactly_as_llama_cpp(
    block_type: str, made: Models, llamacpp: ModuleType, tmp_path: Path
) -> None:
    _, _, path = made["gemma3"]
    mixture = llamacpp.WANTED.get(block_type, block_type)
    packed = llamacpp.quantize(path, tmp_path / "packed.gguf", mixture, pure=True)
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(packed).tensors}
    assert kinds == {"F32", block_type}
    theirs, ours = deviations(llamacpp, packed)
    print(f"{block_type}: llama.cpp {theirs:.1e}, ours {ours:.1e}")
    assert theirs < BLOCK_TYPES[block_type]
    assert ours < 1.1 * theirs


@pytest.mark.parametrize("family", [family for family in models.FAMILIES if "27B" not in family])
def test_q4_k_m_answers_as_exactly_as_llama_cpp(
    family: str, made: Models, llamacpp: ModuleType, tmp_path: Path
) -> None:
    _, _, path = made[family]
    packed = llamacpp.quantize(path, tmp_path / "packed.gguf", "Q4_K_M")
    theirs, ours = deviations(llamacpp, packed)
    print(f"{family}: llama.cpp {theirs:.1e}, ours {ours:.1e}")
    assert theirs < 0.2  # the 25 layers of Gemma 3n at 0.13, all others below 0.05
    assert ours < 1.1 * theirs

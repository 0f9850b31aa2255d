"""The bud that ships: small, readable by our own parts, the same function as the training forward."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder import model, native, ops
from engines.decoder.bud import network, tokenizer
from engines.decoder.bud.export import MATRIX_NAMES, NORM_NAMES
from engines.decoder.bud.generate import generate, load_gguf
from engines.decoder.bud.network import SHAPE, Params
from engines.decoder.bud.report import SAMPLING
from modelfiles.files import ModelFile
from modelfiles.modelfile import Modelfile
from modelfiles.tokenizer import Tokenizer, load_tokenizer

FOLDER = Path(__file__).parents[3] / "registry" / "bundled"
GGUF = FOLDER / "bud.gguf"


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return load_tokenizer(
        [ModelFile("weights", GGUF.name, str(GGUF), "sha256:" + "0" * 64, GGUF.stat().st_size)]
    )


def test_it_is_small() -> None:
    assert GGUF.stat().st_size <= 20 << 20


def test_the_modelfile_says_what_was_evaluated() -> None:
    parsed = Modelfile.parse((FOLDER / "Modelfile").read_text(encoding="utf-8"))
    values = parsed.typed_parameters()
    assert parsed.base == "./bud.gguf"
    for name in ("temperature", "top_k", "top_p", "repeat_penalty"):
        assert values[name] == getattr(SAMPLING, name), name


def test_control_tokens_are_gemmas_and_never_come_from_plain_text(words: Tokenizer) -> None:
    vocabulary = words.vocabulary()
    assert vocabulary.names["<start_of_turn>"] == tokenizer.START_OF_TURN
    assert vocabulary.names["<end_of_turn>"] == tokenizer.END_OF_TURN
    assert (vocabulary.bos_token_id, vocabulary.add_bos) == (tokenizer.BOS, True)
    assert {tokenizer.EOS, tokenizer.END_OF_TURN} <= set(vocabulary.end_token_ids)
    typed = "<start_of_turn>user\nHi<end_of_turn>"
    assert not set(words.encode(typed)) & vocabulary.control_token_ids
    assert words.decode(words.encode(typed)) == typed
    assert words.encode(typed, parse_special=True)[0] == tokenizer.START_OF_TURN


@pytest.mark.parametrize(
    "text", ["Once upon a time, a fox ran.", "Line one\n\n two  spaces ", "Zürich 北京 🦊 42"]
)
def test_any_text_comes_back(words: Tokenizer, text: str) -> None:
    assert words.decode(words.encode(text)) == text


def read_params() -> Params:
    """The shipped weights as the training forward wants them."""
    import gguf

    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(GGUF).tensors
    }
    layers = range(SHAPE.layers)
    params = {
        ours: jnp.stack([tensors[f"blk.{layer}.{theirs}.weight"].T for layer in layers])
        for ours, theirs in MATRIX_NAMES.items()
    }
    params |= {
        ours: jnp.stack([tensors[f"blk.{layer}.{theirs}.weight"] - 1 for layer in layers])
        for ours, theirs in NORM_NAMES.items()
    }
    embedding, norm = tensors["token_embd.weight"], tensors["output_norm.weight"]
    return params | {"embedding": jnp.asarray(embedding), "final_norm": jnp.asarray(norm - 1)}


@pytest.mark.slow
def test_the_engine_computes_what_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        native, "register_all", lambda: None
    )  # kernels round activations; this compares floats
    monkeypatch.setattr(ops, "_kernels", {})
    loaded = load_gguf(GGUF)
    ids = np.random.default_rng(0).integers(6, SHAPE.vocabulary, (1, 384))  # three windows
    positions = jnp.arange(384)[None]
    hidden = model.encode(loaded.config, loaded.params, jnp.asarray(ids), positions)
    found = model.logits(loaded.config, loaded.params, hidden)
    expected = network.forward(read_params(), jnp.asarray(ids), jnp.ones((1, 384), jnp.int32))
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.slow
def test_it_tells_a_story_about_a_fox(words: Tokenizer) -> None:
    text = "<start_of_turn>user\nTell me a story about a fox.<end_of_turn>\n<start_of_turn>model\n"
    prompt = words.encode(text, add_bos=True, parse_special=True)
    found = generate(load_gguf(GGUF), [prompt] * 4, SAMPLING, 300, words.vocabulary().end_token_ids)
    stories = [words.decode(ids) for ids in found]
    assert all(len(story.split()) > 30 for story in stories)
    assert sum("fox" in story.lower() for story in stories) >= 3
    assert len(set(stories)) > 1

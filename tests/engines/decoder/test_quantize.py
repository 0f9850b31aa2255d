"""Quantising: bytes against the `gguf` package, errors of the K types against simpler ones, mixtures."""

from __future__ import annotations

import hashlib
from typing import Any

import gguf
import numpy as np
import pytest

from engines.decoder.blocks import dequantize
from engines.decoder.config import DecoderConfig
from engines.decoder.quantize import mixture, quantize

ROWS = np.random.default_rng(0).standard_normal((24, 1024)).astype(np.float32)


def awkward() -> np.ndarray[Any, Any]:
    """Zeros, constants, ties, a single spike, huge and tiny magnitudes, as rows of whole blocks."""
    rows = np.zeros((8, 256), np.float32)
    rows[1] = 1.5
    rows[2] = -0.75
    rows[3, 7] = -1000.0
    rows[4] = np.tile([-1.0, 1.0], 128)
    rows[5] = np.linspace(-1, 1, 256)
    rows[6] = ROWS[0, :256] * 1e4
    rows[7] = ROWS[1, :256] * 1e-7
    return rows


@pytest.mark.parametrize("block_type", ["Q8_0", "Q4_0", "Q5_0"])
@pytest.mark.parametrize("rows", [ROWS, awkward()], ids=["random", "awkward"])
def test_blocks_are_those_of_the_reference(block_type: str, rows: np.ndarray[Any, Any]) -> None:
    expected = gguf.quantize(rows, gguf.GGMLQuantizationType[block_type])
    np.testing.assert_array_equal(quantize(rows, block_type), expected)


MADE_BY_GGML = {
    "Q8_0": "93f1a165b0f7704a899a188c11aceaefdc53c5e97ca44a17d9fbc3c23ab2d9ad",
    "Q4_0": "f89493d2caad67441c9198bab534f7ed4da6762434910f7669187e74e1680c30",
    "Q5_0": "70eb7c9d37460c98c8dbf015f2347a9746bf90f3af7fe8989ac6ba0124d872da",
    "Q4_K": "d34c4c77499ce1928949c58eec8952b02f44029a08e2b191f0042a5668a6b363",
    "Q6_K": "3c7df3f9d14ac0266437460bd76a20fbfacf8f6b6f3628a427853866949b0680",
}
"""SHA-256 of the blocks of both sets of rows as llama.cpp's libggml made them."""


@pytest.mark.parametrize("block_type", MADE_BY_GGML)
def test_blocks_are_ggmls_byte_for_byte(block_type: str) -> None:
    blocks = quantize(ROWS, block_type).tobytes() + quantize(awkward(), block_type).tobytes()
    assert hashlib.sha256(blocks).hexdigest() == MADE_BY_GGML[block_type]


@pytest.mark.parametrize(("block_type", "bound"), [("Q4_K", 0.075), ("Q6_K", 0.018), ("Q8_0", 0.006)])
def test_k_types_lose_as_little_as_their_bits_allow(block_type: str, bound: float) -> None:
    """Relative error of gaussian weights; plain Q4_0 loses 0.085."""
    back = dequantize(quantize(ROWS, block_type), block_type)
    assert np.sqrt(((back - ROWS) ** 2).mean() / (ROWS**2).mean()) < bound


@pytest.mark.parametrize("block_type", ["Q4_K", "Q6_K"])
def test_awkward_blocks_stay_finite_and_close(block_type: str) -> None:
    rows = awkward()
    back = dequantize(quantize(rows, block_type), block_type)
    assert np.isfinite(back).all()
    assert not back[0].any()
    for row in (1, 2, 4, 5, 6):
        assert np.abs(back[row] - rows[row]).max() <= 0.08 * np.abs(rows[row]).max()


def test_rows_of_broken_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 100 do not hold whole Q8_0 blocks of 32"):
        quantize(np.zeros((2, 100), np.float32), "Q8_0")
    with pytest.raises(ValueError, match="cannot quantize to 'Q3_K'"):
        quantize(ROWS, "Q3_K")


def config_of(width: int, tied: bool = True) -> DecoderConfig:
    return DecoderConfig.from_hf(
        {
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 16,
            "num_attention_heads": 4,
            "vocab_size": 100,
            "tie_word_embeddings": tied,
        }
    )


def test_the_mixtures_are_llama_cpps() -> None:
    types = mixture(config_of(512), "q4_K_M")
    more = [index for index in range(16) if types[f"layers.{index}.down"] == "Q6_K"]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    assert types["layers.2.v"] == "Q4_K"
    assert types["layers.4.v"] == types["embedding"] == "Q6_K"
    assert types["layers.0.attention_norm"] == "F32"
    assert set(mixture(config_of(512), "q8_0").values()) == {"Q8_0", "F32"}
    assert mixture(config_of(512, tied=False), "q4_0")["embedding"] == "Q4_0"


def test_what_rounding_would_harm_is_kept() -> None:
    config = DecoderConfig.from_hf(
        {
            "model_type": "gemma4_text",
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "enable_moe_block": True,
            "num_experts": 16,
            "top_k_experts": 2,
            "moe_intermediate_size": 256,
        }
    )
    types = mixture(config, "q4_K_M")
    assert types["layers.0.router"] == types["per_layer_model_projection"] == "F32"
    assert types["per_layer_embedding"] == "Q6_K"
    assert [types[f"layers.{index}.v"] for index in range(4)] == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"]


def test_odd_widths_fall_back_as_there() -> None:
    types = mixture(config_of(640), "q4_k_m")
    assert types["layers.2.q"] == "Q5_0"
    assert types["embedding"] == "Q8_0"
    assert types["layers.2.down"] == "Q4_K"
    with pytest.raises(ValueError, match="q8_0, q4_0, q4_K_M"):
        mixture(config_of(640), "q3_k_s")

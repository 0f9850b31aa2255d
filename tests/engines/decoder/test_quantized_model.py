"""Whole models in block types: the kernels' answer against plain float32 products of the same weights.

The kernels round activations to eight bits per 32 inputs, as llama.cpp does; so does the oracle, in XLA,
before it multiplies the unpacked weights. Sums in another order move an activation by 1e-7, which now and
then puts it on the other side of a half. So tokens are run apart, nine in ten of them must agree to rounding,
and none may be further off than the eight bits cost. bfloat16 weights meet unrounded activations.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder import quant, weights
from engines.decoder.blocks import dequantize
from engines.decoder.model import encode, logits
from engines.decoder.quantize import quantize
from engines.decoder.weights.loading import LoadedModel

RECIPE = Path(__file__).resolve().parents[2] / "parity" / "recipe.py"
ROUNDED = ("Q8_0", "Q4_0", "Q4_K", "Q6_K")
SAME, WORST = 1e-5, 5e-2
CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe", RECIPE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (64, 256), "model.norm.weight": (256,)}
    for index in range(2):
        shapes |= {
            f"model.layers.{index}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": (256, 256),
                "self_attn.k_proj": (128, 256),
                "self_attn.v_proj": (128, 256),
                "self_attn.o_proj": (256, 256),
                "mlp.gate_proj": (512, 256),
                "mlp.up_proj": (512, 256),
                "mlp.down_proj": (256, 512),
                "input_layernorm": (256,),
                "post_attention_layernorm": (256,),
            }.items()
        }
    return shapes


def answer(model: LoadedModel, tokens: jax.Array, positions: jax.Array) -> np.ndarray[Any, Any]:
    def run(params: Any) -> jax.Array:
        return logits(model.config, params, encode(model.config, params, tokens, positions))

    return np.asarray(jax.jit(run)(model.params))


def product_of_rounded(x: jax.Array, matrix: quant.QuantizedMatrix) -> jax.Array:
    """x rounded to int8 per 32 inputs, times float32 weights [in, out]."""
    groups = x.reshape(x.shape[0], -1, 32)
    scales = jnp.maximum(jnp.abs(groups).max(axis=-1, keepdims=True) / 127, 1e-30)
    return (jnp.round(groups / scales) * scales).reshape(x.shape) @ matrix.data[0]


@pytest.mark.slow
@pytest.mark.parametrize("block_type", [*ROUNDED, "BF16"])
def test_kernels_answer_as_the_unpacked_weights_do(
    block_type: str, recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "quantize", lambda array, kind: stored_blocks(array, kind))
    tensors = recipe.make_tensors(names(), shifted_norms=False)
    packed = recipe.write_gguf(tmp_path / "packed.gguf", CONFIG, tensors, kind=block_type)
    plain = {
        name: array if array.ndim == 1 else unpacked(array, block_type) for name, array in tensors.items()
    }
    floats = recipe.write_gguf(tmp_path / "floats.gguf", CONFIG, plain)
    tokens = jnp.asarray(recipe.token_ids(40))[:, None]
    positions = jnp.zeros_like(tokens)
    native = weights.load(packed)
    if "native" not in native.kernels:
        pytest.skip("the C++ kernels are not built")
    actual = answer(native, tokens, positions)
    if block_type in ROUNDED:
        monkeypatch.setitem(quant._PRODUCTS, "columns", product_of_rounded)
    expected = answer(weights.load(floats), tokens, positions)
    difference = np.sqrt(((actual - expected) ** 2).mean(axis=-1) / (expected**2).mean(axis=-1))
    assert (difference < SAME).mean() >= 0.9
    assert difference.max() < WORST


def stored_blocks(array: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType) -> np.ndarray[Any, Any]:
    if kind == gguf.GGMLQuantizationType.F32:
        return array.astype(np.float32)
    if kind == gguf.GGMLQuantizationType.BF16:
        wide = array.astype(np.float32).view(np.uint32)
        return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16).view(np.uint8)
    return quantize(array, kind.name)


def unpacked(array: np.ndarray[Any, Any], block_type: str) -> np.ndarray[Any, Any]:
    return dequantize(stored_blocks(array, gguf.GGMLQuantizationType[block_type]), block_type)

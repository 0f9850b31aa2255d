"""LoRA slots against merged weights, from PEFT and GGUF, several adapters in one batch."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.base import AdapterFiles
from engines.decoder import weights
from engines.decoder.adapters import load_adapters, read_adapter
from engines.decoder.cache import init_cache
from engines.decoder.model import Batch, forward, logits
from engines.decoder.quant import QuantizedMatrix, to_float
from engines.decoder.weights import WeightsError
from engines.decoder.weights.loading import LoadedModel
from modelfiles.files import ModelFile

PARTS = {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "down": "mlp.down_proj", "up": "mlp.up_proj"}
GGUF_PARTS = {"q": "attn_q", "v": "attn_v", "down": "ffn_down", "up": "ffn_up"}
SHAPES = {"q": (64, 64), "v": (32, 64), "down": (64, 172), "up": (172, 64)}
IDS = np.array([1, 403, 407, 261, 378], np.int32)


def halves(rank: int, seed: int) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """A and B of layers 0 and 3, half-split rows."""
    generator = np.random.default_rng(seed)
    return {
        f"layers.{layer}.{part}": (
            generator.standard_normal((rank, shape[1])).astype(np.float32) / 4,
            generator.standard_normal((shape[0], rank)).astype(np.float32) / 4,
        )
        for layer in (0, 3)
        for part, shape in SHAPES.items()
    }


def peft(folder: Path, pairs: Any, to_safetensors: Any, **settings: Any) -> tuple[ModelFile, ...]:
    folder.mkdir()
    tensors = {}
    for name, (down, up) in pairs.items():
        _, layer, part = name.split(".")
        base = f"base_model.model.model.layers.{layer}.{PARTS[part]}"
        tensors |= {f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up}
    (folder / "adapter_model.safetensors").write_bytes(to_safetensors(tensors))
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return tuple(
        ModelFile("adapter", path.name, str(path), "sha256:" + "0" * 64, path.stat().st_size)
        for path in sorted(folder.iterdir())
    )


def gguf_adapter(path: Path, pairs: Any, alpha: float) -> tuple[ModelFile, ...]:
    """As llama.cpp's convert_lora_to_gguf writes it: Llama's query rows interleaved."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (down, up) in pairs.items():
        _, layer, part = name.split(".")
        if part == "q":
            up = up.reshape(8, 2, 4, -1).swapaxes(1, 2).reshape(up.shape)
        writer.add_tensor(f"blk.{layer}.{GGUF_PARTS[part]}.weight.lora_a", down)
        writer.add_tensor(f"blk.{layer}.{GGUF_PARTS[part]}.weight.lora_b", np.ascontiguousarray(up))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (ModelFile("adapter", path.name, str(path), "sha256:" + "0" * 64, path.stat().st_size),)


@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def answer(config: Any, params: Any, cache: Any, batch: Batch) -> jax.Array:
    hidden, _ = forward(config, params, cache, batch)
    return logits(config, params, hidden)


def run(model: LoadedModel, params: Any, adapters: list[int]) -> np.ndarray[Any, Any]:
    """Logits [B, T, V] of the same tokens in one row per adapter."""
    rows = len(adapters)
    tokens = jnp.broadcast_to(IDS, (rows, len(IDS)))
    positions = jnp.broadcast_to(jnp.arange(len(IDS), dtype=jnp.int32), tokens.shape)
    batch = Batch(tokens, positions, jnp.arange(rows, dtype=jnp.int32), jnp.array(adapters, jnp.int32))
    cache = init_cache(model.config, rows, 128, jnp.float32)
    return np.asarray(answer(model.config, params, cache, batch))


def merged(model: LoadedModel, pairs: Any, scale: float) -> Any:
    """Parameters with the adapter added into the weights."""
    sizes = {"q": 64, "k": 32, "v": 32, "gate": 172, "up": 172}
    layers = [dict(layer) for layer in model.params["layers"]]
    for name, (down, up) in pairs.items():
        _, index, part = name.split(".")
        layer = layers[int(index)]
        key = next(key for key in layer if part in key.split("+"))
        start = sum(sizes[one] for one in key.split("+")[: key.split("+").index(part)]) if "+" in key else 0
        dense = np.asarray(to_float(layer[key])).copy()
        dense[start : start + up.shape[0]] += scale * up @ down
        old = layer[key]
        layer[key] = QuantizedMatrix((jnp.asarray(dense.T),), "F32", "columns", old.shape)
    return {**model.params, "layers": tuple(layers)}


@pytest.mark.slow
def test_a_batch_of_adapters_equals_merged_weights(
    stories_folder: list[ModelFile], to_safetensors: Any, tmp_path: Path
) -> None:
    model = weights.load(stories_folder)
    first, second, third = halves(4, 1), halves(7, 2), halves(16, 3)
    adapters = [
        AdapterFiles("a", peft(tmp_path / "a", first, to_safetensors, r=4, lora_alpha=8)),
        AdapterFiles("b", gguf_adapter(tmp_path / "b.gguf", second, alpha=3.5)),
        AdapterFiles("c", peft(tmp_path / "c", third, to_safetensors, r=16, lora_alpha=8, use_rslora=True)),
    ]
    device = jax.devices("cpu")[0]
    params, numbers = load_adapters(model.config, model.params, adapters, device)
    assert numbers == {"a": 1, "b": 2, "c": 3}
    together = run(model, params, [0, 2, 1, 3])
    plain = run(model, model.params, [0])[0]
    np.testing.assert_allclose(together[0], plain, atol=1e-4)
    for row, pairs, scale in ((2, first, 2.0), (1, second, 0.5), (3, third, 2.0)):
        expected = run(model, merged(model, pairs, scale), [0])[0]
        assert np.abs(expected - plain).max() > 0.1
        np.testing.assert_allclose(together[row], expected, atol=2e-4)


def test_what_does_not_fit_the_base_is_refused(
    stories_folder: list[ModelFile], to_safetensors: Any, tmp_path: Path
) -> None:
    config = weights.load(stories_folder).config
    wrong = {"layers.0.q": (np.zeros((4, 60), np.float32), np.zeros((64, 4), np.float32))}
    with pytest.raises(WeightsError, match=r"'layers\.0\.q' has shapes \(4, 60\)"):
        read_adapter(config, peft(tmp_path / "a", wrong, to_safetensors, r=4))
    beyond = {"layers.9.q": (np.zeros((4, 64), np.float32), np.zeros((64, 4), np.float32))}
    with pytest.raises(WeightsError, match="which cannot be adapted"):
        read_adapter(config, peft(tmp_path / "b", beyond, to_safetensors, r=4))
    with pytest.raises(WeightsError, match="DoRA"):
        read_adapter(config, peft(tmp_path / "c", halves(2, 0), to_safetensors, r=2, use_dora=True))
    with pytest.raises(WeightsError, match=r"needs the adapter_config\.json"):
        read_adapter(config, peft(tmp_path / "d", halves(2, 0), to_safetensors)[1:])

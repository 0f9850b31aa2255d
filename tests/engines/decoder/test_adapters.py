"""LoRA slots against merged weights, from PEFT and GGUF, several adapters in one batch."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.base import AdapterRoom
from engines.decoder import weights
from engines.decoder.adapter_files import check_adapter, open_adapter, room_bytes, room_for
from engines.decoder.adapters import empty_stacks, fill_slot, read_filling, with_stacks
from engines.decoder.cache import init_cache
from engines.decoder.model import Batch, forward, logits
from engines.decoder.quant import QuantizedMatrix, to_float
from engines.decoder.weights import WeightsError
from engines.decoder.weights.headers import read_headers
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


def gguf_adapter(path: Path, pairs: Any, alpha: float, architecture: str = "llama") -> tuple[ModelFile, ...]:
    """As llama.cpp's convert_lora_to_gguf writes it: Llama's query rows interleaved."""
    writer = gguf.GGUFWriter(str(path), architecture)
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
        peft(tmp_path / "a", first, to_safetensors, r=4, lora_alpha=8),
        gguf_adapter(tmp_path / "b.gguf", second, alpha=3.5),
        peft(tmp_path / "c", third, to_safetensors, r=16, lora_alpha=8, use_rslora=True),
    ]
    room = AdapterRoom(3, 16, ("down", "q", "up", "v"))
    stacks = empty_stacks(model.config, room, jax.devices("cpu")[0])
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(stacks)) == room_bytes(model.config, room)
    for slot, files in enumerate(adapters, 1):
        check_adapter(model.config, files)
        filling = read_filling(model.config, room, files)
        stacks = fill_slot(stacks, jnp.int32(slot), filling)
    params = with_stacks(model.params, stacks)
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
    config = read_headers(stories_folder).config
    good = halves(2, 0)
    down, up = good["layers.0.q"]

    def refused(words: str, pairs: Any, **settings: Any) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(WeightsError, match=words):
            check_adapter(config, peft(folder, pairs, to_safetensors, **settings))

    refused(r"'layers\.0\.q' has shapes \(2, 60\)", {"layers.0.q": (down[:, :60], up)})
    refused("expected two axes", {"layers.0.q": (down[0], up)})
    refused("which cannot be adapted", {"layers.9.q": (down, up)})
    refused(r"'base_model.*q_proj\.lora_B\.weight' holds NaN", {"layers.0.q": (down, up * np.nan)})
    refused("no LoRA matrices", {})
    refused("DoRA", good, use_dora=True)
    refused("of type 'LOHA'", good, peft_type="LOHA")
    refused("'many' as lora_alpha", good, lora_alpha="many")
    with pytest.raises(WeightsError, match=r"needs the adapter_config\.json"):
        check_adapter(config, peft(tmp_path / "alone", good, to_safetensors)[1:])


def test_adapters_of_other_models_are_refused(
    stories_folder: list[ModelFile], to_safetensors: Any, tmp_path: Path
) -> None:
    config = read_headers(stories_folder).config
    gemma = gguf_adapter(tmp_path / "gemma.gguf", halves(2, 0), alpha=1, architecture="gemma3")
    with pytest.raises(WeightsError, match="for 'gemma3' models, the base is of 'llama'"):
        check_adapter(config, gemma)
    mistral = replace(config, architecture="mistral")
    check_adapter(mistral, gguf_adapter(tmp_path / "llama.gguf", halves(2, 0), alpha=1))
    name = "base_model.model.vision_tower.layers.0.self_attn.q_proj.lora_"
    folder = tmp_path / "vision"
    files = peft(folder, {}, to_safetensors)
    tensors = {
        f"{name}A.weight": np.zeros((2, 64), np.float32),
        f"{name}B.weight": np.zeros((64, 2), np.float32),
    }
    (folder / "adapter_model.safetensors").write_bytes(to_safetensors(tensors))
    with pytest.raises(WeightsError, match=r"vision_tower.* a part that is left out"):
        check_adapter(config, files)


def test_exceptions_to_alpha_and_the_room_an_adapter_needs(
    stories_folder: list[ModelFile], to_safetensors: Any, tmp_path: Path
) -> None:
    config = read_headers(stories_folder).config
    settings = {"lora_alpha": 9, "alpha_pattern": {"layers.3.mlp.up_proj": 36}}
    pairs = open_adapter(config, peft(tmp_path / "a", halves(9, 0), to_safetensors, **settings))
    scales = {name: pair.scale for name, pair in pairs.items() if pair.scale != 1}
    assert scales == {"layers.3.up": 4.0}
    assert room_for(pairs, slots=2) == AdapterRoom(2, 16, ("down", "q", "up", "v"))
    five_layers = 64 + 64 + 32 + 64 + 172 + 64 + 64 + 172
    assert room_bytes(config, AdapterRoom(2, 16, ("down", "q", "up", "v"))) == 4 * 3 * 16 * 5 * five_layers

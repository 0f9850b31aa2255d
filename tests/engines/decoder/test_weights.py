"""What loading refuses and skips, how it shards and rounds, and what the estimates say of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from engines.decoder import weights
from engines.decoder.params import cache_bytes, held_bytes, largest_context, memory_needed, param_specs
from engines.decoder.weights import WeightsError
from modelfiles.files import ModelFile

Writer = Callable[[dict[str, np.ndarray[Any, Any]]], bytes]
Lister = Callable[[Path], list[ModelFile]]

CONFIG = {
    "model_type": "gemma2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 40,
    "max_position_embeddings": 4096,
    "sliding_window": 512,
}
SHAPES: dict[str, tuple[int, ...]] = {
    "embed_tokens.weight": (40, 32),
    "norm.weight": (32,),
} | {
    f"layers.{index}.{name}.weight": shape
    for index in range(2)
    for name, shape in {
        "input_layernorm": (32,),
        "post_attention_layernorm": (32,),
        "pre_feedforward_layernorm": (32,),
        "post_feedforward_layernorm": (32,),
        "self_attn.q_proj": (64, 32),
        "self_attn.k_proj": (32, 32),
        "self_attn.v_proj": (32, 32),
        "self_attn.o_proj": (32, 64),
        "mlp.gate_proj": (64, 32),
        "mlp.up_proj": (64, 32),
        "mlp.down_proj": (32, 64),
    }.items()
}


def make(prefix: str = "model.", dtype: Any = np.float32) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(3)
    return {
        prefix + name: generator.standard_normal(shape).astype(np.float32).astype(dtype)
        for name, shape in SHAPES.items()
    }


@pytest.fixture
def write(
    tmp_path: Path, to_safetensors: Writer, files_of: Lister
) -> Callable[[dict[str, np.ndarray[Any, Any]]], list[ModelFile]]:
    def write_one(tensors: dict[str, np.ndarray[Any, Any]], config: Any = CONFIG) -> list[ModelFile]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").write_bytes(to_safetensors(tensors))
        return files_of(tmp_path)

    return write_one


def test_a_missing_tensor_is_named(write: Any) -> None:
    tensors = make()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(WeightsError, match=r"'layers\.1\.mlp\.up_proj\.weight' is missing"):
        weights.check_files(write(tensors))


def test_a_mis_shaped_tensor_is_named_with_both_shapes(write: Any) -> None:
    tensors = make()
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((16, 32), np.float32)
    with pytest.raises(WeightsError, match=r"k_proj\.weight' has shape \(16, 32\); expected \(32, 32\)"):
        weights.check_files(write(tensors))


def test_an_unknown_tensor_is_refused(write: Any) -> None:
    tensors = make() | {"model.layers.0.self_attn.sinks": np.zeros(4, np.float32)}
    with pytest.raises(WeightsError, match=r"self_attn\.sinks' is not part of gemma2"):
        weights.check_files(write(tensors))


def test_more_layers_than_the_config_says_are_refused(write: Any) -> None:
    config = CONFIG | {"num_hidden_layers": 1}
    with pytest.raises(WeightsError, match=r"and \d+ more is not part of gemma2"):
        weights.check_files(write(make(), config))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_found_by_name(write: Any, bad: float) -> None:
    tensors = make()
    files = write(tensors)
    weights.check_weights(files)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = bad
    with pytest.raises(WeightsError, match=r"layers\.1\.mlp\.down_proj\.weight' holds NaN"):
        weights.check_weights(write(tensors))


def test_integers_are_no_weights(write: Any, tmp_path: Path) -> None:
    files = write(make())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(WeightsError, match="stored as I32, which cannot be read"):
        weights.check_files(files)


def test_towers_and_a_copied_head_are_skipped_and_listed(write: Any) -> None:
    extra = {
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": np.zeros((4, 4), np.float32),
        "multi_modal_projector.mm_input_projection_weight": np.zeros((4, 4), np.float32),
        "language_model.lm_head.weight": np.zeros((40, 32), np.float32),
    }
    skipped = weights.check_files(write(make("language_model.model.") | extra))
    assert len(skipped) == 3
    assert "lm_head.weight" in skipped


def test_files_without_config_json_say_what_is_missing(write: Any) -> None:
    files = [file for file in write(make()) if file.name != "config.json"]
    with pytest.raises(WeightsError, match=r"need the config\.json"):
        weights.check_files(files)


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"PK")
    with pytest.raises(WeightsError, match="GGUF, safetensors, Orbax"):
        weights.check_files([ModelFile("weights", path.name, str(path), "sha256:" + "0" * 64, 2)])


def test_shards_are_joined(tmp_path: Path, to_safetensors: Writer, files_of: Lister) -> None:
    tensors = make()
    names = sorted(tensors)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        (tmp_path / shard).write_bytes(to_safetensors({name: tensors[name] for name in part}))
        index |= dict.fromkeys(part, shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    model = weights.load(files_of(tmp_path))
    assert model.stored_types.keys() == set(param_specs(model.config))
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == sum(a.size for a in tensors.values())


def test_norms_gain_their_one_and_bf16_rounds_the_embedding_scale(write: Any) -> None:
    tensors = make(dtype=ml_dtypes.bfloat16)
    model = weights.load(write(tensors))
    stored = tensors["model.norm.weight"].astype(np.float32)
    np.testing.assert_array_equal(model.params["final_norm"], stored + 1)
    assert model.config.embedding_scale == float(ml_dtypes.bfloat16(32**0.5))
    assert weights.load(write(make())).config.embedding_scale == 32**0.5
    assert model.stored_types["layers.0.q"] == "BF16"
    assert "BF16" in model.description
    assert model.kernels


def test_progress_ends_at_the_total(stories_gguf: list[ModelFile]) -> None:
    seen: list[tuple[int, int]] = []
    weights.load(stories_gguf, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 4 * 260_000


def test_estimates_follow_from_the_headers(write: Any) -> None:
    files = write(make())
    short, long = memory_needed(files, 2, 1024), memory_needed(files, 2, 4096)
    model = weights.load(files)
    assert long - short == cache_bytes(model.config, 2, 4096) - cache_bytes(model.config, 2, 1024)
    assert largest_context(files, 2, long) == 4096
    assert 1024 <= largest_context(files, 2, short) < 1024 + 128
    assert largest_context(files, 2, 1 << 20) == 0


@pytest.mark.parametrize("container", ["stories_folder", "stories_bf16"])
def test_the_estimate_is_what_loading_takes(container: str, request: pytest.FixtureRequest) -> None:
    """Within what the kernels pad (rows to sixteen); float32 where there is no kernel for a type."""
    files: list[ModelFile] = request.getfixturevalue(container)
    model = weights.load(files)
    native = "native" in model.kernels
    specs = param_specs(model.config)
    expected = sum(
        held_bytes(
            specs[name].shape, kind if specs[name].role in ("matrix", "embedding") else "F32", "cpu", native
        )
        for name, kind in model.stored_types.items()
    )
    assert expected <= model.nbytes <= 1.05 * expected


def test_a_truncated_file_is_refused(stories_gguf: list[ModelFile], tmp_path: Path) -> None:
    source = Path(stories_gguf[0].path)
    cut = tmp_path / "cut.gguf"
    shutil.copy(source, cut)
    with cut.open("r+b") as file:
        file.truncate(source.stat().st_size - 4096)
    with pytest.raises(ValueError, match="cut short"):
        weights.check_files([ModelFile("weights", cut.name, str(cut), "sha256:" + "0" * 64, 1)])

"""Orbax checkpoints of every Gemma's tree, in each layout, against the same weights in a folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from engines.decoder import weights
from engines.decoder.config import ConfigError, DecoderConfig, UnknownArchitecture
from engines.decoder.weights import WeightsError
from modelfiles.files import ModelFile

orbax = pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")

WIDTH, HEADS, HEAD_DIM, INNER, ROWS = 32, 4, 16, 64, 48
FAMILIES = {
    "gemma 2B": ("gemma", 18, 1, False),
    "gemma 7B": ("gemma", 28, HEADS, False),
    "gemma2 2B": ("gemma2", 26, 2, False),
    "gemma2 9B": ("gemma2", 42, 2, True),
    "gemma3 270M": ("gemma3_text", 18, 1, True),
}
"""Model type, layers, key-value heads, and whether gating_einsum is [2, F, D]."""


def matrices(family: str) -> dict[str, np.ndarray[Any, Any]]:
    """Weights under Hugging Face names."""
    kind, layers, kv_heads, _ = FAMILIES[family]
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (ROWS, WIDTH), "norm": (WIDTH,)}
    for index in range(layers):
        own: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (HEADS * HEAD_DIM, WIDTH),
            "self_attn.k_proj": (kv_heads * HEAD_DIM, WIDTH),
            "self_attn.v_proj": (kv_heads * HEAD_DIM, WIDTH),
            "self_attn.o_proj": (WIDTH, HEADS * HEAD_DIM),
            "mlp.gate_proj": (INNER, WIDTH),
            "mlp.up_proj": (INNER, WIDTH),
            "mlp.down_proj": (WIDTH, INNER),
            "input_layernorm": (WIDTH,),
            "post_attention_layernorm": (WIDTH,),
        }
        if kind != "gemma":
            own |= {"pre_feedforward_layernorm": (WIDTH,), "post_feedforward_layernorm": (WIDTH,)}
        if kind == "gemma3_text":
            own |= {"self_attn.q_norm": (HEAD_DIM,), "self_attn.k_norm": (HEAD_DIM,)}
        shapes |= {f"layers.{index}.{name}": shape for name, shape in own.items()}
    generator = np.random.default_rng(5)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def flax_tree(family: str, given: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """The tree the gemma package keeps, from the table of its einsums."""
    kind, layers, kv_heads, transposed = FAMILIES[family]

    def heads(matrix: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
        return matrix.reshape(count, HEAD_DIM, WIDTH).transpose(0, 2, 1)

    tree: dict[str, Any] = {
        "embedder": {"input_embedding": given["embed_tokens"]},
        "final_norm": {"scale": given["norm"]},
    }
    for index in range(layers):
        one = {
            name.removeprefix(f"layers.{index}."): m
            for name, m in given.items()
            if f"layers.{index}." in name
        }
        query = heads(one["self_attn.q_proj"], HEADS)
        keys, values = (heads(one[f"self_attn.{name}_proj"], kv_heads) for name in "kv")
        attention: dict[str, Any] = {
            "attn_vec_einsum": {"w": one["self_attn.o_proj"].T.reshape(HEADS, HEAD_DIM, WIDTH)}
        }
        if kind == "gemma" and kv_heads == HEADS:
            attention["qkv_einsum"] = {"w": np.stack([query, keys, values])}
        else:
            attention |= {"q_einsum": {"w": query}, "kv_einsum": {"w": np.stack([keys, values])}}
        if kind == "gemma3_text":
            attention |= {
                "_query_norm": {"scale": one["self_attn.q_norm"]},
                "_key_norm": {"scale": one["self_attn.k_norm"]},
            }
        gates = np.stack([one["mlp.gate_proj"], one["mlp.up_proj"]])
        layer = {
            "attn": attention,
            "mlp": {
                "gating_einsum": gates if transposed else gates.transpose(0, 2, 1),
                "linear": one["mlp.down_proj"].T,
            },
            "pre_attention_norm": {"scale": one["input_layernorm"]},
        }
        if kind == "gemma":
            layer["pre_ffw_norm"] = {"scale": one["post_attention_layernorm"]}
        else:
            layer |= {
                "post_attention_norm": {"scale": one["post_attention_layernorm"]},
                "pre_ffw_norm": {"scale": one["pre_feedforward_layernorm"]},
                "post_ffw_norm": {"scale": one["post_feedforward_layernorm"]},
            }
        tree[f"layer_{index}"] = layer
    return tree


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """The flat form of released checkpoints: 'transformer/layer_0/mlp/linear' -> {'w': array}."""
    flat: dict[str, Any] = {}

    def walk(path: str, node: dict[str, Any]) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                walk(f"{path}/{name}", value)
            elif name in ("w", "scale", "input_embedding"):
                flat.setdefault(path, {})[name] = value
            else:
                flat[f"{path}/{name}"] = {"w": value}

    walk("transformer", tree)
    return flat


def stack(tree: dict[str, Any], period: int = 6) -> dict[str, Any]:
    """The stacked form: every `period`-th layer is one slice of the leaves of its attention type."""
    flat = flatten(tree)
    stacked: dict[str, Any] = {}
    for path in flat:
        found = re.match(r"transformer/layer_(\d+)/(.+)", path)
        if found is None:
            stacked[path] = flat[path]
        elif int(found[1]) < period:
            alike = []
            index = int(found[1])
            while f"transformer/layer_{index}/{found[2]}" in flat:
                alike.append(flat[f"transformer/layer_{index}/{found[2]}"])
                index += period
            name = f"transformer/stacked_layers/attention_type_{found[1]}/{found[2]}"
            stacked[name] = {leaf: np.stack([one[leaf] for one in alike]) for leaf in alike[0]}
    return stacked


FORMS: dict[str, Any] = {"nested": lambda tree: tree, "flat": flatten, "stacked": stack}


def checkpoint_files(folder: Path) -> list[ModelFile]:
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder.parent).as_posix()
        files.append(ModelFile("weights", name, str(path), "sha256:" + "0" * 64, path.stat().st_size))
    return files


def save(folder: Path, tree: dict[str, Any], ocdbt: bool) -> list[ModelFile]:
    with orbax.PyTreeCheckpointer(use_ocdbt=ocdbt) as checkpointer:
        checkpointer.save(folder, tree)
    return checkpoint_files(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ocdbt", "form"),
    [(True, "nested"), (False, "flat"), (True, "stacked")],
    ids=["ocdbt", "zarr", "stacked"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_flax_tree_is_the_same_model(
    family: str, ocdbt: bool, form: str, tmp_path: Path, to_safetensors: Callable[..., bytes], files_of: Any
) -> None:
    kind, layers, kv_heads, _ = FAMILIES[family]
    given = matrices(family)
    tree = flax_tree(family, given)
    files = save(tmp_path / "it", FORMS[form](tree), ocdbt)
    config = {
        "model_type": kind,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD_DIM,
        "vocab_size": ROWS,
        "max_position_embeddings": 32_768 if kind == "gemma3_text" else 8192,
        "sliding_window": 512 if kind == "gemma3_text" else 4096,
        "query_pre_attn_scalar": HEAD_DIM,
        "attn_logit_softcapping": 50.0 if kind == "gemma2" else None,
        "final_logit_softcapping": 30.0 if kind == "gemma2" else None,
    }
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    named = {f"model.{name}.weight": matrix for name, matrix in given.items()}
    (folder / "model.safetensors").write_bytes(to_safetensors(named))
    from_flax, from_folder = weights.load(files), weights.load(files_of(folder))
    assert from_flax.config == from_folder.config
    assert jax.tree.structure(from_flax.params) == jax.tree.structure(from_folder.params)
    for ours, theirs in zip(
        jax.tree.leaves(from_flax.params), jax.tree.leaves(from_folder.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_blobs_under_other_names_are_given_their_folder_back(tmp_path: Path) -> None:
    files = save(tmp_path / "2b-it", flax_tree("gemma3 270M", matrices("gemma3 270M")), ocdbt=True)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    renamed = []
    for number, file in enumerate(files):
        blob = blobs / f"sha256-{number:064x}"
        shutil.move(file.path, blob)
        renamed.append(ModelFile(file.role, file.name, str(blob), file.digest, file.size))
    assert weights.check_files(renamed) == ()


@pytest.mark.slow
def test_a_missing_leaf_is_named(tmp_path: Path) -> None:
    tree = flax_tree("gemma3 270M", matrices("gemma3 270M"))
    del tree["layer_3"]["mlp"]["linear"]
    with pytest.raises((WeightsError, ConfigError), match="layer_3/mlp/linear"):
        weights.check_files(save(tmp_path / "it", tree, ocdbt=True))


def test_layer_counts_of_no_published_model_are_refused() -> None:
    shapes = {
        "embedder/input_embedding": (48, 32),
        "layer_0/mlp/linear": (64, 32),
        "layer_0/attn/_query_norm/scale": (16,),
    }
    with pytest.raises(ConfigError, match="gemma3 of 1 layers; published ones have 18, 26, 34, 48, 62"):
        DecoderConfig.from_orbax(shapes)
    with pytest.raises(UnknownArchitecture, match="encoder"):
        DecoderConfig.from_orbax({"encoder/kernel": (3, 3)})

"""The models that are compared with llama.cpp: the families it knows, in sizes that it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity import recipe

WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
"""Rows of whole blocks of 256, which the K types need."""
SCALAR = {"query_pre_attn_scalar": 64}
NARROW = {"hidden_size": 64, "head_dim": 32, "query_pre_attn_scalar": 16}
"""The 27B Gemmas, known by their layers: the attention scale follows from width / heads, not heads."""
FOUR_TO_ONE = ["sliding_attention"] * 4 + ["full_attention"]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", WIDE),
    "gemma2": ("gemma2", WIDE | SCALAR),
    "gemma2 27B": ("gemma2", NARROW | {"num_hidden_layers": 46}),
    "gemma3": ("gemma3", WIDE | SCALAR),
    "gemma3 27B": ("gemma3", NARROW | {"num_hidden_layers": 62}),
    "gemma3n": (
        "gemma3n",
        WIDE
        | {
            "num_hidden_layers": 25,  # llama.cpp takes the first 20 to have keys of their own
            "layer_types": FOUR_TO_ONE * 5,
            "num_kv_shared_layers": 5,
            "intermediate_size": [512] * 25,
            "activation_sparsity_pattern": [0.95] * 10
            + [0.0] * 15,  # and these sizes to be the published ones
            "hidden_size_per_layer_input": 256,
            "vocab_size_per_layer_input": 64,
            "laurel_rank": 64,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma4 small": (
        "gemma4_small",
        WIDE
        | {
            "global_head_dim": 128,
            "num_hidden_layers": 9,
            "layer_types": recipe.KINDS3 * 3,
            "hidden_size_per_layer_input": 256,
        },
    ),
    "gemma4 dense": ("gemma4_dense", WIDE | {"global_head_dim": 128}),
    "gemma4 mixture": (
        "gemma4_moe",
        # 16: llama.cpp quantises mixtures of 8 experts otherwise, for Mixtral
        WIDE | {"global_head_dim": 128, "moe_intermediate_size": 256, "num_experts": 16},
    ),
    "llama": ("llama", WIDE),
    "llama 3.1": ("llama3", WIDE),
    "mistral": ("mistral", WIDE | {"sliding_window": None}),
    "qwen2": ("qwen2", WIDE),
    "qwen2 yarn": ("qwen2", WIDE | {"rope_parameters": YARN}),
    "qwen3": ("qwen3", WIDE),
}
"""What llama.cpp knows, in sizes that it takes."""
ENCODERS = {"embedding": ("embedding_gemma", WIDE | SCALAR)}
QUERY_NORMS = {"gemma3n_text": 0.25, "gemma4_text": 0.25}
"""Random attention of scale 1 over heads of 64 is so sharp that rounding alone moves logits by 1e-4."""
LOUD, QUIET = ("gate_proj.weight", "per_layer_input_gate.weight"), ("down_proj.weight", "down_proj")


def make_tensors(config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> recipe.Tensors:
    """The recipe's weights, with gates a thousand times as large and what reads them smaller.

    Blocks without a norm after them keep their magnitude.
    """
    kind = config["model_type"]
    tensors = recipe.make_tensors(shapes, kind.removesuffix("_text") in recipe.SHIFTED)
    for name, array in tensors.items():
        if name.endswith(LOUD):
            array *= 1000
        if name.endswith(QUIET):
            array /= 1000
        if name.endswith("experts.gate_up_proj"):
            array[:, : array.shape[1] // 2] *= 1000
        if name.endswith("q_norm.weight"):
            array *= np.float32(QUERY_NORMS.get(kind, 1.0))
    return tensors | _unused_keys(config, tensors)


def _unused_keys(config: Mapping[str, Any], tensors: recipe.Tensors) -> recipe.Tensors:
    """Published Gemma 3n checkpoints carry keys and values of the layers that share, and llama.cpp asks."""
    if config["model_type"] != "gemma3n_text":
        return {}
    count = config["num_hidden_layers"]
    parts = [f"self_attn.{part}.weight" for part in ("k_proj", "v_proj", "k_norm")]
    return {
        f"model.layers.{index}.{part}": tensors[f"model.layers.0.{part}"]
        for index in range(count - config["num_kv_shared_layers"], count)
        for part in parts
    }


def is_unused(family: str, tensor_name: str) -> bool:
    """Whether a GGUF tensor of a family holds keys or values that no layer reads: we do not keep those."""
    shared = FAMILIES[family][1].get("num_kv_shared_layers", 0) if family == "gemma3n" else 0
    first = FAMILIES[family][1]["num_hidden_layers"] - shared if shared else 1 << 30
    found = re.match(r"blk\.(\d+)\.attn_(k|v|k_norm)\.", tensor_name)
    return bool(found) and int(found[1]) >= first


def write_dense(folder: Path) -> None:
    """The dense layers after pooling, as sentence-transformers keeps them."""
    modules = [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    for name, matrix in dense_layers().items():
        modules.append({"path": name, "type": "sentence_transformers.models.Dense"})
        (folder / name).mkdir()
        sizes = {"in_features": matrix.shape[1], "out_features": matrix.shape[0]}
        (folder / name / "config.json").write_text(json.dumps(sizes))
        data = recipe.safetensors_bytes({"linear.weight": matrix})
        (folder / name / "model.safetensors").write_bytes(data)
    (folder / "modules.json").write_text(json.dumps(modules))


def dense_layers() -> recipe.Tensors:
    return recipe.make_tensors({"2_Dense": (512, 256), "3_Dense": (256, 512)}, shifted_norms=False)

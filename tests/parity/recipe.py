"""How the tiny random models of the golden and parity tests are made: reproducible anywhere, without torch.

A family's weights follow from tensor names, shapes and a seed; its files are a Hugging Face folder, or a GGUF
whose tensor names come from the `gguf` package's own table. `make_golden.py` runs the same weights through
transformers and stores what it answered.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from modelfiles.files import ModelFile

Tensors = dict[str, np.ndarray[Any, Any]]
PROMPT, STEPS = 96, 64
"""Tokens of prefill and of decoding: together they pass every window border, and rings wrap."""

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS3 = ["sliding_attention"] * 2 + ["full_attention"]
ROPES3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

GEMMA4: dict[str, Any] = TEXT | {
    "sliding_window": 8,
    "global_head_dim": 32,
    "final_logit_softcapping": 6.0,
}
GEMMA4_BIG: dict[str, Any] = GEMMA4 | {
    "num_hidden_layers": 3,
    "layer_types": KINDS3,
    "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", TEXT | {"num_hidden_layers": 2, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2",
        TEXT
        | {
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        TEXT
        | {
            "num_hidden_layers": 7,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "rope_parameters": ROPES3,
        },
    ),
    "gemma3n": (
        "Gemma3n",
        TEXT
        | {
            "num_hidden_layers": 6,
            "layer_types": KINDS3 * 2,
            "sliding_window": 8,
            "num_kv_shared_layers": 3,
            "intermediate_size": [96, 96, 96, 128, 128, 128],
            "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0, 0.0, 0.0],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 48,
            "laurel_rank": 6,
            "final_logit_softcapping": 6.0,
        },
    ),
    "embedding_gemma": (
        "Gemma3",
        TEXT
        | {
            "num_hidden_layers": 7,
            "sliding_window": 8,
            "use_bidirectional_attention": True,
            "query_pre_attn_scalar": 16,
        },
    ),
    "gemma4_small": (
        "Gemma4",
        GEMMA4
        | {
            "num_hidden_layers": 7,
            "layer_types": [*KINDS3, "sliding_attention", *KINDS3],
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 64,
        },
    ),
    "gemma4_dense": ("Gemma4", GEMMA4_BIG),
    "gemma4_moe": (
        "Gemma4",
        GEMMA4_BIG
        | {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 24},
    ),
    "llama": ("Llama", TEXT | {"num_hidden_layers": 2, "tie_word_embeddings": False}),
    "llama3": (
        "Llama",
        TEXT | {"num_hidden_layers": 2, "tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE},
    ),
    "mistral": ("Mistral", TEXT | {"num_hidden_layers": 2, "sliding_window": 8}),
    "qwen2": ("Qwen2", TEXT | {"num_hidden_layers": 2, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", TEXT | {"num_hidden_layers": 2}),
}
"""Name -> class prefix in transformers and the arguments of its configuration."""

ENCODERS = ("embedding_gemma",)
"""Families whose stored answers are final hidden states, not logits."""
DENSE = {"2_Dense": (80, 48), "3_Dense": (48, 80)}
"""Outputs and inputs of the dense layers beside an encoder."""

SHIFTED = ("gemma", "gemma2", "gemma3")
GGUF_ARCHITECTURES = {
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "gemma3n_text": gguf.MODEL_ARCH.GEMMA3N,
    "gemma4_text": gguf.MODEL_ARCH.GEMMA4,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""config.json's model_type -> GGUF architecture, where llama.cpp has one that keeps every feature."""


def make_tensors(shapes: Mapping[str, Iterable[int]], shifted_norms: bool, gain: float = 1.5) -> Tensors:
    """Random weights of the given names and shapes; each depends on its own name only."""
    return {name: _values(name, tuple(shape), shifted_norms, gain) for name, shape in shapes.items()}


def _values(name: str, shape: tuple[int, ...], shifted: bool, gain: float) -> np.ndarray[Any, Any]:
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if "norm" in name and "projection" not in name.replace("projection_norm", ""):
        return (0.0 if shifted else 1.0) + 0.2 * noise
    if name.endswith(("layer_scalar", "router.scale", "per_expert_scale", "correct_output_scale")):
        return 1.0 + 0.1 * noise
    if name.endswith(".bias"):
        return 0.2 * noise
    if "embed_tokens" in name:
        return 0.3 * noise
    return gain * noise / np.float32(shape[-1] ** 0.5)


def token_ids(count: int = PROMPT + STEPS, vocabulary: int = 64) -> np.ndarray[Any, Any]:
    """The tokens every family is run on, int32 [count]."""
    return np.random.default_rng(7).integers(3, vocabulary, count).astype(np.int32)


# Containers ---------------------------------------------------------------------------------------------

DTYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def safetensors_bytes(tensors: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """A safetensors file: header length, JSON header, data."""
    header, parts, end = {}, [], 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        parts.append(np.ascontiguousarray(array).tobytes())
        kind = DTYPE_NAMES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> list[ModelFile]:
    """A Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return list_files(folder)


def list_files(folder: Path) -> list[ModelFile]:
    """The files of a model's folder, as the store would name them."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        role = "weights" if path.suffix in (".safetensors", ".gguf") else "config"
        name = path.relative_to(folder).as_posix()
        found.append(ModelFile(role, name, str(path), "sha256:" + "0" * 64, path.stat().st_size))
    return found


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    kind: str = "F32",
    dense: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> list[ModelFile]:
    """A GGUF as llama.cpp's converter makes it: norms with their 1 added, Llama's rows interleaved.

    `make parity` compares it with the converter's own. `kind` is the storage type of matrices; rows that
    hold no whole blocks stay F32. `dense` are the layers
    after an encoder's pooling: they make the file an embedding model.
    """
    model_type = config["model_type"]
    architecture = gguf.MODEL_ARCH.GEMMA_EMBEDDING if dense else GGUF_ARCHITECTURES[model_type]
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[architecture])
    add_metadata(writer, config)
    if dense:
        for name, matrix in dense.items():
            writer.add_dense_features_dims(f"dense_{name[0]}", matrix.shape[1], matrix.shape[0])
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, array in _stacked(tensors).items():
        converted = _as_converted(name, array, config, model_type)
        found = _gguf_name(name, names)
        blocks = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
        if converted.ndim == 1 or converted.shape[-1] % blocks:
            writer.add_tensor(found, converted.astype(np.float32))
        else:
            stored = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(found, gguf.quantize(converted, stored), raw_dtype=stored)
    for name, matrix in (dense or {}).items():
        writer.add_tensor(f"dense_{name[0]}.weight", matrix)
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, config["head_dim"]))
    if model_type == "gemma4_text":
        pairs = (
            config["per_layer_config"][str(config["layer_types"].index("full_attention"))]["head_dim"] // 2
        )
        turned = np.arange(pairs) < pairs // 4
        writer.add_tensor("rope_freqs.weight", np.where(turned, 1.0, 1e30).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [ModelFile("weights", path.name, str(path), "sha256:" + "0" * 64, path.stat().st_size)]


GGUF_SCALES = {
    "layer_scalar": "blk.{}.layer_output_scale.weight",
    "router.scale": "blk.{}.ffn_gate_inp.scale",
    "router.per_expert_scale": "blk.{}.ffn_down_exps.scale",
    "experts.gate_up_proj": "blk.{}.ffn_gate_up_exps.weight",
    "experts.down_proj": "blk.{}.ffn_down_exps.weight",
}
"""Gemma 4's tensors without a suffix, which llama.cpp's converter names itself."""


def _stacked(tensors: Tensors) -> Tensors:
    """Gemma 3n's projections of the other streams are one tensor each in GGUF."""
    kept = {name: array for name, array in tensors.items() if "model.altup_" not in name}
    for part, stack in (
        ("altup_projections", "altup_proj"),
        ("altup_unembed_projections", "altup_unembd_proj"),
    ):
        found = [array for name, array in sorted(tensors.items()) if f"model.{part}." in name]
        if found:
            kept[f"{stack}.weight"] = np.stack(found)
    return kept


def _gguf_name(name: str, names: Any) -> str:
    if name.startswith("altup_"):
        return name
    if name.endswith("altup.correct_output_scale"):
        return f"blk.{name.split('.')[2]}.altup_correct_scale.weight"
    for ending, pattern in GGUF_SCALES.items():
        if name.endswith(ending):
            return pattern.format(name.split(".")[2])
    found: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found, f"gguf has no name for {name}"
    return found


def _add_gemma4(writer: Any, config: Mapping[str, Any]) -> None:
    """Global layers have wider heads and may have fewer; the last layers share keys and may be wider."""
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    own = config["per_layer_config"][str(slides.index(False))]
    writer.add_key_length(own["head_dim"])
    writer.add_value_length(own["head_dim"])
    writer.add_key_length_swa(config["head_dim"])
    writer.add_value_length_swa(config["head_dim"])
    writer.add_rope_dimension_count(own["head_dim"])
    writer.add_rope_dimension_count_swa(config["head_dim"])
    many, few = config["num_key_value_heads"], own.get("num_key_value_heads")
    writer.add_head_count_kv([many if one else few for one in slides] if few else many)
    shared, count = config["num_kv_shared_layers"], config["num_hidden_layers"]
    inner = config["intermediate_size"]
    wide = [inner if at < count - shared else 2 * inner for at in range(count)]
    writer.add_feed_forward_length(wide if config["use_double_wide_mlp"] else inner)
    writer.add_shared_kv_layers(shared)
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern(slides)
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    if config["enable_moe_block"]:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["top_k_experts"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def _add_gemma3n(writer: Any, config: Mapping[str, Any]) -> None:
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_shared_kv_layers(config["num_kv_shared_layers"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    writer.add_altup_active_idx(config["altup_active_idx"])
    writer.add_altup_num_inputs(config["altup_num_inputs"])
    shares = config["activation_sparsity_pattern"]
    quantiles = [NormalDist().inv_cdf(share) if share else float("-inf") for share in shares]
    writer.add_activation_sparsity_scale(quantiles)


def add_metadata(writer: Any, config: Mapping[str, Any]) -> None:
    """The keys llama.cpp's converter writes for these families."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(config["num_attention_heads"])
    if config["model_type"] == "gemma4_text":
        _add_gemma4(writer, config)
    elif config["model_type"] == "gemma3n_text":
        _add_gemma3n(writer, config)
    else:
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    if config["model_type"] not in ("gemma", "gemma2"):  # their converter leaves the base to llama.cpp
        _add_rope(writer, config)
    if config["model_type"] in ("gemma2", "gemma3_text"):
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _add_rope(writer: Any, config: Mapping[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    own = rope.get("full_attention", rope)
    writer.add_rope_freq_base(own.get("rope_theta", 10_000.0))
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if own.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(own["rope_type"]))
        writer.add_rope_scaling_factor(own["factor"])
    if own.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(own["original_max_position_embeddings"])
    if config["model_type"] == "llama":
        writer.add_rope_dimension_count(config["head_dim"])


def _as_converted(
    name: str, array: np.ndarray[Any, Any], config: Mapping[str, Any], model_type: str
) -> np.ndarray[Any, Any]:
    if name.endswith("norm.weight") and model_type in ("gemma", "gemma2", "gemma3_text"):
        return array + 1
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    part = name.split(".")[-2] if "." in name else ""
    if model_type == "llama" and part in heads:
        halves = array.reshape(heads[part], 2, -1, *array.shape[1:])
        return halves.swapaxes(1, 2).reshape(array.shape)
    return array


def llama3_factors(rope: Mapping[str, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """What each frequency is divided by, as llama.cpp's converter stores it."""
    base = 1.0 / rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    original, low, high = (
        rope["original_max_position_embeddings"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
    )
    factors = []
    for wavelength in 2 * np.pi / base:
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def as_bf16(tensors: Tensors) -> Tensors:
    return {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}

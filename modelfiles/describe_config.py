"""The JSON files of a Hugging Face folder as GGUF-style metadata, chat template and sampling defaults.

The only reader of config.json's field names in this package. Called by `describe`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from modelfiles.errors import DescribeError
from modelfiles.families import ARCHITECTURES
from modelfiles.files import ModelFile
from modelfiles.tokenizer_special import file_named, read_json

__all__ = ["chat_template", "config_metadata", "generation_defaults", "is_embedding_folder"]

MAX_TEMPLATE_BYTES: Final = 1 << 20

CONFIG_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "max_position_embeddings": ("context_length",),
    "n_positions": ("context_length",),
    "hidden_size": ("embedding_length",),
    "n_embd": ("embedding_length",),
    "num_hidden_layers": ("block_count",),
    "n_layer": ("block_count",),
    "intermediate_size": ("feed_forward_length",),
    "num_attention_heads": ("attention.head_count",),
    "n_head": ("attention.head_count",),
    "num_key_value_heads": ("attention.head_count_kv",),
    "head_dim": ("attention.key_length", "attention.value_length"),
    "rms_norm_eps": ("attention.layer_norm_rms_epsilon",),
    "layer_norm_epsilon": ("attention.layer_norm_epsilon",),
    "sliding_window": ("attention.sliding_window",),
    "rope_theta": ("rope.freq_base",),
    "vocab_size": ("vocab_size",),
    "num_local_experts": ("expert_count",),
    "num_experts": ("expert_count",),
    "num_experts_per_tok": ("expert_used_count",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}
"""config.json field -> keys below `<architecture>.`."""

_GEMMA3: Final = {
    "context_length": 131072,
    "embedding_length": 2304,
    "block_count": 26,
    "vocab_size": 262208,
    "attention.head_count": 8,
    "attention.head_count_kv": 4,
    "attention.key_length": 256,
    "attention.value_length": 256,
}
LEFT_OUT: Final[dict[str, dict[str, Any]]] = {
    "gemma3": _GEMMA3,
    "gemma3n": _GEMMA3
    | {
        "context_length": 32768,
        "embedding_length": 2048,
        "block_count": 35,
        "vocab_size": 262400,
        "attention.head_count_kv": 2,
    },
    "gemma4": _GEMMA3 | {"block_count": 30, "vocab_size": 262144},
}
"""Values that a config.json of the family may leave out, because they are its library's defaults."""

GENERATION_KEYS: Final = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
}
"""generation_config.json field -> Modelfile parameter."""


def config_metadata(files: Sequence[ModelFile]) -> dict[str, Any]:
    """config.json as GGUF-style metadata. Raises `DescribeError` when it is missing or names no known family.

    For weights stored quantized, `general.quantization` names the method.
    """
    file = file_named(files, "config.json")
    if file is None:
        raise DescribeError(
            "config.json is missing beside the safetensors files; it says what the tensors are"
        )
    whole = read_json(file)
    text = whole.get("text_config")
    config = whole | text if isinstance(text, dict) else whole
    model_type = config.get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise DescribeError(f"config.json names the unknown model_type {model_type!r}; known: {known}")
    values = dict(LEFT_OUT.get(architecture, {}))
    config |= {"rope_theta": _rope_base(config)}
    for name, keys in CONFIG_KEYS.items():
        value = config.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            values |= dict.fromkeys(keys, value)
    metadata: dict[str, Any] = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key}": value for key, value in values.items()}
    method = config.get("quantization_config")
    if isinstance(method, dict):
        metadata["general.quantization"] = str(method.get("quant_method", "unknown")).upper()
    return metadata


def _rope_base(config: Mapping[str, Any]) -> Any:
    """`rope_theta`, which newer files keep below `rope_parameters`, by kind of layer where these differ."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict):
        return config.get("rope_theta")
    whole = parameters.get("full_attention", parameters)
    return whole.get("rope_theta") if isinstance(whole, dict) else None


def chat_template(files: Sequence[ModelFile]) -> str | None:
    """The Jinja source: chat_template.jinja, else that of tokenizer_config.json or chat_template.json."""
    file = file_named(files, "chat_template.jinja")
    if file is not None:
        if file.size > MAX_TEMPLATE_BYTES:
            raise DescribeError(f"{file.name} has {file.size} bytes; the limit is {MAX_TEMPLATE_BYTES}")
        return Path(file.path).read_text("utf-8", "replace")
    for name in ("tokenizer_config.json", "chat_template.json"):
        source = _template_source(read_json(file_named(files, name)).get("chat_template"))
        if source:
            return source
    return None


def _template_source(value: Any) -> str | None:
    """A template given as text, or the one named `default` in a list of named ones."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def generation_defaults(files: Sequence[ModelFile]) -> dict[str, Any]:
    """Sampling settings of generation_config.json under Modelfile names; none where it asks for greedy."""
    config: Mapping[str, Any] = read_json(file_named(files, "generation_config.json"))
    if config.get("do_sample") is False:
        return {}
    return {
        parameter: value
        for name, parameter in GENERATION_KEYS.items()
        if isinstance(value := config.get(name), (int, float)) and not isinstance(value, bool)
    }


def is_embedding_folder(files: Sequence[ModelFile]) -> bool:
    """Whether a Sentence Transformers pooling configuration lies beside the weights."""
    return any(file.name.endswith("_Pooling/config.json") or file.name == "modules.json" for file in files)

"""Reads a Hugging Face config.json, of today's layout and of the older ones still on the Hub.

Facts: the configuration and modelling code of transformers 5.23. Multimodal configs nest the decoder under
`text_config`, whose omitted keys mean the family's defaults. One module per generation; what they share is in
`common` and `rope`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engines.decoder.config import DecoderConfig, UnknownArchitecture
from engines.decoder.families.huggingface.common import SOURCE
from engines.decoder.families.huggingface.gemma import gemma, gemma2, gemma3
from engines.decoder.families.huggingface.gemma3n import gemma3n
from engines.decoder.families.huggingface.gemma4 import gemma4
from engines.decoder.families.huggingface.kin import llama, mistral, qwen2, qwen3
from engines.decoder.families.keys import Keys

FAMILIES: dict[str, Callable[[Keys], DecoderConfig]] = {
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma3_text": gemma3,
    "gemma3n": gemma3n,
    "gemma3n_text": gemma3n,
    "gemma4": gemma4,
    "gemma4_text": gemma4,
    "gemma4_unified": gemma4,
    "gemma4_unified_text": gemma4,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
}


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The decoder described by a config.json. Raises UnknownArchitecture or ConfigError."""
    nested = config.get("text_config")
    text = dict(nested) if isinstance(nested, Mapping) else dict(config)
    outer = config.get("model_type")
    name = str(text.get("model_type") or outer)
    family = FAMILIES.get(name) or FAMILIES.get(str(outer))
    if family is None:
        raise UnknownArchitecture(outer or name, tuple(FAMILIES))
    if isinstance(nested, Mapping) and "tie_word_embeddings" in config:
        text.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
    return family(Keys(text, SOURCE))

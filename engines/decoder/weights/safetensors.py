"""Hugging Face folders: config.json beside safetensors, single or sharded. Imports no JAX."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engines.decoder.config import DecoderConfig
from engines.decoder.weights import WeightsError
from engines.decoder.weights.headers import Headers, Rows, Stored, bind, rows_of
from engines.decoder.weights.names import hugging_face_names
from modelfiles.files import ModelFile
from modelfiles.safetensors import SafetensorsFile, SafetensorsTensor, open_checkpoint

SHIFTED_NORMS = ("gemma", "gemma2", "gemma3")
"""Families whose checkpoints store a norm's multiplier less one."""
OTHER_PARTS = re.compile(
    r"(^|\.)(vision_tower|vision_model|audio_tower|multi_modal_projector|embed_vision|embed_audio"
    r"|vision_embedder|mtp|visual)\b"
)
DERIVED = re.compile(r"rotary_emb\.inv_freq$|\.embed_scale$|\.position_ids$")
"""Buffers some exports carry; they follow from the configuration."""
DENSE_FOLDER = re.compile(r"^(?:.*/)?(\d+_Dense)/model\.safetensors$")


def read(files: Sequence[ModelFile]) -> Headers:
    """Configuration and tensor table of a Hugging Face folder. Raises as `read_headers`."""
    dense = _dense_layers(files)
    sizes = tuple(tensor.shape[0] for tensor in dense.values())
    config = replace(DecoderConfig.from_hf(_config_json(files)), dense_layers=sizes)
    tensors = open_checkpoint([file for file in files if not DENSE_FOLDER.match(file.name)])
    prefix = _prefix(tensors)
    found = {_short(name, prefix): _stored(file, tensor) for name, (file, tensor) in tensors.items()}
    found |= dense
    names = hugging_face_names(config)
    shared = {
        f"layers.{index}.self_attn.{part}.weight"
        for index, layer in enumerate(config.layers)
        if layer.kv_source is not None
        for part in ("k_proj", "v_proj", "k_norm")
    }
    offset = 1.0 if config.architecture in SHIFTED_NORMS else 0.0

    def ignored(name: str) -> bool:
        tied = config.tied_head and name == "lm_head.weight"
        return tied or name in shared or bool(OTHER_PARTS.search(name) or DERIVED.search(name))

    return bind(config, found, names, ignored=ignored, norm_offset=offset)


def _dense_layers(files: Sequence[ModelFile]) -> dict[str, Stored]:
    """The projections that sentence-transformers keeps in folders of their own, in order."""
    found: dict[str, Stored] = {}
    for file in sorted(files, key=lambda file: file.name):
        folder = DENSE_FOLDER.match(file.name)
        if folder is not None:
            opened = SafetensorsFile.open(file.path)
            found |= {f"{folder[1]}/{t.name}": _stored(opened, t) for t in opened.tensors.values()}
    return found


def _config_json(files: Sequence[ModelFile]) -> Mapping[str, Any]:
    candidates = [file for file in files if file.name.rpartition("/")[2] == "config.json"]
    if not candidates:
        raise WeightsError("safetensors weights need the config.json that belongs to them")
    shallowest = min(candidates, key=lambda file: file.name.count("/"))
    try:
        value = json.loads(Path(shallowest.path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{shallowest.name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{shallowest.name} is no JSON object")
    return value


def _prefix(tensors: Mapping[str, Any]) -> str:
    """What stands before `embed_tokens.weight`: `model.`, `language_model.model.` and the like."""
    anchor = "embed_tokens.weight"
    prefixes = [
        name.removesuffix(anchor) for name in tensors if name == anchor or name.endswith("." + anchor)
    ]
    if not prefixes:
        raise WeightsError(f"tensor {anchor!r} is missing")
    return min(prefixes, key=len)


def _short(name: str, prefix: str) -> str:
    """The name below the decoder; the head lies outside it."""
    if name.endswith("lm_head.weight"):
        return "lm_head.weight"
    return name.removeprefix(prefix)


def _stored(file: SafetensorsFile, tensor: SafetensorsTensor) -> Stored:
    return Stored(tensor.name, tensor.shape, tensor.dtype, partial(_read, file, tensor.name))


def _read(file: SafetensorsFile, name: str) -> Rows:
    return rows_of(file.data(name))

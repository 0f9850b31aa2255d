"""LoRA adapters beside the base's weights: each a slot, chosen per row of a batch, never merged.

Two models that share a base share its memory. Reads PEFT folders (safetensors) and GGUF adapters into one
stack per adapted matrix; slot 0 adapts nothing. Called by the engine once, after the base is loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from engines.base import AdapterFiles
from engines.decoder.blocks import dequantize
from engines.decoder.config import DecoderConfig
from engines.decoder.params import BLOCKS, param_specs
from engines.decoder.weights import WeightsError
from engines.decoder.weights.gguf import half_split_rows, recognises
from engines.decoder.weights.names import GGUF, file_names, hugging_face_names
from modelfiles.files import ModelFile
from modelfiles.gguf import GgufFile
from modelfiles.safetensors import SafetensorsFile

Floats = npt.NDArray[np.float32]
ADAPTABLE = ("q", "k", "v", "o", "gate", "up", "down")
"""Projections of a layer that may be adapted."""
_PEFT = re.compile(r"^(?:base_model\.model\.)?(.*)\.lora_([AB])(?:\.default)?\.weight$")
_GGUF = re.compile(r"^(.*\.weight)\.lora_([ab])$")


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter: canonical name -> (A [rank, in], B [out, rank]), the scale already in B."""

    pairs: Mapping[str, tuple[Floats, Floats]]


def load_adapters(
    config: DecoderConfig, params: Mapping[str, Any], adapters: Sequence[AdapterFiles], device: jax.Device
) -> tuple[dict[str, Any], dict[str, int]]:
    """The parameters with the adapters' stacks in them, and each adapter's number for `Batch.adapters`.

    Raises WeightsError for a tensor that does not fit the base or adapts what cannot be adapted.
    """
    loaded = [read_adapter(config, adapter.files) for adapter in adapters]
    layers = []
    for index, layer in enumerate(params["layers"]):
        stacks = {}
        for part in ADAPTABLE:
            pairs = [adapter.pairs.get(f"layers.{index}.{part}") for adapter in loaded]
            if any(pair is not None for pair in pairs):
                stacks[part] = tuple(jax.device_put(stack, device) for stack in _stack(pairs))
        layers.append({**layer, "lora": stacks} if stacks else layer)
    numbers = {adapter.name: number for number, adapter in enumerate(adapters, 1)}
    return {**params, "layers": tuple(layers)}, numbers


def _stack(pairs: Sequence[tuple[Floats, Floats] | None]) -> tuple[Floats, Floats]:
    """A [1 + adapters, rank, in] and B [1 + adapters, out, rank], zeros where there is nothing to add."""
    present = [pair for pair in pairs if pair is not None]
    rank = max(pair[0].shape[0] for pair in present)
    down = np.zeros((1 + len(pairs), rank, present[0][0].shape[1]), np.float32)
    up = np.zeros((1 + len(pairs), present[0][1].shape[0], rank), np.float32)
    for number, pair in enumerate(pairs, 1):
        if pair is not None:
            own = pair[0].shape[0]
            down[number, :own], up[number, :, :own] = pair
    return down, up


def read_adapter(config: DecoderConfig, files: Sequence[ModelFile]) -> Adapter:
    """An adapter's matrices under canonical names, checked against the base. Raises WeightsError."""
    single = next((file for file in files if recognises(file)), None)
    halves = _read_gguf(config, single) if single is not None else _read_peft(config, files)
    specs, pairs = param_specs(config), {}
    for name, (down, up) in halves.items():
        spec = specs.get(name)
        if spec is None or name.rpartition(".")[2] not in ADAPTABLE:
            raise WeightsError(f"the adapter changes {name!r}, which cannot be adapted")
        expected = (down.shape[0], spec.shape[1]), (spec.shape[0], down.shape[0])
        if (down.shape, up.shape) != expected:
            raise WeightsError(
                f"the adapter of {name!r} has shapes {down.shape} and {up.shape}; the base needs {expected}"
            )
        pairs[name] = (down, up)
    if not pairs:
        raise WeightsError("the adapter has no LoRA matrices")
    return Adapter(pairs)


def _paired(found: Mapping[tuple[str, str], Floats], scales: Mapping[str, float]) -> dict[str, Any]:
    names = {name for name, _ in found}
    for name in names:
        if (name, "a") not in found or (name, "b") not in found:
            raise WeightsError(f"the adapter has only one half of {name!r}")
    return {name: (found[name, "a"], found[name, "b"] * np.float32(scales[name])) for name in sorted(names)}


def _read_peft(config: DecoderConfig, files: Sequence[ModelFile]) -> dict[str, Any]:
    """`adapter_model.safetensors` with `adapter_config.json`: B A times alpha / r (or alpha / sqrt r)."""
    settings = _peft_settings(files)
    ours = {theirs: name for name, theirs in hugging_face_names(config).items()}
    found: dict[tuple[str, str], Floats] = {}
    for file in files:
        if not file.name.endswith(".safetensors"):
            continue
        opened = SafetensorsFile.open(file.path)
        for name in opened.tensors:
            match = _PEFT.match(name)
            if match is None:
                raise WeightsError(f"the adapter's tensor {name!r} is no LoRA matrix")
            theirs = re.sub(r"^.*?(?=layers\.\d+\.)", "", match[1]) + ".weight"
            values = opened.data(name).astype(np.float32)
            found[ours.get(theirs, theirs), match[2].lower()] = values
    rank = {name: found[name, "a"].shape[0] for name, half in found if half == "a"}
    root = settings.get("use_rslora", False)
    alpha = float(settings.get("lora_alpha", settings.get("r", 1)))
    scales = {name: alpha / (math.sqrt(r) if root else r) for name, r in rank.items()}
    return _paired(found, scales | {name: 0.0 for name, _ in found if name not in scales})


def _peft_settings(files: Sequence[ModelFile]) -> Mapping[str, Any]:
    file = next((file for file in files if file.name.endswith("adapter_config.json")), None)
    if file is None:
        raise WeightsError("a safetensors adapter needs the adapter_config.json that belongs to it")
    try:
        settings = json.loads(Path(file.path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file.name} is not valid JSON: {error}") from error
    if not isinstance(settings, dict) or settings.get("use_dora"):
        raise WeightsError("the adapter is no plain LoRA adapter (DoRA is not supported)")
    return settings


def _read_gguf(config: DecoderConfig, file: ModelFile) -> dict[str, Any]:
    """A GGUF of `general.type` adapter; its Llama rows are interleaved like the base's."""
    opened = GgufFile.open(file.path)
    if opened.metadata.get("adapter.type", "lora") != "lora":
        raise WeightsError(
            f"the adapter is of type {opened.metadata['adapter.type']!r}; only lora is supported"
        )
    ours = {theirs: name for name, theirs in file_names(config, GGUF).items()}
    found: dict[tuple[str, str], Floats] = {}
    for name, tensor in opened.tensors.items():
        match = _GGUF.match(name)
        if match is None:
            raise WeightsError(f"the adapter's tensor {name!r} is no LoRA matrix")
        elements, size = BLOCKS[tensor.ggml_type.name]
        rows = opened.data(name).reshape(*tensor.shape[:-1], tensor.shape[-1] // elements * size)
        canonical = ours.get(match[1], match[1])
        values = dequantize(rows, tensor.ggml_type.name)
        if opened.architecture == "llama" and match[2] == "b":
            values = half_split_rows(config, canonical, values)
        found[canonical, match[2]] = values
    alpha = float(opened.metadata.get("adapter.lora.alpha", 0.0))
    ranks = {name: values.shape[0] for (name, half), values in found.items() if half == "a"}
    scales = {name: (alpha / rank if alpha else 1.0) for name, rank in ranks.items()}
    return _paired(found, scales | {name: 0.0 for name, _ in found if name not in scales})

"""LoRA adapters as files: whether one fits its base, how much room it needs, its matrices. Imports no JAX.

Reads PEFT folders (safetensors with adapter_config.json) and GGUF adapters into one table: canonical name
-> pair. Called before a model is published (`check_adapter`), by the gateway's planning (`room_for`,
`room_bytes`), and in a runner by `adapters`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.base import AdapterRoom
from engines.decoder.blocks import SUPPORTED_TYPES, dequantize
from engines.decoder.config import DecoderConfig
from engines.decoder.families.gguf import FAMILIES
from engines.decoder.params import BLOCKS, param_specs
from engines.decoder.weights import WeightsError
from engines.decoder.weights.gguf import half_split_rows, recognises
from engines.decoder.weights.names import GGUF, file_names, hugging_face_names
from engines.decoder.weights.safetensors import OTHER_PARTS
from modelfiles.files import ModelFile
from modelfiles.gguf import GgufFile, GgufTensor
from modelfiles.safetensors import SafetensorsFile

Floats = npt.NDArray[np.float32]
ADAPTABLE = ("q", "k", "v", "o", "gate", "up", "down")
"""Projections of a layer that may be adapted."""
RANK_MULTIPLE = 8
"""Room is made in steps of this rank, so that adapters of nearly one rank share it."""
KIN = {"mistral": "llama"}
"""Architectures that GGUF files call by the name of another."""
_PEFT = re.compile(r"^(?:base_model\.model\.)?(.*)\.lora_([AB])(?:\.default)?\.weight$")
_GGUF = re.compile(r"^(.*\.weight)\.lora_([ab])$")


@dataclass(frozen=True, slots=True)
class Half:
    """One matrix of a pair, not read yet."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Floats]


@dataclass(frozen=True, slots=True)
class Pair:
    """A weight's change: `up` B [out, rank] times `down` A [rank, in], times `scale`."""

    down: Half
    up: Half
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


Pairs = Mapping[str, Pair]
"""An adapter: canonical names of the weights it changes, and how."""


def open_adapter(config: DecoderConfig, files: Sequence[ModelFile]) -> Pairs:
    """An adapter's matrices by canonical name, their shapes checked against the base, none of them read.

    Raises WeightsError naming what does not fit, and the readers' GgufError and SafetensorsError.
    """
    single = next((file for file in files if recognises(file)), None)
    pairs = _open_gguf(config, single) if single is not None else _open_peft(config, files)
    if not pairs:
        raise WeightsError("the adapter has no LoRA matrices")
    specs = param_specs(config)
    for name, pair in pairs.items():
        spec = specs.get(name)
        if spec is None or name.rpartition(".")[2] not in ADAPTABLE:
            raise WeightsError(f"the adapter changes {name!r}, which cannot be adapted")
        found = pair.down.shape, pair.up.shape
        expected = (pair.rank, spec.shape[1]), (spec.shape[0], pair.rank)
        if found != expected:
            raise WeightsError(
                f"the adapter of {name!r} has shapes {found[0]} and {found[1]}; the base needs {expected}"
            )
    return pairs


def check_adapter(config: DecoderConfig, files: Sequence[ModelFile]) -> None:
    """Refuses an adapter that does not fit the base, or holds NaN or infinity; raises as `open_adapter`."""
    for pair in open_adapter(config, files).values():
        for half in (pair.down, pair.up):
            if not np.isfinite(half.read()).all():
                raise WeightsError(f"the adapter's tensor {half.name!r} holds NaN or infinity")


def room_for(pairs: Pairs, slots: int = 1) -> AdapterRoom:
    """The least room that holds an adapter."""
    rank = max(pair.rank for pair in pairs.values())
    parts = {name.rpartition(".")[2] for name in pairs}
    return AdapterRoom(slots, -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE, tuple(sorted(parts)))


def room_bytes(config: DecoderConfig, room: AdapterRoom) -> int:
    """Device memory of the room, its empty slot included: float32 A and B of every part of every layer."""
    specs = param_specs(config)
    widths = (
        sum(specs[name].shape)
        for index in range(len(config.layers))
        for part in room.parts
        if (name := f"layers.{index}.{part}") in specs
    )
    return 4 * (1 + room.slots) * room.rank * sum(widths)


def _paired(halves: Mapping[tuple[str, str], Half], scale: Callable[[str, int], float]) -> Pairs:
    """Pairs of what was found by canonical name and half; `scale` is asked by name and rank."""
    pairs = {}
    for name in sorted({name for name, _ in halves}):
        if (name, "a") not in halves or (name, "b") not in halves:
            raise WeightsError(f"the adapter has only one half of {name!r}")
        down = halves[name, "a"]
        if len(down.shape) != 2 or 0 in down.shape:
            raise WeightsError(
                f"the adapter's tensor {down.name!r} has shape {down.shape}; expected two axes"
            )
        pairs[name] = Pair(down, halves[name, "b"], scale(name, down.shape[0]))
    return pairs


# PEFT ---------------------------------------------------------------------------------------------------


def _open_peft(config: DecoderConfig, files: Sequence[ModelFile]) -> Pairs:
    """`adapter_model.safetensors` with `adapter_config.json`: B A times alpha / r (or alpha / sqrt r)."""
    settings = _peft_settings(files)
    ours = {theirs: name for name, theirs in hugging_face_names(config).items()}
    halves: dict[tuple[str, str], Half] = {}
    modules: dict[str, str] = {}
    for file in files:
        if not file.name.endswith(".safetensors"):
            continue
        opened = SafetensorsFile.open(file.path)
        for name, tensor in opened.tensors.items():
            match = _PEFT.match(name)
            if match is None:
                raise WeightsError(f"the adapter's tensor {name!r} is no LoRA matrix")
            if OTHER_PARTS.search(match[1]):
                raise WeightsError(f"the adapter changes {match[1]!r}, a part that is left out here")
            theirs = re.sub(r"^.*?(?=layers\.\d+\.)", "", match[1]) + ".weight"
            canonical = ours.get(theirs, theirs)
            halves[canonical, match[2].lower()] = Half(name, tensor.shape, _peft_reader(opened, name))
            modules[canonical] = match[1]
    return _paired(halves, lambda name, rank: _peft_scale(settings, modules[name], rank))


def _peft_reader(opened: SafetensorsFile, name: str) -> Callable[[], Floats]:
    return lambda: opened.data(name).astype(np.float32)


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
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise WeightsError(f"the adapter is of type {kind!r}; only LORA is supported")
    return settings


def _peft_scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised ones; `alpha_pattern` names exceptions by suffix."""
    alpha = settings.get("lora_alpha", rank)
    patterns = settings.get("alpha_pattern") or {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if module == pattern or module.endswith(f".{pattern}"):
            alpha = value
    if not isinstance(alpha, int | float):
        raise WeightsError(f"adapter_config.json gives {alpha!r} as lora_alpha; expected a number")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


# GGUF ---------------------------------------------------------------------------------------------------


def _open_gguf(config: DecoderConfig, file: ModelFile) -> Pairs:
    """A GGUF of `general.type` adapter; its Llama rows are interleaved like the base's."""
    opened = GgufFile.open(file.path)
    kind = opened.metadata.get("adapter.type", "lora")
    if kind != "lora":
        raise WeightsError(f"the adapter is of type {kind!r}; only lora is supported")
    family = FAMILIES.get(str(opened.architecture))
    base = KIN.get(config.architecture, config.architecture)
    if family is None or family.architecture != base:
        raise WeightsError(
            f"the adapter is for {opened.architecture!r} models, the base is of {config.architecture!r}"
        )
    ours = {theirs: name for name, theirs in file_names(config, GGUF).items()}
    halves: dict[tuple[str, str], Half] = {}
    for name, tensor in opened.tensors.items():
        match = _GGUF.match(name)
        if match is None:
            raise WeightsError(f"the adapter's tensor {name!r} is no LoRA matrix")
        if tensor.ggml_type.name not in SUPPORTED_TYPES:
            raise WeightsError(f"tensor {name!r} is stored as {tensor.ggml_type.name}, which cannot be read")
        canonical = ours.get(match[1], match[1])
        swapped = opened.architecture == "llama" and match[2] == "b"
        reader = _gguf_reader(config, opened, tensor, canonical if swapped else None)
        halves[canonical, match[2]] = Half(name, tensor.shape, reader)
    alpha = float(opened.metadata.get("adapter.lora.alpha", 0.0))
    return _paired(halves, lambda name, rank: alpha / rank if alpha else 1.0)


def _gguf_reader(
    config: DecoderConfig, opened: GgufFile, tensor: GgufTensor, interleaved: str | None
) -> Callable[[], Floats]:
    """Reads one tensor; rows of the parameter `interleaved` are put in our order."""

    def read() -> Floats:
        kind = tensor.ggml_type.name
        elements, size = BLOCKS[kind]
        rows = opened.data(tensor.name).reshape(*tensor.shape[:-1], tensor.shape[-1] // elements * size)
        values = dequantize(rows, kind)
        return values if interleaved is None else half_split_rows(config, interleaved, values)

    return read

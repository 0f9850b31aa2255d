"""Everything that the headers of weight files say: all metadata and every tensor's name, type and shape.

For people who want to look inside (`show --verbose`); what serving needs is in `describe`. Never reads tensor
data. Runs in a sandbox worker, since the files are strangers'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from modelfiles.describe_classifier import is_classifier
from modelfiles.describe_config import config_metadata
from modelfiles.description import Contents, TensorEntry
from modelfiles.files import ModelFile
from modelfiles.gguf import GgufFile, StringArray
from modelfiles.safetensors import open_checkpoint

LARGEST_EXACT = 1e15
"""Whole numbers below it are written without a decimal point."""


def read_contents(files: Sequence[ModelFile]) -> Contents:
    """What is in these files; of formats without headers, nothing; of a classifier, its tensors.

    Raises `GgufError`, `SafetensorsError` or `DescribeError`.
    """
    weights = [file for file in files if file.role == "weights"]
    if any(file.name.endswith(".safetensors") for file in weights):
        return _safetensors_contents(files)
    metadata: dict[str, Any] = {}
    tensors: list[TensorEntry] = []
    for file in weights:
        if not _is_gguf(file):
            continue
        with GgufFile.open(file.path) as opened:
            metadata = {key: json_value(value) for key, value in opened.metadata.items()} | metadata
            tensors += [
                TensorEntry(tensor.name, tensor.ggml_type.name, tensor.shape[::-1])
                for tensor in opened.tensors.values()
            ]
    return Contents(metadata, tuple(tensors))


def _is_gguf(file: ModelFile) -> bool:
    with open(file.path, "rb") as opened:
        return opened.read(4) == b"GGUF"


def _safetensors_contents(files: Sequence[ModelFile]) -> Contents:
    checkpoint = open_checkpoint([file for file in files if file.role in ("weights", "config")])
    tensors = tuple(TensorEntry(name, each.dtype, each.shape) for name, (_, each) in checkpoint.items())
    return Contents({} if is_classifier(files) else config_metadata(files), tensors)


def json_value(value: Any) -> Any:
    """A GGUF metadata value as JSON has it, in Ollama's digits.

    Numbers of 32 bits get as few digits as tell them apart, whole ones no decimal point; infinities and NaN,
    which JSON has not, become None.
    """
    if isinstance(value, StringArray):
        return list(value)
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32:
            return [_number(float(text)) for text in value.astype("U32").tolist()]
        return [json_value(item) for item in value.tolist()]
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            short = np.float32(value)
        return _number(float(str(short)) if float(short) == value else value)
    return value


def _number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < LARGEST_EXACT else value

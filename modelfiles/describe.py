"""Reads from the headers of weight files what the model is: family, size, quantization, context, template.

Runs in a sandbox worker, since the files are strangers'. Never reads tensor data; never guesses what a
template can do (that is `capabilities`). Called at create, pull and show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelfiles.contents import json_value
from modelfiles.describe_classifier import describe_classifier, is_classifier
from modelfiles.describe_config import (
    chat_template,
    config_metadata,
    generation_defaults,
    is_embedding_folder,
)
from modelfiles.describe_orbax import ORBAX_MARKERS, describe_orbax
from modelfiles.description import ModelDescription
from modelfiles.errors import DescribeError
from modelfiles.files import ModelFile
from modelfiles.gguf import GgufError, GgufFile, StringArray, file_type_name, split_name
from modelfiles.gguf_types import majority_type
from modelfiles.safetensors import SafetensorsError, open_checkpoint
from modelfiles.tokenizer_base import TokenizerError

__all__ = ["DescribeError", "describe", "human_parameter_size"]

PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
GGUF_OTHER_SENSES: Final = ("v.", "mm.", "a.", "mtp.")
HF_OTHER_SENSES: Final = (
    "vision_tower.",
    "vision_model.",
    "multi_modal_projector.",
    "audio_tower.",
    "embed_vision.",
    "embed_audio.",
    "visual.",
)
"""Beginnings of the names of tensors that are not part of the language model."""

PROJECTOR_NAME: Final = "mmproj"
"""In the name of a GGUF: a vision or audio part that lies beside the language model."""

LONGEST_SHOWN_ARRAY: Final = 5
SAMPLING_KEYS: Final = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repeat_penalty",
    "general.sampling.penalty_last_n": "repeat_last_n",
}


def describe(files: Sequence[ModelFile]) -> ModelDescription:
    """What these files are. Raises `DescribeError` saying what is wrong and the way out."""
    try:
        return _reader(files)(files)
    except (GgufError, SafetensorsError, TokenizerError) as error:
        raise DescribeError(str(error)) from error


def human_parameter_size(count: int) -> str:
    """A parameter count as Ollama prints it: `4.3B`, `268.10M`, `260K`."""
    for unit, size, decimals in (("B", 10**9, 1), ("M", 10**6, 2)):
        if count >= size:
            return f"{count / size:.{0 if count % size == 0 else decimals}f}{unit}"
    return f"{count / 1000:.0f}K" if count >= 1000 else str(count)


def _reader(files: Sequence[ModelFile]) -> Callable[[Sequence[ModelFile]], ModelDescription]:
    weights = [file for file in files if file.role == "weights"]
    if any(_is_gguf(file) for file in weights):
        return _describe_gguf
    if any(file.name.endswith(".safetensors") for file in weights):
        return describe_classifier if is_classifier(files) else _describe_safetensors
    names = {file.name.rpartition("/")[2] for file in weights}
    if names & ORBAX_MARKERS:
        return describe_orbax
    for file in weights:
        if file.name.endswith(PICKLE_SUFFIXES):
            raise DescribeError(
                f"unsupported format: {file.name} is a pickle, which can run code when it is opened;"
                " use safetensors or GGUF weights"
            )
    shown = ", ".join(sorted(names)[:5]) or "no weight files"
    raise DescribeError(f"unsupported format: {shown}; expected GGUF, safetensors or an Orbax checkpoint")


def _is_gguf(file: ModelFile) -> bool:
    if file.name.endswith(".gguf"):
        return True
    if "." in file.name.rpartition("/")[2]:
        return False
    with Path(file.path).open("rb") as opened:
        return opened.read(4) == b"GGUF"


# GGUF


def _describe_gguf(files: Sequence[ModelFile]) -> ModelDescription:
    opened = _open_parts(_parts(files))
    first = opened[0]
    tensors = {name: tensor for part in opened for name, tensor in part.tensors.items()}
    if sum(len(part.tensors) for part in opened) != len(tensors):
        raise DescribeError(f"{first.path.name}: two parts hold the same tensor")
    count = sum(tensor.elements for tensor in tensors.values())
    info = {
        key: [] if _is_long(value) else json_value(value)
        for key, value in first.metadata.items()
        if key != "tokenizer.chat_template"
    }
    template = first.metadata.get("tokenizer.chat_template")
    try:
        return ModelDescription(
            weight_format="gguf",
            architecture=first.architecture,
            parameter_count=count,
            quantization=file_type_name(first.metadata, tensors),
            context_length=_whole(first.get("context_length")),
            embedding_length=_whole(first.get("embedding_length")),
            vocabulary_size=_gguf_vocabulary(first),
            chat_template=template if isinstance(template, str) and template else chat_template(files),
            capabilities=("embedding" if first.get("pooling_type") is not None else "completion",),
            model_info=info | {"general.parameter_count": count},
            skipped_tensors=tuple(sorted(name for name in tensors if name.startswith(GGUF_OTHER_SENSES))),
            generation_defaults={
                name: value
                for key, name in SAMPLING_KEYS.items()
                if isinstance(value := first.metadata.get(key), (int, float))
            },
        )
    finally:
        for part in opened:
            part.close()


def _parts(files: Sequence[ModelFile]) -> list[ModelFile]:
    """The one GGUF model among the files: a single file, or all parts of a split one in order."""
    found = [file for file in files if file.role == "weights" and _is_gguf(file)]
    found = [file for file in found if PROJECTOR_NAME not in file.name] or found
    splits = {file.name: split for file in found if (split := split_name(file.name)) is not None}
    if not splits:
        if len(found) > 1:
            names = ", ".join(sorted(file.name for file in found))
            raise DescribeError(f"there are several models here: {names}; name one of them")
        return found
    stems = {(stem, count) for stem, _, count in splits.values()}
    if len(stems) > 1 or len(splits) != len(found):
        raise DescribeError("parts of several split models are mixed here; name one of them")
    [(stem, count)] = stems
    missing = set(range(1, count + 1)) - {number for _, number, _ in splits.values()}
    if missing:
        raise DescribeError(f"part {min(missing)} of {count} of the split model {stem!r} is missing")
    return sorted(found, key=lambda file: file.name)


def _open_parts(parts: Sequence[ModelFile]) -> list[GgufFile]:
    opened: list[GgufFile] = []
    for part in parts:
        try:
            opened.append(GgufFile.open(part.path))
        except GgufError as error:
            raise DescribeError(f"{part.name}: {error}") from error
    return opened


def _gguf_vocabulary(file: GgufFile) -> int:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, StringArray) else _whole(file.get("vocab_size"))


def _is_long(value: Any) -> bool:
    return isinstance(value, (StringArray, np.ndarray)) and len(value) > LONGEST_SHOWN_ARRAY


def _whole(value: Any) -> int:
    """A number, the largest of an array of them (per-layer values), or 0."""
    if isinstance(value, np.ndarray) and value.size:
        value = value.max().item()
    return value if type(value) is int else 0


# Safetensors


def _describe_safetensors(files: Sequence[ModelFile]) -> ModelDescription:
    metadata = config_metadata(files)
    architecture = str(metadata["general.architecture"])
    weights = [file for file in files if file.role in ("weights", "config")]
    tensors = {name: tensor for name, (_, tensor) in open_checkpoint(weights).items()}
    count = sum(tensor.elements for tensor in tensors.values())
    quantization = metadata.pop("general.quantization", None)
    return ModelDescription(
        weight_format="safetensors",
        architecture=architecture,
        parameter_count=count,
        quantization=quantization or majority_type((each.dtype, each.elements) for each in tensors.values()),
        context_length=_number(metadata, f"{architecture}.context_length"),
        embedding_length=_number(metadata, f"{architecture}.embedding_length"),
        vocabulary_size=_number(metadata, f"{architecture}.vocab_size"),
        chat_template=chat_template(files),
        capabilities=("embedding" if is_embedding_folder(files) else "completion",),
        model_info=metadata | {"general.parameter_count": count},
        skipped_tensors=tuple(sorted(name for name in tensors if _is_other_sense(name))),
        generation_defaults=generation_defaults(files),
    )


def _is_other_sense(name: str) -> bool:
    return name.removeprefix("model.").startswith(HF_OTHER_SENSES)


def _number(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key, 0)
    return value if type(value) is int else 0

"""A classifier on disk: config.json beside model.safetensors. Training writes it, an engine reads it. No JAX.

ValueError      a file is missing, malformed, or does not hold what the configuration asks for
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.classifier.config import ClassifierConfig
from modelfiles.files import ModelFile
from modelfiles.safetensors import open_checkpoint

Tensors = dict[str, npt.NDArray[np.float32]]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


def save(folder: Path, config: ClassifierConfig, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes both files; the safetensors layout is an 8-byte length, a JSON header, then the raw data."""
    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {}
    data = bytearray()
    for name in config.tensor_shapes():
        raw = np.ascontiguousarray(tensors[name], "<f4").tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / WEIGHTS_NAME).write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / CONFIG_NAME).write_text(config.to_json())


def read_config(files: Sequence[ModelFile]) -> ClassifierConfig:
    """The configuration among a model's files; raises ValueError."""
    found = [file for file in files if file.name.rpartition("/")[2] == CONFIG_NAME]
    if len(found) != 1:
        raise ValueError(f"an image classifier has one {CONFIG_NAME}; {len(found)} are here")
    return ClassifierConfig.from_json(Path(found[0].path).read_bytes())


def load(files: Sequence[ModelFile]) -> tuple[ClassifierConfig, Tensors]:
    """Configuration and float32 weights; raises ValueError naming the tensor that is wrong."""
    config = read_config(files)
    stored = open_checkpoint([file for file in files if file.role == "weights"])
    tensors: Tensors = {}
    for name, shape in config.tensor_shapes().items():
        if name not in stored:
            raise ValueError(f"tensor {name!r} is missing")
        file, tensor = stored[name]
        if tensor.shape != shape:
            raise ValueError(f"tensor {name!r} has the shape {tensor.shape}; config.json asks for {shape}")
        values = np.asarray(file.data(name)).astype(np.float32).reshape(shape)
        if not np.isfinite(values).all():
            raise ValueError(f"tensor {name!r} holds values that are no finite numbers")
        tensors[name] = values
    return config, tensors


def folder_files(folder: Path) -> list[ModelFile]:
    """The files of a saved classifier, as the store would list them; digests are left empty."""
    roles = {CONFIG_NAME: "config", WEIGHTS_NAME: "weights"}
    return [
        ModelFile(role, name, str(folder / name), "", (folder / name).stat().st_size)  # type: ignore[arg-type]
        for name, role in roles.items()
    ]

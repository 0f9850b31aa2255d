"""Writes GGUF files: metadata and tensors, nothing about what they mean.

A thin layer over the `gguf` package's writer, so that two implementations agree on the bytes (the reader
is our own). Called by the tools that convert, quantize and train.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modelfiles.gguf_types import GGML_TYPE_BY_NAME

__all__ = ["RawTensor", "write_gguf"]


@dataclass(frozen=True, slots=True)
class RawTensor:
    """Blocks that are encoded already: `shape` counts elements, outermost first; `blocks` is the bytes."""

    type_name: str
    shape: tuple[int, ...]
    blocks: npt.NDArray[np.uint8]


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, npt.NDArray[Any] | RawTensor]],
    architecture: str | None = None,
) -> None:
    """Write one file, in the order given.

    Metadata values are str, bool, int (stored as 32 bits where they fit), float (32 bits), numpy arrays and
    sequences of these; `general.architecture` is taken from there or from `architecture`. Arrays are stored
    as F32, F16, BF16, F64 or I8-I64 by their dtype. Raises `ValueError` for what GGUF cannot hold.
    """
    import gguf  # heavy, and needed by writers only

    declared = metadata.get("general.architecture", architecture)
    if not isinstance(declared, str):
        raise ValueError("general.architecture is missing: name the family the weights belong to")
    writer = gguf.GGUFWriter(str(path), declared)
    try:
        for key, value in metadata.items():
            if key == "general.alignment":
                writer.add_custom_alignment(int(value))
            elif key != "general.architecture":
                _add_value(writer, key, value)
        for name, tensor in tensors:
            _add_tensor(writer, name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_value(writer: Any, key: str, value: Any) -> None:
    from gguf import GGUFValueType

    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_key_value(key, value, GGUFValueType[_integer_type(value, value)])
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_key_value(key, value, GGUFValueType.STRING)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        _add_array(writer, key, value)
    else:
        raise ValueError(
            f"{key} is a {type(value).__name__}; GGUF holds strings, numbers, booleans and arrays"
        )


def _add_array(writer: Any, key: str, values: Sequence[Any]) -> None:
    from gguf import GGUFValueType

    if not values:
        return  # the format has no type for an empty array: leaving the key out says the same
    items: list[Any] = [value.encode() if isinstance(value, str) else value for value in values]
    kinds = {type(value) for value in items}
    if kinds == {int}:
        name = _integer_type(min(items), max(items))
    elif kinds <= {int, float}:
        items = [float(value) for value in items]
        name = "FLOAT32"
    elif kinds == {bool}:
        name = "BOOL"
    elif kinds == {bytes}:
        name = "STRING"
    else:
        raise ValueError(f"{key} mixes {', '.join(sorted(kind.__name__ for kind in kinds))} in one array")
    writer.add_key_value(key, items, GGUFValueType.ARRAY, GGUFValueType[name])


def _integer_type(least: int, greatest: int) -> str:
    if least >= 0:
        if greatest < 1 << 32:
            return "UINT32" if greatest >= 1 << 31 or least == greatest else "INT32"
        return "UINT64"
    return "INT32" if least >= -(1 << 31) and greatest < 1 << 31 else "INT64"


def _add_tensor(writer: Any, name: str, tensor: npt.NDArray[Any] | RawTensor) -> None:
    from gguf import GGMLQuantizationType

    if isinstance(tensor, RawTensor):
        kind = GGML_TYPE_BY_NAME[tensor.type_name]
        size = kind.size_of(int(np.prod(tensor.shape)))
        if tensor.blocks.nbytes != size or tensor.shape[-1] % kind.block_size:
            raise ValueError(
                f"{name}: {tensor.blocks.nbytes} bytes of {kind.name} do not make the shape {tensor.shape}"
            )
        rows = np.ascontiguousarray(tensor.blocks).reshape(*tensor.shape[:-1], -1)
        writer.add_tensor(name, rows.view(np.uint8), raw_dtype=GGMLQuantizationType(kind.id))
    elif tensor.dtype.name == "bfloat16":
        rows = np.ascontiguousarray(tensor).view(np.uint8)
        writer.add_tensor(name, rows, raw_dtype=GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, np.ascontiguousarray(tensor))

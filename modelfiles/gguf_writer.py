"""Writes GGUF files: metadata and tensors, nothing about what they mean.

A thin layer over the `gguf` package's writer, so that two implementations agree on the bytes (the reader
is our own). Tensors are written one after the other, so that only one of those that are made on demand is
in memory. Called by the tools that convert, quantize and train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modelfiles.gguf_types import GGML_TYPE_BY_NAME

__all__ = ["RawTensor", "write_gguf"]


@dataclass(frozen=True, slots=True)
class RawTensor:
    """Bytes in a storage type: `shape` counts elements, outermost first.

    `blocks` is the bytes, or a function that makes them when their turn to be written has come.
    """

    type_name: str
    shape: tuple[int, ...]
    blocks: npt.NDArray[np.uint8] | Callable[[], npt.NDArray[np.uint8]]

    def read(self) -> npt.NDArray[np.uint8]:
        """The bytes, as many as type and shape ask for; raises ValueError for another number."""
        found = self.blocks() if callable(self.blocks) else self.blocks
        kind = GGML_TYPE_BY_NAME[self.type_name]
        if found.nbytes != kind.size_of(int(np.prod(self.shape))) or self.shape[-1] % kind.block_size:
            raise ValueError(f"{found.nbytes} bytes of {kind.name} do not make the shape {self.shape}")
        return np.ascontiguousarray(found).view(np.uint8)


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
        announced = [_announce(writer, name, tensor) for name, tensor in tensors]
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for opened in writer.fout or ():
            writer.write_padding(opened, opened.tell())
        for read in announced:
            writer.write_tensor_data(read())
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


def _announce(writer: Any, name: str, tensor: npt.NDArray[Any] | RawTensor) -> Callable[[], npt.NDArray[Any]]:
    """Enters the tensor in the file's table; returns what gives its data."""
    from gguf import GGMLQuantizationType

    if isinstance(tensor, RawTensor):
        kind = GGML_TYPE_BY_NAME[tensor.type_name]
        if not callable(tensor.blocks):
            _checked(name, tensor)
        size = kind.size_of(int(np.prod(tensor.shape)))
        row = kind.size_of(tensor.shape[-1])
        shape = (*tensor.shape[:-1], row)
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, GGMLQuantizationType(kind.id))
        return lambda: _checked(name, tensor)
    array = np.ascontiguousarray(tensor)
    if array.dtype.name == "bfloat16":
        array = array.view(np.uint8)
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes, GGMLQuantizationType.BF16)
    else:
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    return lambda: array


def _checked(name: str, tensor: RawTensor) -> npt.NDArray[np.uint8]:
    try:
        return tensor.read()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None

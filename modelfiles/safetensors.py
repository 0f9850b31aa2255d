"""Reads safetensors files through a memory map, and sharded sets of them by their index.

The header is bounded, every byte range is checked against shape, dtype and the file, and ranges must tile
the data without gap or overlap. Does not know what tensors mean. Called by `describe` and weight loaders.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from modelfiles.files import ModelFile

__all__ = ["DTYPES", "SafetensorsError", "SafetensorsFile", "SafetensorsTensor", "open_checkpoint"]

MAX_HEADER_BYTES: Final = 100_000_000
MAX_TENSORS: Final = 1 << 18
MAX_RANK: Final = 8

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": "<u2",
        "I16": "<i2",
        "U32": "<u4",
        "I32": "<i4",
        "U64": "<u8",
        "I64": "<i8",
        "F16": "<f2",
        "BF16": ml_dtypes.bfloat16,
        "F32": "<f4",
        "F64": "<f8",
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    }.items()
}


class SafetensorsError(ValueError):
    """The file is no well-formed safetensors file, or a set of them does not fit together."""


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """One tensor: `shape` outermost first; `offset` counts from the start of the file, `size` is in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class SafetensorsFile:
    """An open safetensors file; `metadata` is its free-form `__metadata__`."""

    def __init__(self, path: Path, buffer: memoryview) -> None:
        self.path = path
        self._buffer = buffer
        header, base = _read_header(buffer, path.name)
        self.metadata: dict[str, str] = _read_metadata(header.pop("__metadata__", {}))
        self.tensors: dict[str, SafetensorsTensor] = _read_tensors(header, base, len(buffer))

    @staticmethod
    def open(path: str | Path) -> SafetensorsFile:
        """Map and parse the file. `SafetensorsError` for bad content, `OSError` for an unreadable path."""
        path = Path(path)
        with path.open("rb") as file:
            if path.stat().st_size < 8:
                raise SafetensorsError(f"{path.name} is too short for a safetensors file")
            buffer = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return SafetensorsFile(path, buffer)

    def data(self, name: str) -> npt.NDArray[Any]:
        """The tensor as a read-only view in its own dtype; `KeyError` for no such tensor."""
        tensor = self.tensors[name]
        flat = np.frombuffer(self._buffer, np.uint8, tensor.size, tensor.offset)
        return flat.view(DTYPES[tensor.dtype]).reshape(tensor.shape)


def _read_header(buffer: memoryview, name: str) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(buffer[:8], "little")
    limit = min(MAX_HEADER_BYTES, len(buffer) - 8)
    if length > limit:
        raise SafetensorsError(f"{name} claims a header of {length} bytes; at most {limit} can be there")
    if length < 2 or buffer[8] != ord("{"):
        raise SafetensorsError(f"{name} has no JSON header: it is no safetensors file")
    try:
        header = json.loads(bytes(buffer[8 : 8 + length]), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError, MemoryError) as error:
        raise SafetensorsError(f"the header of {name} is not valid JSON: {error}") from error
    if len(header) > MAX_TENSORS:
        raise SafetensorsError(f"{name} lists {len(header)} tensors; the limit is {MAX_TENSORS}")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"key {name!r} is there twice")
        result[name] = value
    return result


def _read_metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise SafetensorsError("__metadata__ must map strings to strings")
    return value


def _read_tensors(header: Mapping[str, Any], base: int, file_size: int) -> dict[str, SafetensorsTensor]:
    tensors = [_read_tensor(name, entry, base) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.size))
    position = base
    for tensor in tensors:
        if tensor.offset != position:
            what = "overlaps the tensor before it" if tensor.offset < position else "leaves a gap before it"
            raise SafetensorsError(
                f"tensor {tensor.name!r} {what} (byte {tensor.offset}, expected {position})"
            )
        position += tensor.size
    if position != file_size:
        raise SafetensorsError(f"the tensors end at byte {position}, the file at {file_size}")
    return {tensor.name: tensor for tensor in tensors}


def _read_tensor(name: str, entry: Any, base: int) -> SafetensorsTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise SafetensorsError(f"tensor {name!r} must have dtype, shape and data_offsets, nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise SafetensorsError(f"tensor {name!r} has the unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if not _is_counts(shape) or len(shape) > MAX_RANK or not _is_counts(offsets) or len(offsets) != 2:
        raise SafetensorsError(f"tensor {name!r} has a malformed shape or data_offsets")
    begin, end = offsets
    expected = prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise SafetensorsError(f"tensor {name!r}: {dtype} {shape} takes {expected} bytes, not {end - begin}")
    return SafetensorsTensor(name, dtype, tuple(shape), base + begin, expected)


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def open_checkpoint(files: Sequence[ModelFile]) -> dict[str, tuple[SafetensorsFile, SafetensorsTensor]]:
    """Every tensor of a set of shards, by name, with the file that holds it.

    With a `model.safetensors.index.json` the weight map decides and must agree with the shards; without one
    all `*.safetensors` files are taken. Raises `SafetensorsError` naming what is missing or there twice.
    """
    shards = {file.name: file for file in files if file.name.endswith(".safetensors")}
    indexes = [file for file in files if file.name.endswith(".safetensors.index.json")]
    weight_map = _read_index(indexes[0]) if indexes else None
    wanted = sorted(set(weight_map.values())) if weight_map is not None else sorted(shards)
    folder = indexes[0].name.rpartition("/")[0] if indexes else ""
    found: dict[str, tuple[SafetensorsFile, SafetensorsTensor]] = {}
    for name in wanted:
        shard = shards.get(f"{folder}/{name}" if folder else name)
        if shard is None:
            raise SafetensorsError(f"the index names {name!r}, which is not among the model's files")
        _add_shard(found, SafetensorsFile.open(shard.path), name, weight_map)
    missing = set(weight_map or ()) - set(found)
    if missing:
        raise SafetensorsError(f"the index lists {sorted(missing)[0]!r}, which no shard holds")
    return found


def _add_shard(
    found: dict[str, tuple[SafetensorsFile, SafetensorsTensor]],
    opened: SafetensorsFile,
    name: str,
    weight_map: Mapping[str, str] | None,
) -> None:
    for tensor in opened.tensors.values():
        if weight_map is not None and weight_map.get(tensor.name) != name:
            continue  # duplicates of shared tensors in other shards: the index decides
        if tensor.name in found:
            raise SafetensorsError(f"tensor {tensor.name!r} is in two files")
        found[tensor.name] = (opened, tensor)


def _read_index(file: ModelFile) -> dict[str, str]:
    try:
        weight_map = json.loads(Path(file.path).read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SafetensorsError(f"{file.name} is no safetensors index: {error}") from error
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        raise SafetensorsError(f"the weight_map of {file.name} must map tensor names to file names")
    return weight_map

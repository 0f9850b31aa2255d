"""Small files made by hand for the tests of this package: safetensors by numpy, GGUF bytes by struct."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "int64": "I64"}


def write_safetensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """A well-formed safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": SAFETENSORS_NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    body = b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in tensors.values())
    path.write_bytes(safetensors_bytes(json.dumps(header).encode(), body))


def safetensors_bytes(header: bytes, body: bytes) -> bytes:
    """The three parts of a safetensors file, unchecked."""
    return struct.pack("<Q", len(header)) + header + body


def gguf_string(text: str | bytes) -> bytes:
    """A GGUF string."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_key(name: str | bytes, kind: int, value: bytes) -> bytes:
    """A GGUF metadata entry with a value encoded already."""
    return gguf_string(name) + struct.pack("<I", kind) + value


def gguf_tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    """A GGUF tensor header; `dims` in file order, innermost first."""
    return (
        gguf_string(name)
        + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        + struct.pack("<IQ", kind, offset)
    )


def gguf_bytes(
    keys: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    alignment: int = 32,
    tensor_count: int | None = None,
    key_count: int | None = None,
) -> bytes:
    """A GGUF file of these parts, its counts true unless given otherwise."""
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + data

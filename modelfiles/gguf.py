"""Reads GGUF files (versions 2 and 3, little-endian) through a memory map, never trusting a number in them.

Every count, length, dimension and offset is bounded by the bytes that are really there before anything is
allocated for it. Does not know what the tensors mean or how to unpack their blocks. Called by `describe`,
the tokenizer loader and the engines' weight loaders.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

from modelfiles.gguf_types import FILE_TYPE_NAMES, GGML_TYPES, GgmlType, majority_type

__all__ = [
    "GGML_TYPES",
    "GgmlType",
    "GgufError",
    "GgufFile",
    "GgufTensor",
    "StringArray",
    "file_type_name",
    "split_name",
]

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32
MAX_ALIGNMENT: Final = 1 << 20
MAX_KEYS: Final = 1 << 16
MAX_TENSORS: Final = 1 << 17
MAX_KEY_BYTES: Final = (1 << 16) - 1
MAX_TENSOR_NAME_BYTES: Final = 256
MAX_ARRAY_STRINGS: Final = 1 << 21
MAX_DIMENSIONS: Final = 4
LONGEST_KEPT_STRING: Final = 1 << 20
"""Longer strings (a whole tokenizer.json, say) are passed over: no key that anyone reads has one."""

_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS: Final[dict[int, str]] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    10: "Q",
    11: "q",
    12: "d",
}
_SPLIT: Final = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


class GgufError(ValueError):
    """The file is no well-formed GGUF; `offset` is the byte where that showed."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} (at byte {offset})")
        self.offset = offset


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `shape` is in numpy order (outermost first); `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    ggml_type: GgmlType
    offset: int
    size: int

    @property
    def elements(self) -> int:
        """Number of elements, blocks unpacked."""
        return prod(self.shape)


class StringArray(Sequence[str]):
    """An array of strings left in the file: each is decoded when asked for (bad UTF-8 becomes U+FFFD)."""

    __slots__ = ("_buffer", "_starts", "_stops")

    def __init__(
        self, buffer: memoryview, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> None:
        self._buffer, self._starts, self._stops = buffer, starts, stops

    def __len__(self) -> int:
        return len(self._starts)

    def raw(self, index: int) -> bytes:
        """The bytes of string `index` as they stand in the file."""
        return bytes(self._buffer[int(self._starts[index]) : int(self._stops[index])])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.raw(index).decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        for start, stop in zip(self._starts.tolist(), self._stops.tolist(), strict=True):
            yield str(self._buffer[start:stop], "utf-8", "replace")


class _Cursor:
    """A position in the mapped bytes; every read checks what is left first."""

    def __init__(self, buffer: memoryview) -> None:
        self.buffer, self.position, self.end = buffer, 0, len(buffer)

    def need(self, count: int, what: str) -> int:
        """Claim `count` bytes and return where they start."""
        start = self.position
        if count > self.end - start:
            raise GgufError(f"{what} needs {count} bytes but {self.end - start} are left in the file", start)
        self.position = start + count
        return start

    def scalar(self, code: str, what: str) -> Any:
        """One little-endian number of a `struct` code."""
        start = self.need(struct.calcsize("<" + code), what)
        return struct.unpack_from("<" + code, self.buffer, start)[0]

    def string(self, limit: int, what: str) -> bytes:
        """A length-prefixed byte string of at most `limit` bytes."""
        start = self.position
        length: int = self.scalar("Q", f"the length of {what}")
        if length > limit:
            raise GgufError(f"{what} claims {length} bytes; the limit is {limit}", start)
        begin = self.need(length, what)
        return bytes(self.buffer[begin : begin + length])

    def text(self, limit: int, what: str) -> str:
        """A string that must be UTF-8."""
        start = self.position
        try:
            return self.string(limit, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise GgufError(f"{what} is not UTF-8", start) from error


class GgufFile:
    """An open GGUF file. `metadata` maps keys to numbers, strings, numpy arrays and `StringArray`s."""

    def __init__(self, path: Path, buffer: memoryview) -> None:
        self.path = path
        self._buffer = buffer
        cursor = _Cursor(buffer)
        self.version, tensor_count, key_count = _read_header(cursor)
        self.metadata: dict[str, Any] = _read_metadata(cursor, key_count)
        self.alignment = _alignment(self.metadata)
        self.tensors: dict[str, GgufTensor] = _read_tensors(cursor, tensor_count, self.alignment)

    @staticmethod
    def open(path: str | Path) -> GgufFile:
        """Map and parse the file. Raises `GgufError` for bad content, `OSError` for an unreadable path."""
        path = Path(path)
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < len(MAGIC):
                raise GgufError(f"a file of {size} bytes is no GGUF", 0)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return GgufFile(path, memoryview(mapped))

    @property
    def architecture(self) -> str:
        """`general.architecture`, or `unknown`."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else "unknown"

    def get(self, suffix: str, default: Any = None) -> Any:
        """The value of `<architecture>.<suffix>`."""
        return self.metadata.get(f"{self.architecture}.{suffix}", default)

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor as a read-only view of the map; `KeyError` for no such tensor."""
        tensor = self.tensors[name]
        return np.frombuffer(self._buffer, np.uint8, tensor.size, tensor.offset)

    def close(self) -> None:
        """Let go of the map; it goes when the last view of it (an array, the metadata) is gone."""
        self._buffer = memoryview(b"")

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_header(cursor: _Cursor) -> tuple[int, int, int]:
    start = cursor.need(4, "the magic number")
    magic = bytes(cursor.buffer[start : start + 4])
    if magic != MAGIC:
        raise GgufError(f"not a GGUF file: it starts with {magic!r}", 0)
    version = cursor.scalar("I", "the version")
    if version not in VERSIONS:
        if version & 0xFFFF == 0:
            raise GgufError("this is a big-endian GGUF; convert it to little-endian first", 4)
        raise GgufError(f"GGUF version {version} is not supported; versions 2 and 3 are", 4)
    tensors = cursor.scalar("Q", "the tensor count")
    keys = cursor.scalar("Q", "the metadata count")
    _check_count(tensors, MAX_TENSORS, 33, cursor, "tensors", 8)
    _check_count(keys, MAX_KEYS, 13, cursor, "metadata keys", 16)
    return version, tensors, keys


def _check_count(count: int, limit: int, least_bytes: int, cursor: _Cursor, what: str, offset: int) -> None:
    left = (cursor.end - cursor.position) // least_bytes
    if count > min(limit, left):
        raise GgufError(f"{count} {what} claimed; at most {min(limit, left)} can be in this file", offset)


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    seen: set[str] = set()
    for _ in range(count):
        start = cursor.position
        key = cursor.text(MAX_KEY_BYTES, "a metadata key")
        if not key or key in seen:
            raise GgufError(f"metadata key {key!r} is {'there twice' if key else 'empty'}", start)
        value = _read_value(cursor, key)
        if value is not None:
            metadata[key] = value
        seen.add(key)
    return metadata


def _read_value(cursor: _Cursor, key: str) -> Any:
    """A number, string or array; None for a string too long to keep."""
    start = cursor.position
    kind = cursor.scalar("I", f"the type of {key}")
    if kind == _STRING:
        length = cursor.scalar("Q", f"the length of {key}")
        begin = cursor.need(length, key)
        return (
            str(cursor.buffer[begin : begin + length], "utf-8", "replace")
            if length <= LONGEST_KEPT_STRING
            else None
        )
    if kind == _ARRAY:
        return _read_array(cursor, key)
    if kind == _BOOL:
        return _checked_bool(cursor.scalar("B", key), key, start)
    if kind in _SCALARS:
        return cursor.scalar(_SCALARS[kind], key)
    raise GgufError(f"{key} has the unknown value type {kind}", start)


def _checked_bool(value: int, key: str, offset: int) -> bool:
    if value not in (0, 1):
        raise GgufError(f"{key} is a boolean with the value {value}", offset)
    return value == 1


def _read_array(cursor: _Cursor, key: str) -> StringArray | npt.NDArray[Any]:
    start = cursor.position
    kind = cursor.scalar("I", f"the element type of {key}")
    count = cursor.scalar("Q", f"the element count of {key}")
    if kind == _STRING:
        return _read_strings(cursor, key, count)
    if kind == _ARRAY:
        raise GgufError(f"{key} is an array of arrays, which this format does not use", start)
    if kind != _BOOL and kind not in _SCALARS:
        raise GgufError(f"{key} has the unknown element type {kind}", start)
    dtype = np.dtype(np.uint8 if kind == _BOOL else "<" + _SCALARS[kind])
    begin = cursor.need(count * dtype.itemsize, key)
    values = np.frombuffer(cursor.buffer, dtype, count, begin)
    return values.view(np.bool_) if kind == _BOOL and bool((values <= 1).all()) else values


def _read_strings(cursor: _Cursor, key: str, count: int) -> StringArray:
    _check_count(count, MAX_ARRAY_STRINGS, 8, cursor, f"strings in {key}", cursor.position - 8)
    starts, stops = np.empty(count, np.int64), np.empty(count, np.int64)
    buffer, position, end = cursor.buffer, cursor.position, cursor.end
    unpack = struct.Struct("<Q").unpack_from
    for index in range(count):
        if end - position < 8:
            raise GgufError(f"{key} ends inside string {index}", position)
        length = unpack(buffer, position)[0]
        position += 8
        if length > end - position:
            raise GgufError(
                f"string {index} of {key} claims {length} bytes, {end - position} are left", position
            )
        starts[index] = position
        position += length
        stops[index] = position
    cursor.position = position
    return StringArray(buffer, starts, stops)


def _alignment(metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise GgufError(f"general.alignment is {value!r}; it must be a power of two up to {MAX_ALIGNMENT}", 0)
    return value


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    headers = [_read_tensor_header(cursor) for _ in range(count)]
    base = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for start, name, shape, kind, relative in headers:
        size = kind.size_of(prod(shape))
        if name in tensors:
            raise GgufError(f"tensor {name!r} is there twice", start)
        if relative % alignment:
            raise GgufError(f"tensor {name!r} starts at {relative}, no multiple of {alignment}", start)
        if base + relative + size > cursor.end:
            raise GgufError(
                f"tensor {name!r} ends at byte {base + relative + size}, the file at {cursor.end}:"
                " it is cut short or lies about its size",
                start,
            )
        tensors[name] = GgufTensor(name, shape, kind, base + relative, size)
    _refuse_overlap(tensors)
    return tensors


def _read_tensor_header(cursor: _Cursor) -> tuple[int, str, tuple[int, ...], GgmlType, int]:
    start = cursor.position
    name = cursor.text(MAX_TENSOR_NAME_BYTES, "a tensor name")
    rank = cursor.scalar("I", f"the rank of {name!r}")
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise GgufError(f"tensor {name!r} has {rank} dimensions; 1 to {MAX_DIMENSIONS} are possible", start)
    dims = [cursor.scalar("Q", f"the shape of {name!r}") for _ in range(rank)]
    type_id = cursor.scalar("I", f"the type of {name!r}")
    kind = GGML_TYPES.get(type_id)
    if kind is None:
        raise GgufError(f"tensor {name!r} has the unknown type {type_id}", start)
    if min(dims) == 0 or prod(dims) >= 1 << 62:
        raise GgufError(f"tensor {name!r} has the impossible shape {dims}", start)
    if dims[0] % kind.block_size:
        raise GgufError(f"rows of {name!r} have {dims[0]} elements, no multiple of {kind.block_size}", start)
    return start, name, tuple(reversed(dims)), kind, cursor.scalar("Q", f"the offset of {name!r}")


def _refuse_overlap(tensors: Mapping[str, GgufTensor]) -> None:
    previous: GgufTensor | None = None
    for tensor in sorted(tensors.values(), key=lambda each: each.offset):
        if previous is not None and tensor.offset < previous.offset + previous.size:
            raise GgufError(f"tensors {previous.name!r} and {tensor.name!r} overlap", tensor.offset)
        previous = tensor


def split_name(name: str) -> tuple[str, int, int] | None:
    """(stem, number from 1, count) of a part of a split GGUF, `m-00001-of-00003.gguf`; None if it is none."""
    match = _SPLIT.match(name)
    return (match["stem"], int(match["number"]), int(match["count"])) if match else None


def file_type_name(metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor]) -> str:
    """The quantization by its usual name: `general.file_type`, else the type holding most elements."""
    declared = metadata.get("general.file_type")
    if isinstance(declared, int) and declared in FILE_TYPE_NAMES:
        return FILE_TYPE_NAMES[declared]
    return majority_type((tensor.ggml_type.name, tensor.elements) for tensor in tensors.values())

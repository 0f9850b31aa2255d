"""Safetensors: what numpy holds reads back, shards fit together, and hostile headers are refused."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from modelfiles.files import ModelFile
from modelfiles.safetensors import SafetensorsError, SafetensorsFile, open_checkpoint
from tests.modelfiles.makers import safetensors_bytes, write_safetensors


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


def file_of(header: Mapping[str, Any] | bytes, body: bytes = bytes(8)) -> bytes:
    return safetensors_bytes(header if isinstance(header, bytes) else json.dumps(header).encode(), body)


def test_tensors_read_back(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4).astype(ml_dtypes.bfloat16),
        "c": np.array(5, dtype=np.int64),
        "d": np.zeros((0, 3), dtype=np.float16),
        "e": np.arange(3, dtype=np.int8),
    }
    write_safetensors(tmp_path / "m.safetensors", arrays)
    opened = SafetensorsFile.open(tmp_path / "m.safetensors")
    assert opened.metadata == {"format": "np"}
    assert set(opened.tensors) == set(arrays)
    for name, array in arrays.items():
        data = opened.data(name)
        assert (data.dtype, data.shape) == (array.dtype, array.shape)
        assert data.tobytes() == array.tobytes()
        assert not data.flags.owndata
        assert not data.flags.writeable
        assert opened.tensors[name].elements == array.size
    with pytest.raises(KeyError):
        opened.data("none")


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "seven bytes": (bytes(7), "too short"),
    "header of 2^63 bytes": (struct.pack("<Q", 1 << 63) + b"{}", "claims a header of"),
    "header of all ones": (b"\xff" * 8 + b"{}", "claims a header of"),
    "header longer than the file": (struct.pack("<Q", 1000) + b"{}", "at most 2 can be there"),
    "header of nothing": (struct.pack("<Q", 0) + b"{}", "no JSON header"),
    "header that is a list": (file_of(b"[1]"), "no JSON header"),
    "another format": (b"PK\3\4" + bytes(100), "claims a header|no JSON header"),
    "header cut short": (file_of(b'{"a":'), "not valid JSON"),
    "header nested deep": (file_of(b'{"a":' * 100_000), "not valid JSON"),
    "header that is not UTF-8": (file_of(b'{"\xff": 1}'), "not valid JSON"),
    "name there twice": (
        file_of(b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{}}'),
        "key 'a' is there twice",
    ),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}, "a": entry()}), "map strings to strings"),
    "entry that is no object": (file_of({"a": 5}), "must have dtype, shape and data_offsets"),
    "entry without shape": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "must have dtype"),
    "entry with more": (file_of({"a": entry(more=1)}), "nothing else"),
    "unknown dtype": (file_of({"a": entry("F7")}), "unknown dtype 'F7'; known: BOOL"),
    "dtype that is no string": (file_of({"a": entry(dtype=[])}), "unknown dtype"),  # type: ignore[arg-type]
    "negative dimension": (file_of({"a": entry(shape=[-2])}), "malformed shape"),
    "fractional dimension": (file_of({"a": entry(shape=[2.0])}), "malformed shape"),
    "boolean dimension": (file_of({"a": entry("U8", [True], [0, 1])}), "malformed shape"),
    "nine dimensions": (file_of({"a": entry(shape=[1] * 9)}), "malformed shape"),
    "dimensions whose product wraps": (file_of({"a": entry(shape=[1 << 33, 1 << 31])}), "not 8"),
    "one offset": (file_of({"a": entry(offsets=[0])}), "malformed shape or data_offsets"),
    "offsets backwards": (file_of({"a": entry(offsets=[8, 0])}), "takes 8 bytes, not -8"),
    "shape larger than the bytes": (file_of({"a": entry(shape=[3])}), "takes 12 bytes, not 8"),
    "dtype smaller than the bytes": (file_of({"a": entry("F16")}), "takes 4 bytes, not 8"),
    "beyond the file": (file_of({"a": entry(shape=[4], offsets=[0, 16])}), "end at byte"),
    "bytes left over": (file_of({"a": entry()}, bytes(9)), "the file at"),
    "overlap": (
        file_of({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
        "overlaps the tensor before it",
    ),
    "gap": (file_of({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "leaves a gap before it"),
    "gap at the start": (file_of({"a": entry(offsets=[4, 12])}, bytes(12)), "leaves a gap before it"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_files_are_refused(tmp_path: Path, name: str) -> None:
    data, message = HOSTILE[name]
    (tmp_path / "m.safetensors").write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(SafetensorsError, match=message):
        SafetensorsFile.open(tmp_path / "m.safetensors")
    assert time.perf_counter() - start < 1


def test_header_above_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(200_000_000)  # sparse: takes no room on the disk
    start = time.perf_counter()
    with pytest.raises(SafetensorsError, match="claims a header of 100000001 bytes; at most 100000000"):
        SafetensorsFile.open(path)
    assert time.perf_counter() - start < 0.5


@pytest.mark.slow
def test_mutated_files_open_or_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"a": np.ones((4, 4), np.float32), "b": np.ones(3, np.float16)})
    original, chance, refused = path.read_bytes(), random.Random(20261120), 0
    for _ in range(3000):
        data = bytearray(original)
        for _ in range(chance.randint(1, 4)):
            position = chance.randrange(len(data))
            data[position : position + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        try:
            opened = SafetensorsFile(path, memoryview(bytes(data)))
            assert all(opened.data(name).nbytes == tensor.size for name, tensor in opened.tensors.items())
        except SafetensorsError:
            refused += 1
    assert 1000 < refused < 3000


# Shards


def shards(folder: Path, parts: Mapping[str, Mapping[str, int]], weight_map: Any = None) -> list[ModelFile]:
    for name, tensors in parts.items():
        write_safetensors(
            folder / name, {key: np.full(2, value, np.float32) for key, value in tensors.items()}
        )
    if weight_map is not None:
        document = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(document)
    return [
        ModelFile(
            "config" if path.suffix == ".json" else "weights", path.name, str(path), "", path.stat().st_size
        )
        for path in folder.iterdir()
    ]


def test_shards_without_an_index(tmp_path: Path) -> None:
    found = open_checkpoint(shards(tmp_path, {"m-1.safetensors": {"a": 1}, "m-2.safetensors": {"b": 2}}))
    assert {name: opened.data(name)[0] for name, (opened, _) in found.items()} == {"a": 1, "b": 2}


def test_the_index_decides_between_copies(tmp_path: Path) -> None:
    parts = {"m-1.safetensors": {"a": 1, "b": 1}, "m-2.safetensors": {"b": 2}}
    found = open_checkpoint(shards(tmp_path, parts, {"a": "m-1.safetensors", "b": "m-2.safetensors"}))
    assert {name: opened.data(name)[0] for name, (opened, _) in found.items()} == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("parts", "weight_map", "message"),
    [
        ({"m-1.safetensors": {"a": 1}, "m-2.safetensors": {"a": 1}}, None, "tensor 'a' is in two files"),
        (
            {"m-1.safetensors": {"a": 1}},
            {"a": "m-9.safetensors"},
            "names 'm-9.safetensors', which is not among",
        ),
        ({"m-1.safetensors": {"a": 1}}, {"b": "m-1.safetensors"}, "lists 'b', which no shard holds"),
        ({"m-1.safetensors": {"a": 1}}, {"a": 1}, "must map tensor names to file names"),
        ({"m-1.safetensors": {"a": 1}}, [], "must map tensor names to file names"),
        ({"m-1.safetensors": {"a": 1}}, {"a": "../m-1.safetensors"}, "which is not among"),
    ],
)
def test_shards_that_do_not_fit(tmp_path: Path, parts: Any, weight_map: Any, message: str) -> None:
    with pytest.raises(SafetensorsError, match=message):
        open_checkpoint(shards(tmp_path, parts, weight_map))


def test_broken_index(tmp_path: Path) -> None:
    files = shards(tmp_path, {"m.safetensors": {"a": 1}}, {})
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(SafetensorsError, match="is no safetensors index"):
        open_checkpoint(files)

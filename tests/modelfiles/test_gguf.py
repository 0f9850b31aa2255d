"""GGUF: what is written reads back, here and in the `gguf` package; hostile files are refused in time."""

from __future__ import annotations

import gc
import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from modelfiles.gguf import GgufError, GgufFile, StringArray, file_type_name, split_name
from modelfiles.gguf_types import FILE_TYPE_NAMES, GGML_TYPES
from modelfiles.gguf_writer import RawTensor, write_gguf
from tests.modelfiles.makers import gguf_bytes, gguf_key, gguf_string, gguf_tensor

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Füchslein",
    "llama.context_length": 2048,
    "llama.rope.freq_base": 10000.0,
    "a.negative": -5,
    "a.large": 1 << 40,
    "a.true": True,
    "a.empty": "",
    "list.strings": ["x", "", "🦊"],
    "list.ints": [1, -2, 3],
    "list.floats": [0.5, 1.5],
    "list.bools": [True, False],
}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, StringArray) else value


def test_metadata_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, [])
    opened = GgufFile.open(path)
    assert {key: plain(value) for key, value in opened.metadata.items()} == METADATA
    assert (opened.architecture, opened.get("context_length"), opened.get("nothing")) == ("llama", 2048, None)
    theirs = gguf.GGUFReader(path)
    assert {key: theirs.fields[key].contents() for key in METADATA} == METADATA


@pytest.mark.parametrize("alignment", [None, 64])
def test_tensor_round_trip(tmp_path: Path, alignment: int | None) -> None:
    path = tmp_path / "m.gguf"
    random_values = np.random.default_rng(3)
    arrays = {
        "f32": random_values.normal(size=(3, 5)).astype(np.float32),
        "f16": random_values.normal(size=(2, 3, 4)).astype(np.float16),
        "bf16": random_values.normal(size=(4, 2)).astype(ml_dtypes.bfloat16),
        "i8": np.arange(7, dtype=np.int8),
        "i64": np.arange(3),
    }
    blocks = random_values.integers(0, 256, 2 * 2 * 34).astype(np.uint8)
    extra = {"general.alignment": alignment} if alignment else {}
    write_gguf(path, METADATA | extra, [*arrays.items(), ("q8", RawTensor("Q8_0", (2, 64), blocks))])
    with GgufFile.open(path) as opened:
        for name, array in arrays.items():
            tensor = opened.tensors[name]
            assert tensor.shape == array.shape
            assert tensor.elements == array.size
            assert tensor.ggml_type.name == name.upper()
            assert tensor.offset % (alignment or 32) == 0
            data = opened.data(name)
            assert data.tobytes() == array.tobytes()
            assert not data.flags.owndata
            assert not data.flags.writeable
        assert opened.data("q8").tobytes() == blocks.tobytes()
        assert opened.tensors["q8"].shape == (2, 64)
        with pytest.raises(KeyError):
            opened.data("none")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert [list(theirs[name].shape) for name in arrays] == [
        list(array.shape[::-1]) for array in arrays.values()
    ]


def test_views_outlive_the_file_object(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", METADATA, [("t", np.arange(1000, dtype=np.float32))])
    opened = GgufFile.open(tmp_path / "m.gguf")
    view, strings = opened.data("t"), opened.metadata["list.strings"]
    opened.close()
    del opened
    gc.collect()
    assert list(strings) == METADATA["list.strings"]
    assert view.view(np.float32)[999] == 999


def test_tables_agree_with_the_gguf_package() -> None:
    for kind in gguf.GGMLQuantizationType:
        if kind.value in GGML_TYPES:
            ours = GGML_TYPES[kind.value]
            assert (ours.name, (ours.block_size, ours.block_bytes)) == (
                kind.name,
                gguf.GGML_QUANT_SIZES[kind],
            )
    named = {
        each.value: each.name.removeprefix("MOSTLY_").removeprefix("ALL_") for each in gguf.LlamaFileType
    }
    for number, name in FILE_TYPE_NAMES.items():
        assert named.get(number, name).removesuffix("_MOE") == name


def test_quantization_name(tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "m.gguf", METADATA, [("n", np.ones(8, np.float32)), ("w", np.ones((8, 8), np.float16))]
    )
    opened = GgufFile.open(tmp_path / "m.gguf")
    assert file_type_name(opened.metadata, opened.tensors) == "F16"
    assert file_type_name({"general.file_type": 15}, opened.tensors) == "Q4_K_M"
    assert file_type_name({"general.file_type": 999}, opened.tensors) == "F16"
    assert file_type_name({}, {}) == "unknown"


def test_split_names() -> None:
    assert split_name("big-00002-of-00010.gguf") == ("big", 2, 10)
    assert split_name("sub/big-00002-of-00010.gguf") == ("sub/big", 2, 10)
    assert split_name("big-2-of-10.gguf") is None
    assert split_name("model.gguf") is None


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"a": 1}, [], "general.architecture is missing"),
        (METADATA | {"a": object()}, [], "a is a object"),
        (METADATA | {"a": [1, "x"]}, [], "a mixes bytes, int"),
        (METADATA, [("t", RawTensor("Q8_0", (2, 32), np.zeros(34, np.uint8)))], "t: 34 bytes of Q8_0"),
        (METADATA, [("t", RawTensor("Q8_0", (4, 16), np.zeros(68, np.uint8)))], "do not make the shape"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, metadata: dict[str, Any], tensors: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "m.gguf", metadata, tensors)


# Hostile files

U32, STRING, BOOL, ARRAY, F32_VALUE = 4, 8, 7, 9, 6
HUGE = (1 << 64) - 1


def key(name: str | bytes = "k", kind: int = U32, value: bytes = b"\1\0\0\0") -> bytes:
    return gguf_key(name, kind, value)


def tensor(name: str = "t", dims: list[int] | None = None, kind: int = 0, offset: int = 0) -> bytes:
    return gguf_tensor(name, [8] if dims is None else dims, kind, offset)


def array(kind: int, count: int, body: bytes = b"") -> bytes:
    return key(kind=ARRAY, value=struct.pack("<IQ", kind, count) + body)


DATA = bytes(64)

HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "half a magic number": b"GG",
    "another magic number": gguf_bytes([], [], magic=b"GGML"),
    "no version": b"GGUF",
    "version 0": gguf_bytes([], [], version=0),
    "version 1": gguf_bytes([], [], version=1),
    "version of the future": gguf_bytes([], [], version=99),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "header cut short": b"GGUF" + struct.pack("<IQ", 3, 0),
    "tensor count of all ones": gguf_bytes([], [], tensor_count=HUGE),
    "tensor count above the limit": gguf_bytes([], [], bytes(1 << 20), tensor_count=1 << 18),
    "key count of all ones": gguf_bytes([], [], key_count=HUGE),
    "more keys claimed than there are": gguf_bytes([key()], [], bytes(200), key_count=3),
    "key of 2^63 bytes": gguf_bytes([struct.pack("<Q", 1 << 63) + bytes(32)], []),
    "key longer than the format allows": gguf_bytes([key("k" * 70000)], []),
    "empty key": gguf_bytes([key("")], []),
    "key that is not UTF-8": gguf_bytes([key(b"\xff\xfe")], []),
    "key there twice": gguf_bytes([key(), key()], []),
    "unknown value type": gguf_bytes([key(kind=13)], []),
    "string beyond the end": gguf_bytes([key(kind=STRING, value=struct.pack("<Q", 1000) + b"short")], []),
    "string of all ones": gguf_bytes([key(kind=STRING, value=struct.pack("<Q", HUGE))], []),
    "boolean of 2": gguf_bytes([key(kind=BOOL, value=b"\2")], []),
    "array of unknown type": gguf_bytes([array(77, 1, b"\0")], []),
    "array of arrays": gguf_bytes([array(ARRAY, 1, struct.pack("<IQ", U32, 0))], []),
    "number array beyond the end": gguf_bytes([array(U32, 1 << 20)], []),
    "number array whose size wraps to 0": gguf_bytes([array(U32, 1 << 62)], []),
    "string array of all ones": gguf_bytes([array(STRING, HUGE)], []),
    "string array above the limit": gguf_bytes([array(STRING, 1 << 22, bytes(1 << 10))], []),
    "string array with a long string": gguf_bytes(
        [array(STRING, 2, gguf_string("a") + struct.pack("<Q", HUGE))], []
    ),
    "string array cut short": gguf_bytes([array(STRING, 2, gguf_string("a" * 20) + b"\0")], [], alignment=1),
    "alignment 0": gguf_bytes([key("general.alignment", value=bytes(4))], []),
    "alignment 48": gguf_bytes([key("general.alignment", value=b"\x30\0\0\0")], []),
    "alignment of 2 GB": gguf_bytes([key("general.alignment", value=struct.pack("<I", 1 << 31))], []),
    "alignment in words": gguf_bytes([key("general.alignment", STRING, gguf_string("32"))], []),
    "tensor name too long": gguf_bytes([], [tensor("t" * 300)], DATA),
    "tensor of no dimension": gguf_bytes([], [tensor(dims=[])], DATA),
    "tensor of five dimensions": gguf_bytes([], [tensor(dims=[1] * 5)], DATA),
    "dimension 0": gguf_bytes([], [tensor(dims=[0, 8])], DATA),
    "dimension -1": gguf_bytes([], [tensor(dims=[HUGE])], DATA),
    "dimensions whose product wraps to 0": gguf_bytes([], [tensor(dims=[1 << 32, 1 << 32])], DATA),
    "dimensions whose product wraps to 8": gguf_bytes([], [tensor(dims=[(1 << 61) + 1, 8])], DATA),
    "unknown tensor type": gguf_bytes([], [tensor(kind=1000)], DATA),
    "withdrawn tensor type": gguf_bytes([], [tensor(dims=[32], kind=4)], DATA),
    "row that is no multiple of a block": gguf_bytes([], [tensor(dims=[33], kind=8)], DATA),
    "offset no multiple of the alignment": gguf_bytes([], [tensor(offset=8)], DATA),
    "offset beyond the file": gguf_bytes([], [tensor(offset=1 << 20)], DATA),
    "offset that wraps": gguf_bytes([], [tensor(offset=(1 << 64) - 32)], DATA),
    "tensor longer than the file": gguf_bytes([], [tensor(dims=[17])], DATA),
    "tensor there twice": gguf_bytes([], [tensor(), tensor(offset=32)], DATA),
    "tensors that overlap": gguf_bytes([], [tensor("a", [16]), tensor("b", [8], offset=32)], DATA),
    "tensor headers cut short": gguf_bytes([], [tensor()], b"")[:40],
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_files_are_refused_at_a_byte(tmp_path: Path, name: str) -> None:
    data = HOSTILE[name]
    path = write(tmp_path / "m.gguf", data)
    start = time.perf_counter()
    with pytest.raises(GgufError, match=r"\(at byte \d+\)") as caught:
        GgufFile.open(path)
    assert time.perf_counter() - start < 1
    assert 0 <= caught.value.offset <= len(data)


def test_the_parts_of_the_hostile_files_make_a_good_one(tmp_path: Path) -> None:
    keys = [key(), gguf_key("list", ARRAY, struct.pack("<IQ", STRING, 1) + gguf_string("x"))]
    good = gguf_bytes(keys, [tensor("a", [8]), tensor("b", [8], offset=32)], DATA)
    opened = GgufFile.open(write(tmp_path / "m.gguf", good))
    assert list(opened.tensors) == ["a", "b"]
    assert {name: plain(value) for name, value in opened.metadata.items()} == {"k": 1, "list": ["x"]}


def peak_bytes(path: Path) -> int:
    """The most Python and numpy held at once while opening a file, whatever came of it."""
    gc.collect()
    tracemalloc.start()
    try:
        GgufFile.open(path)
    except GgufError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


GREEDY = {
    "empty strings": gguf_bytes([array(STRING, 200_000, bytes(8 * 200_000))], []),
    "short strings": gguf_bytes([array(STRING, 100_000, gguf_string("ab") * 100_000)], []),
    "numbers": gguf_bytes([array(U32, 300_000, bytes(1_200_000))], []),
    "one long string": gguf_bytes([key(kind=STRING, value=gguf_string("x" * 500_000 + "🦊"))], []),
    "many keys": gguf_bytes([key(f"key.{n}") for n in range(60_000)], []),
    "many tensors": gguf_bytes([], [tensor(f"t{n}", offset=32 * n) for n in range(20_000)], bytes(640_000)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(GREEDY))
def test_memory_is_bounded_by_the_file(tmp_path: Path, name: str) -> None:
    """Four times the file, or for one of small entries a fixed 64 MiB, by the limits on their counts."""
    data = GREEDY[name]
    start = time.perf_counter()
    peak = peak_bytes(write(tmp_path / "m.gguf", data))
    assert time.perf_counter() - start < 10  # tracing is slow; untraced it is a tenth of this
    assert peak <= (64 << 20 if name.startswith("many") else 4 * len(data) + (1 << 20))


def test_a_string_too_long_to_keep_is_passed_over(tmp_path: Path) -> None:
    keys = [key(kind=STRING, value=gguf_string("x" * ((1 << 20) + 1))), key("after")]
    assert GgufFile.open(write(tmp_path / "m.gguf", gguf_bytes(keys, []))).metadata == {"after": 1}


def test_corpus_of_another_project(shared_data: Path) -> None:
    paths = sorted((shared_data / "fuzz/gridcore/gguf_open").iterdir())
    assert len(paths) == 12
    opened = []
    for path in paths:
        try:
            GgufFile.open(path)
        except GgufError as error:
            assert error.offset <= path.stat().st_size
        else:
            opened.append(path.name)
    assert opened == ["v3-empty.bin", "valid-small.gguf"]


def small_file(path: Path) -> bytes:
    write_gguf(
        path,
        METADATA | {"tokenizer.ggml.tokens": ["a", "b", "<s>"], "tokenizer.ggml.scores": [0.0, -1.0, -2.0]},
        [
            ("a.weight", np.ones((4, 8), np.float32)),
            ("b", RawTensor("Q8_0", (2, 32), np.zeros(68, np.uint8))),
        ],
    )
    return path.read_bytes()


def mutated(original: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, a number set to an extreme, a stretch cut out or doubled, or the end cut off."""
    data = bytearray(original)
    for _ in range(chance.randint(1, 6)):
        position = chance.randrange(max(len(data), 1))
        match chance.randrange(5):
            case 0:
                data[position : position + 1] = bytes([chance.randrange(256)])
            case 1:
                value = chance.choice(
                    [0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 31, 1 << 62, 1 << 63, HUGE, len(data)]
                )
                data[position : position + 8] = struct.pack("<Q", value)
            case 2:
                del data[position : position + chance.randint(1, 40)]
            case 3:
                data[position:position] = data[position : position + chance.randint(1, 40)]
            case _:
                if chance.random() < 0.2:
                    del data[position:]
    return bytes(data)


@pytest.mark.slow
def test_mutated_files_open_or_are_refused(tmp_path: Path) -> None:
    """Never another exception, never long, never much memory; what opens holds what it says."""
    original = small_file(tmp_path / "small.gguf")
    chance = random.Random(20261120)
    refused, slowest = 0, 0.0
    for number in range(5000):
        data = mutated(original, chance)
        start = time.process_time()
        try:
            opened = GgufFile(tmp_path, memoryview(data))
            for name in opened.tensors:
                assert opened.data(name).nbytes == opened.tensors[name].size
            assert all(plain(value) is not None for value in opened.metadata.values())
        except GgufError as error:
            assert error.offset <= len(data)
            refused += 1
        slowest = max(slowest, time.process_time() - start)
        if number % 250 == 0:
            assert peak_bytes(write(tmp_path / "m.gguf", data)) < 1 << 20
    assert 2000 < refused < 5000
    assert slowest < 1

"""Small real models to put into stores: GGUF and safetensors files with a handful of bytes of weights."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from modelfiles.description import ModelDescription
from modelfiles.files import ModelFile
from registry.store import Store
from tests.registry.fakehub import FakeHub


def gguf_bytes(seed: int = 0, size: int = 0) -> bytes:
    """A GGUF v3 file with one metadata entry, no tensors and `size` bytes that follow."""
    key, text = b"general.architecture", b"llama"
    header = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(text)) + text
    return header + entry + seed.to_bytes(8, "little") + bytes(size)


def safetensors_bytes(seed: int = 0, elements: int = 1) -> bytes:
    """A safetensors file with one F32 tensor."""
    size = 4 * elements
    header = json.dumps({"w": {"dtype": "F32", "shape": [elements], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", float(seed)) * elements


def describe(files: Sequence[ModelFile]) -> ModelDescription:
    """A description that tells from the names alone: reading headers is tested in `modelfiles`."""
    weights = [file for file in files if file.role == "weights"]
    gguf = any(file.name.endswith(".gguf") for file in weights)
    return ModelDescription(
        weight_format="gguf" if gguf else "safetensors",
        architecture="llama",
        parameter_count=1_500_000,
        quantization="F32",
        context_length=128,
        embedding_length=8,
        vocabulary_size=32,
        chat_template=None,
        capabilities=("completion",),
        generation_defaults={} if gguf else {"top_k": 64},
    )


def fast_folder() -> str | None:
    """A folder in memory where the system has one: these tests sync often, and study order, not disks."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """pytest's own, but in memory where that is possible."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        yield Path(folder)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.open(tmp_path / "models")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        yield running

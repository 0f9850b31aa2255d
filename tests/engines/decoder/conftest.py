"""A real trained model for the engine's tests: stories260K, converted from llama2.c's format on the fly.

`stories_gguf` and `stories_folder` are the same weights in two containers, as lists of `ModelFile`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from modelfiles.files import ModelFile
from tests.engines.decoder.llama2c import (
    Llama2c,
    list_files,
    safetensors_bytes,
    write_llama2c_folder,
    write_llama2c_gguf,
)


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> Llama2c:
    return Llama2c(shared_data / "models" / "stories260K", "stories260K")


@pytest.fixture(scope="session")
def stories_gguf(stories: Llama2c, tmp_path_factory: pytest.TempPathFactory) -> list[ModelFile]:
    folder = tmp_path_factory.mktemp("stories-gguf")
    write_llama2c_gguf(stories, folder / "stories260K.gguf")
    return list_files(folder)


@pytest.fixture(scope="session")
def stories_folder(stories: Llama2c, tmp_path_factory: pytest.TempPathFactory) -> list[ModelFile]:
    folder = tmp_path_factory.mktemp("stories-folder")
    write_llama2c_folder(stories, folder)
    return list_files(folder)


@pytest.fixture(scope="session")
def stories_bf16(stories: Llama2c, tmp_path_factory: pytest.TempPathFactory) -> list[ModelFile]:
    folder = tmp_path_factory.mktemp("stories-bf16")
    write_llama2c_folder(stories, folder, ml_dtypes.bfloat16)
    return list_files(folder)


@pytest.fixture(scope="session")
def files_of() -> Callable[[Path], list[ModelFile]]:
    """`list_files`, for tests that write models of their own."""
    return list_files


@pytest.fixture(scope="session")
def to_safetensors() -> Callable[[Mapping[str, np.ndarray[Any, Any]]], bytes]:
    """`safetensors_bytes`, for tests that write models of their own."""
    return safetensors_bytes

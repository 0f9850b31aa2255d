"""What the parity tests share: the references, each skipped with a reason when absent, and their models."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modelfiles.files import ModelFile
from tests.parity import models, recipe

Made = tuple[dict[str, Any], recipe.Tensors, Path]
Models = dict[str, Made]


@pytest.fixture(scope="session")
def golden() -> ModuleType:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.parity import make_golden

    return make_golden


@pytest.fixture(scope="session")
def llamacpp() -> ModuleType:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from tests.parity import llamacpp

    if not llamacpp.SOURCE.is_dir():
        pytest.skip("LLAMA_CPP_SOURCE names no llama.cpp source tree, which has the converter")
    return llamacpp


@pytest.fixture(scope="session")
def made(
    golden: ModuleType, llamacpp: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Made]:
    """Every family as (config.json, tensors, the converter's float32 GGUF)."""
    folder, found = tmp_path_factory.mktemp("models"), Models()
    for family, (base, changes) in (models.FAMILIES | models.ENCODERS).items():
        _, config, shapes = golden.build(base, **changes)
        tensors = models.make_tensors(config, shapes)
        recipe.write_folder(folder / family, config, tensors)
        if family in models.ENCODERS:
            models.write_dense(folder / family)
        found[family] = config, tensors, folder / f"{family}.gguf"
    llamacpp.convert({folder / family: config for family, (config, _, _) in found.items()})
    return found


def files_of(path: Path) -> list[ModelFile]:
    return [ModelFile("weights", path.name, str(path), "sha256:" + "0" * 64, path.stat().st_size)]

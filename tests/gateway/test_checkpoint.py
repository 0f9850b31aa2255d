"""A Kaggle checkpoint named by the environment: made into a model when the server starts."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from gateway.checkpoint import make_model
from gateway.settings import Settings
from modelfiles.description import ModelDescription
from modelfiles.files import ModelFile
from registry.store import Store

TREE = {"_METADATA": b"{}", "checkpoint": b"c" * 500, "d/0": b"array"}


def described(files: list[ModelFile]) -> ModelDescription:
    assert {file.name for file in files} == {*TREE, "tokenizer.model"}
    return ModelDescription(
        "orbax", "gemma", 2_506_172_416, "BF16", 8192, 2048, 256_128, None, ("completion",)
    )


def kaggle_folder(folder: Path) -> Path:
    for name, data in TREE.items():
        (folder / "2b-it" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "2b-it" / name).write_bytes(data)
    return folder / "2b-it"


@pytest.mark.parametrize("named", [True, False], ids=["named", "beside"])
def test_the_model_has_the_folders_name_and_its_tokenizer(named: bool, tmp_path: Path) -> None:
    checkpoint = kaggle_folder(tmp_path)
    tokenizer = tmp_path / "elsewhere" / "gemma.model" if named else tmp_path / "tokenizer.model"
    tokenizer.parent.mkdir(exist_ok=True)
    tokenizer.write_bytes(b"pieces")
    store = Store.open(tmp_path / "models")
    environment = {"MODEL_CHECKPOINT": str(checkpoint)} | (
        {"MODEL_TOKENIZER": str(tokenizer)} if named else {}
    )
    settings = Settings.read(environment)
    assert settings.checkpoint is not None
    asyncio.run(make_model(store, settings.checkpoint, settings.tokenizer, described))
    [model] = store.list()
    assert model.name.display() == "2b-it:latest"
    files = {file.name: Path(file.path).read_bytes() for file in model.files}
    assert files == TREE | {"tokenizer.model": b"pieces"}
    (checkpoint / "_METADATA").unlink()  # a second start looks at the store alone
    asyncio.run(make_model(store, settings.checkpoint, settings.tokenizer, described))
    assert len(store.list()) == 1


def test_a_folder_of_nothing_is_said_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "2b-it").mkdir()
    store = Store.open(tmp_path / "models")
    with caplog.at_level(logging.ERROR):
        asyncio.run(make_model(store, tmp_path / "2b-it", None, described))
    assert "holds no GGUF, no safetensors and no Orbax checkpoint" in caplog.text
    assert store.list() == []

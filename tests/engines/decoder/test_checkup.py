"""What `gemmule check` finds: nothing on a trained model, and the right row on each kind of broken one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.decoder import checkup
from engines.decoder.checkup import Row, check_model, page
from modelfiles.files import ModelFile
from tests.engines.decoder.llama2c import list_files, write_llama2c_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture
def whole(stories: Any, stories_folder: list[ModelFile], tmp_path: Path) -> Path:
    """The stories model as a folder of its own, with its tokenizer."""
    folder = tmp_path / "stories"
    folder.mkdir()
    for file in stories_folder:
        shutil.copy(file.path, folder / file.name)
    write_llama2c_tokenizer(stories, folder / "tokenizer.model")
    return folder


def rows(folder: Path) -> dict[str, Row]:
    return {row.name: row for row in check_model(list_files(folder))}


def spoil(folder: Path, value: float) -> None:
    """Writes `value` over the last tensor of the file, the final norm."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-256:] = np.full(64, value, "<f4").tobytes()
    path.write_bytes(data)


def test_a_trained_model_passes(whole: Path) -> None:
    found = rows(whole)
    assert [row.state for row in found.values()] == ["ok"] * 4
    assert list(found) == ["weights", "tokenizer", "values", "text"]
    bits = float(found["text"].detail.split()[0])
    assert 1.2 < bits < 1.6


def test_damaged_weights_are_named(whole: Path) -> None:
    spoil(whole, np.nan)
    found = rows(whole)
    assert (list(found), found["weights"].state) == (["weights"], "fail")
    assert "model.norm.weight" in found["weights"].detail


def test_overflow_is_found_where_every_weight_is_finite(whole: Path) -> None:
    spoil(whole, 3e38)
    assert rows(whole)["values"].state == "fail"


def test_a_tokenizer_of_another_model_is_noticed(stories: Any, whole: Path) -> None:
    pieces = stories.pieces
    turned = [
        *pieces[:259],
        *((piece, score) for (piece, _), (_, score) in zip(pieces[:258:-1], pieces[259:], strict=True)),
    ]
    stories.pieces = turned
    try:
        write_llama2c_tokenizer(stories, whole / "tokenizer.model")
    finally:
        stories.pieces = pieces
    found = rows(whole)
    assert found["tokenizer"].state == "ok"
    assert found["text"].state == "fail"


def test_a_model_without_a_tokenizer(whole: Path) -> None:
    (whole / "tokenizer.model").unlink()
    assert rows(whole)["tokenizer"].state == "fail"


def test_the_page_is_plain_text_of_the_length_told() -> None:
    assert checkup.PAGE.is_file()
    assert page().isascii()
    assert 1400 < len(page()) < 1700

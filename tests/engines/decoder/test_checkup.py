"""What `gemmule check` finds: nothing on a trained model, and the right row on each kind of broken one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.decoder import checkup, weights
from engines.decoder.checkup import Answer, Question, Row, check_model, page
from engines.decoder.model import encode, logits
from modelfiles.files import ModelFile
from tests.engines.decoder.llama2c import list_files, write_llama2c_tokenizer
from tests.engines.decoder.test_adapters import halves, peft

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


def asked(folder: Path, **fields: Any) -> Answer:
    return check_model(Question(tuple(list_files(folder)), **fields))


def rows(folder: Path, **fields: Any) -> dict[str, Row]:
    return {row.name: row for row in asked(folder, **fields).rows}


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


def test_the_short_form_looks_at_the_beginning(whole: Path) -> None:
    found = rows(whole, short=True)
    assert [row.state for row in found.values()] == ["ok"] * 4
    spoil(whole, np.nan)
    assert rows(whole, short=True)["values"].state == "fail"


def test_an_adapter_is_looked_at_beside_its_base(whole: Path, to_safetensors: Any, tmp_path: Path) -> None:
    mild = {name: (down, up / 100) for name, (down, up) in halves(2, 0).items()}
    files = peft(tmp_path / "mild", mild, to_safetensors, r=2)
    found = rows(whole, adapter=files)
    assert found["adapter"].detail == "rank up to 8 on down, q, up, v"
    assert found["text"].state == "ok"
    wild = peft(tmp_path / "wild", halves(16, 0), to_safetensors, r=1)
    assert rows(whole, adapter=wild)["text"].state == "fail"


def test_greedy_tokens_are_those_of_whole_forward_passes(whole: Path) -> None:
    found = asked(whole, greedy=6).greedy
    assert found is not None
    assert page().startswith(found.text)
    model = weights.load(list_files(whole))
    ids = np.array([*found.prompt, *found.tokens], np.int32)
    hidden = encode(model.config, model.params, ids[None], np.arange(len(ids), dtype=np.int32)[None])
    scores = np.asarray(logits(model.config, model.params, hidden[0]))[len(found.prompt) - 1 : -1]
    assert tuple(scores.argmax(axis=1)) == found.tokens
    best = np.sort(scores, axis=1)[:, -2:]
    np.testing.assert_allclose(best[:, 1] - best[:, 0], found.margins, atol=1e-3)


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

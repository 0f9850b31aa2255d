"""Everything the headers say, in Ollama's digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelfiles.contents import json_value, read_contents
from modelfiles.describe import describe
from modelfiles.description import TensorEntry
from modelfiles.files import ModelFile
from modelfiles.gguf_writer import write_gguf
from tests.modelfiles.makers import write_safetensors
from tests.modelfiles.test_describe_classifier import classifier


def weights(path: Path) -> ModelFile:
    return ModelFile("weights", path.name, str(path), "sha256:0", path.stat().st_size)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float(np.float32(1e-5)), 1e-05),
        (10000.0, 10000),
        (0.1, 0.1),
        (1e300, 1e300),
        (float("inf"), None),
        (float("nan"), None),
        (True, True),
        ("text", "text"),
        (7, 7),
        (np.array([0.1, 0, -2], np.float32), [0.1, 0, -2]),
        (np.array([1, 2], np.uint32), [1, 2]),
    ],
)
def test_numbers_are_written_as_people_wrote_them(value: Any, expected: Any) -> None:
    found = json_value(value)
    assert json.dumps(found) == json.dumps(expected)


def test_a_gguf_shows_all_its_metadata_and_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    words = [f"word{index}" for index in range(9)]
    metadata = {
        "general.architecture": "llama",
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "tokenizer.ggml.tokens": words,
    }
    write_gguf(path, metadata, [("token_embd.weight", np.zeros((9, 4), np.float32))])
    contents = read_contents([weights(path)])
    assert contents.metadata["tokenizer.ggml.tokens"] == words
    assert contents.metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-6
    assert contents.tensors == (TensorEntry("token_embd.weight", "F32", (4, 9)),)
    assert describe([weights(path)]).model_info["tokenizer.ggml.tokens"] == []


def test_safetensors_show_their_configuration_and_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a.weight": np.zeros((2, 3), np.float16)})
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    files = [weights(path), ModelFile("config", config.name, str(config), "sha256:1", 1)]
    contents = read_contents(files)
    assert contents.metadata["general.architecture"] == "llama"
    assert contents.tensors == (TensorEntry("a.weight", "F16", (2, 3)),)


def test_a_classifier_shows_its_tensors(tmp_path: Path) -> None:
    contents = read_contents(classifier(tmp_path))
    assert contents.metadata == {}
    assert contents.tensors

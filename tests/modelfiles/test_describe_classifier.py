"""An image classifier is described by its own config.json; nothing about text is made up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modelfiles.capabilities import capabilities
from modelfiles.describe import DescribeError, describe
from modelfiles.files import FileRole, ModelFile
from modelfiles.templates.source import TemplateSource
from tests.modelfiles.makers import write_safetensors


def classifier(folder: Path, **changes: object) -> list[ModelFile]:
    config = {"model_type": "gemmule_image_classifier", "labels": ["cat", "dog"], "side": 32} | changes
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", {"head.weight": np.zeros((4, 2), np.float32)})
    roles: dict[str, FileRole] = {"config.json": "config", "model.safetensors": "weights"}
    return [ModelFile(role, name, str(folder / name), "", 0) for name, role in roles.items()]


def test_labels_and_size_are_told(tmp_path: Path) -> None:
    found = describe(classifier(tmp_path))
    assert (found.architecture, found.parameter_count, found.quantization) == (
        "gemmule_image_classifier",
        8,
        "F32",
    )
    assert found.model_info["gemmule_image_classifier.labels"] == ["cat", "dog"]
    assert (found.context_length, found.vocabulary_size, found.chat_template) == (0, 0, None)


def test_it_can_classify_and_nothing_else(tmp_path: Path) -> None:
    template = TemplateSource("go", "{{ .Prompt }}")
    assert capabilities(describe(classifier(tmp_path)), template) == ("classification",)


@pytest.mark.parametrize("labels", [[], None, [1, 2], "cat"])
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: object) -> None:
    with pytest.raises(DescribeError, match="must list its labels"):
        describe(classifier(tmp_path, labels=labels))

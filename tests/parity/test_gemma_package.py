"""Flax trees against the package they come from: written by it, read by us, the same logits.

Needs the `gemma` package 4.x, so Python 3.12, in an environment of its own (`make parity-flax`). All layers
of every published size, narrow; float32.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from engines.decoder import weights
from engines.decoder.weights.loading import LoadedModel
from modelfiles.files import ModelFile
from tests.parity import recipe
from tests.parity.sequence import Ours, answers, relative

pytestmark = pytest.mark.parity
NAMES = (
    "gemma2 2B",
    "gemma2 9B",
    "gemma2 27B",
    "gemma3 270M",
    "gemma3 4B",
    "gemma3 27B",
    "gemma3n E2B",
    "gemma3n E4B",
    "gemma4 E2B",
    "gemma4 E4B",
    "gemma4 26B-A4B",
    "gemma4 31B",
)


@pytest.fixture(scope="module")
def gemma_package() -> ModuleType:
    pytest.importorskip("gemma", reason="the gemma package is not installed")
    from tests.parity import gemma_package

    assert tuple(gemma_package.MODELS) == NAMES
    return gemma_package


def saved(folder: Path, tree: Any) -> list[ModelFile]:
    """The tree as an Orbax checkpoint."""
    import orbax.checkpoint as orbax

    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        ModelFile("weights", path.relative_to(folder.parent).as_posix(), str(path), "", path.stat().st_size)
        for path in files
    ]


def with_window(model: LoadedModel, window: int) -> LoadedModel:
    """The published window would not end within the tokens of a test."""
    layers = [replace(layer, window=window if layer.window else 0) for layer in model.config.layers]
    return replace(model, config=replace(model.config, layers=tuple(layers)))


@pytest.mark.parametrize("name", NAMES)
def test_a_flax_tree_answers_as_its_package_does(
    name: str, gemma_package: ModuleType, tmp_path: Path
) -> None:
    model, params = gemma_package.build(name)
    ids = recipe.token_ids()
    loaded = weights.load(saved(tmp_path / "it", params))
    ours = answers(Ours(with_window(loaded, gemma_package.TINY["sliding_window_size"])), ids)
    expected = gemma_package.answer(model, params, ids)
    assert np.isfinite(expected).all()
    assert relative(ours, expected) < 1e-4

"""`create --quantize` against llama.cpp's quantiser: the same types for the same tensors, the same bytes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest

from engines.decoder.quantize import QUANTIZERS, quantize
from engines.decoder.weights.convert import write_quantized
from tests.parity import models
from tests.parity.conftest import Models, files_of

pytestmark = pytest.mark.parity
MIXTURES = {"q8_0": "Q8_0", "q4_0": "Q4_0", "q4_K_M": "Q4_K_M"}
GENERATOR = np.random.default_rng(1)
ROWS = {
    "normal": GENERATOR.standard_normal((128, 1024)),
    "peaked": 0.02 * GENERATOR.laplace(size=(128, 1024)),
    "outliers": 0.02 * GENERATOR.standard_t(3, (128, 1024)),
    "tiny": 1e-8 * GENERATOR.standard_normal((16, 1024)),
    "one side": np.abs(GENERATOR.standard_normal((16, 1024))) + 1,
    "levels": GENERATOR.integers(-3, 4, (16, 1024)).astype(np.float32),
    "sparse": GENERATOR.standard_normal((16, 1024)) * (GENERATOR.random((16, 1024)) < 0.02),
    "uneven": GENERATOR.standard_normal((16, 1024)) * 10.0 ** GENERATOR.integers(-9, 3, (16, 1024)),
    "blocks apart": np.repeat(10.0 ** GENERATOR.integers(-6, 3, (16, 64)), 16, axis=1)
    * GENERATOR.standard_normal((16, 1024)),
    "zeros": np.zeros((1, 1024)),
}


@pytest.mark.parametrize("block_type", QUANTIZERS)
@pytest.mark.parametrize("kind", ROWS)
def test_blocks_are_llama_cpps(block_type: str, kind: str, llamacpp: ModuleType) -> None:
    rows = ROWS[kind].astype(np.float32)
    np.testing.assert_array_equal(quantize(rows, block_type), llamacpp.blocks_of(rows, block_type))


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("family", [*models.FAMILIES, *models.ENCODERS])
def test_a_quantised_model_is_llama_cpps(
    family: str, mixture: str, made: Models, llamacpp: ModuleType, tmp_path: Path
) -> None:
    _, _, path = made[family]
    theirs = gguf.GGUFReader(llamacpp.quantize(path, tmp_path / "theirs.gguf", MIXTURES[mixture]))
    write_quantized(files_of(path), tmp_path / "ours.gguf", mixture)
    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "ours.gguf").tensors}
    assert ours.keys() <= {tensor.name for tensor in theirs.tensors}
    differing = {
        tensor.name: (tensor.tensor_type.name, ours[tensor.name].tensor_type.name)
        for tensor in theirs.tensors
        if tensor.name in ours or not models.is_unused(family, tensor.name)
        if tensor.tensor_type != ours[tensor.name].tensor_type
        or not np.array_equal(tensor.data, ours[tensor.name].data)
    }
    assert not differing

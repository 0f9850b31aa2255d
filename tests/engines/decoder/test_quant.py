"""Every block type against the `gguf` package, bit for bit, on random blocks; products against floats."""

from __future__ import annotations

from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder import blocks
from engines.decoder.params import BLOCKS
from engines.decoder.quant import QuantizedMatrix, matmul, place, take_rows, to_float

TYPES = [name for name in blocks.SUPPORTED_TYPES if name not in blocks.FLOAT_TYPES]
ROWS = 16


def random_rows(block_type: str, rows: int = ROWS, per_row: int = 3) -> np.ndarray[Any, Any]:
    """Random bytes, with the float16 scales made finite and modest."""
    size = BLOCKS[block_type][1]
    generator = np.random.default_rng(len(block_type) * 7919 + size)
    raw = generator.integers(0, 256, (rows * per_row, size), dtype=np.uint8)
    for offset in SCALES.get(block_type, ()):
        scale = generator.uniform(-2, 2, rows * per_row).astype(np.float16)
        raw[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    if block_type == "MXFP4":
        raw[:, 0] = generator.integers(100, 140, rows * per_row)
        raw[:2, 0] = 0, 1
    return raw.reshape(rows, per_row * size)


SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "IQ1_S": (0,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}


def same_bits(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    return bool((actual.view(np.uint32) == np.ascontiguousarray(expected).view(np.uint32)).all())


@pytest.mark.parametrize("block_type", TYPES)
def test_numpy_unpacking_equals_the_gguf_package_bit_for_bit(block_type: str) -> None:
    rows = random_rows(block_type)
    expected = gguf.dequantize(rows, gguf.GGMLQuantizationType[block_type]).reshape(ROWS, -1)
    assert same_bits(blocks.dequantize(rows, block_type), expected)


@pytest.mark.parametrize("block_type", sorted(blocks.UNPACKERS))
def test_unpacking_inside_a_program_equals_numpy(block_type: str) -> None:
    """Offsets may be fused into a multiply-add, which rounds once instead of twice."""
    rows = random_rows(block_type)
    inside = jax.jit(lambda raw: blocks.unpack(raw, block_type, jnp))(rows)
    expected = blocks.dequantize(rows, block_type)
    np.testing.assert_allclose(inside, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("block_type", ["F16", "BF16", "F32"])
def test_floats_are_widened_exactly(block_type: str) -> None:
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[block_type]
    rows = gguf.quantize(values, kind).view(np.uint8).reshape(4, -1)
    assert same_bits(blocks.dequantize(rows, block_type), gguf.dequantize(rows, kind).reshape(4, 64))


@pytest.mark.parametrize("block_type", ["Q8_0", "Q4_K", "Q6_K", "BF16", "F32"])
@pytest.mark.parametrize("layout", ["columns", "rows", "blocks"])
def test_every_layout_multiplies_and_looks_up_alike(block_type: str, layout: Any) -> None:
    if layout == "blocks" and block_type in blocks.FLOAT_TYPES:
        pytest.skip("floats have no blocks")
    rows = as_rows(block_type, 24, 512)
    matrix = in_layout(rows, block_type, (24, 512), layout)
    plain = blocks.dequantize(rows, block_type)
    x = np.random.default_rng(1).standard_normal((2, 3, 512)).astype(np.float32)
    # bf16 operands keep 8 bits: the layout `rows` rounds the activations and unpacked codes to them
    tolerance = 2e-2 if layout == "rows" and block_type != "F32" else 2e-5
    expected = x @ plain.T
    product = np.asarray(jax.jit(matmul)(jnp.asarray(x), matrix))
    assert np.abs(product - expected).max() < tolerance * np.abs(expected).max()
    ids = np.array([[3, 0], [23, 3]], np.int32)
    looked_up = np.asarray(jax.jit(take_rows)(matrix, jnp.asarray(ids)))
    assert np.abs(looked_up - plain[ids]).max() <= tolerance * np.abs(plain).max()


def as_rows(block_type: str, out: int, width: int) -> np.ndarray[Any, Any]:
    if block_type in blocks.FLOAT_TYPES:
        values = np.random.default_rng(2).standard_normal((out, width)).astype(np.float32)
        kind = gguf.GGMLQuantizationType[block_type]
        raw: np.ndarray[Any, Any] = gguf.quantize(values, kind).view(np.uint8).reshape(out, -1)
        return raw
    return random_rows(block_type, out, width // BLOCKS[block_type][0])


def in_layout(
    rows: np.ndarray[Any, Any], block_type: str, shape: tuple[int, int], layout: Any
) -> QuantizedMatrix:
    from engines.decoder.quant import _HOST_FORMS

    host = _HOST_FORMS[layout](rows, block_type, shape, "cpu")
    return QuantizedMatrix(tuple(map(jnp.asarray, host)), block_type, layout, shape, "cpu")


def test_placing_on_a_cpu_gives_the_values_of_the_file() -> None:
    rows = random_rows("Q4_K")
    matrix = place(rows, "Q4_K", (ROWS, 768), jax.devices("cpu")[0])
    assert same_bits(np.asarray(to_float(matrix)), blocks.dequantize(rows, "Q4_K"))

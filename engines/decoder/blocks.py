"""Unpacks the block-quantised storage types of GGUF into integer codes with a scale and an offset per group.

    value[group, i] = codes[group, i] * scale[group] + offset[group]

Every function works on numpy arrays and, given `jax.numpy` as `xp`, on traced ones; knows nothing of files.
Formats: ggml's block structures, as the `gguf` package documents them; results are bit-equal to its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engines.decoder.params import BLOCKS

Array = Any
"""A numpy array, or a JAX array when `xp` is jax.numpy."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Blocks in the common form: `codes` int8 [blocks, groups, per group], rest float32 [blocks, groups]."""

    codes: Array
    scales: Array
    offsets: Array | None = None


IQ4_VALUES: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_VALUES: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _half(raw: Array, xp: ModuleType) -> Array:
    """float16 stored in two little-endian bytes [..., 2] -> float32 [...]."""
    wide = raw.astype(xp.uint16)
    return (wide[..., 0] | (wide[..., 1] << 8)).view(xp.float16).astype(xp.float32)


def _nibbles(raw: Array, xp: ModuleType) -> Array:
    """[..., n] bytes -> [..., 2, n]: the low halves, then the high halves."""
    return xp.stack([raw & 0x0F, raw >> 4], axis=-2)


def _bit_planes(raw: Array, shifts: tuple[int, ...], mask: int, xp: ModuleType) -> Array:
    """[..., n] bytes -> [..., len(shifts), n]: one field of bits after the other."""
    return xp.stack([(raw >> shift) & mask for shift in shifts], axis=-2)


def _signed(codes: Array, zero: int, xp: ModuleType) -> Array:
    return codes.astype(xp.int8) - xp.int8(zero)


def _q4_0(raw: Array, xp: ModuleType) -> Groups:
    codes = _nibbles(raw[:, 2:], xp).reshape(-1, 1, 32)
    return Groups(_signed(codes, 8, xp), _half(raw[:, None, 0:2], xp))


def _q4_1(raw: Array, xp: ModuleType) -> Groups:
    codes = _nibbles(raw[:, 4:], xp).reshape(-1, 1, 32)
    return Groups(codes.astype(xp.int8), _half(raw[:, None, 0:2], xp), _half(raw[:, None, 2:4], xp))


def _fifth_bits(raw: Array, xp: ModuleType) -> Array:
    """Four bytes holding one bit for each of 32 elements, in order -> [blocks, 32] of 0 or 16."""
    bits = (raw[:, :, None] >> xp.arange(8, dtype=xp.uint8)) & 1
    return (bits << 4).reshape(-1, 32)


def _q5_0(raw: Array, xp: ModuleType) -> Groups:
    codes = _nibbles(raw[:, 6:], xp).reshape(-1, 32) | _fifth_bits(raw[:, 2:6], xp)
    return Groups(_signed(codes, 16, xp).reshape(-1, 1, 32), _half(raw[:, None, 0:2], xp))


def _q5_1(raw: Array, xp: ModuleType) -> Groups:
    codes = _nibbles(raw[:, 8:], xp).reshape(-1, 32) | _fifth_bits(raw[:, 4:8], xp)
    scales, offsets = _half(raw[:, None, 0:2], xp), _half(raw[:, None, 2:4], xp)
    return Groups(codes.astype(xp.int8).reshape(-1, 1, 32), scales, offsets)


def _q8_0(raw: Array, xp: ModuleType) -> Groups:
    return Groups(raw[:, None, 2:].view(xp.int8), _half(raw[:, None, 0:2], xp))


def _q2_k(raw: Array, xp: ModuleType) -> Groups:
    """16 groups of 16; a byte of scales holds the scale (low) and the minimum (high)."""
    packed, two_bits = raw[:, :16], raw[:, 16:80].reshape(-1, 2, 32)
    scale, minimum = _half(raw[:, None, 80:82], xp), _half(raw[:, None, 82:84], xp)
    codes = _bit_planes(two_bits, (0, 2, 4, 6), 3, xp).reshape(-1, 16, 16)
    scales = scale * (packed & 0x0F).astype(xp.float32)
    return Groups(codes.astype(xp.int8), scales, -(minimum * (packed >> 4).astype(xp.float32)))


def _q3_k(raw: Array, xp: ModuleType) -> Groups:
    """16 groups of 16; a third bit, 6-bit scales with their high parts in four bytes of their own."""
    high = _bit_planes(raw[:, None, :32], tuple(range(8)), 1, xp).reshape(-1, 16, 16)
    low = _bit_planes(raw[:, 32:96].reshape(-1, 2, 32), (0, 2, 4, 6), 3, xp).reshape(-1, 16, 16)
    codes = low.astype(xp.int8) - ((high ^ 1) << 2).astype(xp.int8)
    low_scales = _nibbles(raw[:, 96:104], xp).reshape(-1, 16)
    high_scales = _bit_planes(raw[:, 104:108], (0, 2, 4, 6), 3, xp).reshape(-1, 16)
    scales = _signed(low_scales | (high_scales << 4), 32, xp).astype(xp.float32)
    return Groups(codes, _half(raw[:, None, 108:110], xp) * scales)


def _six_bit_pairs(raw: Array, xp: ModuleType) -> tuple[Array, Array]:
    """The 12 bytes of Q4_K and Q5_K that hold eight 6-bit scales and eight 6-bit minima."""
    low, high, mixed = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    scales = xp.concatenate([low & 0x3F, (mixed & 0x0F) | ((low >> 2) & 0x30)], axis=-1)
    minima = xp.concatenate([high & 0x3F, (mixed >> 4) | ((high >> 2) & 0x30)], axis=-1)
    return scales.astype(xp.float32), minima.astype(xp.float32)


def _q4_k(raw: Array, xp: ModuleType) -> Groups:
    scales, minima = _six_bit_pairs(raw[:, 4:16], xp)
    codes = _nibbles(raw[:, 16:].reshape(-1, 4, 32), xp).reshape(-1, 8, 32)
    scale, minimum = _half(raw[:, None, 0:2], xp), _half(raw[:, None, 2:4], xp)
    return Groups(codes.astype(xp.int8), scale * scales, -(minimum * minima))


def _q5_k(raw: Array, xp: ModuleType) -> Groups:
    scales, minima = _six_bit_pairs(raw[:, 4:16], xp)
    high = _bit_planes(raw[:, None, 16:48], tuple(range(8)), 1, xp).reshape(-1, 8, 32)
    low = _nibbles(raw[:, 48:].reshape(-1, 4, 32), xp).reshape(-1, 8, 32)
    scale, minimum = _half(raw[:, None, 0:2], xp), _half(raw[:, None, 2:4], xp)
    return Groups((low | (high << 4)).astype(xp.int8), scale * scales, -(minimum * minima))


def _q6_k(raw: Array, xp: ModuleType) -> Groups:
    low = _nibbles(raw[:, :128].reshape(-1, 2, 64), xp).reshape(-1, 16, 16)
    high = _bit_planes(raw[:, 128:192].reshape(-1, 2, 32), (0, 2, 4, 6), 3, xp).reshape(-1, 16, 16)
    scales = raw[:, 192:208].view(xp.int8).astype(xp.float32)
    return Groups(_signed(low | (high << 4), 32, xp), _half(raw[:, None, 208:210], xp) * scales)


def _look_up(codes: Array, values: tuple[int, ...], xp: ModuleType) -> Array:
    return xp.asarray(values, dtype=xp.int8)[codes]


def _iq4_nl(raw: Array, xp: ModuleType) -> Groups:
    codes = _nibbles(raw[:, 2:], xp).reshape(-1, 1, 32)
    return Groups(_look_up(codes, IQ4_VALUES, xp), _half(raw[:, None, 0:2], xp))


def _mxfp4(raw: Array, xp: ModuleType) -> Groups:
    """The scale is 2 ** (byte - 128): an exponent, with the two subnormal cases written out."""
    exponent = raw[:, 0:1].astype(xp.uint32)
    small = xp.uint32(0x00200000) << xp.minimum(exponent, 1)
    bits = xp.where(exponent < 2, small, (xp.maximum(exponent, 1) - 1) << 23)
    codes = _nibbles(raw[:, 1:], xp).reshape(-1, 1, 32)
    return Groups(_look_up(codes, MXFP4_VALUES, xp), bits.astype(xp.uint32).view(xp.float32))


UNPACKERS: Final[dict[str, Callable[[Array, ModuleType], Groups]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "MXFP4": _mxfp4,
}
TABLE_TYPES: Final = (
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "TQ1_0", "TQ2_0", "NVFP4"
)  # fmt: skip
"""Types unpacked once, at load, through the `gguf` package's tables."""

FLOAT_TYPES: Final = ("F32", "F16", "BF16")
SUPPORTED_TYPES: Final = (*FLOAT_TYPES, *UNPACKERS, *TABLE_TYPES)


def unpack(rows: Array, block_type: str, xp: ModuleType = np) -> Array:
    """uint8 rows [..., bytes] -> float32 [..., elements], of a type in `UNPACKERS`; traceable."""
    elements, size = BLOCKS[block_type]
    groups = UNPACKERS[block_type](rows.reshape(-1, size), xp)
    values = groups.codes.astype(xp.float32) * groups.scales[..., None]
    if groups.offsets is not None:
        values = values + groups.offsets[..., None]
    return values.reshape(*rows.shape[:-1], rows.shape[-1] // size * elements)


def dequantize(rows: npt.NDArray[np.uint8], block_type: str) -> npt.NDArray[np.float32]:
    """uint8 rows [..., bytes] of any supported type -> float32 [..., elements], in numpy."""
    if block_type == "F32":
        return rows.view("<f4").astype(np.float32, copy=False)
    if block_type == "F16":
        return rows.view("<f2").astype(np.float32)
    if block_type == "BF16":
        return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if block_type in UNPACKERS:
        values: npt.NDArray[np.float32] = unpack(rows, block_type)
        return values
    return _dequantize_by_table(rows, block_type)


def _dequantize_by_table(rows: npt.NDArray[np.uint8], block_type: str) -> npt.NDArray[np.float32]:
    import gguf

    if block_type not in TABLE_TYPES:
        raise ValueError(f"storage type {block_type!r} is not one of {', '.join(SUPPORTED_TYPES)}")
    values: npt.NDArray[np.float32] = gguf.dequantize(rows, gguf.GGMLQuantizationType[block_type])
    return values.reshape(*rows.shape[:-1], -1)

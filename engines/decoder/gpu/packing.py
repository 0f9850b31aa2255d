"""Block-quantised weights as separate arrays of codes and scales, which a GPU reads in whole, aligned words.

    value[n, k] = codes[n, k] * scale[n, k / group] + offset[n, k / group]

GGUF's blocks keep scales and codes side by side in 18 to 210 bytes, so neighbouring threads would read from
everywhere. Done once, at load, in numpy; nothing is rounded. Called by `products`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from engines.decoder.blocks import UNPACKERS
from engines.decoder.params import BLOCKS

Rows = npt.NDArray[np.uint8]
PAIR = 16
"""A byte of 4-bit codes holds elements i (low half) and i + 16 (high half) of a group of 32."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a storage type is held. `group`: elements that share a scale.

    `zero`: what to add to a code to store it as 4 bits, or None to store it as a byte. `super_at`: where a
    block keeps the half-precision factors of its scales and of its minima; the scales themselves are then
    small integers. `offsets`: whether there are offsets at all.
    """

    group: int
    zero: int | None = None
    super_at: tuple[int, ...] = ()
    offsets: bool = False


FORMATS: Final[dict[str, Format]] = {
    "Q8_0": Format(32),
    "Q5_0": Format(32),
    "IQ4_NL": Format(32),
    "Q4_0": Format(32, zero=8),
    "Q4_1": Format(32, zero=0, offsets=True),
    "Q5_1": Format(32, offsets=True),
    "Q4_K": Format(32, zero=0, super_at=(0, 2), offsets=True),
    "Q5_K": Format(32, super_at=(0, 2), offsets=True),
    "Q6_K": Format(16, super_at=(208,)),
    "Q3_K": Format(16, super_at=(108,)),
    "Q2_K": Format(16, super_at=(80, 82), offsets=True),
}
"""Six and five bits are widened to bytes: taking them apart costs more instructions than the bytes save time
(a card that moves 4 TB/s has about four instructions a weight at 6 bits)."""


class Packed(NamedTuple):
    """The arrays of one matrix of N outputs and K inputs, in a fixed order.

    `codes` int8 [N, K], or uint8 [N, K / 2] with two 4-bit codes a byte. `scales` float16 [N, K / group], or
    with factors small integers [N, K / group]; `offsets` likewise, uint8 minima with factors, or None.
    `factors` and `offset_factors` float16 [N, K / block], or None.
    """

    codes: Any
    scales: Any
    offsets: Any
    factors: Any
    offset_factors: Any


def pack(rows: Rows, block_type: str, shape: tuple[int, int]) -> tuple[npt.NDArray[Any], ...]:
    """uint8 rows [N, row bytes] as stored in a file -> the arrays of `Packed` that this type has."""
    chosen, (elements, size) = FORMATS[block_type], BLOCKS[block_type]
    blocks = rows.reshape(-1, size)
    groups = UNPACKERS[block_type](blocks, np)
    codes = groups.codes.reshape(shape)
    arrays: list[npt.NDArray[Any]] = [codes if chosen.zero is None else _in_pairs(codes, chosen.zero)]
    parts = [groups.scales]
    if chosen.offsets:
        assert groups.offsets is not None
        parts.append(groups.offsets)
    by_group = (shape[0], shape[1] // chosen.group)
    if not chosen.super_at:
        return (*arrays, *(part.astype(np.float16).reshape(by_group) for part in parts))
    factors = [blocks[:, at : at + 2].copy().view(np.float16) for at in chosen.super_at]
    kinds = (np.uint8, np.uint8) if chosen.offsets else (np.int8,)
    for part, factor, sign, kind in zip(parts, factors, (1, -1), kinds, strict=False):
        whole = _over(part, sign * factor.astype(np.float32))  # offsets are minus the minima
        arrays.append(whole.astype(kind).reshape(by_group))
    return (*arrays, *(factor.reshape(shape[0], shape[1] // elements) for factor in factors))


def _in_pairs(codes: npt.NDArray[np.int8], zero: int) -> npt.NDArray[np.uint8]:
    """[N, K] codes of 4 bits -> [N, K / 2]."""
    halves = (codes + np.int8(zero)).view(np.uint8).reshape(codes.shape[0], -1, 2, PAIR)
    pairs: Rows = halves[:, :, 0] | (halves[:, :, 1] << np.uint8(4))
    return pairs.reshape(codes.shape[0], -1)


def _over(part: npt.NDArray[np.float32], factor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The small integers that `part` is `factor` times: exact, since the product was."""
    whole: npt.NDArray[np.float32] = np.divide(part, factor, out=np.zeros_like(part), where=factor != 0)
    return whole


def named(arrays: Sequence[Any], block_type: str) -> Packed:
    """The arrays that `pack` made, or their traced twins, by name."""
    chosen, rest = FORMATS[block_type], iter(arrays)
    codes, scales = next(rest), next(rest)
    offsets = next(rest) if chosen.offsets else None
    factors = [next(rest) for _ in chosen.super_at]
    factors += [None] * (2 - len(factors))
    return Packed(codes, scales, offsets, *factors)


def by_group(packed: Packed, block_type: str) -> tuple[jax.Array, jax.Array | None]:
    """Float32 scales and offsets [N, groups]."""
    per_block = BLOCKS[block_type][0] // FORMATS[block_type].group
    scales = packed.scales.astype(jnp.float32)
    if packed.factors is not None:
        scales = scales * _spread(packed.factors, per_block)
    if packed.offsets is None:
        return scales, None
    offsets = packed.offsets.astype(jnp.float32)
    if packed.offset_factors is not None:
        offsets = offsets * -_spread(packed.offset_factors, per_block)
    return scales, offsets


def _spread(factors: jax.Array, times: int) -> jax.Array:
    """float16 [N, blocks] -> float32 [N, blocks * times]."""
    wide = factors.astype(jnp.float32)[:, :, None]
    return jnp.broadcast_to(wide, (*factors.shape, times)).reshape(factors.shape[0], -1)


def halves(packed: Packed, block_type: str) -> tuple[jax.Array, ...]:
    """4-bit codes as float32 [N, groups, 16], low and high elements; byte codes as one [N, groups, group]."""
    zero, group = FORMATS[block_type].zero, FORMATS[block_type].group
    rows = packed.codes.shape[0]
    if zero is None:
        return (packed.codes.reshape(rows, -1, group).astype(jnp.float32),)
    pairs = packed.codes.reshape(rows, -1, PAIR)
    low, high = pairs & 0x0F, pairs >> 4
    return low.astype(jnp.float32) - zero, high.astype(jnp.float32) - zero


def unpacked(packed: Packed, block_type: str) -> jax.Array:
    """The whole matrix as float32 [N, K]."""
    scales, offsets = by_group(packed, block_type)
    codes = jnp.concatenate(halves(packed, block_type), axis=-1)  # [N, groups, group]
    values = codes * scales[:, :, None]
    if offsets is not None:
        values = values + offsets[:, :, None]
    return values.reshape(values.shape[0], -1)

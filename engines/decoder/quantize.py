"""Turns floats into GGUF blocks as ggml's reference quantisers do. Imports no JAX.

Blocks are byte-identical to them: float32 throughout, every sum in their order, every division a division.
`quantize` is one tensor; `mixture` says which type each tensor of a model gets under a name users know
(`q8_0`, `q4_0`, `q4_K_M`). Called when a model is created with `--quantize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engines.decoder.config import DecoderConfig
from engines.decoder.params import BLOCKS, param_specs

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[Any]

TINY: Final = 1e-15
"""Groups whose largest magnitude is below this are stored as zeros (ggml's GROUP_MAX_EPS)."""
CHUNK_ROWS: Final = 4096


def quantize(array: npt.NDArray[Any], block_type: str) -> Bytes:
    """Floats [..., in] -> blocks uint8 [..., row bytes]; rows must hold whole blocks (ValueError)."""
    if block_type not in QUANTIZERS:
        raise ValueError(f"cannot quantize to {block_type!r}; known are {', '.join(QUANTIZERS)}")
    elements, size = BLOCKS[block_type]
    if array.shape[-1] % elements:
        raise ValueError(f"rows of {array.shape[-1]} do not hold whole {block_type} blocks of {elements}")
    blocks = array.reshape(-1, elements)
    out = np.empty((blocks.shape[0], size), np.uint8)
    for start in range(0, blocks.shape[0], CHUNK_ROWS):  # the searches hold dozens of copies of a chunk
        part = blocks[start : start + CHUNK_ROWS].astype(np.float32)
        out[start : start + CHUNK_ROWS] = QUANTIZERS[block_type](part)
    return out.reshape(*array.shape[:-1], array.shape[-1] // elements * size)


def _halves(values: Floats) -> Bytes:
    """float32 [blocks] -> float16 as bytes [blocks, 2]."""
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _inverse(values: Floats) -> Floats:
    """1 / value, and 0 where the value is 0."""
    with np.errstate(divide="ignore"):
        inverse: Floats = np.where(values == 0, np.float32(0), np.float32(1) / values)
    return inverse


def _extreme(blocks: Floats) -> Floats:
    """The value of largest magnitude of each block, sign kept: [blocks]."""
    at = np.abs(blocks).argmax(axis=-1)[:, None]
    return np.take_along_axis(blocks, at, axis=-1)[:, 0] + np.float32(0)  # a zero has no sign


def _q8_0(blocks: Floats) -> Bytes:
    """Scale is largest magnitude / 127; codes round half away from zero."""
    scale = np.abs(blocks).max(axis=-1) / np.float32(127)
    scaled = blocks * _inverse(scale)[:, None]
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    codes = np.copysign(whole + np.floor(2 * (magnitude - whole)), scaled).astype(np.int8)
    return np.concatenate([_halves(scale), codes.view(np.uint8)], axis=-1)


def _offset_codes(blocks: Floats, half: int) -> tuple[Floats, Integers]:
    """Scale [blocks] and codes 0 .. 2 * half - 1 around `half`: the extreme value gets code 0."""
    scale = _extreme(blocks) / np.float32(-half)
    shifted = blocks * _inverse(scale)[:, None] + np.float32(half + 0.5)
    return scale, np.minimum(shifted.astype(np.uint8), 2 * half - 1)


def _pack_nibbles(codes: Integers) -> Integers:
    """[blocks, 2 n] of 4 bits -> [blocks, n]: the first half in the low nibbles."""
    low, high = np.split(codes, 2, axis=-1)
    return (low & 0x0F) | ((high & 0x0F) << 4)


def _q4_0(blocks: Floats) -> Bytes:
    scale, codes = _offset_codes(blocks, 8)
    return np.concatenate([_halves(scale), _pack_nibbles(codes)], axis=-1)


def _q5_0(blocks: Floats) -> Bytes:
    scale, codes = _offset_codes(blocks, 16)
    fifth = np.packbits(codes >> 4, axis=-1, bitorder="little")
    return np.concatenate([_halves(scale), fifth, _pack_nibbles(codes)], axis=-1)


# K-quants: a search for the scale (and minimum) of each group with the least weighted error -----------------
#
# Groups are columns here, [n, groups]: a sum over the first axis adds row by row, as ggml's loops do.


def _in_order(terms: Floats) -> Floats:
    """Sum over the first axis, one row after the other (a sum over the last axis would add in pairs)."""
    total: Floats = np.add.reduce(np.ascontiguousarray(terms), axis=0)
    return total


def _quotient(numerator: Floats | np.float32, denominator: Floats) -> Floats:
    """A division, and 0 where the denominator is 0."""
    safe = np.where(denominator == 0, np.float32(1), denominator)
    quotient: Floats = np.where(denominator == 0, np.float32(0), numerator / safe)
    return quotient


def _nearest(values: Floats, low: int, high: int) -> Floats:
    """Codes as floats: to the nearest, halves to even, within bounds."""
    return np.clip(np.rint(values), low, high)


def _fit_with_minimum(x: Floats, weights: Floats, top: int) -> tuple[Floats, Floats, Floats]:
    """Scale and (positive) minimum [groups], codes 0 .. top [n, groups], of groups x [n, groups].

    Twenty-one candidate scales, each refined by weighted least squares (ggml's make_qkx2_quants).
    """
    high, minimum = x.max(axis=0), np.minimum(x.min(axis=0), 0)
    flat = high == minimum
    total, total_x = _in_order(weights), _in_order(weights * x)
    inverse = _quotient(np.float32(top), high - minimum)
    scale, codes = _quotient(np.float32(1), inverse), _nearest(inverse * (x - minimum), 0, top)
    best = _in_order(weights * np.square(scale * codes + minimum - x))
    for step in range(21):  # each starts from the minimum of the best so far
        widened = np.float32(-1) + np.float32(0.1) * np.float32(step) + np.float32(top)
        these = _nearest(_quotient(widened, high - minimum) * (x - minimum), 0, top)
        weighted = weights * these
        sums = [_in_order(term) for term in (weighted, weighted * these, weighted * x)]
        this_scale, this_minimum, valid = _least_squares(total, total_x, *sums)
        error = _in_order(weights * np.square(this_scale * these + this_minimum - x))
        better = valid & (error < best) & ~flat
        codes, best = np.where(better, these, codes), np.where(better, error, best)
        scale, minimum = np.where(better, this_scale, scale), np.where(better, this_minimum, minimum)
    return scale, -minimum, codes


def _least_squares(
    total: Floats, total_x: Floats, codes: Floats, squares: Floats, products: Floats
) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Scale and minimum (never above 0) from weighted sums, and where they are defined."""
    determinant = total * squares - codes * codes
    valid = determinant > 0
    scale = _quotient(total * products - total_x * codes, determinant)
    minimum = _quotient(squares * total_x - codes * products, determinant)
    positive = minimum > 0
    return np.where(positive, _quotient(products, squares), scale), np.minimum(minimum, 0), valid


def _q4_k(blocks: Floats) -> Bytes:
    """Eight groups of 32; scales and minima in six bits of the block's own."""
    x = np.ascontiguousarray(blocks.reshape(-1, 32).T)  # [32, groups]
    average = np.sqrt(_in_order(x * x) / np.float32(32))
    scales, minima, searched = _fit_with_minimum(x, average + np.abs(x), 15)
    scale_codes, scale = _six_bits(scales.reshape(-1, 8))
    minimum_codes, minimum = _six_bits(minima.reshape(-1, 8))
    scale_bytes, minimum_bytes = _halves(scale), _halves(minimum)
    step = (scale_bytes.view("<f2").astype(np.float32) * scale_codes).reshape(-1)
    offset = (minimum_bytes.view("<f2").astype(np.float32) * minimum_codes).reshape(-1)
    refined = _nearest(_quotient(x + offset, step), 0, 15)
    codes = np.where(step == 0, searched, refined).T.reshape(-1, 8, 32).astype(np.uint8)
    packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
    six = _pack_six_bits(scale_codes, minimum_codes)
    return np.concatenate([scale_bytes, minimum_bytes, six, packed.reshape(-1, 128)], axis=-1)


def _six_bits(values: Floats) -> tuple[Integers, Floats]:
    """Codes 0 .. 63 of eight values that are not negative, and the block's scale for them."""
    largest = np.maximum(values.max(axis=-1), 0)
    codes = np.rint(values * _quotient(np.float32(63), largest)[:, None])
    return np.minimum(codes, 63).astype(np.uint8), largest / np.float32(63)


def _pack_six_bits(scales: Integers, minima: Integers) -> Integers:
    """Twelve bytes: four scales and four minima whole, the other eight split over nibbles and top bits."""
    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = minima[:, :4] | ((minima[:, 4:] >> 4) << 6)
    return np.concatenate([first, second, (scales[:, 4:] & 0x0F) | ((minima[:, 4:] & 0x0F) << 4)], axis=-1)


def _fit_symmetric(x: Floats, half: int) -> tuple[Floats, Floats]:
    """Scale [groups] and codes -half .. half - 1 [n, groups] with the least error weighted by x squared.

    Nineteen candidate scales for groups x [n, groups] (ggml's make_qx_quants).
    """
    extreme = _extreme(np.ascontiguousarray(x.T))
    extreme = np.where(np.abs(extreme) < TINY, np.float32(0), extreme)
    scale, best, kept = np.zeros_like(extreme), np.zeros_like(extreme), np.full_like(x, -half)
    for step in (0, *range(-9, 0), *range(1, 10)):
        inverse = _quotient(-(np.float32(half) + np.float32(0.1) * np.float32(step)), extreme)
        codes, weights = _nearest(inverse * x, -half, half - 1), x * x
        products, squares = _in_order(weights * x * codes), _in_order(weights * codes * codes)
        fit = _quotient(products, squares)
        better = (squares > 0) & (products * products > best * squares)
        if step == 0:
            better = extreme != 0
        scale, best = np.where(better, fit, scale), np.where(better, fit * products, best)
        kept = np.where(better, codes, kept)
    return scale, kept


def _q6_k(blocks: Floats) -> Bytes:
    """Sixteen groups of 16; scales in eight signed bits of the block's own."""
    x = np.ascontiguousarray(blocks.reshape(-1, 16).T)  # [16, groups]
    found, searched = _fit_symmetric(x, 32)
    scales = found.reshape(-1, 16)
    largest = _extreme(scales)
    empty = np.abs(largest) < TINY
    inverse = _quotient(np.float32(-128), np.where(empty, np.float32(0), largest))
    scale_codes = np.minimum(np.rint(inverse[:, None] * scales), 127).astype(np.int8)
    scale_bytes = _halves(_quotient(np.float32(1), inverse))
    step = (scale_bytes.view("<f2").astype(np.float32) * scale_codes).reshape(-1)
    signed = np.where(step == 0, searched, _nearest(_quotient(x, step), -32, 31))
    codes = (signed.T.reshape(-1, 16, 16) + 32).astype(np.uint8)
    codes[empty] = 0  # a block of zeros is all zero bytes
    quarters = codes.reshape(-1, 2, 4, 32)  # two halves of the block, four runs of 32
    low = (quarters[:, :, :2] & 0x0F) | ((quarters[:, :, 2:] & 0x0F) << 4)
    high = np.zeros((blocks.shape[0], 2, 32), np.uint8)
    for run in range(4):
        high |= (quarters[:, :, run] >> 4) << (2 * run)
    parts = [low.reshape(-1, 128), high.reshape(-1, 64), scale_codes.view(np.uint8), scale_bytes]
    return np.concatenate(parts, axis=-1)


QUANTIZERS: Final[dict[str, Callable[[Floats], Bytes]]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q5_0": _q5_0,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}


# Mixtures -----------------------------------------------------------------------------------------------

MIXTURES: Final = ("q8_0", "q4_0", "q4_K_M")
FALLBACKS: Final[dict[str, str]] = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
"""What rows that hold no whole block of 256 get instead, as llama.cpp chooses."""


KEPT: Final = ("router", "per_layer_model_projection", "altup", "laurel")
"""Starts of the names of matrices too small to be worth what their rounding costs: not quantised."""


def mixture(config: DecoderConfig, name: str) -> dict[str, str]:
    """Storage type of every parameter by canonical name; ValueError for a mixture nobody knows.

    "F32" stands for what is not quantised. `q4_K_M` keeps the tied head (or the head) and half of the value
    and down projections in Q6_K.
    """
    known = {one.lower(): one for one in MIXTURES}
    if name.lower() not in known:
        raise ValueError(f"cannot quantize to {name!r}; known are {', '.join(MIXTURES)}")
    choose = _CHOICES[known[name.lower()]]
    types = {}
    for canonical, spec in param_specs(config).items():
        part = canonical.removeprefix("layers.").lstrip("0123456789.")
        quantised = spec.role in ("matrix", "embedding", "experts") and not part.startswith(KEPT)
        types[canonical] = _fitting(choose(canonical, config), spec.shape[-1]) if quantised else "F32"
    return types


def _fitting(block_type: str, width: int) -> str:
    """The type itself, its fallback, or F16 where rows hold no whole blocks of 32 either."""
    for one in (block_type, FALLBACKS.get(block_type, block_type)):
        if width % BLOCKS[one][0] == 0:
            return one
    return "F16"


def _is_head(name: str, config: DecoderConfig) -> bool:
    """Whether a matrix gives the logits. Tables beside a tied embedding are treated as it is."""
    return name == "head" or (name in ("embedding", "per_layer_embedding") and config.tied_head)


def _q4_k_m(name: str, config: DecoderConfig) -> str:
    if _is_head(name, config):
        return "Q6_K"
    part = name.rpartition(".")[2]
    if part == "v":
        carries_unused = config.altup_streams > 0  # Gemma 3n's files hold values of layers that share, too
        own = [
            f"layers.{index}.v"
            for index, layer in enumerate(config.layers)
            if not layer.value_from_key and (layer.kv_source is None or carries_unused)
        ]
        return "Q6_K" if _needs_more(own.index(name), len(own)) else "Q4_K"
    if part in ("down", "experts_down") and _needs_more(int(name.split(".")[1]), len(config.layers)):
        return "Q6_K"
    return "Q4_K"


def _needs_more(index: int, count: int) -> bool:
    """llama.cpp's choice: the first and the last eighth, and every third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _q4_0_mix(name: str, config: DecoderConfig) -> str:
    """llama.cpp keeps the head of a Q4_0 model in Q6_K."""
    return "Q6_K" if _is_head(name, config) else "Q4_0"


_CHOICES: Final[Mapping[str, Callable[[str, DecoderConfig], str]]] = {
    "q8_0": lambda name, config: "Q8_0",
    "q4_0": _q4_0_mix,
    "q4_K_M": _q4_k_m,
}

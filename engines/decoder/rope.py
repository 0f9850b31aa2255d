"""Angles per position of rotary embeddings, with every scaling the families use. numpy only, no JAX.

Called by `attention` while programs are traced, and by the GGUF writer for factors stored as a tensor.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.decoder.config import Rope, RopeScaling

Frequencies = npt.NDArray[np.float32]


def inverse_frequencies(rope: Rope, head_dim: int) -> Frequencies:
    """Angle per position of each of head_dim / 2 pairs, scaled; in float32, as the reference computes it."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies: Frequencies = (1.0 / np.power(np.float32(rope.base), exponents)).astype(np.float32)
    if rope.rotated_pairs is not None:
        frequencies[rope.rotated_pairs :] = 0.0
    if rope.scaling is not None:
        frequencies = _SCALED[rope.scaling.kind](frequencies, rope, head_dim)
    return frequencies


def _linear(frequencies: Frequencies, rope: Rope, head_dim: int) -> Frequencies:
    scaling = _scaling(rope)
    return frequencies / np.float32(scaling.factor)


def _by_factors(frequencies: Frequencies, rope: Rope, head_dim: int) -> Frequencies:
    factors = np.asarray(_scaling(rope).factors, np.float32)
    return frequencies / factors


def _llama3(frequencies: Frequencies, rope: Rope, head_dim: int) -> Frequencies:
    """Llama 3.1: divide what turns less than `low` times over the original context, blend up to `high`."""
    scaling = _scaling(rope)
    turns = scaling.original_context * frequencies / np.float32(2 * math.pi)
    span = scaling.high_frequency - scaling.low_frequency
    smooth = np.clip((turns - scaling.low_frequency) / span, 0.0, 1.0)
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    return _float32(blended)


def _yarn(frequencies: Frequencies, rope: Rope, head_dim: int) -> Frequencies:
    """YaRN: pairs turning over beta_fast times stay, those below beta_slow are divided, a ramp between."""
    scaling = _scaling(rope)

    def dimension(turns: float) -> float:
        angle = scaling.original_context / (turns * 2 * math.pi)
        return head_dim * math.log(angle) / (2 * math.log(rope.base))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    pairs = np.arange(head_dim // 2, dtype=np.float32)
    ramp = np.clip((pairs - low) / max(high - low, 0.001), 0.0, 1.0)
    return _float32(frequencies / scaling.factor * ramp + frequencies * (1 - ramp))


def _float32(values: npt.NDArray[Any]) -> Frequencies:
    return values.astype(np.float32)


def _scaling(rope: Rope) -> RopeScaling:
    assert rope.scaling is not None
    return rope.scaling


_SCALED = {"linear": _linear, "llama3": _llama3, "yarn": _yarn, "factors": _by_factors}

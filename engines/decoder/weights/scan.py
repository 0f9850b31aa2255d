"""Looks for NaN and infinity in stored weights without unpacking them. Imports no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from engines.decoder.blocks import dequantize
from engines.decoder.params import BLOCKS
from engines.decoder.weights import Progress, WeightsError
from engines.decoder.weights.headers import Rows, Stored, read_headers
from modelfiles.files import ModelFile

FLOAT_BITS: Final = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
"""Integer view and exponent mask: all exponent bits set means NaN or infinity."""
HALF_OFFSETS: Final = {
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
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
"""Where the float16 scales of a block lie: a block is finite when they are."""
CHUNK_BYTES: Final = 32 << 20


def scan(files: Sequence[ModelFile], progress: Progress | None = None) -> None:
    """See `engines.decoder.weights.check_weights`."""
    used = read_headers(files).used
    total, done = sum(tensor.nbytes for tensor in used.values()), 0
    for tensor in used.values():
        if not all(_finite(chunk, tensor.block_type) for chunk in _chunks(tensor)):
            raise WeightsError(f"tensor {tensor.name!r} holds NaN or infinity")
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)


def _chunks(tensor: Stored) -> list[Rows]:
    rows = tensor.read()
    flat = rows.reshape(-1, rows.shape[-1])
    step = max(1, CHUNK_BYTES // max(flat.shape[1], 1))
    return [flat[start : start + step] for start in range(0, flat.shape[0], step)]


def _finite(rows: Rows, block_type: str) -> bool:
    if block_type in FLOAT_BITS:
        return _floats_finite(rows, *FLOAT_BITS[block_type])
    if block_type in HALF_OFFSETS:
        blocks = rows.reshape(-1, BLOCKS[block_type][1])
        halves = [np.ascontiguousarray(blocks[:, at : at + 2]) for at in HALF_OFFSETS[block_type]]
        return all(_floats_finite(half, *FLOAT_BITS["F16"]) for half in halves)
    return bool(np.isfinite(dequantize(rows, block_type)).all())


def _floats_finite(rows: npt.NDArray[np.uint8], view: str, mask: int) -> bool:
    bits = np.ascontiguousarray(rows).view(view)
    return not bool(((bits & bits.dtype.type(mask)) == mask).any())

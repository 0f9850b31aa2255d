"""What a set of files says before any weight is read: the configuration and where each parameter lies.

Turns the three containers into one table: canonical name -> `Stored`. Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.decoder.blocks import FLOAT_TYPES, SUPPORTED_TYPES
from engines.decoder.config import DecoderConfig
from engines.decoder.params import BLOCKS, ParamSpec, param_specs, stored_bytes
from engines.decoder.weights import WeightsError
from modelfiles.files import ModelFile

Rows = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: `shape` in elements, `block_type` its storage, `read` its bytes.

    `read()` gives uint8 [*shape[:-1], bytes of a row], where it can as a view of the mapped file. `name` is
    what the file calls it.
    """

    name: str
    shape: tuple[int, ...]
    block_type: str
    read: Callable[[], Rows]

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.shape, self.block_type)


@dataclass(frozen=True, slots=True)
class Headers:
    """`used` maps canonical names to tensors; `skipped` are tensors of parts this engine leaves out.

    `norm_offset` is added to stored norms to give the multiplier (1 for older Gemmas outside GGUF).
    """

    config: DecoderConfig
    used: Mapping[str, Stored]
    skipped: tuple[str, ...]
    norm_offset: float
    from_gguf: bool = False


def read_headers(files: Sequence[ModelFile]) -> Headers:
    """Reads configuration and tensor table of a model's files. Raises WeightsError naming what is wrong."""
    from engines.decoder.weights import gguf, orbax, safetensors

    weights = [file for file in files if file.role == "weights"]
    if not weights:
        raise WeightsError("the model has no weight files")
    if any(gguf.recognises(file) for file in weights):
        return gguf.read(weights)
    if any(file.name.endswith(".safetensors") for file in weights):
        return safetensors.read(files)
    if orbax.recognises(weights):
        return orbax.read(files)
    raise WeightsError(
        f"{weights[0].name} is none of the weight formats that can be loaded: GGUF, safetensors, Orbax"
    )


def bind(
    config: DecoderConfig,
    found: Mapping[str, Stored],
    names: Mapping[str, str],
    *,
    ignored: Callable[[str], bool],
    norm_offset: float,
) -> Headers:
    """Gives every parameter of `config` its tensor: `names` maps canonical names to the file's.

    A missing or mis-shaped tensor, a storage type that cannot be read, and a tensor nobody asked for (unless
    `ignored`) are refused by name.
    """
    used: dict[str, Stored] = {}
    for canonical, spec in param_specs(config).items():
        tensor = found.get(names[canonical])
        if tensor is not None:
            used[canonical] = _checked(tensor, spec)
        elif not spec.optional:
            raise WeightsError(f"tensor {names[canonical]!r} is missing")
    taken = {names[canonical] for canonical in used}
    rest = sorted(set(found) - taken)
    unknown = [name for name in rest if not ignored(name)]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise WeightsError(f"tensor {unknown[0]!r}{more} is not part of {config.architecture}")
    return Headers(config, used, tuple(rest), norm_offset)


def _checked(tensor: Stored, spec: ParamSpec) -> Stored:
    if _without_ones(tensor.shape) != _without_ones(spec.shape):
        raise WeightsError(f"tensor {tensor.name!r} has shape {tensor.shape}; expected {spec.shape}")
    if tensor.block_type not in SUPPORTED_TYPES:
        raise WeightsError(f"tensor {tensor.name!r} is stored as {tensor.block_type}, which cannot be read")
    if spec.role in ("norm", "vector") and tensor.block_type not in FLOAT_TYPES:
        raise WeightsError(f"tensor {tensor.name!r} is stored as {tensor.block_type}; expected a float type")
    return Stored(tensor.name, spec.shape, tensor.block_type, tensor.read)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def rows_of(array: npt.NDArray[Any]) -> Rows:
    """A C-contiguous array as bytes, its last axis widened."""
    flat: Rows = np.ascontiguousarray(array).view(np.uint8)
    return flat


def row_bytes(shape: tuple[int, ...], block_type: str) -> int:
    """Bytes of one row of a tensor."""
    elements, size = BLOCKS[block_type]
    return shape[-1] // elements * size

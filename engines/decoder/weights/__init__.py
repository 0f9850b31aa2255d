"""Loads the weights of a decoder from safetensors, GGUF or Orbax files into the engine's parameter tree.

Importing this package loads no JAX: `check_files` and `check_weights` run before a model is published, in a
process without a device; `load` runs in a runner.

    WeightsError          the files do not hold the model they describe; the message names the tensor
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from modelfiles.files import ModelFile

if TYPE_CHECKING:
    import jax

    from engines.decoder.weights.loading import LoadedModel

Progress = Callable[[int, int], None]
"""Called with bytes placed so far and bytes in all."""


class WeightsError(ValueError):
    """A tensor is missing, has the wrong shape or type, is unknown, or holds NaN or infinity."""


def load(
    files: Sequence[ModelFile], *, device: jax.Device | None = None, progress: Progress | None = None
) -> LoadedModel:
    """Reads a model's weights onto `device` (default: JAX's first), tensor by tensor from mapped files.

    Raises WeightsError, UnknownArchitecture, ConfigError, or the readers' GgufError and SafetensorsError
    (all ValueErrors).
    """
    from engines.decoder.weights.loading import load_model

    return load_model(files, device=device, progress=progress)


def check_files(files: Sequence[ModelFile]) -> tuple[str, ...]:
    """Checks names, shapes and types of every tensor against the architecture, from the headers alone.

    Returns the names of tensors of parts this engine leaves out (vision, audio, drafting). Raises as `load`.
    """
    from engines.decoder.weights.headers import read_headers

    return read_headers(files).skipped


def check_weights(files: Sequence[ModelFile], progress: Progress | None = None) -> None:
    """Scans every weight for NaN and infinity; raises WeightsError naming the first tensor that has one."""
    from engines.decoder.weights.scan import scan

    scan(files, progress)

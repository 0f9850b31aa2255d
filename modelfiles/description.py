"""What a set of weight files says about itself: the value that `show`, `create` and the manager read.

Made by `modelfiles.describe.describe(files)` inside a sandbox worker; plain data, safe to send and keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

WeightFormat = Literal["gguf", "safetensors", "orbax"]
IMAGE_CLASSIFIER = "gemmule_image_classifier"
"""The architecture of classifiers, in their config.json and in `ModelDescription`."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Facts read from the files' headers; sizes in tokens, elements or bytes as named.

    `model_info` is GGUF-style metadata (`general.architecture`, `<arch>.context_length`, ...), made up from
    config.json for other formats, arrays above 5 elements empty (`contents` has them whole); `quantization`
    is Ollama's file type (`Q8_0`, `Q4_K_M`, `F16`, `BF16`, ...); `chat_template` is the Jinja source found,
    or None; `architecture` is the engine's name for the family (`gemma3`, `llama`, ...).
    """

    weight_format: WeightFormat
    architecture: str
    parameter_count: int
    quantization: str
    context_length: int
    embedding_length: int
    vocabulary_size: int
    chat_template: str | None
    capabilities: tuple[str, ...]
    model_info: dict[str, Any] = field(default_factory=dict)
    skipped_tensors: tuple[str, ...] = ()
    generation_defaults: dict[str, Any] = field(default_factory=dict)
    """Sampling defaults found beside the weights (generation_config.json), in Modelfile parameter names."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor as its file names it. `shape` is in the file's own order: GGUF's begins innermost."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """Metadata as JSON has it, and tensors in the order of the files."""

    metadata: dict[str, Any]
    tensors: tuple[TensorEntry, ...]

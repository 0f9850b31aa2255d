"""One file of a model as every package sees it: what it is, where it lies, what it hashes to.

The store makes these from manifest layers; parsers and runners read them. Nothing here opens a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FileRole = Literal["weights", "config", "tokenizer", "adapter", "draft", "projector"]
"""`weights`: GGUF, safetensors shard or a file of an Orbax tree; `config`: any JSON or text beside it."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of a model.

    `name` is the path it had inside its own folder (`model-00001-of-00002.safetensors`,
    `tokenizer.model`, `2b-it/checkpoint`), with forward slashes; `path` is where the bytes lie on this
    machine; `digest` is `sha256:<64 hex>`; `size` is in bytes.
    """

    role: FileRole
    name: str
    path: str
    digest: str
    size: int

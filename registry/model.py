"""A model as the gateway sees it: its files, and what its Modelfile said, read from the small layers.

A frozen value, complete in itself; made by the store from a manifest. Nothing here touches a disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from modelfiles.files import FileRole, ModelFile
from modelfiles.messages import Message, Role
from registry.blobs import Digest
from registry.errors import ModelCorrupt
from registry.manifest import Layer, Manifest, ModelConfig
from registry.name import ModelName

FILE_ROLES: dict[str, FileRole] = {
    "model": "weights",
    "tensor": "weights",
    "json": "config",
    "tokenizer": "tokenizer",
    "adapter": "adapter",
    "draft": "draft",
    "projector": "projector",
}
"""Which part a layer of each kind plays; the other kinds are text of the Modelfile."""

TOKENIZER_NAMES = frozenset({"tokenizer.json", "tokenizer.model"})
_MESSAGE_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_WEIGHT_KINDS = ("model", "tensor", "json", "tokenizer", "draft", "projector")


@dataclass(frozen=True, slots=True)
class Model:
    """A model in the store.

    `digest` is the SHA-256 of the manifest's bytes (64 hex digits, no prefix), `size` the bytes of all
    blobs, `modified_at` when the name last got its present meaning. `files` are weights, config, tokenizer,
    draft and projector; `adapters` hold one tuple of files each. `weights_digest` (64 hex digits) is the
    same for all models that share every one of `files`: what a runner is keyed by.
    """

    name: ModelName
    digest: str
    size: int
    modified_at: datetime
    config: ModelConfig
    files: tuple[ModelFile, ...]
    weights_digest: str
    adapters: tuple[tuple[ModelFile, ...], ...] = ()
    template: str | None = None
    system: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    licenses: tuple[str, ...] = ()
    parent_model: str = ""
    read_only: bool = False


def assemble(
    name: ModelName,
    digest: str,
    manifest: Manifest,
    modified_at: datetime,
    read_only: bool,
    locate: Callable[[Layer], str],
    read: Callable[[Layer], bytes],
) -> Model:
    """The model of a manifest; `locate` gives the path of a blob, `read` the bytes of a small one.

    Both raise ModelCorrupt for blobs that are missing or wrong, and so does this for broken JSON.
    """
    files = tuple(_file(layer, locate) for layer in manifest.of_kind(*_WEIGHT_KINDS))
    return Model(
        name=name,
        digest=digest,
        size=manifest.size,
        modified_at=modified_at,
        config=ModelConfig.parse(read(manifest.config)),
        files=files,
        weights_digest=weights_digest(files),
        adapters=_adapters(manifest, locate),
        template=_last_text(manifest, read, "template", "prompt"),
        system=_last_text(manifest, read, "system"),
        parameters=_parameters(manifest, read),
        messages=_messages(manifest, read),
        licenses=tuple(_text(layer, read) for layer in manifest.of_kind("license")),
        parent_model=next((layer.source for layer in manifest.of_kind("model") if layer.source), ""),
        read_only=read_only,
    )


def weights_digest(files: Iterable[ModelFile]) -> str:
    """One SHA-256 (64 hex digits) over role, name and digest of every file, in any order."""
    lines = sorted(f"{file.role} {file.name} {file.digest}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def default_file_name(kind: str, digest: Digest) -> str:
    """The name of a layer without one: most models are a single GGUF, which needs none."""
    return f"{kind}-{digest[7:19]}.gguf"


def _file(layer: Layer, locate: Callable[[Layer], str]) -> ModelFile:
    role = FILE_ROLES[layer.kind]
    name = layer.name or default_file_name(layer.kind, layer.digest)
    if name in TOKENIZER_NAMES:  # Ollama stores tokenizers among its `json` layers
        role = "tokenizer"
    return ModelFile(role, name, locate(layer), layer.digest, layer.size)


def _adapters(manifest: Manifest, locate: Callable[[Layer], str]) -> tuple[tuple[ModelFile, ...], ...]:
    groups: dict[str, list[ModelFile]] = {}
    for layer in manifest.of_kind("adapter"):
        groups.setdefault(layer.group or layer.digest, []).append(_file(layer, locate))
    return tuple(map(tuple, groups.values()))


def _text(layer: Layer, read: Callable[[Layer], bytes]) -> str:
    return read(layer).decode("utf-8", "replace")


def _last_text(manifest: Manifest, read: Callable[[Layer], bytes], *kinds: str) -> str | None:
    layers = manifest.of_kind(*kinds)
    return _text(layers[-1], read) if layers else None


def _json(layer: Layer, read: Callable[[Layer], bytes]) -> Any:
    try:
        return msgspec.json.decode(read(layer))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ModelCorrupt(
            f"{layer.kind} layer {layer.digest} does not parse: {error}", layer.digest
        ) from error


def _parameters(manifest: Manifest, read: Callable[[Layer], bytes]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for layer in manifest.of_kind("params"):
        value = _json(layer, read)
        if not isinstance(value, dict):
            raise ModelCorrupt(f"params layer {layer.digest} is no JSON object", layer.digest)
        merged |= value
    return merged


def _messages(manifest: Manifest, read: Callable[[Layer], bytes]) -> tuple[Message, ...]:
    found: list[Message] = []
    for layer in manifest.of_kind("messages"):
        value = _json(layer, read)
        for item in value if isinstance(value, list) else [value]:
            role = _MESSAGE_ROLES.get(str(item.get("role", "")).lower()) if isinstance(item, dict) else None
            if role is None:
                raise ModelCorrupt(f"messages layer {layer.digest} holds no messages", layer.digest)
            found.append(Message.of(role, str(item.get("content") or "")))
    return tuple(found)

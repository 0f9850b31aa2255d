"""The manifest of a model and its config: Docker's schema 2 with Ollama's layer types.

Bytes to frozen values and back, with limits; never touches a disk. Every foreign name of a field is read
here and nowhere else. Files of models with several (shards, folders) carry their path as an annotation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

import msgspec

from registry.blobs import Digest, parse_digest
from registry.errors import InvalidDigest, InvalidManifest

MANIFEST_LIMIT = 4 << 20
LAYER_LIMIT = 4096
"""Enough for Ollama's one-layer-per-tensor models, far below what an allocation bomb needs."""

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_OLLAMA = "application/vnd.ollama.image."
MEDIA_TYPES = {
    kind: _OLLAMA + kind
    for kind in (
        "model", "projector", "adapter", "draft", "template", "prompt", "system",
        "params", "messages", "license", "tensor", "json", "embed",
    )
} | {"tokenizer": "application/vnd.gemmule.image.tokenizer"}  # fmt: skip
_KINDS = {media_type: kind for kind, media_type in MEDIA_TYPES.items()}

NAME_ANNOTATION = "org.gemmule.name"
GROUP_ANNOTATION = "org.gemmule.group"
FROM_ANNOTATION = "org.gemmule.from"
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")


def safe_relative(text: str) -> str:
    """`text` when it is a plain relative path that stays below its folder; raises InvalidManifest."""
    path = PurePosixPath(text)
    plain = text == path.as_posix() and text not in ("", ".") and len(text.encode()) <= 1024
    if not plain or path.is_absolute() or ".." in path.parts or _UNSAFE.search(text):
        raise InvalidManifest(f"file name {text[:100]!r} is not a plain relative path")
    return text


@dataclass(frozen=True, slots=True)
class Layer:
    """One blob of a model. `name` is its path in a model of several files, `group` the adapter it is part
    of, `source` the model it was taken from."""

    media_type: str
    digest: Digest
    size: int
    name: str | None = None
    group: str | None = None
    source: str | None = None

    @property
    def kind(self) -> str:
        """`model`, `template`, ...: the last word of a known media type, or "" for a foreign one."""
        return _KINDS.get(self.media_type, "")

    def encode(self) -> dict[str, Any]:
        """The descriptor as JSON values; `from` and `name` are the places where Ollama looks."""
        annotations = {
            key: value
            for key, value in (
                (NAME_ANNOTATION, self.name),
                (GROUP_ANNOTATION, self.group),
                (FROM_ANNOTATION, self.source),
            )
            if value is not None
        }
        descriptor: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.source:
            descriptor["from"] = self.source
        if self.name:
            descriptor["name"] = self.name
        if annotations:
            descriptor["annotations"] = annotations
        return descriptor


class _Descriptor(msgspec.Struct, rename={"media_type": "mediaType", "source": "from"}):
    digest: str
    size: int
    media_type: str = ""
    name: str | None = None
    source: str | None = None
    annotations: dict[str, str] | None = None


class _Document(msgspec.Struct, rename={"schema_version": "schemaVersion", "media_type": "mediaType"}):
    config: _Descriptor
    layers: list[_Descriptor] | None = None
    schema_version: int = 2
    media_type: str = MANIFEST_TYPE


_DOCUMENT = msgspec.json.Decoder(_Document)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a name points to: the config and the layers, in order."""

    config: Layer
    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """Bytes of all blobs together."""
        return self.config.size + sum(layer.size for layer in self.layers)

    def blobs(self) -> dict[Digest, int]:
        """Every blob once, with its size."""
        return {layer.digest: layer.size for layer in (self.config, *self.layers)}

    def of_kind(self, *kinds: str) -> tuple[Layer, ...]:
        """The layers of these kinds, in order."""
        return tuple(layer for layer in self.layers if layer.kind in kinds)

    def encode(self) -> bytes:
        """The bytes that are stored, hashed and pushed."""
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self.config.encode(),
            "layers": [layer.encode() for layer in self.layers],
        }
        return msgspec.json.encode(document)

    @staticmethod
    def parse(data: bytes) -> Manifest:
        """The manifest in these bytes; raises InvalidManifest."""
        if len(data) > MANIFEST_LIMIT:
            raise InvalidManifest(f"manifest is longer than the {MANIFEST_LIMIT:,} bytes allowed")
        try:
            document = _DOCUMENT.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise InvalidManifest(f"manifest does not parse: {error}") from error
        if document.schema_version != 2:
            raise InvalidManifest(
                f"manifest has schema version {document.schema_version}; only 2 is understood"
            )
        layers = document.layers or []
        if len(layers) > LAYER_LIMIT:
            raise InvalidManifest(f"manifest has {len(layers):,} layers; at most {LAYER_LIMIT:,} are allowed")
        return Manifest(_layer(document.config), tuple(_layer(layer) for layer in layers))


def _layer(found: _Descriptor) -> Layer:
    notes = found.annotations or {}
    name = notes.get(NAME_ANNOTATION, found.name)
    try:
        digest = parse_digest(found.digest)
    except InvalidDigest as error:
        raise InvalidManifest(f"manifest has an {error}") from error
    if not 0 <= found.size < 1 << 50:
        raise InvalidManifest(f"manifest gives layer {digest} a size of {found.size} bytes")
    return Layer(
        found.media_type,
        digest,
        found.size,
        safe_relative(name) if name else None,
        notes.get(GROUP_ANNOTATION),
        notes.get(FROM_ANNOTATION, found.source),
    )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Ollama's config JSON; `model_type` is the parameter count as text ("3.2B"), `file_type` the
    quantization ("Q4_K_M"). `extra` keeps fields of others so that copying a config loses nothing."""

    model_format: str = ""
    model_family: str = ""
    model_families: tuple[str, ...] = ()
    model_type: str = ""
    file_type: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    remote_host: str = ""
    remote_model: str = ""
    capabilities: tuple[str, ...] = ()
    context_length: int = 0
    embedding_length: int = 0
    base_name: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The bytes of the config blob; empty fields are left out."""
        known = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "extra"}
        document = {"architecture": "amd64", "os": "linux"}
        document |= self.extra
        return msgspec.json.encode(document | {name: value for name, value in known.items() if value})

    @staticmethod
    def parse(data: bytes) -> ModelConfig:
        """The config in these bytes; fields of a wrong type are taken as absent. Raises InvalidManifest."""
        try:
            document = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise InvalidManifest(f"model config does not parse: {error}") from error
        if not isinstance(document, dict):
            raise InvalidManifest("model config is no JSON object")
        known: dict[str, Any] = {}
        for each in fields(ModelConfig):
            if each.name == "extra" or each.name not in document:
                continue
            value = document.pop(each.name)
            default = each.default
            if isinstance(default, tuple) and isinstance(value, list):
                known[each.name] = tuple(item for item in value if isinstance(item, str))
            elif isinstance(value, type(default)) and not isinstance(value, bool):
                known[each.name] = value
        return ModelConfig(**known, extra=document)

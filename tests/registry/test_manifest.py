"""Manifests and configs: round trips, what Ollama writes, limits, and digests or names that are paths."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry.blobs import digest_of
from registry.errors import InvalidManifest
from registry.manifest import (
    CONFIG_TYPE,
    LAYER_LIMIT,
    MANIFEST_LIMIT,
    MEDIA_TYPES,
    Layer,
    Manifest,
    ModelConfig,
    safe_relative,
)

CONFIG = Layer(CONFIG_TYPE, digest_of(b"config"), 6)
LAYERS = (
    Layer(MEDIA_TYPES["model"], digest_of(b"a"), 1, "model-00001-of-00002.safetensors", None, "base:latest"),
    Layer(MEDIA_TYPES["model"], digest_of(b"b"), 1, "d/model-00002-of-00002.safetensors"),
    Layer(MEDIA_TYPES["adapter"], digest_of(b"c"), 1, "adapter.safetensors", "mine"),
    Layer(MEDIA_TYPES["params"], digest_of(b"d"), 1),
)


def document(**changes: Any) -> bytes:
    found = json.loads(Manifest(CONFIG, LAYERS).encode())
    return json.dumps(found | changes).encode()


def descriptor(**changes: Any) -> dict[str, Any]:
    return {"mediaType": MEDIA_TYPES["model"], "digest": digest_of(b"a"), "size": 1} | changes


def test_a_manifest_comes_back() -> None:
    manifest = Manifest(CONFIG, LAYERS)
    assert Manifest.parse(manifest.encode()) == manifest
    assert manifest.size == 10
    assert [layer.kind for layer in manifest.layers] == ["model", "model", "adapter", "params"]
    assert len(manifest.blobs()) == 5


def test_what_ollama_writes() -> None:
    text = f"""{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",
      "config":{{"mediaType":"{CONFIG_TYPE}","digest":"{digest_of(b"c")}","size":1}},
      "layers":[{{"mediaType":"application/vnd.ollama.image.model","digest":"{digest_of(b"m")}","size":9,
                 "from":"/home/me/.ollama/models/blobs/sha256-aa"}},
                {{"mediaType":"application/vnd.ollama.image.json","digest":"{digest_of(b"j")}","size":2,
                 "name":"config.json"}}]}}"""
    manifest = Manifest.parse(text.encode())
    assert manifest.layers[0].source == "/home/me/.ollama/models/blobs/sha256-aa"
    assert manifest.layers[1].name == "config.json"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"config":1}', b"[" * 100_000,
        document(layers=[descriptor()] * (LAYER_LIMIT + 1)),
        document(config=descriptor(digest="sha256:../../x")),
        document(layers=[descriptor(digest="../../../etc/passwd")]),
        document(layers=[descriptor(digest="")]),
        document(layers=[descriptor(size=-1)]),
        document(layers=[descriptor(size=1 << 60)]),
        document(layers=[descriptor(size=10**400)]),
        document(layers=[descriptor(size="1")]),
        document(layers=[descriptor(name="../x")]),
        document(layers=[descriptor(annotations={"org.gemmule.name": "/etc/passwd"})]),
        document(schemaVersion=1),
        b" " * (MANIFEST_LIMIT + 1),
    ],
    ids=range(20),
)  # fmt: skip
def test_refused(data: bytes) -> None:
    with pytest.raises(InvalidManifest):
        Manifest.parse(data)


@pytest.mark.parametrize(
    "text", ["", ".", "..", "/a", "a/../b", "../a", "a//b", "a/", "./a", "a\\b", "a\0", "a\n", "é" * 600]
)
def test_names_that_are_no_plain_relative_paths(text: str) -> None:
    with pytest.raises(InvalidManifest):
        safe_relative(text)


def test_a_config_keeps_what_it_does_not_know() -> None:
    text = b"""{"model_format":"gguf","model_family":"llama","model_families":["llama"],"model_type":"3.2B",
      "file_type":"Q4_K_M","architecture":"amd64","os":"linux","rootfs":{"type":"layers"},"context_length":true}"""
    config = ModelConfig.parse(text)
    assert (config.model_format, config.model_families, config.context_length) == ("gguf", ("llama",), 0)
    assert ModelConfig.parse(config.encode()) == config
    assert json.loads(config.encode())["rootfs"] == {"type": "layers"}


@pytest.mark.parametrize("data", [b"", b"[]", b"nul", b"\xff"])
def test_what_is_no_config(data: bytes) -> None:
    with pytest.raises(InvalidManifest):
        ModelConfig.parse(data)

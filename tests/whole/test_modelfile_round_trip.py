"""What `show --modelfile` prints makes the same model again: weights of every kind, with everything on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engines.decoder.llama2c import (
    Llama2c,
    write_llama2c_folder,
    write_llama2c_gguf,
    write_llama2c_tokenizer,
)
from tests.engines.decoder.test_adapters import gguf_adapter, halves
from tests.whole.conftest import Served

pytestmark = pytest.mark.slow

REST = '''
TEMPLATE """{{ if .System }}<{{ .System }}>
{{ end }}{{ .Prompt }}"""
SYSTEM """
  It said "yes" \\n, # and 'no'.

"""
PARAMETER temperature 0.5
PARAMETER stop "  a "
PARAMETER stop "b c"
PARAMETER num_ctx 256
MESSAGE user "say ""it"""
MESSAGE assistant """
done """
LICENSE """MIT

  all of it
"""
LICENSE Apache
REQUIRES 0.1.2
'''


@pytest.fixture(scope="module")
def sources(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF, an adapter for it, and the same weights as a folder."""
    folder = tmp_path_factory.mktemp("sources")
    model = Llama2c(shared_data / "models" / "stories260K", "stories260K")
    write_llama2c_gguf(model, folder / "base.gguf")
    gguf_adapter(folder / "adapter.gguf", halves(1, 4), 8.0)
    (folder / "weights").mkdir()
    write_llama2c_folder(model, folder / "weights")
    write_llama2c_tokenizer(model, folder / "weights" / "tokenizer.model")
    return folder


@pytest.mark.parametrize(
    ("kind", "first", "flags"),
    [
        ("gguf", "FROM ./base.gguf", ()),
        ("gguf-with-adapter", "FROM ./base.gguf\nADAPTER ./adapter.gguf", ()),
        ("safetensors", "FROM ./weights", ()),
        ("safetensors-with-adapter", "FROM ./weights\nADAPTER ./adapter.gguf", ()),
        ("quantized", "FROM ./base.gguf", ("--quantize", "q8_0")),
        ("bundled", "FROM bud", ()),
    ],
)
def test_the_same_model_again(
    served: Served, sources: Path, kind: str, first: str, flags: tuple[str, ...]
) -> None:
    modelfile = sources / f"Modelfile-{kind}"
    modelfile.write_text(first + REST, encoding="utf-8")
    served.command("create", kind, "-f", str(modelfile), *flags)
    again = sources / f"Again-{kind}"
    again.write_text(served.command("show", kind, "--modelfile").stdout, encoding="utf-8")
    served.command("create", f"{kind}-again", "-f", str(again))
    shown = [served.post("/api/show", {"model": name}).json() for name in (kind, f"{kind}-again")]
    for reply in shown:
        for varying in ("modelfile", "modified_at"):
            reply.pop(varying)
        reply["details"].pop("parent_model")
    assert shown[0] == shown[1]
    assert layers(served, kind) == layers(served, f"{kind}-again")


def layers(served: Served, name: str) -> list[tuple[str, str]]:
    """Kind and digest of all that a model is made of; manifests tell besides where a layer came from."""
    folder = Path(served.environment["GEMMULE_MODELS"]) / "manifests" / "registry.ollama.ai" / "library"
    manifest = json.loads((folder / name / "latest").read_bytes())
    return sorted(
        (layer["mediaType"], layer["digest"]) for layer in (manifest["config"], *manifest["layers"])
    )

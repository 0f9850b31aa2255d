"""A model served by the scripted engine, for tests of everything above engines.

Its tokenizer is a real tokenizer.json (one token a byte, ids as in `engines.scripted`), so prompts go through
the real sandbox workers. `gateway_with` makes a gateway in process, `python -m tests.gateway.scripted_model`
a live server.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from engines.scripted import CONTROL_IDS, VOCABULARY
from gateway.catalog import ServedModel
from gateway.gateway import Gateway
from gateway.memory import Device
from gateway.settings import Settings
from modelfiles.description import ModelDescription
from modelfiles.files import FileRole, ModelFile
from modelfiles.templates.source import TemplateSource

TEMPLATE = (
    "{{ bos_token }}{% if tools %}tools: {{ tools | tojson }}\n{% endif %}{% for message in messages %}"
    "<start_of_turn>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ADDED_TOKEN = {"normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
CPU = Device("cpu", "the test's CPU", budget=2**33)


def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(others)}


def write_tokenizer(folder: Path) -> ModelFile:
    """A tokenizer.json of single bytes whose ids are those of the scripted engine."""
    names = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **CONTROL_IDS}
    vocabulary = {character: byte + 3 for byte, character in byte_alphabet().items()}
    document = {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": name, "special": True} | ADDED_TOKEN for name, index in names.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "model": {"type": "BPE", "vocab": vocabulary | names, "merges": []},
    }
    return write_file(folder, "tokenizer", "tokenizer.json", document)


def write_config(folder: Path) -> ModelFile:
    """Which tokens begin and end a text."""
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True}
    return write_file(folder, "config", "tokenizer_config.json", config)


def write_file(folder: Path, role: FileRole, name: str, content: object) -> ModelFile:
    path = folder / name
    data = json.dumps(content).encode()
    path.write_bytes(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return ModelFile(role, name, str(path), digest, len(data))


def scripted_model(folder: Path, name: str = "scripted:latest", **changes: object) -> ServedModel:
    """The model; `changes` replace fields of it."""
    description = ModelDescription(
        weight_format="gguf",
        architecture="scripted",
        parameter_count=0,
        quantization="F32",
        context_length=131_072,
        embedding_length=16,
        vocabulary_size=len(VOCABULARY.token_bytes),
        chat_template=TEMPLATE,
        capabilities=("completion", "tools", "thinking", "embedding"),
    )
    tokenizer = write_tokenizer(folder)
    model = ServedModel(
        name=name,
        digest=tokenizer.digest,
        weights_digest=tokenizer.digest.removeprefix("sha256:"),
        files=(tokenizer, write_config(folder)),
        description=description,
        vocabulary=VOCABULARY,
        template=TemplateSource("jinja", TEMPLATE),
        capabilities=("completion", "tools", "thinking", "embedding"),
        convention="qwen",
        parameters={"temperature": 0},
        engine="scripted",
    )
    return replace(model, **changes)  # type: ignore[arg-type]


def names_of(model: ServedModel) -> dict[str, ServedModel]:
    """Under its full name and without the tag."""
    return {model.name: model, model.name.removesuffix(":latest"): model}


def test_settings(folder: Path, **environment: str) -> Settings:
    """Settings that touch nothing outside `folder`."""
    given = {
        "GEMMULE_MODELS": str(folder / "models"),
        "GEMMULE_STATE": str(folder / "state"),
        "GEMMULE_EXTRA_STORES": str(folder / "none"),
        "GEMMULE_DEVICE": "cpu",
        "GEMMULE_SANDBOX_WORKERS": "1",
    }
    return Settings.read(given | environment)


test_settings.__test__ = False  # type: ignore[attr-defined]


def gateway_with(
    folder: Path, models: Mapping[str, ServedModel] | None = None, **environment: str
) -> Gateway:
    """A gateway in process with the scripted model."""
    built_in = names_of(scripted_model(folder)) if models is None else models
    return Gateway.open(test_settings(folder, **environment), CPU, built_in)


def main() -> int:
    """Serves the scripted model; settings from the environment, the folder from the command line."""
    from gateway.server import serve

    folder = Path(sys.argv[1])
    settings = Settings.read(
        {"GEMMULE_MODELS": str(folder / "models"), "GEMMULE_STATE": str(folder / "state"),
         "GEMMULE_EXTRA_STORES": str(folder / "none"), "GEMMULE_DEVICE": "cpu"} | dict(os.environ)
    )  # fmt: skip
    return serve(settings, names_of(scripted_model(folder)))


if __name__ == "__main__":
    sys.exit(main())

"""Models of the store as Ollama's JSON objects: the rows of tags and ps, and their `details`.

Pure. Called by `models` and `show`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gateway.catalog import ServedModel
from gateway.ollama.encode import timestamp
from modelfiles.description import ModelDescription
from registry.create import human_count
from registry.model import Model


def tag_row(model: Model, capabilities: tuple[str, ...] | None) -> dict[str, Any]:
    """A model as tags and ps list it; both `name` and `model`, with the tag, since clients read either.

    What it was made from only `show` tells: for a file that is a path of this machine.
    """
    name = model.name.display()
    row = {
        "name": name,
        "model": name,
        "modified_at": timestamp(model.modified_at),
        "size": model.size,
        "digest": model.digest,
        "details": details(model) | {"parent_model": ""},
    }
    return row | ({"capabilities": list(capabilities)} if capabilities is not None else {})


def built_in_row(model: ServedModel) -> dict[str, Any]:
    """A model that lies in no store."""
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": timestamp(model.modified_at or datetime.fromtimestamp(0, UTC)),
        "size": 0,
        "digest": model.digest.removeprefix("sha256:"),
        "details": described(model.description),
        "capabilities": list(model.capabilities),
    }


def details(model: Model) -> dict[str, Any]:
    """What the config blob says of the weights."""
    config = model.config
    found: dict[str, Any] = {
        "parent_model": model.parent_model,
        "format": config.model_format,
        "family": config.model_family,
        "families": list(config.model_families) or ([config.model_family] if config.model_family else []),
        "parameter_size": config.model_type,
        "quantization_level": config.file_type,
    }
    for key in ("context_length", "embedding_length"):
        if value := getattr(config, key):
            found[key] = value
    return found


def described(description: ModelDescription) -> dict[str, Any]:
    """The same, of a model without a config."""
    return {
        "parent_model": "",
        "format": description.weight_format,
        "family": description.architecture,
        "families": [description.architecture],
        "parameter_size": human_count(description.parameter_count),
        "quantization_level": description.quantization,
    }

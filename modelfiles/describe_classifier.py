"""Reads what an image classifier's config.json says of it. Part of `describe`; knows no network.

Its weights are safetensors; it has no tokenizer and no template, and can only name what an image shows.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelfiles.description import IMAGE_CLASSIFIER, ModelDescription
from modelfiles.errors import DescribeError
from modelfiles.files import ModelFile
from modelfiles.gguf_types import majority_type
from modelfiles.safetensors import open_checkpoint
from modelfiles.tokenizer_special import file_named, read_json


def is_classifier(files: Sequence[ModelFile]) -> bool:
    """Whether config.json beside the weights names an image classifier."""
    file = file_named(files, "config.json")
    return file is not None and read_json(file).get("model_type") == IMAGE_CLASSIFIER


def describe_classifier(files: Sequence[ModelFile]) -> ModelDescription:
    """Labels, size of images and parameters of a classifier. Raises `DescribeError` without labels."""
    file = file_named(files, "config.json")
    config = {} if file is None else read_json(file)
    labels = config.get("labels")
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise DescribeError("config.json of an image classifier must list its labels")
    tensors = [tensor for _, tensor in open_checkpoint(files).values()]
    count = sum(tensor.elements for tensor in tensors)
    info = {
        "general.architecture": IMAGE_CLASSIFIER,
        "general.parameter_count": count,
        f"{IMAGE_CLASSIFIER}.labels": labels,
        f"{IMAGE_CLASSIFIER}.side": config.get("side"),
        f"{IMAGE_CLASSIFIER}.report": config.get("report"),
    }
    return ModelDescription(
        weight_format="safetensors",
        architecture=IMAGE_CLASSIFIER,
        parameter_count=count,
        quantization=majority_type((each.dtype, each.elements) for each in tensors),
        context_length=0,
        embedding_length=0,
        vocabulary_size=0,
        chat_template=None,
        capabilities=("classification",),
        model_info={key: value for key, value in info.items() if value is not None},
    )

"""What an Orbax checkpoint folder tells of a Gemma model by its file names and JSON metadata alone.

Does not load Orbax and reads no array data. Shapes come from the metadata that newer checkpoints carry, or
from zarr headers; the family shows in the names of the leaves. Called by `describe`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

from modelfiles.description import ModelDescription
from modelfiles.errors import DescribeError
from modelfiles.files import ModelFile

__all__ = ["ORBAX_MARKERS", "describe_orbax"]

ORBAX_MARKERS: Final = frozenset({"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "checkpoint"})
MAX_METADATA_BYTES: Final = 64 << 20

FAMILY_BY_LEAF: Final = (
    ("skip_scale", "gemma4"),
    ("altup", "gemma3n"),
    ("_query_norm", "gemma3"),
    ("post_attention_norm", "gemma2"),
    ("attn_vec_einsum", "gemma"),
)
"""The first leaf name found decides; each family has all leaves of those below it."""

CONTEXT_LENGTH: Final = {"gemma": 8192, "gemma2": 8192, "gemma3": 131072, "gemma3n": 32768, "gemma4": 131072}
GEMMA3_SHORT_LAYERS: Final = {18: 32768, 26: 32768}
"""Gemma 3's 270M and 1B, known by their layers, have a shorter context than the family."""

DTYPE_NAMES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "<f4": "F32", "<f2": "F16"}


def describe_orbax(files: Sequence[ModelFile]) -> ModelDescription:
    """Describe by names and metadata. Raises `DescribeError` when the leaves are no Gemma's."""
    leaves = _leaves(files)
    joined = "\n".join(leaves)
    family = next((family for name, family in FAMILY_BY_LEAF if name in joined), None)
    if family is None:
        raise DescribeError(
            "this Orbax checkpoint names no Gemma parameters; other families: convert to safetensors first"
        )
    layers = len(set(re.findall(r"layer_(\d+)", joined)))
    shapes = {name: shape for name, (shape, _) in leaves.items() if shape}
    vocabulary, width = next(
        (shape for name, shape in shapes.items() if "input_embedding" in name and len(shape) == 2), (0, 0)
    )
    count = sum(prod(shape) for shape in shapes.values())
    context = GEMMA3_SHORT_LAYERS.get(layers, 0) if family == "gemma3" else 0
    dtypes = [dtype for _, dtype in leaves.values() if dtype]
    return ModelDescription(
        weight_format="orbax",
        architecture=family,
        parameter_count=count,
        quantization=DTYPE_NAMES.get(max(set(dtypes), key=dtypes.count), "unknown") if dtypes else "unknown",
        context_length=context or CONTEXT_LENGTH[family],
        embedding_length=width,
        vocabulary_size=vocabulary,
        chat_template=None,
        capabilities=("completion",),
        model_info={
            "general.architecture": family,
            "general.parameter_count": count,
            f"{family}.block_count": layers,
            f"{family}.context_length": context or CONTEXT_LENGTH[family],
            f"{family}.embedding_length": width,
        },
    )


_Leaf = tuple[tuple[int, ...], str]


def _leaves(files: Sequence[ModelFile]) -> dict[str, _Leaf]:
    """Leaf name -> (shape, dtype), each empty where nothing tells it."""
    leaves: dict[str, _Leaf] = {}
    for file in files:
        for name, (shape, dtype) in _leaves_in(file):
            known_shape, known_dtype = leaves.get(name, ((), ""))
            leaves[name] = (known_shape or shape, known_dtype or dtype)
    return leaves


def _leaves_in(file: ModelFile) -> Iterator[tuple[str, _Leaf]]:
    """What one file of metadata tells of leaves."""
    folder, _, name = file.name.rpartition("/")
    if name == ".zarray":
        entry = _object(file)
        yield folder.rpartition("/")[2], (_shape(entry.get("shape")), str(entry.get("dtype", "")))
    elif name == "_METADATA":
        for key, value in _mapping(_object(file), "tree_metadata").items():
            yield _dotted(key), (_shape(_mapping(value, "value_metadata").get("write_shape")), "")
    elif folder.endswith("array_metadatas"):
        entries = _object(file).get("array_metadatas")
        for entry in entries if isinstance(entries, list) else ():
            inner = _mapping(entry, "array_metadata")
            yield str(inner.get("param_name", "")), (_shape(inner.get("write_shape")), "")


def _mapping(value: Any, key: str) -> dict[str, Any]:
    """The object below a key, empty where there is none."""
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def _dotted(key: str) -> str:
    """`('params', 'layer_0', 'w')`, as Orbax writes a path, with dots."""
    return ".".join(re.findall(r"'([^']*)'", key)) or key


def _shape(value: Any) -> tuple[int, ...]:
    if isinstance(value, list) and value and all(type(size) is int and 0 < size < 1 << 40 for size in value):
        return tuple(value)
    return ()


def _object(file: ModelFile) -> dict[str, Any]:
    if file.size > MAX_METADATA_BYTES:
        raise DescribeError(f"{file.name} has {file.size} bytes; the limit is {MAX_METADATA_BYTES}")
    try:
        value = json.loads(Path(file.path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise DescribeError(f"{file.name} is not valid JSON: {error}") from error
    return value if isinstance(value, dict) else {}

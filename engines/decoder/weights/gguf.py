"""GGUF files, single or split, of llama.cpp's converters and of Ollama. Imports no JAX."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from engines.decoder.blocks import dequantize
from engines.decoder.config import DecoderConfig, RopeScaling
from engines.decoder.weights import WeightsError
from engines.decoder.weights.headers import Headers, Rows, Stored, bind, row_bytes
from engines.decoder.weights.names import GGUF, file_names
from modelfiles.files import ModelFile
from modelfiles.gguf import GgufFile, GgufTensor

OTHER_PARTS = re.compile(r"^(v|a|mm|clip|vision|audio)\.|\.nextn\.|^(mtp|draft)\.")
"""Vision and audio towers, their projectors, and drafting heads."""
ROPE_FACTORS = "rope_freqs.weight"

AnyNumber = TypeVar("AnyNumber", bound=np.generic)


def recognises(file: ModelFile) -> bool:
    """By its first four bytes: blobs have no endings."""
    try:
        with Path(file.path).open("rb") as opened:
            return opened.read(4) == b"GGUF"
    except OSError:
        return False


def read(files: Sequence[ModelFile]) -> Headers:
    """Configuration and tensor table of a GGUF model. Raises as `read_headers`."""
    opened = [GgufFile.open(file.path) for file in files if recognises(file)]
    first = min(opened, key=lambda file: int(file.metadata.get("split.no", 0)))
    found: dict[str, Stored] = {}
    for file in opened:
        for tensor in file.tensors.values():
            if tensor.name in found:
                raise WeightsError(f"tensor {tensor.name!r} is in two files")
            found[tensor.name] = _stored(file, tensor)
    expected = int(first.metadata.get("split.tensors.count", len(found)))
    if expected != len(found):
        raise WeightsError(f"the split model has {expected} tensors, but its files hold {len(found)}")
    _join_experts(found)
    _split_stacks(found)
    shapes = {name: tensor.shape for name, tensor in found.items()}
    config = _with_rope_factors(DecoderConfig.from_gguf(first.metadata, shapes), found)
    return _bound(config, first.architecture, found)


def _stored(file: GgufFile, tensor: GgufTensor) -> Stored:
    kind = tensor.ggml_type.name
    return Stored(tensor.name, tensor.shape, kind, partial(_read, file, tensor))


def _read(file: GgufFile, tensor: GgufTensor) -> Rows:
    width = row_bytes(tensor.shape, tensor.ggml_type.name)
    return file.data(tensor.name).reshape(*tensor.shape[:-1], width)


def _join_experts(found: dict[str, Stored]) -> None:
    """Files that keep the experts' gates and ups apart get the joint tensor of the others, made when read."""
    for name in [name for name in found if name.endswith(".ffn_gate_exps.weight")]:
        prefix = name.removesuffix("ffn_gate_exps.weight")
        gate, up = found.pop(name), found.pop(prefix + "ffn_up_exps.weight", None)
        if up is None or up.shape != gate.shape or up.block_type != gate.block_type:
            raise WeightsError(f"tensor {prefix + 'ffn_up_exps.weight'!r} does not fit {name!r}")
        joint = prefix + "ffn_gate_up_exps.weight"
        shape = (gate.shape[0], 2 * gate.shape[1], gate.shape[2])
        found[joint] = Stored(joint, shape, gate.block_type, partial(_read_joint, gate, up))


STACKS = ("altup_proj.weight", "altup_unembd_proj.weight")


def _split_stacks(found: dict[str, Stored]) -> None:
    """Gemma 3n's stacked projections [3, D, D] as matrices of their own, named `<tensor>/<index>`."""
    for name in STACKS:
        stack = found.pop(name, None)
        for index in range(stack.shape[0] if stack else 0):
            assert stack is not None
            part = partial(_read_one, stack, index)
            found[f"{name}/{index}"] = Stored(f"{name}/{index}", stack.shape[1:], stack.block_type, part)


def _read_one(stack: Stored, index: int) -> Rows:
    one: Rows = stack.read()[index]
    return one


def _read_joint(gate: Stored, up: Stored) -> Rows:
    return np.concatenate([gate.read(), up.read()], axis=1)


def _with_rope_factors(config: DecoderConfig, found: Mapping[str, Stored]) -> DecoderConfig:
    """Frequency factors (Llama 3.1, Gemma 4's global layers) lie in a tensor, not in the metadata."""
    tensor = found.get(ROPE_FACTORS)
    if tensor is None:
        return config
    values = dequantize(tensor.read(), tensor.block_type).reshape(-1)
    scaling = RopeScaling("factors", 1.0, factors=tuple(float(value) for value in values))
    layers = []
    for layer in config.layers:
        if layer.kind == "global" and len(values) != layer.head_dim // 2:
            raise WeightsError(
                f"tensor {ROPE_FACTORS!r} has {len(values)} values for heads of {layer.head_dim}"
            )
        own = replace(layer.rope, scaling=scaling, rotated_pairs=None)
        layers.append(replace(layer, rope=own) if layer.kind == "global" else layer)
    return replace(config, layers=tuple(layers))


def _bound(config: DecoderConfig, architecture: str, found: Mapping[str, Stored]) -> Headers:
    names = file_names(config, GGUF)
    shared = {
        f"blk.{index}.{part}.weight"
        for index, layer in enumerate(config.layers)
        if layer.kv_source is not None
        for part in ("attn_k", "attn_v", "attn_k_norm")
    }

    def ignored(name: str) -> bool:
        return bool(OTHER_PARTS.search(name)) or name in shared or name == ROPE_FACTORS

    headers = replace(bind(config, found, names, ignored=ignored, norm_offset=0.0), from_gguf=True)
    if architecture != "llama":
        return headers
    used = {name: _half_split(config, name, tensor) for name, tensor in headers.used.items()}
    return replace(headers, used=used)


def _half_split(config: DecoderConfig, name: str, tensor: Stored) -> Stored:
    if _interleaved_heads(config, name) is None:
        return tensor
    if name.endswith("_bias"):
        return replace(tensor, read=partial(_regrouped_bias, config, name, tensor))
    return replace(tensor, read=lambda: half_split_rows(config, name, tensor.read()))


def _interleaved_heads(config: DecoderConfig, name: str) -> tuple[int, int] | None:
    """Heads and head size of a query or key parameter, None for all others."""
    part = name.rpartition(".")[2]
    if part not in ("q", "k", "q_bias", "k_bias"):
        return None
    layer = config.layers[int(name.split(".")[1])]
    return (config.heads if part.startswith("q") else layer.kv_heads), layer.head_dim


def half_split_rows(config: DecoderConfig, name: str, rows: npt.NDArray[AnyNumber]) -> npt.NDArray[AnyNumber]:
    """llama.cpp stores Llama's query and key rows for interleaved pairs; ours are half-split.

    `rows` [outputs, ...] of parameter `name`, (pair, half) of every head -> (half, pair); others unchanged.
    """
    heads = _interleaved_heads(config, name)
    if heads is None:
        return rows
    grouped = rows.reshape(heads[0], heads[1] // 2, 2, -1).swapaxes(1, 2)
    return np.ascontiguousarray(grouped).reshape(rows.shape)


def interleaved_rows(
    config: DecoderConfig, name: str, rows: npt.NDArray[AnyNumber]
) -> npt.NDArray[AnyNumber]:
    """The inverse of `half_split_rows`, for writing."""
    heads = _interleaved_heads(config, name)
    if heads is None:
        return rows
    grouped = rows.reshape(heads[0], 2, heads[1] // 2, -1).swapaxes(1, 2)
    return np.ascontiguousarray(grouped).reshape(rows.shape)


def _regrouped_bias(config: DecoderConfig, name: str, tensor: Stored) -> Rows:
    """A vector's bytes, one element per row while they are regrouped."""
    elements = tensor.read().reshape(tensor.shape[0], -1)
    return half_split_rows(config, name, elements).reshape(-1)

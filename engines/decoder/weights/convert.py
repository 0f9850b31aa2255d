"""Writes a model's float weights as one quantised GGUF: what `create --quantize` does. Imports no JAX.

A GGUF source keeps its metadata, tokenizer included; for a Hugging Face folder the keys follow from the
configuration, and its tokenizer files stay the model's own beside the new weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from engines.decoder.blocks import FLOAT_TYPES, dequantize
from engines.decoder.config import DecoderConfig
from engines.decoder.params import ParamSpec, param_specs
from engines.decoder.quantize import QUANTIZERS, mixture, quantize
from engines.decoder.rope import inverse_frequencies
from engines.decoder.weights import Progress, WeightsError
from engines.decoder.weights.gguf import ROPE_FACTORS, interleaved_rows, recognises
from engines.decoder.weights.headers import Headers, Rows, Stored, read_headers, row_bytes, rows_of
from engines.decoder.weights.names import GGUF, file_names
from modelfiles.files import ModelFile
from modelfiles.gguf import GgufFile
from modelfiles.gguf_writer import RawTensor, write_gguf

ARCHITECTURES = ("gemma", "gemma2", "gemma3", "llama", "qwen2", "qwen3")
"""Families whose GGUF keys all follow from the configuration."""
WINDOWED = ("gemma2", "gemma3")
FILE_TYPES = {"q8_0": 7, "q4_0": 2, "q4_K_M": 15}
FLOAT_DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
PIECE_ELEMENTS = 1 << 22
"""Elements that are float32 at the same time."""

Tensor = npt.NDArray[Any] | RawTensor


def write_quantized(
    files: Sequence[ModelFile], path: str | Path, name: str, progress: Progress | None = None
) -> None:
    """Quantises a model of float weights to the mixture `name` (`q8_0`, `q4_0`, `q4_K_M`) at `path`.

    Raises WeightsError for weights that are quantised already or a family without a GGUF form of ours,
    ValueError for an unknown mixture, and what `read_headers` raises.
    """
    headers = read_headers(files)
    types = mixture(headers.config, name)
    for tensor in headers.used.values():
        if tensor.block_type not in FLOAT_TYPES:
            raise WeightsError(
                f"tensor {tensor.name!r} is {tensor.block_type} already; quantize from the float model"
            )
    kind = next(file_type for known, file_type in FILE_TYPES.items() if known.lower() == name.lower())
    metadata = {**_metadata(files, headers), "general.file_type": kind, "general.quantization_version": 2}
    write_gguf(path, metadata, _tensors(headers, types, progress))


def _metadata(files: Sequence[ModelFile], headers: Headers) -> dict[str, Any]:
    source = next((file for file in files if file.role == "weights" and recognises(file)), None)
    if source is not None:
        kept = GgufFile.open(source.path).metadata
        return {key: value for key, value in kept.items() if not key.startswith("split.")}
    return describe(headers.config)


def describe(config: DecoderConfig) -> dict[str, Any]:
    """GGUF keys from which `DecoderConfig.from_gguf` reads `config` again; WeightsError where none do."""
    name, first = config.architecture, config.layers[0]
    ropes = {layer.rope for layer in config.layers if layer.kind == "global"}
    if name not in ARCHITECTURES or config.bidirectional or len(ropes) != 1:
        raise WeightsError(f"{name} cannot be written as GGUF; known are {', '.join(ARCHITECTURES)}")
    rope = ropes.pop()
    keys: dict[str, Any] = {
        "vocab_size": config.vocabulary_size,
        "block_count": len(config.layers),
        "context_length": config.max_context,
        "embedding_length": config.width,
        "feed_forward_length": first.ffn_width,
        "attention.head_count": config.heads,
        "attention.head_count_kv": first.kv_heads,
        "attention.key_length": first.head_dim,
        "attention.value_length": first.head_dim,
        "attention.scale": config.attention_scale,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "rope.freq_base": rope.base,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.final_softcap,
    }
    windows = {layer.window for layer in config.layers if layer.window}
    if windows and name not in WINDOWED:
        raise WeightsError(f"the sliding window of {name} has no GGUF key, so it cannot be written as GGUF")
    if windows:
        keys["attention.sliding_window"] = windows.pop()
        keys["attention.sliding_window_pattern"] = [layer.kind == "sliding" for layer in config.layers]
    if rope.scaling is not None and rope.scaling.kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope.scaling.factor}
    named = {f"{name}.{key}": value for key, value in keys.items() if value is not None}
    return {"general.architecture": name, **named}


def _tensors(
    headers: Headers, types: dict[str, str], progress: Progress | None
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its GGUF name, its blocks made when they are written."""
    specs = param_specs(headers.config)
    total, done = sum(tensor.nbytes for tensor in headers.used.values()), 0
    factors = _rope_factors(headers)
    if factors is not None:
        yield ROPE_FACTORS, factors

    def encode(parts: Sequence[str], kind: str) -> Rows:
        nonlocal done
        blocks = [_encoded(headers, one, headers.used[one], specs[one], kind) for one in parts]
        done += sum(headers.used[one].nbytes for one in parts)
        if progress is not None:
            progress(done, total)
        return np.concatenate(blocks)

    for name, parts in _by_tensor(headers).items():
        first, shape = headers.used[parts[0]], specs[parts[0]].shape
        kept = types[parts[0]] == "F32" and specs[parts[0]].role in ("matrix", "experts")
        kind = first.block_type if kept else types[parts[0]]
        whole = (len(parts), *shape) if len(parts) > 1 else shape
        yield name, RawTensor(kind, whole, partial(encode, parts, kind))


def _by_tensor(headers: Headers) -> dict[str, list[str]]:
    """GGUF tensor names, and what each is made of: several of ours where GGUF stacks them (`name/index`)."""
    names = file_names(headers.config, GGUF)
    parts: dict[str, list[str]] = {}
    for canonical in headers.used:
        parts.setdefault(names[canonical].partition("/")[0], []).append(canonical)
    return parts


def _encoded(headers: Headers, name: str, tensor: Stored, spec: ParamSpec, block_type: str) -> Rows:
    """The tensor in another type, some rows at a time: an embedding as float32 may not fit in memory."""
    rows = tensor.read().reshape(spec.shape[0], -1)
    if headers.config.architecture == "llama":
        rows = interleaved_rows(headers.config, name, rows)
    flat = rows.reshape(math.prod(spec.shape[:-1]), -1)
    offset = np.float32(headers.norm_offset if spec.role == "norm" else 0)
    out = np.empty((len(flat), row_bytes(spec.shape, block_type)), np.uint8)
    step = max(1, PIECE_ELEMENTS // spec.shape[-1])
    for start in range(0, len(flat), step):
        values = dequantize(flat[start : start + step], tensor.block_type) + offset
        out[start : start + step] = _in_type(values, block_type)
    return out


def _in_type(values: npt.NDArray[np.float32], block_type: str) -> Rows:
    if block_type in QUANTIZERS:
        return quantize(values, block_type)
    return rows_of(values.astype(FLOAT_DTYPES[block_type]))


def _rope_factors(headers: Headers) -> npt.NDArray[np.float32] | None:
    """Frequency factors of scalings that GGUF keeps as a tensor; WeightsError for one it cannot keep."""
    layer = next(layer for layer in headers.config.layers if layer.kind == "global")
    scaling = layer.rope.scaling
    if scaling is None or scaling.kind == "linear" or (headers.from_gguf and scaling.kind != "factors"):
        return None
    if scaling.kind == "factors":
        return np.asarray(scaling.factors, np.float32)
    if scaling.kind == "llama3":
        plain = inverse_frequencies(replace(layer.rope, scaling=None), layer.head_dim)
        factors: npt.NDArray[np.float32] = plain / inverse_frequencies(layer.rope, layer.head_dim)
        return factors
    raise WeightsError(f"RoPE scaling {scaling.kind!r} cannot be written as GGUF")

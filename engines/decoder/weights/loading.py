"""Puts the tensors that `headers` found onto a device, one at a time, and builds the parameter tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import jax
import ml_dtypes
import numpy as np

from engines.base import LoadFailed
from engines.decoder import native, ops
from engines.decoder.blocks import dequantize
from engines.decoder.config import DecoderConfig
from engines.decoder.gpu import forms
from engines.decoder.params import ParamSpec, param_specs
from engines.decoder.quant import Platform, QuantizedMatrix, place, place_stack, platform_of
from engines.decoder.weights import Progress
from engines.decoder.weights.headers import Headers, Rows, Stored, read_headers
from modelfiles.files import ModelFile


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device.

    `stored_types` maps canonical names to the storage types of the files; `kernels` says which matrix
    products serve (`native`, `xla`, or both with what each is used for).
    """

    config: DecoderConfig
    params: Mapping[str, Any]
    skipped: tuple[str, ...]
    stored_types: Mapping[str, str]
    kernels: str
    nbytes: int

    @property
    def description(self) -> str:
        """How the matrices are stored: `Q4_K (155), Q6_K (28)`."""
        specs = param_specs(self.config)
        kinds = Counter(kind for name, kind in self.stored_types.items() if specs[name].role != "norm")
        return ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())


def load_model(
    files: Sequence[ModelFile],
    *,
    device: jax.Device | None = None,
    platform: Platform | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """See `engines.decoder.weights.load`; `platform` as in `quant.place`."""
    headers = read_headers(files)
    target = device or _first_device()
    platform = platform or platform_of(target)
    (native if platform == "cpu" else forms).register_all()
    specs = param_specs(headers.config)
    total = sum(tensor.nbytes for tensor in headers.used.values())
    placed: dict[str, Any] = {}
    done = 0
    for name, parts in join(headers.used).items():
        spec, tensor = specs[parts[0]], _joined([headers.used[part] for part in parts])
        placed[name] = _place(spec, tensor, headers.norm_offset, target, platform)
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)
    return LoadedModel(
        config=_with_rounded_scale(headers),
        params=build_tree(placed),
        skipped=headers.skipped,
        stored_types={name: tensor.block_type for name, tensor in headers.used.items()},
        kernels=_kernels(placed),
        nbytes=sum(leaf.nbytes for leaf in jax.tree.leaves(placed)),
    )


def _first_device() -> jax.Device:
    try:
        return jax.devices()[0]
    except (RuntimeError, AssertionError) as error:  # JAX asserts where its plugin finds no driver
        why = str(error).splitlines()[0] if str(error) else "no driver answers"
        raise LoadFailed(
            f"JAX cannot use the GPU that nvidia-smi lists ({why}); update the driver, check that this "
            "process may open the card's devices (in a container: --gpus all), or set GEMMULE_DEVICE=cpu"
        ) from error


JOINED = (("q", "k", "v"), ("gate", "up"))
"""Projections of the same input: one product instead of several, where their storage types agree."""


def join(used: Mapping[str, Stored]) -> dict[str, tuple[str, ...]]:
    """What is placed under which name: `layers.0.q+k+v` for parts that can be one matrix, else themselves."""
    groups: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for name in used:
        prefix, _, part = name.rpartition(".")
        for parts in JOINED:
            if part == parts[0]:
                same = _alike(used, [f"{prefix}.{one}" for one in parts])
                groups[prefix + "." + "+".join(parts[: len(same)])] = same
                taken.update(same)
        if name not in taken:
            groups[name] = (name,)
    return groups


def _alike(used: Mapping[str, Stored], names: Sequence[str]) -> tuple[str, ...]:
    """The first of `names` and those after it that are stored as it is."""
    kind = used[names[0]].block_type
    return tuple(takewhile(lambda name: name in used and used[name].block_type == kind, names))


def _joined(tensors: Sequence[Stored]) -> Stored:
    """Several matrices of one input as one, made when it is read."""
    if len(tensors) == 1:
        return tensors[0]
    outputs = sum(tensor.shape[0] for tensor in tensors)
    shape = (outputs, *tensors[0].shape[1:])

    def read() -> Rows:
        return np.concatenate([tensor.read() for tensor in tensors])

    return Stored("+".join(tensor.name for tensor in tensors), shape, tensors[0].block_type, read)


def _place(
    spec: ParamSpec, tensor: Stored, norm_offset: float, device: jax.Device, platform: Platform
) -> Any:
    rows, kind = tensor.read(), tensor.block_type
    if spec.role in ("matrix", "embedding"):
        shape = (tensor.shape[0], tensor.shape[1])
        flat = rows.reshape(shape[0], -1)
        return place(flat, kind, shape, device, look_up=spec.role == "embedding", platform=platform)
    if spec.role == "experts":
        stack = (spec.shape[0], spec.shape[1], spec.shape[2])
        return place_stack(rows.reshape(*stack[:2], -1), kind, stack, device, platform=platform)
    values = dequantize(rows, tensor.block_type).reshape(spec.shape)
    if spec.role == "norm":
        values = values + np.float32(norm_offset)
    return jax.device_put(np.ascontiguousarray(values), device)


def _with_rounded_scale(headers: Headers) -> DecoderConfig:
    """The reference multiplies embeddings by sqrt(D) in the type of the table; llama.cpp does in float32."""
    config = headers.config
    kind = headers.used["embedding"].block_type
    if kind == "BF16" and not headers.from_gguf:
        return replace(config, embedding_scale=float(ml_dtypes.bfloat16(config.embedding_scale)))
    return config


def _kernels(placed: Mapping[str, Any]) -> str:
    """Which products serve, loud where XLA has to stand in for missing kernels."""
    matrices = [leaf for leaf in placed.values() if isinstance(leaf, QuantizedMatrix)]
    platform = matrices[0].platform
    native = sorted({matrix.block_type for matrix in matrices if matrix.layout == "native"})
    plain = sorted({matrix.block_type for matrix in matrices if matrix.layout != "native"})
    names = "+".join(ops.kernel_names(platform))
    parts = [f"{names} ({', '.join(native)})"] if native else []
    if plain:
        parts.append(
            f"xla ({', '.join(plain)} as float32)" if platform == "cpu" else f"xla ({', '.join(plain)})"
        )
    return " and ".join(parts)


def build_tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Canonical names -> the tree the model walks: `layers` a tuple of mappings, numbered lists as tuples."""
    tree: dict[str, Any] = {}
    numbered: dict[str, dict[int, Any]] = {}
    for name, leaf in flat.items():
        head, _, rest = name.partition(".")
        if not rest:
            tree[head] = leaf
        elif head == "layers":
            index, _, own = rest.partition(".")
            numbered.setdefault(head, {}).setdefault(int(index), {})[own] = leaf
        else:
            numbered.setdefault(head, {})[int(rest)] = leaf
    for head, items in numbered.items():
        tree[head] = tuple(items[index] for index in sorted(items))
    return tree

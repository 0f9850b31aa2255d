"""Orbax checkpoints of Gemma's Flax trees, as Kaggle ships them: nested, flat or stacked, zarr or OCDBT.

Reads single leaves through tensorstore (which orbax-checkpoint brings), imported when a checkpoint is opened;
orbax itself is not needed. Imports no JAX.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.decoder.config import DecoderConfig
from engines.decoder.params import param_specs
from engines.decoder.weights import WeightsError
from engines.decoder.weights.headers import Headers, Rows, Stored, bind, rows_of
from modelfiles.files import ModelFile

INDEXES = ("_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA", "checkpoint")
BLOCK_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
OTHER_PARTS = re.compile(r"^(vision_encoder|audio_encoder)/|^embedder/mm_")
"""The vision and audio towers and their projections; LoRA and optimiser leaves are not expected here."""
SHIFTED_NORMS = ("gemma", "gemma2", "gemma3")
"""Families whose trees store a norm's multiplier less one."""

Floats = npt.NDArray[Any]
Leaf = Callable[[], Floats]
Described = tuple[tuple[int, ...], str, Leaf]
"""Shape, storage type and reader of a leaf."""


def recognises(files: Sequence[ModelFile]) -> bool:
    """An Orbax folder has an index or an OCDBT manifest."""
    return any(PurePosixPath(file.name).name in INDEXES for file in files)


def read(files: Sequence[ModelFile]) -> Headers:
    """Configuration and tensor table of an Orbax checkpoint. Raises as `read_headers`."""
    leaves = _Checkpoint([file for file in files if file.role == "weights"]).leaves()
    shapes = {name: shape for name, (shape, _, _) in leaves.items()}
    config = DecoderConfig.from_orbax(shapes)
    found = dict(_split(leaves, config))
    names = {canonical: canonical for canonical in param_specs(config)}
    unused = {
        f"layers.{index}.{part}"
        for index, layer in enumerate(config.layers)
        if layer.kv_source is not None
        for part in ("k", "v", "k_norm")
    }
    offset = 1.0 if config.architecture in SHIFTED_NORMS else 0.0

    def ignored(name: str) -> bool:
        return name in unused or bool(OTHER_PARTS.search(name))

    return bind(config, found, names, ignored=ignored, norm_offset=offset)


class _Checkpoint:
    """A folder of zarr arrays, on disk or inside an OCDBT store; blobs are given their names by links."""

    def __init__(self, files: Sequence[ModelFile]) -> None:
        try:
            import tensorstore
        except ModuleNotFoundError as error:
            raise WeightsError(
                "Orbax checkpoints need tensorstore: install gemmule[orbax], or use safetensors or GGUF"
            ) from error
        self._store: Any = tensorstore
        index = min((file for file in files if PurePosixPath(file.name).name in INDEXES), key=_depth)
        self._folder = str(PurePosixPath(index.name).parent)
        self._inside = {
            _below(file.name, self._folder): file for file in files if _is_below(file, self._folder)
        }
        self._root = self._lay_out()
        self._ocdbt = "manifest.ocdbt" in self._inside

    def _lay_out(self) -> Path:
        """The folder the files lie in, or one of links when the store keeps them under other names."""
        name, file = next(iter(self._inside.items()))
        root = Path(file.path.removesuffix(name))
        if all(Path(one.path) == root / own for own, one in self._inside.items()):
            return root
        links = Path(tempfile.mkdtemp(prefix="gemmule-orbax-"))
        weakref.finalize(self, shutil.rmtree, links, ignore_errors=True)
        for own, one in self._inside.items():
            link = links / own
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(one.path).resolve())
        return links

    def leaves(self) -> dict[str, Described]:
        """Every array by its normalised leaf name."""
        found: dict[str, Described] = {}
        for path, driver in self._arrays():
            array = self._open(path, driver)
            kind = BLOCK_TYPES.get(array.dtype.name)
            if kind is None:
                raise WeightsError(f"tensor {path!r} is stored as {array.dtype.name}, which cannot be read")
            found[leaf_name(path)] = (tuple(array.shape), kind, partial(self._read, path, driver))
        return unstacked(found)

    def _arrays(self) -> list[tuple[str, str]]:
        """Paths of the arrays and the zarr version of each."""
        keys = self._keys() if self._ocdbt else list(self._inside)
        endings = {"/.zarray": "zarr", "/zarr.json": "zarr3"}
        return sorted(
            (key.removesuffix(end), driver)
            for key in keys
            for end, driver in endings.items()
            if key.endswith(end)
        )

    def _keys(self) -> list[str]:
        store = self._store.KvStore.open(self._kvstore("")).result()
        return [key.decode() for key in store.list().result()]

    def _kvstore(self, path: str) -> dict[str, Any]:
        if not self._ocdbt:
            return {"driver": "file", "path": f"{self._root / path}/"}
        base = {"driver": "file", "path": f"{self._root}/"}
        return {"driver": "ocdbt", "base": base, "path": f"{path}/" if path else ""}

    def _open(self, path: str, driver: str) -> Any:
        return self._store.open({"driver": driver, "kvstore": self._kvstore(path)}, read=True).result()

    def _read(self, path: str, driver: str) -> Floats:
        values: Floats = self._open(path, driver).read().result()
        return values


def _depth(file: ModelFile) -> int:
    return file.name.count("/")


def _is_below(file: ModelFile, folder: str) -> bool:
    return folder == "." or file.name.startswith(folder + "/")


def _below(name: str, folder: str) -> str:
    return name if folder == "." else name.removeprefix(folder + "/")


def leaf_name(path: str) -> str:
    """`transformer/layer_0/attn/q_einsum.w` and `layer_0.attn.q_einsum.w` -> `layer_0/attn/q_einsum`."""
    joined = path.replace(".", "/").removeprefix("params/").removeprefix("transformer/")
    return joined.removesuffix("/w")


_STACKED = re.compile(r"^stacked_layers/attention_type_(\d+)/(.+)$")


def unstacked(leaves: Mapping[str, Described]) -> dict[str, Described]:
    """Trees that stack alike layers of the attention pattern, one leaf per layer: layer i * period + type."""
    period = 1 + max((int(found[1]) for found in map(_STACKED.match, leaves) if found), default=0)
    flat: dict[str, Described] = {}
    for name, (shape, kind, leaf) in leaves.items():
        found = _STACKED.match(name)
        if found is None:
            flat[name] = (shape, kind, leaf)
            continue
        for index in range(shape[0]):
            layer = index * period + int(found[1])
            flat[f"layer_{layer}/{found[2]}"] = (shape[1:], kind, partial(_read_slice, leaf, index))
    return flat


def _read_slice(leaf: Leaf, index: int) -> Floats:
    values: Floats = leaf()[index]
    return values


# Flax einsum weights as matrices [out, in] ---------------------------------------------------------------


def _projection(weights: Floats) -> Floats:
    """[heads, D, H] -> [heads * H, D]."""
    return weights.transpose(0, 2, 1).reshape(-1, weights.shape[1])


def _output(weights: Floats) -> Floats:
    """[heads, H, D] -> [D, heads * H]."""
    return weights.reshape(-1, weights.shape[2]).T


def _transposed(weights: Floats) -> Floats:
    return weights.T


def _unchanged(weights: Floats) -> Floats:
    return weights


def _rows_of_vectors(weights: Floats) -> Floats:
    """[V, L, P] -> [V, L * P]."""
    return weights.reshape(weights.shape[0], -1)


def _joined_transposed(weights: Floats) -> Floats:
    """[D, L, P] -> [L * P, D]."""
    return weights.reshape(weights.shape[0], -1).T


def _predictions(weights: Floats) -> Floats:
    """[S, S, S] (modality, stream, from) -> [S * S, S]."""
    return weights.reshape(weights.shape[0], -1).T


def _expert_gates(weights: Floats) -> Floats:
    """[E, 2, F, D] -> [E, 2 * F, D], the gate's rows first."""
    return weights.reshape(weights.shape[0], -1, weights.shape[3])


def _expert_outputs(weights: Floats) -> Floats:
    """[E, F, D] -> [E, D, F]."""
    return weights.transpose(0, 2, 1)


Part = tuple[str, int | None, Callable[[Floats], Floats]]
"""Our name, the index into the leaf's first axis, and what to do with it."""
Parts = Mapping[str, tuple[Part, ...]]

LEAVES: Parts = {
    "attn/q_einsum": (("q", None, _projection),),
    "attn/k_einsum": (("k", None, _projection),),
    "attn/kv_einsum": (("k", 0, _projection), ("v", 1, _projection)),
    "attn/qkv_einsum": (("q", 0, _projection), ("k", 1, _projection), ("v", 2, _projection)),
    "attn/attn_vec_einsum": (("o", None, _output),),
    "attn/_query_norm/scale": (("q_norm", None, _unchanged),),
    "attn/_key_norm/scale": (("k_norm", None, _unchanged),),
    "attn/query_norm/scale": (("q_norm", None, _unchanged),),
    "attn/key_norm/scale": (("k_norm", None, _unchanged),),
    "mlp/linear": (("down", None, _transposed),),
    "pre_attention_norm/scale": (("attention_norm", None, _unchanged),),
    "post_attention_norm/scale": (("post_attention_norm", None, _unchanged),),
    "pre_ffw_norm/scale": (("ffn_norm", None, _unchanged),),
    "post_ffw_norm/scale": (("post_ffn_norm", None, _unchanged),),
    "skip_scale": (("layer_scale", None, _unchanged),),
    "per_layer_input_gate": (("per_layer_gate", None, _transposed),),
    "per_layer_projection": (("per_layer_projection", None, _transposed),),
    "post_per_layer_input_norm/scale": (("post_per_layer_norm", None, _unchanged),),
    "per_layer_mapping/per_layer_input_gate": (("per_layer_gate", None, _transposed),),
    "per_layer_mapping/per_layer_projection": (("per_layer_projection", None, _transposed),),
    "per_layer_mapping/post_per_layer_input_norm/scale": (("post_per_layer_norm", None, _unchanged),),
    "altup/correction_coefs": (("altup_correct", None, _transposed),),
    "altup/prediction_coefs": (("altup_predict", None, _predictions),),
    "altup/correct_output_scale": (("altup_scale", None, _unchanged),),
    "altup/modality_router": (("altup_router", None, _transposed),),
    "altup/router_norm_layer/scale": (("altup_router_norm", None, _unchanged),),
    "laurel/linear_left": (("laurel_left", None, _transposed),),
    "laurel/linear_right": (("laurel_right", None, _transposed),),
    "post_laurel_norm/scale": (("post_laurel_norm", None, _unchanged),),
}
MIXTURE_LEAVES: Parts = {
    "mlp2/linear": (("down", None, _transposed),),
    "mlp/linear": (("experts_down", None, _expert_outputs),),
    "mlp/gating_einsum": (("experts_gate_up", None, _expert_gates),),
    "mlp/router_logits": (("router", None, _transposed),),
    "mlp/router_scale": (("router_scale", None, _unchanged),),
    "mlp/per_expert_scale": (("expert_scale", None, _unchanged),),
    "pre_ffw_norm/scale": (("pre_experts_norm", None, _unchanged),),
    "post_ffw1_norm/scale": (("post_experts_norm", None, _unchanged),),
    "pre_ffw2_norm/scale": (("ffn_norm", None, _unchanged),),
    "post_ffw2_norm/scale": (("post_dense_norm", None, _unchanged),),
}
"""Layers with experts: these have the names that the dense network has elsewhere, which is `mlp2`."""
TOP_LEAVES: dict[str, tuple[str, Callable[[Floats], Floats]]] = {
    "embedder/input_embedding": ("embedding", _unchanged),
    "embedder/per_layer_embeddings": ("per_layer_embedding", _rows_of_vectors),
    "embedder/per_layer_input_embedding": ("per_layer_embedding", _rows_of_vectors),
    "embedder/per_layer_model_projection": ("per_layer_model_projection", _joined_transposed),
    "embedder/per_layer_input_projection": ("per_layer_model_projection", _joined_transposed),
    "embedder/per_layer_projection_norm/scale": ("per_layer_projection_norm", _unchanged),
    "final_norm/scale": ("final_norm", _unchanged),
}
_STREAM = re.compile(r"^altup_(unembed_)?projection_(\d+)(?:/|$)")
_LAYER = re.compile(r"^layer_(\d+)/(.+)$")


def _parts(name: str, shape: tuple[int, ...], config: DecoderConfig) -> tuple[str, tuple[Part, ...]]:
    """Prefix of our names and the parts of a leaf; an unknown leaf keeps its own name, to be refused."""
    if name in TOP_LEAVES:
        own, turn = TOP_LEAVES[name]
        return "", ((own, None, turn),)
    stream, layer = _STREAM.match(name), _LAYER.match(name)
    if stream is not None:
        kind = "altup_unembed" if stream[1] else "altup_projection"
        return "", ((f"{kind}.{stream[2]}", None, _transposed),)
    if layer is None:
        return "", ((name, None, _unchanged),)
    index, own = int(layer[1]), layer[2]
    mixture = index < len(config.layers) and config.layers[index].experts is not None
    table = {**LEAVES, **MIXTURE_LEAVES} if mixture else LEAVES
    prefix = f"layers.{index}."
    if own == ("mlp2/gating_einsum" if mixture else "mlp/gating_einsum"):
        # [2, D, F] in some, [2, F, D] in others
        turn = _transposed if shape[1] == config.width else _unchanged
        return prefix, (("gate", 0, turn), ("up", 1, turn))
    return (prefix, table[own]) if own in table else ("", ((name, None, _unchanged),))


def _split(leaves: Mapping[str, Described], config: DecoderConfig) -> list[tuple[str, Stored]]:
    """Every leaf as one or several of our matrices, each read when it is asked for."""
    found = []
    for name, (shape, kind, leaf) in leaves.items():
        prefix, parts = _parts(name, shape, config)
        for own, index, turn in parts:
            probe = np.broadcast_to(np.bool_(False), shape if index is None else shape[1:])
            stored = Stored(name, turn(probe).shape, kind, partial(_read_part, leaf, index, turn))
            found.append((prefix + own, stored))
    return found


def _read_part(leaf: Leaf, index: int | None, turn: Callable[[Floats], Floats]) -> Rows:
    values = leaf()
    return rows_of(np.ascontiguousarray(turn(values if index is None else values[index])))

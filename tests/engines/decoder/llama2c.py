"""Converts checkpoints of llama2.c to GGUF and safetensors, so that a real trained tiny model can be served.

The format's only description is its reader; rotary pairs are interleaved there and halves here.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from modelfiles.files import ModelFile

Tensors = dict[str, np.ndarray[Any, Any]]
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
FIRST_TEXT_PIECE = 259
DTYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def list_files(folder: Path) -> list[ModelFile]:
    """The files of a model's folder, as the store would name them."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            weights = path.suffix in (".safetensors", ".gguf")
            name = path.relative_to(folder).as_posix()
            role = "weights" if weights else "config"
            found.append(ModelFile(role, name, str(path), "sha256:" + "0" * 64, path.stat().st_size))
    return found


def safetensors_bytes(tensors: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """A safetensors file: header length, JSON header, data."""
    header, data = {}, b""
    for name, array in tensors.items():
        start = len(data)
        data += np.ascontiguousarray(array).tobytes()
        kind = DTYPE_NAMES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


class Llama2c:
    """A checkpoint of llama2.c, version 0, and the vocabulary beside it."""

    def __init__(self, folder: Path, name: str) -> None:
        raw = (folder / f"{name}.bin").read_bytes()
        fields = struct.unpack("<7i", raw[:28])
        self.width, self.inner, self.layers, self.heads, self.kv_heads, self.vocabulary, self.context = fields
        self._values = np.frombuffer(raw, "<f4", offset=28)
        self._at = 0
        self.pieces = self._read_pieces((folder / "tok512.bin").read_bytes())

    def _take(self, *shape: int) -> np.ndarray[Any, Any]:
        start, self._at = self._at, self._at + int(np.prod(shape))
        return self._values[start : self._at].reshape(shape)

    def tensors(self) -> Tensors:
        """Weights under GGUF's names; query and key rows are for interleaved pairs, as in GGUF."""
        self._at = 0
        width, inner, layers = self.width, self.inner, self.layers
        keys = width // self.heads * self.kv_heads
        stacked = {"token_embd": self._take(self.vocabulary, width)}
        rows = (
            ("attn_norm", (width,)),
            ("attn_q", (width, width)),
            ("attn_k", (keys, width)),
            ("attn_v", (keys, width)),
            ("attn_output", (width, width)),
            ("ffn_norm", (width,)),
            ("ffn_gate", (inner, width)),
            ("ffn_down", (width, inner)),
            ("ffn_up", (inner, width)),
        )
        for part, shape in rows:
            array = self._take(layers, *shape)
            stacked |= {f"blk.{index}.{part}": array[index] for index in range(layers)}
        stacked["output_norm"] = self._take(width)
        return {f"{name}.weight": array for name, array in stacked.items()}

    def _read_pieces(self, raw: bytes) -> list[tuple[bytes, float]]:
        at, pieces = 4, []
        for _ in range(self.vocabulary):
            score, length = struct.unpack_from("<fi", raw, at)
            pieces.append((raw[at + 8 : at + 8 + length], score))
            at += 8 + length
        return pieces

    def text(self, ids: list[int]) -> str:
        """What llama2.c prints for generated tokens after BOS: the first piece loses its leading space."""
        joined = b"".join(self.pieces[token][0] for token in ids)
        return re.sub(rb"<0x([0-9A-F]{2})>", lambda m: bytes([int(m[1], 16)]), joined).decode().lstrip(" ")


def sentencepiece_pieces(model: Llama2c) -> Iterator[tuple[str, float, int]]:
    """Name, score and type (SentencePiece's, also GGUF's) of every piece, as SentencePiece spells them."""
    for index, (piece, score) in enumerate(model.pieces):
        if index < 3:
            yield ("<unk>", "<s>", "</s>")[index], score, UNKNOWN if index == 0 else CONTROL
        else:
            name = piece.decode().replace(" ", "\u2581")
            yield name, score, BYTE if index < FIRST_TEXT_PIECE else NORMAL


def write_llama2c_tokenizer(model: Llama2c, path: Path) -> None:
    """`tokenizer.model`: the vocabulary as a SentencePiece BPE model, through sentencepiece's own schema."""
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto()
    proto.trainer_spec.model_type = schema.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = model.vocabulary
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    for name, score, kind in sentencepiece_pieces(model):
        proto.pieces.add(piece=name, score=score, type=kind)
    path.write_bytes(proto.SerializeToString())


def write_llama2c_gguf(model: Llama2c, path: Path) -> None:
    """GGUF F32 with its SentencePiece vocabulary, through the `gguf` package."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(model.layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_feed_forward_length(model.inner)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("llama")
    pieces = list(sentencepiece_pieces(model))
    writer.add_token_list([name for name, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, array in model.tensors().items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


HF_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_up": "mlp.up_proj",
}


def write_llama2c_folder(model: Llama2c, folder: Path, dtype: Any = np.float32) -> None:
    """config.json and model.safetensors, query and key rows regrouped to half-split pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: Tensors = {}
    for name, array in model.tensors().items():
        part = name.removesuffix(".weight")
        if part.startswith("blk."):
            _, index, kind = part.split(".")
            heads = {"attn_q": model.heads, "attn_k": model.kv_heads}.get(kind)
            if heads:
                array = array.reshape(heads, -1, 2, model.width).swapaxes(1, 2).reshape(array.shape)
            name = f"model.layers.{index}.{HF_PARTS[kind]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[part]
        tensors[name] = array.astype(dtype)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    config = {
        "model_type": "llama",
        "hidden_size": model.width,
        "intermediate_size": model.inner,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": model.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))

"""Writes bud as one GGUF file of architecture `gemma3`: Q8_0 matrices, F32 norms, tokenizer and template.

Tensor names and metadata keys are llama.cpp's for Gemma 3. Called by `__main__`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import sentencepiece

from engines.decoder.bud import tokenizer
from engines.decoder.bud.network import Params, Shape
from modelfiles.gguf_writer import RawTensor, write_gguf

MATRIX_NAMES = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
NORM_NAMES = {
    "attention_norm": "attn_norm",
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "attention_post_norm": "post_attention_norm",
    "hidden_norm": "ffn_norm",
    "hidden_post_norm": "post_ffw_norm",
}
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
MOSTLY_Q8_0 = 7
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6
"""`tokenizer.ggml.token_type` values."""


def export(params: Params, shape: Shape, tokenizer_model: Path, path: Path) -> None:
    """Write `params` as `path`."""
    write_gguf(path, metadata(shape) | vocabulary(tokenizer_model), tensors(params, shape))


def metadata(shape: Shape) -> dict[str, Any]:
    """The architecture's keys: sizes, bases, windows."""
    own = {
        "context_length": shape.context,
        "embedding_length": shape.width,
        "block_count": shape.layers,
        "feed_forward_length": shape.hidden,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": 1,
        "attention.key_length": shape.head_width,
        "attention.value_length": shape.head_width,
        "attention.layer_norm_rms_epsilon": shape.epsilon,
        "attention.sliding_window": shape.window,
        "rope.freq_base": shape.global_base,
    }
    return {
        "general.architecture": "gemma3",
        "general.type": "model",
        "general.name": "bud",
        "general.license": "cdla-sharing-1.0",
        "general.file_type": MOSTLY_Q8_0,
        "general.quantization_version": 2,
        **{f"gemma3.{key}": value for key, value in own.items()},
    }


def vocabulary(tokenizer_model: Path) -> dict[str, Any]:
    """The tokenizer's keys: pieces, scores and types of the SentencePiece model, and the chat template."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    ids = range(processor.get_piece_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(index) for index in ids],
        "tokenizer.ggml.scores": [float(processor.get_score(index)) for index in ids],
        "tokenizer.ggml.token_type": [_token_type(processor, index) for index in ids],
        "tokenizer.ggml.bos_token_id": tokenizer.BOS,
        "tokenizer.ggml.eos_token_id": tokenizer.EOS,
        "tokenizer.ggml.eot_token_id": tokenizer.END_OF_TURN,
        "tokenizer.ggml.unknown_token_id": tokenizer.UNKNOWN,
        "tokenizer.ggml.padding_token_id": tokenizer.PAD,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": TEMPLATE.read_text(encoding="utf-8").rstrip("\n"),
    }


def _token_type(processor: Any, index: int) -> int:
    if processor.is_unknown(index):
        return UNKNOWN
    if processor.is_control(index):
        return CONTROL
    return BYTE if processor.is_byte(index) else NORMAL


def tensors(params: Params, shape: Shape) -> list[tuple[str, npt.NDArray[Any] | RawTensor]]:
    """Every tensor by GGUF name: matrices transposed to [outputs, inputs], norms as 1 + weight."""
    found: list[tuple[str, npt.NDArray[Any] | RawTensor]] = [
        ("token_embd.weight", q8_0(np.asarray(params["embedding"]))),
        ("output_norm.weight", 1 + np.asarray(params["final_norm"])),
    ]
    for layer in range(shape.layers):
        for ours, theirs in NORM_NAMES.items():
            found.append((f"blk.{layer}.{theirs}.weight", 1 + np.asarray(params[ours][layer])))
        for ours, theirs in MATRIX_NAMES.items():
            found.append((f"blk.{layer}.{theirs}.weight", q8_0(np.asarray(params[ours][layer]).T)))
    return found


def q8_0(matrix: npt.NDArray[np.float32]) -> RawTensor:
    """The matrix in blocks of 32 bytes and a scale."""
    blocks = gguf.quants.quantize(np.ascontiguousarray(matrix), gguf.GGMLQuantizationType.Q8_0)
    return RawTensor("Q8_0", matrix.shape, blocks)

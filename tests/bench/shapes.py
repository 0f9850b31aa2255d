"""Random models of real shapes as GGUF files that any engine can load: weights, tokenizer and all.

The weights are random blocks of each storage type, in the mixtures that quantisers choose, since speed does
not depend on their values. The tokenizer has the real size, and a made-up word for every id. Called by the
benches that compare engines on the same file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engines.decoder.config import DecoderConfig
from engines.decoder.params import BLOCKS, param_specs
from engines.decoder.quantize import mixture
from engines.decoder.weights.convert import FILE_TYPES, describe
from engines.decoder.weights.names import GGUF, file_names
from modelfiles.gguf_writer import RawTensor, write_gguf

VOCABULARY = 262_144
FIRST_WORD = 512
"""Ids from here on are words; below lie control tokens, single bytes and fillers."""

SHAPES: dict[str, dict[str, int]] = {
    "270m": {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18},
    "1b": {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26},
    "4b": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "sliding_window": 1024,
    },
}
"""What distinguishes Gemma 3's text models, in config.json's names."""

TYPES = ("Q8_0", "Q4_0", "Q4_K_M", "BF16")
BF16_FILE = 32
"""llama.cpp's number for files of bfloat16 weights."""

SCALE_PLACES = {"Q4_K": (0, 2), "Q6_K": (208,)}
"""Where a block keeps its half-precision scales, when not in its first two bytes."""


def config_of(shape: str) -> dict[str, Any]:
    """A config.json of this shape, as `transformers` reads it too."""
    common = {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": VOCABULARY,
        "head_dim": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "sliding_window": 512,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return {**common, **SHAPES[shape]}


def storage_types(config: DecoderConfig, kind: str) -> dict[str, str]:
    """The storage type of every weight by canonical name, for one of `TYPES`."""
    if kind != "BF16":
        return mixture(config, kind)
    return {
        name: "F32" if spec.role in ("norm", "vector") else "BF16"
        for name, spec in param_specs(config).items()
    }


def weight_bytes(shape: str, kind: str) -> int:
    """Bytes of weights one token reads: everything, the tied table once."""
    config = DecoderConfig.from_hf(config_of(shape))
    types, total = storage_types(config, kind), 0
    for name, spec in param_specs(config).items():
        elements, size = BLOCKS[types[name]]
        total += spec.elements // elements * size
    return total


def model_file(folder: Path, shape: str, kind: str) -> Path:
    """The file of a shape and type in `folder`, written when it is not there yet."""
    path = folder / f"gemma3-{shape}-{kind}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        write_model(unfinished, shape, kind)
        unfinished.rename(path)
    return path


def write_model(path: Path, shape: str, kind: str, seed: int = 0) -> None:
    config = DecoderConfig.from_hf(config_of(shape))
    number = {name.upper(): number for name, number in FILE_TYPES.items()}.get(kind, BF16_FILE)
    quality = {"general.file_type": number, "general.quantization_version": 2}
    write_gguf(path, {**describe(config), **tokenizer(), **quality}, _tensors(config, kind, seed))


def _tensors(config: DecoderConfig, kind: str, seed: int) -> Iterator[tuple[str, Any]]:
    random = np.random.default_rng(seed)
    types, names = storage_types(config, kind), file_names(config, GGUF)
    for name, spec in param_specs(config).items():
        if spec.role == "norm":
            yield names[name], np.ones(spec.shape, np.float32)
        else:
            rows, width = spec.shape
            make = partial(random_blocks, types[name], (rows, width), random)
            yield names[name], RawTensor(types[name], spec.shape, make)


def random_blocks(kind: str, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Bytes [rows, row bytes] of random codes, with scales that keep a row's norm near one."""
    size, width = BLOCKS[kind]
    if kind == "BF16":
        values = random.standard_normal(shape, np.float32)
        values /= np.float32(shape[1] ** 0.5)
        return np.ascontiguousarray(values.view(np.uint16)[:, 1::2]).view(np.uint8)
    blocks = np.frombuffer(bytearray(random.bytes(shape[0] * shape[1] // size * width)), np.uint8)
    blocks = blocks.reshape(-1, width)
    spread = {"Q8_0": 74.0, "Q4_0": 4.6, "Q5_0": 9.2}.get(kind, 150.0) * shape[1] ** 0.5
    for place in SCALE_PLACES.get(kind, (0,)):
        blocks[:, place : place + 2] = np.frombuffer(np.float16(1 / spread).tobytes(), np.uint8)
    return blocks.reshape(shape[0], -1)


def tokenizer() -> dict[str, Any]:
    """Metadata of a SentencePiece vocabulary of the real size: control tokens, bytes, then numbered words."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>"]
    single = [f"<0x{byte:02X}>" for byte in range(256)]
    fillers = [f"<unused{index}>" for index in range(FIRST_WORD - len(control) - len(single))]
    words = [f"\u2581{_letters(index)}" for index in range(FIRST_WORD, VOCABULARY)]
    kinds = [3, 3, 3, 2] + [6] * 256 + [3] * len(fillers) + [1] * len(words)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": control + single + fillers + words,
        "tokenizer.ggml.scores": [0.0] * FIRST_WORD + [-float(rank) for rank in range(len(words))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }


def _letters(number: int) -> str:
    """A number in letters, so that a model's words are distinct and printable."""
    digits = ""
    while number:
        number, digit = divmod(number, 26)
        digits = chr(ord("a") + digit) + digits
    return digits


def random_prompt(length: int, seed: int) -> tuple[int, ...]:
    """Token ids of words: the same for the same seed, no two alike for different ones."""
    random = np.random.default_rng(seed)
    return tuple(random.integers(FIRST_WORD, VOCABULARY, length).tolist())

"""llama.cpp as a reference: its converter, its quantiser and its forward pass, through llama-cpp-python.

Optional: `Reference` needs llama-cpp-python, `convert` also llama.cpp's source tree, which the source
distribution of llama-cpp-python carries and LLAMA_CPP_SOURCE names.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

SOURCE = Path(os.environ.get("LLAMA_CPP_SOURCE", "/nonexistent"))
FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11}
FILE_TYPES |= {"Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30}
"""llama.cpp's mixtures by the number its interface takes."""
WANTED = {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}
"""The mixture whose plain type is a block type."""


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: object) -> None:
    """Only what llama.cpp calls an error is worth reading here."""
    if level >= 4:
        print(text.decode(errors="replace"), end="", file=sys.stderr)


llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


class Reference:
    """One sequence in llama.cpp: float32 cache, no flash attention, blocks multiplied as stored.

    `feed` returns float32 [tokens, vocabulary] (logits), of an `encoder` [tokens, width] (hidden states), and
    `pooled` [1, width]: their mean through the dense layers.
    """

    def __init__(
        self, path: Path, *, context: int = 512, encoder: bool = False, pooled: bool = False
    ) -> None:
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        model.use_extra_bufts = False  # repacked blocks are multiplied in another order
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        assert self._model, f"llama.cpp does not load {path}"
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = settings.n_outputs_max = context
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = 0  # float32
        settings.flash_attn_type = 0
        settings.embeddings, settings.pooling_type = encoder or pooled, int(pooled)
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        assert self._context, f"llama.cpp makes no context for {path}"
        self._encoder, self._pooled, self.length = encoder, pooled, 0

    def feed(self, ids: Any) -> np.ndarray[Any, Any]:
        count = len(ids)
        batch = llama_cpp.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = int(token), self.length + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = 1
        status = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        assert status == 0, f"llama_decode returned {status}"
        self.length += count
        return self._results(count)

    def _results(self, count: int) -> np.ndarray[Any, Any]:
        width = llama_cpp.llama_model_n_embd(self._model)
        if self._pooled:
            count, found = 1, llama_cpp.llama_get_embeddings_seq(self._context, 0)
        elif self._encoder:
            found = llama_cpp.llama_get_embeddings(self._context)
        else:
            found = llama_cpp.llama_get_logits(self._context)
            width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        return np.ctypeslib.as_array(found, (count * width,)).reshape(count, width).copy()

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


@contextmanager
def opened(path: Path, **settings: Any) -> Iterator[Reference]:
    reference = Reference(path, **settings)
    try:
        yield reference
    finally:
        reference.close()


def convert(folders: Mapping[Path, Mapping[str, Any]]) -> None:
    """Runs llama.cpp's converter on Hugging Face folders (with their configs): FOLDER.gguf, in float32."""
    for folder, config in folders.items():
        vocabulary = {str(index): index for index in range(config["vocab_size"])}
        tokenizer = {
            "model": {"vocab": vocabulary},
            "added_tokens": [],
        }  # Gemma's converter counts its tokens
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    script = str(Path(__file__).with_name("convert.py"))
    done = subprocess.run(
        [sys.executable, script, str(SOURCE), *map(str, folders)],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def quantize(path: Path, out: Path, mixture: str, *, pure: bool = False) -> Path:
    """What llama-quantize makes of a float GGUF; `pure` gives every matrix the same type."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.pure = FILE_TYPES[mixture], 1, pure
    status = llama_cpp.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(settings))
    assert status == 0, f"llama_model_quantize returned {status}"
    return out


def blocks_of(rows: np.ndarray[Any, Any], block_type: str) -> np.ndarray[Any, Any]:
    """float32 [rows, n] as blocks uint8 [rows, bytes], by ggml's reference quantiser."""
    kind = gguf.GGMLQuantizationType[block_type]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros((len(rows), rows.shape[1] // elements * size), np.uint8)
    convert_rows = llama_cpp.llama_cpp._lib.ggml_quantize_chunk
    convert_rows.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    convert_rows.restype = ctypes.c_size_t
    source = np.ascontiguousarray(rows, np.float32)
    written = convert_rows(int(kind), source.ctypes.data, out.ctypes.data, 0, *rows.shape, None)
    assert written == out.nbytes
    return out

"""The worker behind create's `quantize`: what it writes, its limit, and that it ends with its caller."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import psutil
import pytest

from engines.decoder.quantize import MIXTURES
from gateway.errors import BadRequest
from gateway.ollama.quantize import KINDS, quantization
from gateway.sandbox import Sandbox, SandboxError
from gateway.sandbox_calls import Quantize
from modelfiles.files import ModelFile
from modelfiles.gguf import GgufFile
from modelfiles.gguf_writer import write_gguf

WIDTH, INNER = 256, 512
NORMS = ("attn_norm", "ffn_norm")
MATRICES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH, WIDTH),
    "attn_v": (WIDTH, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (INNER, WIDTH),
    "ffn_up": (INNER, WIDTH),
    "ffn_down": (WIDTH, INNER),
}


def floats(path: Path, vocabulary: int = 64) -> tuple[ModelFile, ...]:
    """A llama of one layer with random weights, as F16."""
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": vocabulary,
    }
    random = np.random.default_rng(0)
    shapes = {"token_embd": (vocabulary, WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.{name}": (WIDTH,) for name in NORMS}
    shapes |= {f"blk.0.{name}": shape for name, shape in MATRICES.items()}
    tensors = {
        f"{name}.weight": random.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()
    }
    write_gguf(path, metadata, tensors.items())
    return (ModelFile("weights", path.name, str(path), "sha256:" + "0" * 64, path.stat().st_size),)


def test_the_types_are_those_the_engine_makes() -> None:
    assert set(KINDS.values()) == set(MIXTURES)
    assert quantization(None) is None
    with pytest.raises(BadRequest, match="unsupported quantization type F16 - supported types are"):
        quantization("F16")


def test_what_is_written_is_the_model_in_that_type(tmp_path: Path) -> None:
    files, path = floats(tmp_path / "floats.gguf"), tmp_path / "out"
    wanted = quantization("Q8_0")
    assert wanted is not None
    asyncio.run(wanted.write(files, path))
    before, after = GgufFile.open(files[0].path), GgufFile.open(path)
    assert after.metadata["general.file_type"] == 7
    assert {name: tensor.shape for name, tensor in after.tensors.items()} == {
        name: tensor.shape for name, tensor in before.tensors.items()
    }
    kinds = {name: tensor.ggml_type.name for name, tensor in after.tensors.items()}
    assert all(kind == ("F32" if "norm" in name else "Q8_0") for name, kind in kinds.items())


def test_the_written_file_has_a_limit(tmp_path: Path) -> None:
    files, path = floats(tmp_path / "floats.gguf"), tmp_path / "out"

    async def scenario() -> None:
        sandbox = Sandbox(1)
        try:
            with pytest.raises(SandboxError) as caught:
                await sandbox.call(Quantize(files, str(path), "q8_0", 10_000), bool)
            assert caught.value.kind_of_error == "OSError"
        finally:
            await sandbox.close()

    asyncio.run(scenario())
    assert path.stat().st_size <= 10_000


@pytest.mark.slow
def test_a_caller_that_leaves_takes_the_worker_along(tmp_path: Path) -> None:
    files, path = floats(tmp_path / "floats.gguf", vocabulary=120_000), tmp_path / "out"
    wanted = quantization("q4_K_M")
    assert wanted is not None

    before = set(psutil.Process().children())  # servers of other tests

    async def scenario() -> None:
        task = asyncio.create_task(wanted.write(files, path))
        while not (path.exists() and path.stat().st_size):
            assert not task.done()
            await asyncio.sleep(0.01)
        assert set(psutil.Process().children()) - before
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not set(psutil.Process().children()) - before

    asyncio.run(scenario())
    assert path.stat().st_size < files[0].size // 4

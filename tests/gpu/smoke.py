"""The whole path on a GPU, against the same path on the CPU: `make gpu-smoke`.

Serves `bud` and a random model of the Gemma 3 270M shape (262,144 tokens of vocabulary) once on the CPU and
once on the GPU, asks both for the same greedy continuations over HTTP, and compares them token by token as
far as the CPU's margin between its two likeliest tokens lasts. Then it unloads and reads the GPU's memory
again. Needs `nvidia-smi`; prints a table and one JSON line, exits 1 when something does not hold.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelfiles.gguf import GgufFile
from modelfiles.gguf_writer import write_gguf

ROOT = Path(__file__).resolve().parents[2]
BUD = ROOT / "registry" / "bundled" / "bud.gguf"
MARGIN = 0.05
"""Nats between the two likeliest tokens above which bf16 on a GPU must agree with f32 on a CPU."""
MEMORY_SLACK = 64 << 20
SHAPE = {"width": 640, "layers": 18, "heads": 4, "head_width": 256, "hidden": 2048, "vocabulary": 262_144}
NORMAL, UNUSED = 1, 5


@dataclass(frozen=True, slots=True)
class Answer:
    """Generated tokens and, for each, the margin in nats to the second likeliest one."""

    tokens: tuple[str, ...]
    margins: tuple[float, ...]
    seconds: float


def gpu_memory_used() -> int:
    """Bytes used on the first GPU, as nvidia-smi counts them."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(printed.splitlines()[0]) << 20


def write_270m(path: Path) -> None:
    """A random Gemma 3 of the 270M shape in bf16 with bud's tokenizer, padded to the real vocabulary."""
    import ml_dtypes

    random = np.random.default_rng(270)
    width, heads, head_width, hidden = (SHAPE[key] for key in ("width", "heads", "head_width", "hidden"))

    def matrix(rows: int, columns: int) -> Any:
        drawn = random.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)
        return drawn.astype(ml_dtypes.bfloat16)

    metadata = dict(GgufFile.open(BUD).metadata)
    extra = SHAPE["vocabulary"] - len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] = [
        *metadata["tokenizer.ggml.tokens"],
        *(f"<unused{index}>" for index in range(extra)),
    ]
    metadata["tokenizer.ggml.scores"] = [*metadata["tokenizer.ggml.scores"], *([-1e4] * extra)]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *([UNUSED] * extra)]
    metadata |= {
        "general.name": "random-270m",
        "general.file_type": 32,
        "gemma3.context_length": 32768,
        "gemma3.embedding_length": width,
        "gemma3.block_count": SHAPE["layers"],
        "gemma3.feed_forward_length": hidden,
        "gemma3.attention.head_count": heads,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": head_width,
        "gemma3.attention.value_length": head_width,
        "gemma3.attention.sliding_window": 512,
        "gemma3.rope.freq_base": 1e6,
    }

    def tensors() -> Iterator[tuple[str, Any]]:
        ones = np.ones(width, np.float32)
        yield "token_embd.weight", matrix(SHAPE["vocabulary"], width)
        yield "output_norm.weight", ones
        for layer in range(SHAPE["layers"]):
            prefix = f"blk.{layer}."
            for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
                yield f"{prefix}{name}.weight", ones
            for name in ("attn_q_norm", "attn_k_norm"):
                yield f"{prefix}{name}.weight", np.ones(head_width, np.float32)
            yield f"{prefix}attn_q.weight", matrix(heads * head_width, width)
            yield f"{prefix}attn_k.weight", matrix(head_width, width)
            yield f"{prefix}attn_v.weight", matrix(head_width, width)
            yield f"{prefix}attn_output.weight", matrix(width, heads * head_width)
            yield f"{prefix}ffn_gate.weight", matrix(hidden, width)
            yield f"{prefix}ffn_up.weight", matrix(hidden, width)
            yield f"{prefix}ffn_down.weight", matrix(width, hidden)

    write_gguf(path, metadata, tensors())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(device: str, models: Path) -> Iterator[str]:
    """A gateway of its own on `device`; yields its address and stops it afterwards."""
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "GEMMULE_DEVICE": device,
        "GEMMULE_HOST": address,
        "GEMMULE_MODELS": str(models),
        "GEMMULE_LOAD_TIMEOUT": "10m",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    process = subprocess.Popen([sys.executable, "-m", "gateway.cli.main", "serve"], env=environment)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://{address}/livez", timeout=1)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the server on {device} did not start") from None
                time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(60)


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=900) as reply:
        return json.load(reply)


def ask(address: str, model: str) -> Answer:
    """Forty greedy tokens with the log-probabilities of the two likeliest."""
    started = time.monotonic()
    body = {
        "model": model,
        "prompt": "Once upon a time there was a fox who",
        "max_tokens": 40,
        "temperature": 0,
        "logprobs": 2,
    }
    logprobs = post(f"{address}/v1/completions", body)["choices"][0]["logprobs"]
    margins = []
    for top in logprobs["top_logprobs"]:
        best = sorted(top.values(), reverse=True)
        margins.append(best[0] - best[1] if len(best) > 1 else 0.0)
    return Answer(tuple(logprobs["tokens"]), tuple(margins), time.monotonic() - started)


def agreement(cpu: Answer, gpu: Answer) -> tuple[int, bool]:
    """How many tokens agree, and whether the first difference is at a margin too small to judge."""
    for index, (ours, theirs) in enumerate(zip(cpu.tokens, gpu.tokens, strict=False)):
        if ours != theirs:
            return index, cpu.margins[index] < MARGIN
    return min(len(cpu.tokens), len(gpu.tokens)), len(cpu.tokens) == len(gpu.tokens)


def create(address: str, name: str, gguf: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "gateway.cli.main",
        "create",
        name,
        "-f",
        str(gguf.with_suffix(".Modelfile")),
    ]
    gguf.with_suffix(".Modelfile").write_text(f"FROM {gguf}\n", encoding="utf-8")
    host = address.removeprefix("http://")
    environment = os.environ | {"GEMMULE_HOST": host, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True)


def main() -> int:
    """Run both devices; returns the exit status."""
    if shutil.which("nvidia-smi") is None:
        print("gpu-smoke: no nvidia-smi on this machine, so there is no GPU to try", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        large = folder / "random-270m.gguf"
        write_270m(large)
        answers: dict[tuple[str, str], Answer] = {}
        before = gpu_memory_used()
        after = during = before
        for device in ("cpu", "gpu"):
            with server(device, folder / "models") as address:
                if device == "cpu":
                    create(address, "random-270m", large)
                for model in ("bud", "random-270m"):
                    answers[device, model] = ask(address, model)
                if device == "gpu":
                    during = gpu_memory_used()
                    for model in ("bud", "random-270m"):
                        post(f"{address}/api/generate", {"model": model, "keep_alive": 0})
                    time.sleep(3)
                    after = gpu_memory_used()
        return report(answers, before, during, after)


def report(answers: dict[tuple[str, str], Answer], before: int, during: int, after: int) -> int:
    """Print the table and the JSON line; 0 when all holds."""
    row: dict[str, Any] = {"gpu_bytes_before": before, "gpu_bytes_loaded": during, "gpu_bytes_after": after}
    holds = after - before < MEMORY_SLACK and during > before
    print(f"{'model':<14}{'tokens equal':>14}{'first try s':>14}  verdict")
    for model in ("bud", "random-270m"):
        equal, fine = agreement(answers["cpu", model], answers["gpu", model])
        holds &= fine
        row[f"{model}_equal_tokens"] = equal
        seconds = answers["gpu", model].seconds
        print(f"{model:<14}{equal:>14}{seconds:>14.1f}  {'ok' if fine else 'DIFFERS above the margin'}")
    print(f"GPU memory: {before >> 20} MiB before, {during >> 20} loaded, {after >> 20} after unload")
    print(json.dumps(row | {"holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())

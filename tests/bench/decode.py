"""Decoding speed of a random model of Gemma 3 270M's shape: the native kernels against plain XLA, paired.

    python tests/bench/decode.py [--type Q8_0] [--batches 1,8] [--rounds 5] [--tokens 32]

Each round times both in ABBA order; the ratio is the median over the rounds' ratios, with a
bootstrap 90 % interval. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from engines.decoder import native, ops
from engines.decoder.cache import init_cache
from engines.decoder.model import Batch, forward, logits
from engines.decoder.params import BLOCKS
from engines.decoder.sampling import greedy
from engines.decoder.weights.loading import LoadedModel, load_model
from modelfiles.files import ModelFile
from modelfiles.gguf_writer import RawTensor, write_gguf

WIDTH, HIDDEN, LAYERS, HEADS, HEAD_DIM, VOCABULARY, WINDOW = 640, 2048, 18, 4, 256, 262144, 512
MATRICES = {
    "attn_q": (HEADS * HEAD_DIM, WIDTH),
    "attn_k": (HEAD_DIM, WIDTH),
    "attn_v": (HEAD_DIM, WIDTH),
    "attn_output": (WIDTH, HEADS * HEAD_DIM),
    "ffn_gate": (HIDDEN, WIDTH),
    "ffn_up": (HIDDEN, WIDTH),
    "ffn_down": (WIDTH, HIDDEN),
}
NORMS = {
    "attn_norm": WIDTH,
    "attn_q_norm": HEAD_DIM,
    "attn_k_norm": HEAD_DIM,
    "post_attention_norm": WIDTH,
    "ffn_norm": WIDTH,
    "post_ffw_norm": WIDTH,
}


def random_blocks(block_type: str, shape: tuple[int, int], random: np.random.Generator) -> RawTensor:
    """Blocks of random codes with a scale that keeps a row's norm near one."""
    size, width = BLOCKS[block_type]
    if block_type == "BF16":
        values = (random.standard_normal(shape, np.float32) / shape[1] ** 0.5).view(np.uint16)[:, 1::2]
        return RawTensor(block_type, shape, np.ascontiguousarray(values).view(np.uint8))
    if shape[1] % size:
        return random_blocks("Q8_0", shape, random)  # as quantisers do with rows that hold no whole blocks
    blocks = random.integers(0, 256, (shape[0] * shape[1] // size, width), dtype=np.uint8)
    spread = {"Q8_0": 74.0, "Q4_0": 4.6}.get(block_type, 150.0) * shape[1] ** 0.5
    places = {"Q4_K": (0, 2), "Q6_K": (208,)}.get(block_type, (0,))
    for place in places:
        blocks[:, place : place + 2] = np.frombuffer(np.float16(1 / spread).tobytes(), np.uint8)
    return RawTensor(block_type, shape, blocks.reshape(shape[0], -1))


def random_model(path: Path, block_type: str, seed: int = 0) -> None:
    """A GGUF file of the 270M shape with random weights."""
    random = np.random.default_rng(seed)
    tensors: list[tuple[str, Any]] = [
        ("token_embd.weight", random_blocks(block_type, (VOCABULARY, WIDTH), random)),
        ("output_norm.weight", np.ones(WIDTH, np.float32)),
    ]
    for layer in range(LAYERS):
        tensors += [(f"blk.{layer}.{name}.weight", np.ones(size, np.float32)) for name, size in NORMS.items()]
        tensors += [
            (f"blk.{layer}.{name}.weight", random_blocks(block_type, shape, random))
            for name, shape in MATRICES.items()
        ]
    sizes = {
        "context_length": 32768,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": 1,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": WINDOW,
        "rope.freq_base": 1e6,
    }
    write_gguf(
        path, {"general.architecture": "gemma3", **{f"gemma3.{k}": v for k, v in sizes.items()}}, tensors
    )


@contextmanager
def plain_xla() -> Iterator[None]:
    """Inside, weights are loaded and programs traced as if there were no kernels."""
    offered = dict(ops._kernels)
    ops._kernels.clear()
    with mock.patch.object(native, "register_all", lambda: None):
        yield
    ops._kernels.update(offered)


def load(path: Path) -> LoadedModel:
    return load_model([ModelFile("weights", path.name, str(path), "sha256:" + "0" * 64, path.stat().st_size)])


def decoder(model: LoadedModel, batch: int, context: int = 512) -> Callable[[int], float]:
    """A function that decodes so many greedy steps and returns the seconds of one."""

    @partial(jax.jit, donate_argnums=1)
    def step(params: Any, cache: Any, tokens: jax.Array, positions: jax.Array) -> Any:
        rows = Batch(tokens[:, None], positions[:, None], jnp.arange(batch, dtype=jnp.int32))
        hidden, cache = forward(model.config, params, cache, rows)
        drawn = greedy(logits(model.config, params, hidden[:, 0])).token_ids
        return drawn, cache, positions + 1

    state: list[Any] = [
        jnp.zeros(batch, jnp.int32),
        init_cache(model.config, batch, context, jnp.bfloat16),
        jnp.zeros(batch, jnp.int32),
    ]

    def run(steps: int) -> float:
        if int(state[2][0]) + steps >= context:
            state[2] = jnp.zeros(batch, jnp.int32)
        start = time.perf_counter()
        for _ in range(steps):
            state[:] = step(model.params, state[1], state[0], state[2])
        state[0].block_until_ready()
        return (time.perf_counter() - start) / steps

    run(2)
    return run


def paired_ratio(first: Callable[[], float], second: Callable[[], float], rounds: int) -> dict[str, float]:
    """Seconds of both, and how many times faster `first` is, from rounds in ABBA order."""
    times = np.array([(first(), second(), second(), first()) for _ in range(rounds)])
    ours, theirs = (times[:, 0] + times[:, 3]) / 2, (times[:, 1] + times[:, 2]) / 2
    ratios = theirs / ours
    random = np.random.default_rng(0)
    drawn = np.median(random.choice(ratios, (1000, rounds)), axis=1)
    low, high = np.quantile(drawn, (0.05, 0.95))
    return {
        "first": float(np.median(ours)),
        "second": float(np.median(theirs)),
        "ratio": float(np.median(ratios)),
        "low": float(low),
        "high": float(high),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    kind = options.type.lower()
    line: dict[str, Any] = {"bench": "decode", "shape": "gemma3-270m", "path": native.available()}
    batches = [int(batch) for batch in options.batches.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        random_model(path, options.type)
        with plain_xla():
            slow = load(path)
            plain = [decoder(slow, batch) for batch in batches]
        fast = load(path)
    print(f"{options.type}: {fast.kernels} against {slow.kernels}")
    print(f"{'rows':>5} {'native tok/s':>13} {'XLA tok/s':>10} {'ratio':>6}  90 % interval")
    for batch, xla in zip(batches, plain, strict=True):
        ours_run, few = decoder(fast, batch), max(2, options.tokens // 4)
        found = paired_ratio(partial(ours_run, options.tokens), partial(xla, few), options.rounds)
        ours, theirs = batch / found["first"], batch / found["second"]
        rates = f"{batch:5} {ours:13.1f} {theirs:10.1f} {found['ratio']:6.2f}"
        print(f"{rates}  {found['low']:.2f}-{found['high']:.2f}")
        line[f"decode_{kind}_b{batch}_tokens"] = round(ours, 1)
        line[f"decode_{kind}_b{batch}_vs_xla"] = round(found["ratio"], 3)
    print(json.dumps(line))


if __name__ == "__main__":
    main()

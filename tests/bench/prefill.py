"""Prefill speed of a random model of Gemma 3 270M's shape: the native kernels against plain XLA, paired.

    python tests/bench/prefill.py [--type Q8_0] [--lengths 512] [--rounds 3]

A prompt is computed in chunks of at most 512 tokens, as the engine does. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from engines.decoder import native
from engines.decoder.cache import init_cache
from engines.decoder.model import Batch, forward, logits
from engines.decoder.weights.loading import LoadedModel
from tests.bench.decode import load, paired_ratio, plain_xla, random_model

CHUNK = 512


def prefiller(model: LoadedModel, length: int) -> Callable[[], float]:
    """A function that computes a prompt of `length` tokens up to its last logits and returns the seconds."""

    @partial(jax.jit, donate_argnums=1)
    def step(params: Any, cache: Any, tokens: jax.Array, first: jax.Array) -> Any:
        positions = first + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        batch = Batch(tokens, positions, jnp.zeros(1, jnp.int32))
        hidden, cache = forward(model.config, params, cache, batch)
        return logits(model.config, params, hidden[:, -1]), cache

    state: list[Any] = [init_cache(model.config, 1, length, jnp.bfloat16)]
    tokens = jnp.arange(min(CHUNK, length), dtype=jnp.int32)[None]

    def run() -> float:
        start = time.perf_counter()
        for first in range(0, length, CHUNK):
            scores, state[0] = step(model.params, state[0], tokens, jnp.int32(first))
        scores.block_until_ready()
        return time.perf_counter() - start

    run()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--lengths", default="512", help="multiples of 512")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    kind = options.type.lower()
    line: dict[str, Any] = {"bench": "prefill", "shape": "gemma3-270m", "path": native.available()}
    lengths = [int(length) for length in options.lengths.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        random_model(path, options.type)
        with plain_xla():
            slow = load(path)
            plain = [prefiller(slow, length) for length in lengths]
        fast = load(path)
    print(f"{options.type}: {fast.kernels} against {slow.kernels}")
    print(f"{'tokens':>6} {'native tok/s':>13} {'XLA tok/s':>10} {'ratio':>6}  90 % interval")
    for length, xla in zip(lengths, plain, strict=True):
        found = paired_ratio(prefiller(fast, length), xla, options.rounds)
        ours, theirs = length / found["first"], length / found["second"]
        rates = f"{length:6} {ours:13.1f} {theirs:10.1f} {found['ratio']:6.2f}"
        print(f"{rates}  {found['low']:.2f}-{found['high']:.2f}")
        line[f"prefill_{length}_{kind}_tokens"] = round(ours, 1)
        line[f"prefill_{length}_{kind}_vs_xla"] = round(found["ratio"], 3)
    print(json.dumps(line))


if __name__ == "__main__":
    main()

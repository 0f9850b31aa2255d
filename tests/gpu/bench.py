"""Checks and times the engine's programs on a GPU in under eight minutes: `make bench-gpu`.

    python -m tests.gpu.bench [--tiny] [--minutes 8] [--only NAME,...]

Needs JAX 0.10.2 or newer with its CUDA plugin, numpy and ml_dtypes, and this repository; nothing else of the
project's requirements, and no network. Where JAX is there but not the project's environment, run it with that
Python from the repository's root: `PYTHONPATH=. python3 -m tests.gpu.bench`. Where JAX is missing, carry the
wheels of `jax[cuda13]` along, install them with `pip install --no-index --find-links FOLDER`, then the same.

Models have random weights in the real shapes. Each part is tried by itself: what fails or does not fit into
the minutes is a row that says so, and the others still count. `--tiny` runs every part with toy shapes
anywhere, the GPU's forms included: a test of this script. Ends with one table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engines.decoder import blocks
from engines.decoder.config import DecoderConfig
from engines.decoder.gpu import forms, products
from engines.decoder.gpu.flags import CANDIDATES
from engines.decoder.model import encode, logits
from engines.decoder.programs import Key, Programs
from engines.decoder.quant import place
from tests.bench.shapes import config_of, random_blocks, storage_types
from tests.gpu.memory import two_models
from tests.gpu.models import random_params

CHECK_TOLERANCE = 0.05
"""Of the largest logit: eight bits of bfloat16 through six layers, against float32."""

AGREE = 0.02
"""Of the largest product: bfloat16 weights and activations against float32."""

CHECK_TOKENS = 48
COMPILERS = 6
STEPS = 64
TINY = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "head_dim": 64,
    "sliding_window": 64,
}


@dataclass(slots=True)
class Bench:
    """What the parts share: how large, until when, the bandwidth measured, and the rows so far."""

    tiny: bool
    deadline: float
    bandwidth: float = 0.0
    rows: dict[str, float | str] = field(default_factory=dict)

    def config(self, shape: str, layers: int | None = None) -> DecoderConfig:
        described = config_of(shape) | (TINY if self.tiny else {})
        return DecoderConfig.from_hf(described | ({"num_hidden_layers": layers} if layers else {}))

    def record(self, name: str, value: float | str) -> None:
        self.rows[name] = value
        shown = value if isinstance(value, str) else f"{value:,.4g}"
        print(f"{name:<44}{shown:>16}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--tiny", action="store_true", help="toy shapes, on whatever device there is")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", default="", help="parts to run, of " + ", ".join(PARTS))
    options = parser.parse_args()
    device = jax.devices()[0]
    if device.platform == "cpu" and not options.tiny:
        print("bench-gpu: JAX has no GPU here; --tiny tries the script itself", file=sys.stderr)
        return 2
    forms.register_all()
    bench = Bench(options.tiny, time.monotonic() + 60 * options.minutes)
    bench.record("device", device.device_kind)
    bench.record("jax", jax.__version__)
    chosen = options.only.split(",") if options.only else list(PARTS)
    failed = [name for name in chosen if not tried(bench, name)]
    print(json.dumps(bench.rows | {"failed": failed, "seconds": round(time.monotonic() - STARTED)}))
    return 1 if failed else 0


def tried(bench: Bench, name: str) -> bool:
    """Runs a part; whether it held. Its fault becomes a row."""
    if time.monotonic() > bench.deadline:
        bench.record(name, "no time left")
        return False
    try:
        PARTS[name](bench)
    except Exception as error:
        traceback.print_exc()
        bench.record(name, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
        return False
    return True


# Measuring


def seconds_of(run: Callable[[], Any], least: float = 0.3) -> float:
    """Seconds of one call: the best of five series dispatched in a row, each a fifth of `least` seconds."""
    jax.block_until_ready(run())
    started = time.perf_counter()
    jax.block_until_ready(run())
    count = max(1, round(least / 5 / max(time.perf_counter() - started, 1e-6)))
    return min(_series(run, count) for _ in range(5))


def _series(run: Callable[[], Any], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        last = run()
    jax.block_until_ready(last)
    return (time.perf_counter() - started) / count


def read_bandwidth(bench: Bench) -> None:
    """Bytes a second that a sum over memory reads: what every fraction below is of."""
    count = (1 << 20) if bench.tiny else (1 << 31)
    best = 0.0
    for kind, of in ((jnp.bfloat16, 2), (jnp.int8, 1), (jnp.float32, 4)):
        array = jnp.zeros((4096, count // 4096 // of), kind)
        total = jax.jit(lambda x: jnp.sum(x.astype(jnp.float32), axis=1))
        best = max(best, array.nbytes / seconds_of(lambda total=total, array=array: total(array)))
    bench.bandwidth = best
    bench.record("read_gb_per_second", best / 1e9)


# Checks


def check_products(bench: Bench) -> None:
    """Every packed type, in both forms, against the product of unpacked weights on the host."""
    random = np.random.default_rng(0)
    for kind in ("Q8_0", "Q4_0", "Q4_K", "Q6_K", "Q5_0"):
        shape = (1024, 2048)
        raw = random_blocks(kind, shape, random)
        matrix = place(raw, kind, shape, jax.devices()[0], platform="gpu")
        x = random.standard_normal((16, shape[1]), np.float32)
        exact = x @ blocks.dequantize(raw, kind).T
        for form, rows in ((products.reduce, 4), (products.dot, 16)):
            run = jax.jit(lambda x, data, form=form, kind=kind: form(x, data, kind, (1024, 2048)))
            found = np.asarray(run(jnp.asarray(x[:rows]), matrix.data))
            error = float(np.abs(found - exact[:rows]).max() / np.abs(exact).max())
            if not error < AGREE:
                raise AssertionError(f"{form.__name__} with {kind} is off by {error:.3g} of the largest")
            bench.record(f"error_{form.__name__}_{kind.lower()}", error)


def check_logits(bench: Bench) -> None:
    """Prefill and decoding through the cache, against one pass in float32 on this machine's CPU."""
    for kind in ("BF16", "Q8_0", "Q4_K_M"):
        config = bench.config("1b" if kind == "Q4_K_M" else "270m", layers=6)
        types = storage_types(config, kind)
        programs = Programs(
            config, random_params(config, types, "gpu"), slots=2, context=1024, kv_type=jnp.bfloat16
        )
        compile_all(programs, [("prefill", 64), ("decode", 1)])
        tokens = np.random.default_rng(1).integers(0, config.vocabulary_size, CHECK_TOKENS)
        found = [np.asarray(row) for row in through_cache(programs, tokens)]
        expected = on_the_cpu(config, types, tokens)[-len(found) :]
        worst = max(
            float(np.abs(ours - exact).max() / np.abs(exact).max())
            for ours, exact in zip(found, expected, strict=True)
        )
        if not worst < CHECK_TOLERANCE:
            raise AssertionError(f"logits of {kind} are off by {worst:.3g} of the largest")
        bench.record(f"error_logits_{kind.lower()}", worst)


def through_cache(programs: Programs, tokens: Any) -> Iterator[jax.Array]:
    """Logits [V] after the first 32 tokens in one chunk, and after each later one."""
    start = len(tokens) * 2 // 3
    ids = [int(token) for token in tokens]
    yield programs.prefill(ids[:start], 0, 0, 64, wanted=True)[0][0]
    for position in range(start, len(ids)):
        state = programs.state
        programs.state = state._replace(history=state.history.at[0, position].set(ids[position]))
        yield programs.decode([0], [position], [0], 1)[0]


def on_the_cpu(config: DecoderConfig, types: Mapping[str, str], tokens: Any) -> Any:
    """Logits [tokens, V] in float32, without a cache, by the plainest programs there are."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        params = random_params(config, types, "cpu", cpu)
        ids, positions = jnp.asarray(tokens, jnp.int32)[None], jnp.arange(len(tokens))[None]
        run = jax.jit(lambda params: logits(config, params, encode(config, params, ids, positions)[0]))
        return np.asarray(run(params))


# Times


def compile_all(programs: Programs, keys: list[Key]) -> None:
    """Compiles some programs side by side, as the engine would, without starting its own threads."""
    with ThreadPoolExecutor(COMPILERS) as pool:
        for key, program in zip(keys, pool.map(programs._compile, keys), strict=True):
            programs._compiled[key] = program


def made(
    bench: Bench, shape: str, kind: str, slots: int, context: int, keys: list[Key], **options: Any
) -> Programs:
    """A model on the device with some programs compiled."""
    config = bench.config(shape)
    context = 1024 if bench.tiny else context
    params = random_params(config, storage_types(config, kind), "gpu")
    programs = Programs(
        config, params, slots=slots, context=context, kv_type=jnp.bfloat16, compiler_options=options
    )
    compile_all(programs, keys)
    return programs


def step_seconds(programs: Programs, rows: int, position: int) -> float:
    """Seconds of one greedy step of `rows` streams at about `position`, dispatched as the engine does."""
    slots, adapters = list(range(rows)), [0] * rows
    last = [position]

    def step() -> Any:
        last[0] = position + (last[0] - position + 1) % STEPS
        scores = programs.decode(slots, [last[0]] * rows, adapters, rows)
        return programs.sample(scores, slots, [last[0] + 1] * rows, None, None).packed

    return seconds_of(step, least=1.0)


def bytes_a_step(programs: Programs) -> int:
    """What a step has to read: all weights once (the table of a tied head included)."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(programs.params))


def one_stream(bench: Bench) -> None:
    for shape, kinds in (("4b", ("BF16", "Q8_0", "Q4_0", "Q4_K_M")), ("270m", ("BF16", "Q8_0"))):
        for kind in kinds:
            programs = made(bench, shape, kind, 1, 2048, [("decode", 1), ("greedy", 1)])
            seconds = step_seconds(programs, 1, 500)
            name = f"decode_{shape}_{kind.lower()}_b1"
            bench.record(f"{name}_tokens_per_second", 1 / seconds)
            if bench.bandwidth:
                bench.record(f"{name}_roofline", bytes_a_step(programs) / seconds / bench.bandwidth)


def many_streams(bench: Bench) -> None:
    for kind in ("BF16", "Q8_0"):
        programs = made(bench, "4b", kind, 64, 2048, [("decode", 64), ("greedy", 64)])
        seconds = step_seconds(programs, 64, 900)
        bench.record(f"decode_4b_{kind.lower()}_b64_tokens_per_second", 64 / seconds)


def long_prompts(bench: Bench) -> None:
    size = 512
    for kind in ("BF16", "Q4_K_M"):
        programs = made(bench, "4b", kind, 1, 8192, [("prefill", size)])
        for length in (512, 1024 if bench.tiny else 8192):

            def prompt(length: int = length, programs: Programs = programs) -> Any:
                for start in range(0, length, size):
                    scores, _ = programs.prefill([7] * size, 0, start, size, start + size == length)
                return scores

            seconds = seconds_of(prompt)
            bench.record(f"prefill_{length}_4b_{kind.lower()}_tokens_per_second", length / seconds)


def product_forms(bench: Bench) -> None:
    """GB/s of weights in each form: `reduce` should win up to REDUCE_ROWS, `dot` above."""
    shape, random = (512, 512) if bench.tiny else (20480, 2560), np.random.default_rng(2)
    for kind in ("Q8_0", "Q4_0", "Q4_K", "Q6_K"):
        matrix = place(random_blocks(kind, shape, random), kind, shape, jax.devices()[0], platform="gpu")
        for rows in (1, 4, 8, 16):
            x = jnp.ones((rows, shape[1]), jnp.float32)
            for form in (products.reduce, products.dot):
                run = jax.jit(lambda x, data, form=form, kind=kind: form(x, data, kind, shape))
                seconds = seconds_of(lambda run=run, x=x, data=matrix.data: run(x, data), least=0.05)
                bench.record(
                    f"form_{kind.lower()}_{form.__name__}_{rows}_gb_per_second",
                    matrix.nbytes / seconds / 1e9,
                )


def xla_options(bench: Bench) -> None:
    """Eight streams, which unpack weights, plainly and with each option that might pay."""
    rows, keys = 8, [("decode", 8), ("greedy", 8)]
    plain = made(bench, "4b", "Q8_0", rows, 2048, keys)
    bench.record("option_none_tokens_per_second", rows / step_seconds(plain, rows, 500))
    for option in CANDIDATES:
        name = f"option_{option.name}"
        try:
            programs = made(bench, "4b", "Q8_0", rows, 2048, keys, **{option.name: option.value})
            bench.record(name + "_tokens_per_second", rows / step_seconds(programs, rows, 500))
        except Exception as error:  # an option this jaxlib does not know, or a program it breaks
            bench.record(name, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")


def both_models(bench: Bench) -> None:
    """Two processes, each within the budget it was given, on the same card."""
    for name, value in two_models(bench.tiny).items():
        bench.record(name, value)


PARTS: dict[str, Callable[[Bench], None]] = {
    "bandwidth": read_bandwidth,
    "products": check_products,
    "logits": check_logits,
    "one": one_stream,
    "many": many_streams,
    "prefill": long_prompts,
    "two": both_models,
    "forms": product_forms,
    "options": xla_options,
}
"""In the order of what is most wanted, should the time run out."""

STARTED = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())

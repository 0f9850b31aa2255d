"""How fast one native product is: microseconds and GB/s of weights read, by storage type, shape and batch.

    python tests/bench/kernels.py [--types Q8_0,Q4_0] [--batches 1,8] [--seconds 0.3]

Prints a table and one JSON line. The products run inside a compiled program, as in the engine.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from engines.decoder import native
from engines.decoder.params import BLOCKS

SHAPES = {"head 65536x640": (65536, 640), "gate 2048x640": (2048, 640), "down 640x2048": (640, 2048)}


def median_seconds(call: object, arguments: tuple[jax.Array, ...], seconds: float) -> float:
    call(*arguments).block_until_ready()  # type: ignore[operator]
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 5:
        start = time.perf_counter()
        call(*arguments).block_until_ready()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--types", default="Q8_0,Q4_0,Q4_K,Q6_K,BF16")
    parser.add_argument("--batches", default="1,8,512")
    parser.add_argument("--seconds", type=float, default=0.3)
    options = parser.parse_args()
    path = native.available()
    if path is None:
        raise SystemExit("the C++ kernels are not built")
    random = np.random.default_rng(0)
    results: dict[str, float] = {}
    print(f"path {path}\n{'type':6} {'shape':16} {'rows':>5} {'us':>10} {'GB/s':>7} {'GMAC/s':>8}")
    for block_type in options.types.split(","):
        size, width = BLOCKS[block_type]
        for name, shape in SHAPES.items():
            if shape[1] % size:
                shape = (shape[0], shape[1] // size * size)
            rows = random.integers(0, 60, (shape[0], shape[1] // size * width), dtype=np.uint8)
            packed = jnp.asarray(native.pack(rows, block_type, shape))
            call = jax.jit(lambda x, p, t=block_type, s=shape: native.quantized_matmul(x, p, t, s))
            for batch in map(int, options.batches.split(",")):
                if batch > 64 and shape[0] > 10000:
                    continue
                x = jnp.asarray(random.normal(size=(batch, shape[1])), jnp.float32)
                seconds = median_seconds(call, (x, packed), options.seconds)
                rate, work = packed.nbytes / seconds / 1e9, batch * shape[0] * shape[1] / seconds / 1e9
                print(
                    f"{block_type:6} {name:16} {batch:5} {seconds * 1e6:10.1f} {rate:7.1f} {work:8.1f}",
                    flush=True,
                )
                results[f"{block_type} {name} {batch}"] = round(seconds * 1e6, 1)
    print(json.dumps({"bench": "kernels", "path": path, "microseconds": results}))


if __name__ == "__main__":
    main()

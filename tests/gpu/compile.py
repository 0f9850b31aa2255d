"""XLA's own GPU compiler over the engine's programs, on a machine without a GPU: `make gpu-compile`.

    python -m tests.gpu.compile [--card H200] [--shape 4b] [--types BF16,Q8_0] [--whole] [--every]

Needs the CUDA plugin of JAX and `ptxas`, no driver and no card. Compiles for a card described below, down to
machine code, and looks at what came out: how many kernels a step launches, what it needs beside its
arguments, and whether any array as large as a layer's cache is copied or transposed. What it cannot tell is
time, and what autotuning will choose. Prints a table and one JSON line; exits 1 when something does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX: the plugin is to compile, not to look for a card
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax._src.xla_bridge as bridge
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engines.decoder.config import DecoderConfig
from engines.decoder.gpu.products import REDUCE_ROWS
from engines.decoder.params import PART_BYTES, activation_bytes
from engines.decoder.programs import Key, Programs
from tests.bench.shapes import TYPES, config_of, storage_types
from tests.gpu.programs import gpu_programs, jitted

SLOTS, CONTEXT = 4, 8192
FEW_ROWS_BYTES = 16 << 20
"""A step of few streams writes activations and scores; anything larger is weights or cache being copied."""

PERIOD = 6
"""Layers of one pattern of sliding and global ones in Gemma 3: enough to see every kernel."""


@dataclass(frozen=True, slots=True)
class Card:
    """What the compiler asks about a card; sizes in bytes, rates per second."""

    capability: tuple[int, int]
    processors: int
    bandwidth: int
    memory: int
    second_cache: int
    shared: int
    shared_most: int
    threads: int
    clock_ghz: float


CARDS = {
    "RTX 3070": Card((8, 6), 46, 448 * 10**9, 8 * 10**9, 4 << 20, 102_400, 101_376, 1536, 1.73),
    "A100": Card((8, 0), 108, 2039 * 10**9, 80 * 10**9, 40 << 20, 167_936, 166_912, 2048, 1.41),
    "RTX 4090": Card((8, 9), 128, 1008 * 10**9, 24 * 10**9, 72 << 20, 102_400, 101_376, 1536, 2.52),
    "H200": Card((9, 0), 132, 4800 * 10**9, 141 * 10**9, 50 << 20, 233_472, 232_448, 2048, 1.98),
}
"""Published figures; only choices of the compiler hang on them."""

KERNEL = re.compile(
    r"^\s*(?:ROOT )?%\S+ = (?P<result>.+?) (?:fusion|custom-call|while|conditional|copy|sort|scatter|dot)\("
)
SHAPE = re.compile(r"(?:bf16|f32|f16|s8)\[([\d,]+)\]")


def described(name: str, card: Card) -> str:
    """A card as XLA's target configuration, in protocol buffers' text form."""
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": card.shared,
        "shared_memory_per_block_optin": card.shared_most,
        "threads_per_core_limit": card.threads,
        "core_count": card.processors,
        "fpus_per_core": 128,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": card.bandwidth,
        "l2_cache_size": card.second_cache,
        "clock_rate_ghz": card.clock_ghz,
        "device_memory_size": card.memory,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    lines = "\n".join(f"  {key}: {value}" for key, value in device.items())
    major, minor = card.capability
    return (
        f"gpu_device_info {{\n{lines}\n  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 }\n'
        f'runtime_version {{ major: 12 minor: 9 }}\ndevice_description_str: "NVIDIA {name}"\n'
    )


def target(name: str) -> NamedSharding:
    """Where arguments of a program lie that is to be compiled for a card which is not here."""
    known = bridge.canonicalize_platform

    def canonical(platform: str) -> str:
        try:
            return known(platform)
        except RuntimeError:
            return "cuda"  # JAX knows a platform only once it has a device

    bridge.canonicalize_platform = canonical
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=described(name, CARDS[name]), topology="1x1x1"
    )
    return NamedSharding(Mesh(np.array(topology.devices), ("one",)), PartitionSpec())


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came out: kernels launched, bytes beside the arguments, arrays as large as a cache that move."""

    kernels: int
    temporary: int
    moved: tuple[str, ...]
    seconds: float


def compiled(programs: Programs, key: Key, where: NamedSharding, options: dict[str, Any]) -> Compiled:
    function, arguments = jitted(programs, key)
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), arguments
    )
    started = time.monotonic()
    program = function.lower(*placed).compile(compiler_options=options or None)
    seconds = time.monotonic() - started
    entry = program.as_text().partition("\nENTRY")[2]
    kernels = [found for line in entry.splitlines() if (found := KERNEL.match(line))]
    memory = program.memory_analysis()
    return Compiled(len(kernels), memory.temp_size_in_bytes, moved_caches(programs, kernels), seconds)


def moved_caches(programs: Programs, kernels: list[re.Match[str]]) -> tuple[str, ...]:
    """Results with a cache's dimensions, in any order, of anything but the update in place."""
    caches = {tuple(sorted(leaf.shape)) for leaf in jax.tree.leaves(programs.state.cache) if leaf.ndim == 4}
    found: Counter[str] = Counter()
    for kernel in kernels:
        name = kernel[0].split("%", 1)[1].split(" ", 1)[0]
        for dimensions in SHAPE.findall(kernel["result"]):
            sizes = tuple(sorted(int(size) for size in dimensions.split(",")))
            if sizes in caches and not re.search("scatter_fusion|update_slice_fusion", name):
                found[re.sub(r"[.\d]+$", "", name)] += 1
    return tuple(f"{count} {name}" for name, count in found.items())


def config_with(shape: str, whole: bool) -> DecoderConfig:
    described = config_of(shape)
    return DecoderConfig.from_hf(described if whole else described | {"num_hidden_layers": PERIOD})


def allowed(config: DecoderConfig, key: Key, slots: int) -> int:
    """Bytes a program may need beside its arguments: what is reckoned with before a model is loaded."""
    kind, size = key
    if kind == "decode" and size <= REDUCE_ROWS:
        return FEW_ROWS_BYTES
    return activation_bytes(config, slots) + PART_BYTES


def wanted_keys(programs: Programs, every: bool) -> list[Key]:
    if every:
        return programs._keys()
    few, many = programs.buckets.decode[0], programs.buckets.decode[-1]
    return [("decode", few), ("decode", many), ("prefill", 512), ("general", many), ("copy", 1)]


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per program; printed as they come."""
    where, rows = target(options.card), []
    given = dict(pair.split("=", 1) for pair in options.options)
    for kind in options.types.split(","):
        config = config_with(options.shape, options.whole)
        slots = options.slots
        programs = gpu_programs(config, storage_types(config, kind), slots=slots, context=CONTEXT)
        for key in wanted_keys(programs, options.every):
            found = compiled(programs, key, where, given)
            holds = found.temporary <= allowed(config, key, slots) and not found.moved
            name = f"{kind} {key[0]}_{key[1]}"
            rows.append(
                {"program": name, "kernels": found.kernels, "temporary": found.temporary, "holds": holds}
            )
            print(
                f"{name:<24}{found.kernels:>8}{found.temporary / 2**20:>12.1f}{found.seconds:>9.1f}  "
                f"{'ok' if holds else 'MOVES ' + ', '.join(found.moved) if found.moved else 'TOO LARGE'}",
                flush=True,
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--card", choices=CARDS, default="H200")
    parser.add_argument("--shape", default="4b")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--whole", action="store_true", help=f"all layers, not {PERIOD} of them")
    parser.add_argument("--every", action="store_true", help="every program, not one of each kind")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE", help="XLA's options")
    options = parser.parse_args()
    print(f"{options.shape} for {options.card}, jax {jax.__version__}")
    print(f"{'program':<24}{'kernels':>8}{'beside MiB':>12}{'seconds':>9}")
    rows = rows_of(options)
    print(
        json.dumps({"card": options.card, "shape": options.shape, "jax": jax.__version__, "programs": rows})
    )
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

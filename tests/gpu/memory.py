"""Two models in two processes on one GPU, each inside the memory it was given. Called by the bench.

python -m tests.gpu.memory SHAPE SLOTS CONTEXT    (what each of the two runs; prints one JSON line)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from engines.decoder.config import DecoderConfig
from engines.decoder.params import (
    PART_BYTES,
    RUNTIME_BYTES,
    activation_bytes,
    cache_bytes,
    held_bytes,
    param_specs,
)
from tests.bench.shapes import config_of, storage_types

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 240
STEPS = 64


def two_models(tiny: bool) -> dict[str, float | str]:
    """Rows: what each took at most, and was given, in MiB. Raises AssertionError when one took more."""
    models = (("270m", 4, 2048), ("270m" if tiny else "1b", 1, 1024))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.memory", *map(str, model), *(["tiny"] if tiny else [])],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for model in models
    ]
    rows: dict[str, float | str] = {}
    for index, process in enumerate(running):
        said, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        if process.returncode:
            raise AssertionError(f"model {index} ended with code {process.returncode}")
        found = json.loads(said.splitlines()[-1])
        rows[f"two_models_{index}_peak_mib"] = found["peak"] / 2**20
        rows[f"two_models_{index}_budget_mib"] = found["budget"] / 2**20
        if found["peak"] > found["budget"]:
            raise AssertionError(f"model {index} took {found['peak']} bytes of {found['budget']}")
    return rows


def gpu_bytes() -> int:
    """Memory of the first GPU; 0 where there is none."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return 0
    return int(said[0]) << 20 if said and said[0].isdigit() else 0


def budget_of(config: DecoderConfig, types: dict[str, str], slots: int, context: int) -> int:
    """What `memory_needed` gives a file of these weights on a GPU."""
    weights = sum(held_bytes(spec.shape, types[name], "gpu") for name, spec in param_specs(config).items())
    rest = cache_bytes(config, slots, context) + activation_bytes(config, slots)
    return weights + rest + 2 * PART_BYTES + RUNTIME_BYTES["gpu"]


def main(shape: str, slots: int, context: int, tiny: bool) -> None:
    """Loads a model under the limits a runner would have, decodes, and tells what it took."""
    from tests.gpu.bench import TINY

    config = DecoderConfig.from_hf(config_of(shape) | (TINY if tiny else {}))
    types = storage_types(config, "Q8_0")
    budget, total = budget_of(config, types, slots, context), gpu_bytes()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if total:
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{budget / total:.6f}"
    import jax  # reads those variables when it first looks for a device
    import jax.numpy as jnp

    from engines.decoder.gpu import forms
    from engines.decoder.programs import Programs
    from tests.gpu.models import random_params

    forms.register_all()
    params = random_params(config, types, "gpu")
    programs = Programs(config, params, slots=slots, context=context, kv_type=jnp.bfloat16)
    for key in (("prefill", 64), ("decode", slots)):
        programs._compiled[key] = programs._compile(key)
    programs.prefill([7] * 64, 0, 0, 64, True)
    for position in range(64, 64 + STEPS):
        last = programs.decode(list(range(slots)), [position] * slots, [0] * slots, slots)
    jax.block_until_ready(last)
    taken = jax.devices()[0].memory_stats() or {}
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((params, programs.state)))
    print(json.dumps({"budget": budget, "peak": taken.get("peak_bytes_in_use", held)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), "tiny" in sys.argv)

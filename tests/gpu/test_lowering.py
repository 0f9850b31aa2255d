"""Every program of every family and storage type, lowered for CUDA here, where there is no GPU.

What the text may not hold: kernels of the CPU, double precision, calls back to the host. What it must: every
array of the state aliased to a result, so that no step copies the cache.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder.config import DecoderConfig
from engines.decoder.gpu.packing import FORMATS
from engines.decoder.params import param_specs
from engines.decoder.programs import Key, Programs
from tests.gpu.programs import donated_leaves, gpu_programs, jitted, keys

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "logits"
FAMILIES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
QUICKEST = "Q4_K"
WIDE = {
    "model_type": "gemma3_text",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "sliding_window": 64,
    "query_pre_attn_scalar": 64,
    "max_position_embeddings": 512,
}
"""Rows that hold whole blocks of every type."""

TYPES = (*FORMATS, "MXFP4", "BF16", "F16", "F32")
HOST = ("gemmule_", "callback", "host_", "xla_ffi_python")
FOREIGN = re.compile(r'custom_call @(\S+?)\(|call_target_name = "([^"]+)"')
KNOWN_CALLS = {"mhlo.topk", "Sharding", "annotate_device_placement"}


def stored_config(family: str) -> DecoderConfig:
    with np.load(GOLDEN / f"{family}.npz") as golden:
        return DecoderConfig.from_hf(json.loads(golden["model"].tobytes())["config"])


def types_of(config: DecoderConfig, kind: str) -> dict[str, str]:
    return {
        name: kind if spec.role in ("matrix", "embedding", "experts") else "F32"
        for name, spec in param_specs(config).items()
    }


def lowered(programs: Programs, key: Key) -> str:
    function, arguments = jitted(programs, key)
    return str(function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text())


def check(programs: Programs, key: Key) -> None:
    text = lowered(programs, key)
    assert [word for word in HOST if word in text] == []
    assert re.findall(r"[x<]f64>", text) == []
    called = {name for pair in FOREIGN.findall(text) for name in pair if name}
    assert called <= KNOWN_CALLS
    assert text.count("tf.aliasing_output") == donated_leaves(programs, key)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_program_of_a_family_is_for_the_gpu_alone(family: str) -> None:
    config = stored_config(family)
    programs = gpu_programs(config, types_of(config, "BF16"), slots=2, context=512)
    for key in {kind: (kind, size) for kind, size in keys(programs)}.values():
        check(programs, key)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == QUICKEST else pytest.mark.slow) for kind in TYPES]
)
def test_every_storage_type_is_for_the_gpu_alone(kind: str) -> None:
    """One row and many, which take different products; one type with an int8 cache."""
    config = DecoderConfig.from_hf(WIDE)
    cache = jnp.int8 if kind == "Q8_0" else jnp.bfloat16
    programs = gpu_programs(config, types_of(config, kind), slots=8, context=512, kv_type=cache)
    check(programs, ("decode", 1))
    check(programs, ("prefill", 64))

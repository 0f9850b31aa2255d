"""Every program of a model as the engine would make it for a GPU, traced on a machine that has none.

Called by the lowering tests, which run anywhere, and by the compile check, which runs XLA's own GPU compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from engines.decoder.config import DecoderConfig
from engines.decoder.gpu import forms
from engines.decoder.programs import Key, Programs
from tests.gpu.models import abstract_params


def gpu_programs(
    config: DecoderConfig,
    types: Mapping[str, str],
    *,
    slots: int,
    context: int,
    kv_type: DTypeLike = jnp.bfloat16,
) -> Programs:
    """The programs of a model on a GPU; its weights are shapes only, so they can be traced and not run."""
    forms.register_all()
    return Programs(config, abstract_params(config, types), slots=slots, context=context, kv_type=kv_type)


def keys(programs: Programs) -> list[Key]:
    """All programs of the model."""
    return programs._keys()


def jitted(programs: Programs, key: Key) -> tuple[Any, tuple[Any, ...]]:
    """The function of a program under `jit`, its state donated, and its abstract arguments."""
    kind, size = key
    describe: Callable[[int], Any] = getattr(programs, f"_{kind}_program")
    function, arguments, donated = describe(size)
    function.__name__ = f"{kind}_{size}"
    return jax.jit(function, donate_argnums=donated), arguments


def donated_leaves(programs: Programs, key: Key) -> int:
    """How many arrays the program is to update in place."""
    _, arguments, donated = getattr(programs, f"_{key[0]}_program")(key[1])
    return len(jax.tree.leaves([arguments[index] for index in donated]))

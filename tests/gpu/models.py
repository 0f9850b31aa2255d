"""Parameter trees of real shapes without files: as shapes alone, or with random numbers made on the device.

A matrix is a few rows of random blocks, packed by the code that packs a file's, and repeated on the device
until it is as tall as it should be: bytes and layouts are the real ones, and gigabytes appear in seconds.
Called by the compile check and the bench of this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engines.decoder.config import DecoderConfig
from engines.decoder.gpu.packing import FORMATS
from engines.decoder.params import BLOCKS, param_specs
from engines.decoder.quant import Platform, QuantizedMatrix, place, place_stack
from engines.decoder.weights.headers import Stored
from engines.decoder.weights.loading import build_tree, join
from tests.bench.shapes import random_blocks

SAMPLE_ROWS = 64

Make = Callable[[jax.Array, int, int], Any]
"""A sample array, the axis its rows lie on and how many there should be -> what goes into the tree."""


def abstract_params(config: DecoderConfig, types: Mapping[str, str], platform: Platform = "gpu") -> Any:
    """Shapes and dtypes of the parameters of a model whose weights are stored as `types` (by name)."""
    return _params(config, types, platform, _abstract)


def random_params(
    config: DecoderConfig, types: Mapping[str, str], platform: Platform, device: jax.Device | None = None
) -> Any:
    """The same tree on a device (default: JAX's first), with random weights: the same on all."""
    return _params(config, types, platform, _repeated, device)


def _abstract(sample: jax.Array, axis: int, rows: int) -> Any:
    shape = (*sample.shape[:axis], rows, *sample.shape[axis + 1 :])
    return jax.ShapeDtypeStruct(shape, sample.dtype)


@partial(jax.jit, static_argnums=(1, 2))
def _repeated(sample: jax.Array, axis: int, rows: int) -> jax.Array:
    """Whole copies of the sample, the last one cut."""
    copies = -(-rows // sample.shape[axis])
    tiled = jnp.concatenate([sample] * copies, axis) if copies < 8 else jnp.repeat(sample, copies, axis)
    return jax.lax.slice_in_dim(tiled, 0, rows, axis=axis)


def _params(
    config: DecoderConfig,
    types: Mapping[str, str],
    platform: Platform,
    make: Make,
    device: jax.Device | None = None,
) -> Any:
    specs, random = param_specs(config), np.random.default_rng(0)
    device, placed = device or jax.devices()[0], dict[str, Any]()

    def unread() -> Any:
        raise AssertionError("only names and shapes are asked for")

    stored = {name: Stored(name, spec.shape, types[name], unread) for name, spec in specs.items()}
    for name, parts in join(stored).items():
        role, kind = specs[parts[0]].role, types[parts[0]]
        shape = (sum(specs[part].shape[0] for part in parts), *specs[parts[0]].shape[1:])
        if role in ("matrix", "embedding"):
            rows = _finite_blocks(kind, shape[1], random)
            sample = place(
                rows, kind, (SAMPLE_ROWS, shape[1]), device, look_up=role == "embedding", platform=platform
            )
            placed[name] = _grown(sample, shape[0], shape, make)
        elif role == "experts":
            rows = _finite_blocks(kind, shape[2], random)
            stack = np.broadcast_to(rows, (shape[0], *rows.shape))
            sample = place_stack(stack, kind, (shape[0], SAMPLE_ROWS, shape[2]), device, platform=platform)
            placed[name] = _grown(sample, shape[1], shape[1:], make)
        else:
            placed[name] = make(jnp.ones((1, *shape[1:]), jnp.float32), 0, shape[0])
    return build_tree(placed)


def _finite_blocks(kind: str, width: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """`random_blocks`, with every scale and minimum of the types that it does not know made small too."""
    rows = random_blocks(kind, (SAMPLE_ROWS, width), random)
    blocks = rows.reshape(-1, BLOCKS[kind][1])
    small = np.frombuffer(np.float16(width**-0.5 / 150).tobytes(), np.uint8)
    for at in FORMATS[kind].super_at if kind in FORMATS else ():
        blocks[:, at : at + 2] = small
    return rows


def _grown(sample: QuantizedMatrix, rows: int, shape: tuple[int, ...], make: Make) -> QuantizedMatrix:
    """The sample with `rows` outputs, which every array of a layout has on its one axis of that length."""
    data = tuple(make(array, array.shape.index(SAMPLE_ROWS), rows) for array in sample.data)
    return QuantizedMatrix(data, sample.block_type, sample.layout, (shape[0], shape[1]), sample.platform)

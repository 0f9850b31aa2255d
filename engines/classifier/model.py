"""The classifier as pure functions: images in, scores out. No loops over requests, no files.

Axes: B images, S side in pixels, C channels. Inference uses the folded form, whose convolutions carry a
bias; training (`train`) normalises by the batch and folds at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from engines.classifier.config import ClassifierConfig

Params = Mapping[str, jax.Array]


def planes_to_images(planes: jax.Array, side: int) -> jax.Array:
    """Bytes [B, 3 * S * S] in planes R, G, B, row-major, as images [B, S, S, 3] of the same type."""
    return planes.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)


def normalise(config: ClassifierConfig, images: jax.Array) -> jax.Array:
    """uint8 [B, S, S, 3] to float32 with roughly zero mean and unit deviation per channel."""
    pixels = images.astype(jnp.float32) / 255.0
    return (pixels - jnp.asarray(config.mean)) / jnp.asarray(config.deviation)


def convolve(x: jax.Array, weight: jax.Array) -> jax.Array:
    """A 3 x 3 convolution that keeps the size: [B, S, S, C] by [3, 3, C, D] -> [B, S, S, D]."""
    return jax.lax.conv_general_dilated(
        x, weight, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def halve(x: jax.Array) -> jax.Array:
    """The largest of each 2 x 2 pixels; an odd last row or column is dropped."""
    window = (1, 2, 2, 1)
    largest: jax.Array = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    return largest


def scores(config: ClassifierConfig, params: Params, images: jax.Array) -> jax.Array:
    """Unnormalised scores [B, labels] of uint8 images [B, S, S, 3]."""
    x = normalise(config, images)
    for stage, widths in enumerate(config.widths):
        for index in range(len(widths)):
            name = f"stages.{stage}.{index}"
            x = jax.nn.relu(convolve(x, params[f"{name}.weight"]) + params[f"{name}.bias"])
        x = halve(x)
    pooled = jnp.mean(x, axis=(1, 2))
    return pooled @ params["head.weight"] + params["head.bias"]

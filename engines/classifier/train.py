"""Trains an image classifier on folders of images, one folder a label, and saves it for `gemmule create`.

Batch normalisation while training, folded into the convolutions at the end; AdamW on a rising and falling
rate; images are mirrored and shifted. Decoding needs Pillow (the `images` extra). Called by `gemmule train`.

    ValueError      the folder holds no labelled images, or not enough of them
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from engines.classifier.config import ClassifierConfig
from engines.classifier.model import convolve, halve, normalise, scores
from engines.classifier.storage import Tensors
from modelfiles.images import ImageError, image_pixels

Images = npt.NDArray[np.uint8]
"""[N, S, S, 3], bytes of red, green and blue."""
Tree = dict[str, jax.Array]
Triple = tuple[float, float, float]

EPSILON = 1e-5
KEPT = 0.9
"""Share of the running statistics that each batch leaves as it was."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how boldly to train. `held_out` is the share of images never trained on."""

    epochs: int = 30
    batch: int = 128
    peak_rate: float = 4e-3
    decay: float = 0.05
    smoothing: float = 0.1
    shift: int = 4
    held_out: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """After an epoch: mean loss of its batches, share of held-out images named rightly, seconds so far."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    seconds: float


def train(
    config: ClassifierConfig,
    images: Images,
    labels: npt.NDArray[np.int32],
    recipe: Recipe,
    report: Callable[[Progress], None] = lambda progress: None,
) -> tuple[ClassifierConfig, Tensors]:
    """The trained configuration and folded weights. Raises ValueError when no batch can be made."""
    generator = np.random.default_rng(recipe.seed)
    order = generator.permutation(len(images))
    aside = max(1, round(len(images) * recipe.held_out))
    held, kept = order[:aside], order[aside:]
    if len(kept) < 2 * len(config.labels):
        raise ValueError(f"{len(images)} images are too few for {len(config.labels)} labels; give more")
    mean, deviation = _statistics(images[kept])
    config = replace(config, mean=mean, deviation=deviation)
    batch = min(recipe.batch, len(kept))
    steps = recipe.epochs * (len(kept) // batch)
    weights, running = _initial(config, recipe.seed)
    moments = {name: (jnp.zeros_like(value), jnp.zeros_like(value)) for name, value in weights.items()}
    update = jax.jit(partial(_update, config, recipe, steps))
    started, count, accuracy = time.monotonic(), 0, 0.0
    for epoch in range(recipe.epochs):
        losses: list[jax.Array] = []
        for chosen in _batches(generator.permutation(kept), batch):
            seen = augment(images[chosen], recipe.shift, generator)
            weights, running, moments, loss = update(
                weights, running, moments, jnp.int32(count), seen, labels[chosen]
            )
            losses.append(loss)
            count += 1
        folded = fold(config, weights, running)
        accuracy = accuracy_of(config, folded, images[held], labels[held])
        mean_loss = float(np.mean([float(each) for each in losses]))
        report(Progress(epoch + 1, recipe.epochs, mean_loss, accuracy, time.monotonic() - started))
    summary = {
        "accuracy": round(accuracy, 4),
        "held_out_images": len(held),
        "trained_on_images": len(kept),
        "epochs": recipe.epochs,
        "seconds": round(time.monotonic() - started, 1),
    }
    return replace(config, report=summary), fold(config, weights, running)


def augment(images: Images, shift: int, generator: np.random.Generator) -> Images:
    """Each image mirrored by chance and moved by up to `shift` pixels, the edge repeated."""
    side = images.shape[1]
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    down, right = generator.integers(0, 2 * shift + 1, (2, len(images)))
    mirrored = generator.random(len(images)) < 0.5
    moved = np.empty_like(images)
    for index in range(len(images)):
        cut = padded[index, down[index] : down[index] + side, right[index] : right[index] + side]
        moved[index] = cut[:, ::-1] if mirrored[index] else cut
    return moved


def accuracy_of(
    config: ClassifierConfig, tensors: Tensors, images: Images, labels: npt.NDArray[np.int32]
) -> float:
    """The share of images whose likeliest label is the right one."""
    run = jax.jit(partial(scores, config))
    right = 0
    for chosen in np.array_split(np.arange(len(images)), max(1, len(images) // 256)):
        right += int((np.asarray(run(tensors, images[chosen])).argmax(-1) == labels[chosen]).sum())
    return right / len(images)


def fold(config: ClassifierConfig, weights: Tree, running: Tree) -> Tensors:
    """The normalisation by running statistics put into the convolutions: what inference uses."""
    folded: Tensors = {
        "head.weight": np.asarray(weights["head.weight"]),
        "head.bias": np.asarray(weights["head.bias"]),
    }
    for name in _convolutions(config):
        factor = weights[f"{name}.scale"] / jnp.sqrt(running[f"{name}.variance"] + EPSILON)
        folded[f"{name}.weight"] = np.asarray(weights[f"{name}.weight"] * factor)
        folded[f"{name}.bias"] = np.asarray(weights[f"{name}.shift"] - running[f"{name}.mean"] * factor)
    return folded


def read_folder(folder: Path, side: int) -> tuple[Images, npt.NDArray[np.int32], tuple[str, ...]]:
    """Images [N, side, side, 3], their label numbers and the labels of a folder of folders of images.

    Raises ValueError naming the folder or the file that cannot be used.
    """
    kinds = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if len(kinds) < 2:
        raise ValueError(f"{folder} must hold one folder of images for each label, two at least")
    images: list[Images] = []
    labels: list[int] = []
    for number, kind in enumerate(kinds):
        for path in sorted(entry for entry in kind.iterdir() if entry.is_file()):
            try:
                images.append(image_pixels(path.read_bytes(), side))
            except (ImageError, OSError) as error:
                raise ValueError(f"{path}: {error}") from error
            labels.append(number)
        if number not in labels:
            raise ValueError(f"{kind} holds no image")
    return np.stack(images), np.asarray(labels, np.int32), tuple(kind.name for kind in kinds)


# The training form ----------------------------------------------------------------------------------------


def _convolutions(config: ClassifierConfig) -> list[str]:
    return [name.removesuffix(".bias") for name in config.tensor_shapes() if name.endswith(".bias")][:-1]


def _statistics(images: Images) -> tuple[Triple, Triple]:
    """Mean and deviation per channel of pixels in [0, 1]."""
    pixels = images.reshape(-1, 3).astype(np.float64) / 255
    mean, deviation = pixels.mean(0), np.maximum(pixels.std(0), 1e-3)
    return _triple(mean), _triple(deviation)


def _triple(values: npt.NDArray[np.float64]) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _initial(config: ClassifierConfig, seed: int) -> tuple[Tree, Tree]:
    """Fresh weights (He et al. 2015 for the convolutions) and running statistics."""
    generator = np.random.default_rng(seed + 1)
    weights: Tree = {}
    running: Tree = {}
    shapes = config.tensor_shapes()
    for name in _convolutions(config):
        shape = shapes[f"{name}.weight"]
        spread = (2.0 / (9 * shape[2])) ** 0.5
        weights[f"{name}.weight"] = jnp.asarray(generator.normal(0, spread, shape), jnp.float32)
        weights[f"{name}.scale"] = jnp.ones(shape[3])
        weights[f"{name}.shift"] = jnp.zeros(shape[3])
        running[f"{name}.mean"] = jnp.zeros(shape[3])
        running[f"{name}.variance"] = jnp.ones(shape[3])
    head = generator.normal(0, shapes["head.weight"][0] ** -0.5, shapes["head.weight"])
    weights["head.weight"] = jnp.asarray(head, jnp.float32)
    weights["head.bias"] = jnp.zeros(shapes["head.bias"])
    return weights, running


def _batches(order: npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(order) - size + 1, size):
        yield order[start : start + size]


def _loss(
    config: ClassifierConfig,
    smoothing: float,
    weights: Tree,
    running: Tree,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, Tree]:
    """Mean cross entropy with smoothed targets, and the running statistics after this batch."""
    x = normalise(config, images)
    fresh: Tree = {}
    for stage, widths in enumerate(config.widths):
        for index in range(len(widths)):
            name = f"stages.{stage}.{index}"
            x = convolve(x, weights[f"{name}.weight"])
            mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
            for key, value in (("mean", mean), ("variance", variance)):
                fresh[f"{name}.{key}"] = KEPT * running[f"{name}.{key}"] + (1 - KEPT) * value
            normal = (x - mean) * jax.lax.rsqrt(variance + EPSILON)
            x = jax.nn.relu(normal * weights[f"{name}.scale"] + weights[f"{name}.shift"])
        x = halve(x)
    found = jax.nn.log_softmax(jnp.mean(x, (1, 2)) @ weights["head.weight"] + weights["head.bias"])
    count = len(config.labels)
    targets = jax.nn.one_hot(labels, count) * (1 - smoothing) + smoothing / count
    return -jnp.mean(jnp.sum(targets * found, -1)), fresh


def _update(
    config: ClassifierConfig,
    recipe: Recipe,
    steps: int,
    weights: Tree,
    running: Tree,
    moments: dict[str, tuple[jax.Array, jax.Array]],
    step: jax.Array,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[Tree, Tree, dict[str, tuple[jax.Array, jax.Array]], jax.Array]:
    """One AdamW step (Loshchilov and Hutter 2019); its rate rises for a fifth of all steps, then falls."""
    loss = partial(_loss, config, recipe.smoothing)
    (value, running), gradients = jax.value_and_grad(loss, has_aux=True)(weights, running, images, labels)
    done = (step + 1.0) / steps
    rate = recipe.peak_rate * jnp.minimum(done / 0.2, (1.0 - done) / 0.8)
    fresh: Tree = {}
    for name, gradient in gradients.items():
        first = 0.9 * moments[name][0] + 0.1 * gradient
        second = 0.99 * moments[name][1] + 0.01 * gradient**2
        moments[name] = first, second
        direction = first / (1 - 0.9 ** (step + 1)) / (jnp.sqrt(second / (1 - 0.99 ** (step + 1))) + 1e-8)
        decay = recipe.decay if name.endswith("weight") else 0.0
        fresh[name] = weights[name] - rate * (direction + decay * weights[name])
    return fresh, running, moments, value

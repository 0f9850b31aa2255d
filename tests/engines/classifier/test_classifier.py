"""The image classifier against a convolution in plain numpy, its files, its training, and a real runner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from engines.base import InvalidRequest, Limits, LoadFailed, LoadRequest
from engines.classifier import storage, train
from engines.classifier.config import ClassifierConfig
from engines.classifier.model import planes_to_images, scores
from engines.client import RunnerClient
from engines.process import runner_command

SMALL = ClassifierConfig(("across", "down", "plain"), side=8, widths=((4, 6), (8,)))


def random_weights(config: ClassifierConfig, seed: int = 0) -> storage.Tensors:
    generator = np.random.default_rng(seed)
    shapes = config.tensor_shapes()
    return {name: generator.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def scores_in_numpy(
    config: ClassifierConfig, tensors: Mapping[str, npt.NDArray[Any]], image: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """One image through the network, loop by loop in float64."""
    x = (image.astype(np.float64) / 255 - config.mean) / config.deviation
    for stage, widths in enumerate(config.widths):
        for index in range(len(widths)):
            weight = tensors[f"stages.{stage}.{index}.weight"].astype(np.float64)
            padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
            total = np.zeros((*x.shape[:2], weight.shape[3])) + tensors[f"stages.{stage}.{index}.bias"]
            for row in range(3):
                for column in range(3):
                    part = padded[row : row + x.shape[0], column : column + x.shape[1]]
                    total += part @ weight[row, column]
            x = np.maximum(total, 0)
        half = x.shape[0] // 2
        x = x[: 2 * half, : 2 * half].reshape(half, 2, half, 2, -1).max((1, 3))
    scored: npt.NDArray[np.float64] = x.mean((0, 1)) @ tensors["head.weight"] + tensors["head.bias"]
    return scored


@pytest.mark.parametrize("side", [8, 11])
def test_scores_equal_a_convolution_in_plain_numpy(side: int) -> None:
    config = replace(SMALL, side=side, mean=(0.4, 0.5, 0.6), deviation=(0.2, 0.3, 0.25))
    tensors = random_weights(config)
    images = np.random.default_rng(1).integers(0, 256, (5, side, side, 3), np.uint8)
    found = np.asarray(scores(config, jax.device_put(tensors), jnp.asarray(images)))
    wanted = [scores_in_numpy(config, tensors, image) for image in images]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_an_image_comes_in_planes_of_red_green_and_blue() -> None:
    image = np.arange(3 * 4 * 4, dtype=np.uint8)
    pixels = np.asarray(planes_to_images(jnp.asarray(image)[None], 4))[0]
    assert pixels[0, 0].tolist() == [0, 16, 32]
    assert pixels[1, 2].tolist() == [6, 22, 38]


def test_folding_the_normalisation_changes_no_score() -> None:
    weights, running = train._initial(SMALL, 3)
    generator = np.random.default_rng(2)
    for name, value in running.items():
        running[name] = jnp.asarray(generator.uniform(0.5, 2, value.shape), jnp.float32)
    for name, value in weights.items():
        if name.endswith((".scale", ".shift")):
            weights[name] = jnp.asarray(generator.normal(1, 0.5, value.shape), jnp.float32)
    image = generator.integers(0, 256, (8, 8, 3), np.uint8)
    folded = scores_in_numpy(SMALL, train.fold(SMALL, weights, running), image)
    np.testing.assert_allclose(folded, scores_with_statistics(weights, running, image), rtol=1e-5)


def scores_with_statistics(
    weights: train.Tree, running: train.Tree, image: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """The network with its normalisation written out: a convolution, then (x - mean) / deviation."""
    plain = {name: np.asarray(value) for name, value in weights.items()}
    statistics = {name: np.asarray(value) for name, value in running.items()}
    unfolded = {}
    for name in ("stages.0.0", "stages.0.1", "stages.1.0"):
        deviation = np.sqrt(statistics[f"{name}.variance"] + train.EPSILON)
        factor = plain[f"{name}.scale"] / deviation
        unfolded[f"{name}.weight"] = plain[f"{name}.weight"] * factor[None, None, None]
        unfolded[f"{name}.bias"] = plain[f"{name}.shift"] - statistics[f"{name}.mean"] * factor
    unfolded |= {name: plain[name] for name in ("head.weight", "head.bias")}
    return scores_in_numpy(SMALL, unfolded, image)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    tensors = random_weights(SMALL)
    storage.save(tmp_path, SMALL, tensors)
    config, loaded = storage.load(storage.folder_files(tmp_path))
    assert config == SMALL
    assert all(np.array_equal(loaded[name], tensors[name]) for name in tensors)


BROKEN = {
    "labels": ([], "labels"),
    "side": (1, "side"),
    "widths": ([[0]], "widths"),
    "mean": ([0, 0], "mean"),
    "deviation": ([0, 1, 1], "deviation"),
    "model_type": ("gemma3", "model_type"),
}


@pytest.mark.parametrize("field", BROKEN)
def test_a_wrong_field_is_named(field: str) -> None:
    value, named = BROKEN[field]
    document = json.loads(SMALL.to_json()) | {field: value}
    with pytest.raises(ValueError, match=named):
        ClassifierConfig.from_json(json.dumps(document))


def test_a_tensor_that_is_not_what_the_configuration_asks_for_is_named(tmp_path: Path) -> None:
    tensors = random_weights(SMALL)
    tensors["head.bias"] = np.array([1, np.nan, 2], np.float32)
    storage.save(tmp_path, SMALL, tensors)
    with pytest.raises(ValueError, match=r"'head\.bias'.*finite"):
        storage.load(storage.folder_files(tmp_path))
    wider = replace(SMALL, widths=((4, 7), (8,)))
    (tmp_path / storage.CONFIG_NAME).write_text(wider.to_json())
    with pytest.raises(ValueError, match=r"'stages\.0\.1\.weight' has the shape"):
        storage.load(storage.folder_files(tmp_path))


def stripes(count: int, seed: int) -> tuple[train.Images, npt.NDArray[np.int32]]:
    """Images 8 x 8: stripes across, stripes down, or noise; two random colours each."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count).astype(np.int32)
    images = np.empty((count, 8, 8, 3), np.uint8)
    for index, label in enumerate(labels):
        colours = generator.integers(0, 256, (2, 3))
        lines = np.broadcast_to((np.arange(8) // 2 % 2)[:, None], (8, 8))
        pattern = (lines, lines.T, generator.integers(0, 2, (8, 8)))[label]
        images[index] = colours[pattern]
    return images, labels


@pytest.mark.slow
def test_training_learns_what_can_be_learned() -> None:
    recipe = train.Recipe(epochs=12, batch=32, peak_rate=1e-2, shift=1)
    config, tensors = train.train(SMALL, *stripes(600, 0), recipe)
    assert train.accuracy_of(config, tensors, *stripes(200, 1)) > 0.9
    assert config.report["trained_on_images"] == 540


def test_folders_of_images_become_labels(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for label, colour in (("night", 0), ("day", 255)):
        (tmp_path / label).mkdir()
        image.new("RGB", (20, 10), (colour, colour, colour)).save(tmp_path / label / "one.png")
    images, labels, names = train.read_folder(tmp_path, 8)
    assert names == ("day", "night")
    assert labels.tolist() == [0, 1]
    assert (images[0] == 255).all() and (images[1] == 0).all()
    (tmp_path / "day" / "two.png").write_text("no image")
    with pytest.raises(ValueError, match=r"two\.png: no image"):
        train.read_folder(tmp_path, 8)


@pytest.mark.slow
def test_a_runner_names_what_an_image_shows(tmp_path: Path) -> None:
    tensors = random_weights(SMALL)
    storage.save(tmp_path, SMALL, tensors)
    image = np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8)
    wanted = scores_in_numpy(SMALL, tensors, image)
    planes = image.transpose(2, 0, 1).tobytes()

    async def ask() -> None:
        load = LoadRequest(tuple(storage.folder_files(tmp_path)), Limits(1, 1))
        client = await RunnerClient.start(load, command=runner_command("classifier"))
        try:
            assert client.ready.capabilities == ("classify",)
            assert await client.classify(planes) == SMALL.labels[int(wanted.argmax())]
            scored = await client.score(planes)
            probabilities = np.exp(wanted - wanted.max()) / np.exp(wanted - wanted.max()).sum()
            assert [label for label, _ in scored] == [SMALL.labels[index] for index in np.argsort(-wanted)]
            told = [probability for _, probability in scored]
            np.testing.assert_allclose(told, np.sort(probabilities)[::-1], rtol=1e-4)
            for ask_again in (client.classify, client.score):
                with pytest.raises(InvalidRequest, match="an image is 192 bytes here"):
                    await ask_again(planes[:-1])
        finally:
            await client.close()

    asyncio.run(asyncio.wait_for(ask(), 60))


@pytest.mark.slow
def test_a_runner_refuses_weights_that_do_not_fit(tmp_path: Path) -> None:
    storage.save(tmp_path, SMALL, random_weights(SMALL))
    (tmp_path / storage.CONFIG_NAME).write_text("{}")

    async def ask() -> None:
        load = LoadRequest(tuple(storage.folder_files(tmp_path)), Limits(1, 1))
        with pytest.raises(LoadFailed, match="model_type"):
            await RunnerClient.start(load, command=runner_command("classifier"))

    asyncio.run(asyncio.wait_for(ask(), 60))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_photographs_of_ten_kinds_are_told_apart_far_better_than_by_chance(
    shared_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("PIL.Image")
    import tarfile

    with tarfile.open(shared_data / "images" / "cifar10_jpg_test_1000.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    images, labels, names = train.read_folder(tmp_path / "test", 32)
    config = ClassifierConfig(names, widths=((16,), (32,), (64,)))
    trained, tensors = train.train(config, images, labels, train.Recipe(epochs=5, batch=64))
    run = partial(train.accuracy_of, trained, tensors)
    assert run(images, labels) > 0.3
    assert trained.report["accuracy"] > 0.2

"""The command train: a folder of folders of images becomes a classifier on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.classifier import storage


def gemmule(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_folders_of_images_become_a_classifier(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 155)):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(low, low + 100, (16, 16, 3), np.uint8)
            image.fromarray(pixels).save(folder / f"{number}.png")
    output = tmp_path / "made"
    done = gemmule(
        "train",
        "light",
        "--images",
        str(tmp_path / "photos"),
        "--epochs=2",
        "--side=16",
        f"--output={output}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("epoch 1/2")
    config, _ = storage.load(storage.folder_files(output))
    assert config.labels == ("dark", "light")
    assert (output / "Modelfile").read_text() == "FROM .\n"


@pytest.mark.slow
def test_a_folder_without_labels_is_refused_in_words(tmp_path: Path) -> None:
    done = gemmule("train", "none", "--images", str(tmp_path), "--output", str(tmp_path / "made"))
    assert done.returncode == 1
    assert "must hold one folder of images for each label" in done.stderr
    assert not (tmp_path / "made").exists()

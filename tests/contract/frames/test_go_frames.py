"""A program of thirty lines of Go asks a real classifier over frames, with the standard library alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from engines.classifier import storage
from tests.contract.ollama_support import built_go_program
from tests.engines.classifier.test_classifier import SMALL, random_weights, scores_in_numpy
from tests.whole.conftest import serving

pytestmark = pytest.mark.contract

HERE = Path(__file__).parent


def test_go_hears_its_echo_and_the_label_of_its_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (8, 8, 3), np.uint8)
    (tmp_path / "image").write_bytes(pixels.transpose(2, 0, 1).tobytes())
    storage.save(tmp_path / "made", SMALL, random_weights(SMALL))
    (tmp_path / "Modelfile").write_text("FROM ./made\n")
    path = tmp_path / "frames.sock"
    with serving(tmp_path, GEMMULE_FRAMES=str(path)) as served:
        served.command("create", "stripes", "-f", str(tmp_path / "Modelfile"))
        done = subprocess.run(
            [str(built_go_program(HERE)), str(path), str(tmp_path / "image")],
            capture_output=True,
            text=True,
            timeout=60,
        )
    label = SMALL.labels[int(scores_in_numpy(SMALL, random_weights(SMALL), pixels).argmax())]
    assert done.stdout.splitlines() == ["0 hello", f"1 {label}"]

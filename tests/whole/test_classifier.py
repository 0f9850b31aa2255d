"""An image classifier through the whole server: created, shown, asked with files and with raw planes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.classifier import storage
from tests.engines.classifier.test_classifier import SMALL, random_weights, scores_in_numpy
from tests.whole.conftest import Served, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PIXELS = np.random.default_rng(7).integers(0, 256, (8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("classifier")
    storage.save(folder / "made", SMALL, random_weights(SMALL))
    with serving(folder) as running:
        (folder / "Modelfile").write_text("FROM ./made\n")
        running.command("create", "stripes", "-f", str(folder / "Modelfile"))
        yield running


def ask(served: Served, *images: bytes) -> list[dict[str, Any]]:
    given = [base64.b64encode(image).decode() for image in images]
    answer = served.post("/v1/classify", {"model": "stripes", "input": given})
    assert answer.status_code == 200, answer.text
    assert answer.json()["labels"] == list(SMALL.labels)
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


def test_a_file_and_its_raw_planes_get_the_same_probabilities(served: Served) -> None:
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(PIXELS).save(stream, "PNG")
    raw, file = ask(served, PIXELS.transpose(2, 0, 1).tobytes(), stream.getvalue())
    assert raw["probs"] == file["probs"]
    scores = scores_in_numpy(SMALL, random_weights(SMALL), PIXELS)
    wanted = np.exp(scores - scores.max())
    np.testing.assert_allclose(raw["probs"], wanted / wanted.sum(), rtol=1e-4)
    assert raw["label"] == SMALL.labels[int(scores.argmax())]
    assert (file["index"], file["num_classes"]) == (1, 3)


def test_show_list_and_ps_know_it(served: Served) -> None:
    ask(served, bytes(192))
    shown = served.post("/api/show", {"model": "stripes"}).json()
    assert shown["capabilities"] == ["classification"]
    assert shown["model_info"]["gemmule_image_classifier.labels"] == list(SMALL.labels)
    assert "stripes" in served.command("list").stdout
    assert "stripes" in served.command("ps").stdout
    assert "classification" in served.command("show", "stripes").stdout


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/api/generate", {"prompt": "hi"}),
        ("/v1/embeddings", {"input": "hi"}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/tokenize", {"content": "hi"}),
    ],
)
def test_what_it_cannot_do_is_a_400_that_says_so(served: Served, path: str, body: dict[str, object]) -> None:
    answer = served.post(path, {"model": "stripes", **body})
    assert answer.status_code == 400, answer.text
    assert "does not support" in answer.text or "reads no text" in answer.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("!", "not valid base64"),
        ("https://example.com/cat.png", "is an address"),
        (base64.b64encode(b"no image").decode(), "can be read"),
        ([], "input"),
    ],
)
def test_what_is_no_image_is_a_400(served: Served, given: object, said: str) -> None:
    answer = served.post("/v1/classify", {"model": "stripes", "input": given})
    assert answer.status_code == 400
    assert said in answer.text


def test_a_model_of_text_is_refused_by_name(served: Served) -> None:
    answer = served.post("/v1/classify", {"model": "bud", "input": "AAAA"})
    assert answer.status_code == 400
    assert '"bud" does not classify images' in answer.json()["error"]["message"]


def test_weights_that_do_not_fit_are_refused_at_create(served: Served, tmp_path: Path) -> None:
    tensors = random_weights(SMALL)
    tensors["head.weight"][0, 0] = np.nan
    storage.save(tmp_path / "broken", SMALL, tensors)
    (tmp_path / "Modelfile").write_text("FROM ./broken\n")
    done = served.command("create", "broken", "-f", str(tmp_path / "Modelfile"), check=False)
    assert done.returncode == 1
    assert "head.weight" in done.stderr
    assert "broken" not in served.command("list").stdout

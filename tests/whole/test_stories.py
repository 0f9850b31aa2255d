"""A real trained model from create to HTTP: published greedy text, word for word, alone and eight at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engines.decoder.llama2c import (
    Llama2c,
    write_llama2c_folder,
    write_llama2c_gguf,
    write_llama2c_tokenizer,
)
from tests.whole.conftest import Served

PUBLISHED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, "
    "she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She said, \"I "
    "want to play with your ball, but I can't find it.\"\n"
)
"""What the model's author says it says at temperature 0."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["gguf", "safetensors"])
def stories(
    request: pytest.FixtureRequest,
    served: Served,
    shared_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """The name of the model, created through the command from one container."""
    folder = tmp_path_factory.mktemp(request.param)
    model = Llama2c(shared_data / "models" / "stories260K", "stories260K")
    if request.param == "gguf":
        source = folder / "stories.gguf"
        write_llama2c_gguf(model, source)
    else:
        source = folder / "stories"
        source.mkdir()
        write_llama2c_folder(model, source)
        write_llama2c_tokenizer(model, source / "tokenizer.model")
    modelfile = folder / "Modelfile"
    modelfile.write_text(f"FROM {source}\nPARAMETER temperature 0\n", encoding="utf-8")
    name = f"stories-{request.param}"
    served.command("create", name, "-f", str(modelfile))
    return name


def continuation(served: Served, name: str, prompt: str = "") -> str:
    body = {"model": name, "prompt": prompt, "max_tokens": 256, "temperature": 0}
    reply = served.post("/v1/completions", body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["text"])


def test_greedy_text_is_the_published_one(served: Served, stories: str) -> None:
    assert continuation(served, stories).lstrip().startswith(PUBLISHED)


def test_a_text_continued_keeps_the_space_between(served: Served, stories: str) -> None:
    assert ("Once" + continuation(served, stories, "Once")).startswith(PUBLISHED)


def test_eight_at_once_say_the_same(served: Served, stories: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: continuation(served, stories), range(8)))
    assert all(text.lstrip().startswith(PUBLISHED) for text in texts)

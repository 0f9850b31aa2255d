"""`create --quantize` from end to end: a trained model's floats become blocks, the stories stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engines.decoder.llama2c import (
    Llama2c,
    write_llama2c_folder,
    write_llama2c_gguf,
    write_llama2c_tokenizer,
)
from tests.whole.conftest import Served
from tests.whole.test_stories import PUBLISHED, continuation

pytestmark = pytest.mark.slow
SAME = len("Once upon a time, there was a little girl named Lily. She loved to play outside")


@pytest.fixture(scope="module")
def sources(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Modelfiles over the float weights, by container."""
    folder = tmp_path_factory.mktemp("floats")
    model = Llama2c(shared_data / "models" / "stories260K", "stories260K")
    write_llama2c_folder(model, folder / "stories")
    write_llama2c_tokenizer(model, folder / "stories" / "tokenizer.model")
    write_llama2c_gguf(model, folder / "stories.gguf")
    found = {}
    for kind, name in (("safetensors", "stories"), ("gguf", "stories.gguf")):
        found[kind] = folder / f"Modelfile.{kind}"
        found[kind].write_text(f"FROM {folder / name}\nPARAMETER temperature 0\n", encoding="utf-8")
    return found


@pytest.mark.parametrize("container", ["safetensors", "gguf"])
def test_quantized_weights_tell_the_same_story(
    served: Served, sources: dict[str, Path], container: str
) -> None:
    name = f"small-{container}"
    served.command("create", name, "-f", str(sources[container]), "--quantize", "q8_0")
    shown = served.post("/api/show", {"model": name}).json()
    assert (shown["details"]["quantization_level"], shown["details"]["format"]) == ("Q8_0", "gguf")
    assert continuation(served, name).lstrip()[:SAME] == PUBLISHED[:SAME]
    assert list((Path(served.environment["GEMMULE_MODELS"]) / "staging").glob("*.tmp")) == []


def test_from_a_model_of_floats(served: Served, sources: dict[str, Path]) -> None:
    served.command("create", "floats", "-f", str(sources["safetensors"]))
    reply = served.post("/api/create", {"model": "few", "from": "floats", "quantization": "Q4_K_M"})
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert lines[-1] == {"status": "success"}
    assert {"status": "quantizing F32 model to Q4_K_M"} in lines
    sizes = {row["name"]: row["size"] for row in served.get("/api/tags").json()["models"]}
    assert sizes["few:latest"] < 0.6 * sizes["floats:latest"]
    assert continuation(served, "few").lstrip().startswith("Once upon a time")


def test_what_cannot_be_quantized_is_refused(served: Served, sources: dict[str, Path]) -> None:
    done = served.command("create", "no", "-f", str(sources["gguf"]), "-q", "q3_K_S", check=False)
    assert done.returncode == 1
    assert "unsupported quantization type q3_K_S - supported types are Q4_0, Q4_K_M, Q8_0" in done.stderr
    served.command("create", "once", "-f", str(sources["gguf"]), "-q", "q8_0")
    body = {"model": "twice", "from": "once", "quantize": "q4_0", "stream": False}
    reply = served.post("/api/create", body)
    assert reply.status_code == 400
    assert reply.json()["error"].startswith(
        "quantization is only supported for F16, BF16 and F32 models, and this one is Q8_0"
    )
    assert served.post("/api/show", {"model": "twice"}).status_code == 404

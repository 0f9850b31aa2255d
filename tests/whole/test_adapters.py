"""LoRA adapters over HTTP: an ADAPTER changes what its model says, and nothing of its base or of others."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.engines.decoder.llama2c import Llama2c, write_llama2c_gguf
from tests.engines.decoder.test_adapters import gguf_adapter, halves
from tests.whole.conftest import Served

pytestmark = pytest.mark.slow


def said(served: Served, name: str) -> str:
    body = {"model": name, "prompt": "Once upon", "max_tokens": 12, "ignore_eos": True}
    reply = served.post("/v1/completions", body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["text"])


def create(served: Served, folder: Path, name: str, *lines: str) -> None:
    modelfile = folder / f"{name}.Modelfile"
    modelfile.write_text("\n".join([*lines, "PARAMETER temperature 0", ""]), encoding="utf-8")
    served.command("create", name, "-f", str(modelfile))


def test_models_of_one_base_with_different_adapters(
    served: Served, shared_data: Path, tmp_path: Path
) -> None:
    write_llama2c_gguf(Llama2c(shared_data / "models" / "stories260K", "stories260K"), tmp_path / "base.gguf")
    create(served, tmp_path, "plain", f"FROM {tmp_path / 'base.gguf'}")
    for seed, name in ((1, "first"), (2, "second")):
        gguf_adapter(tmp_path / f"{name}.gguf", halves(4, seed), alpha=8)
        create(served, tmp_path, name, "FROM plain", f"ADAPTER {tmp_path / f'{name}.gguf'}")

    before = said(served, "plain")
    first, second = said(served, "first"), said(served, "second")
    assert len({before, first, second}) == 3
    assert before.startswith(" a time")
    assert said(served, "plain") == before

    assert served.post("/api/generate", {"model": "first", "keep_alive": 0}).status_code == 200
    deadline = time.monotonic() + 10
    while names(served) != {"plain:latest", "second:latest"} and time.monotonic() < deadline:
        time.sleep(0.05)
    assert names(served) == {"plain:latest", "second:latest"}
    assert said(served, "first") == first


def names(served: Served) -> set[str]:
    return {row["name"] for row in served.get("/api/ps").json()["models"]}

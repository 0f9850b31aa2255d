"""LoRA adapters over HTTP: models of one base share its runner, and each says what it would say alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engines.decoder.llama2c import Llama2c, Tensors, write_llama2c_gguf
from tests.engines.decoder.test_adapters import GGUF_PARTS, gguf_adapter, halves
from tests.whole.conftest import Served, serving

pytestmark = pytest.mark.slow


class Merged(Llama2c):
    """A checkpoint with the product of an adapter's halves added to its weights."""

    def __init__(self, folder: Path, pairs: Any, scale: float) -> None:
        super().__init__(folder, "stories260K")
        self.pairs, self.scale = pairs, scale

    def tensors(self) -> Tensors:
        merged = super().tensors()
        for name, (down, up) in self.pairs.items():
            _, layer, part = name.split(".")
            change = self.scale * up @ down
            if part == "q":  # rows of the file are interleaved pairs
                change = change.reshape(8, 2, 4, -1).swapaxes(1, 2).reshape(change.shape)
            key = f"blk.{layer}.{GGUF_PARTS[part]}.weight"
            merged[key] = merged[key] + change
        return merged


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose models are small, so that few programs are compiled for each load."""
    folder = tmp_path_factory.mktemp("served")
    with serving(folder, GEMMULE_NUM_PARALLEL="4", GEMMULE_CONTEXT_LENGTH="64") as running:
        yield running


@pytest.fixture(scope="module")
def models(served: Served, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain`, `first` and `second` on it, and `merged`, whose weights have the first adapter added."""
    folder = tmp_path_factory.mktemp("models")
    stories = shared_data / "models" / "stories260K"
    write_llama2c_gguf(Llama2c(stories, "stories260K"), folder / "base.gguf")
    create(served, folder, "plain", f"FROM {folder / 'base.gguf'}")
    for seed, name, rank in ((1, "first", 4), (2, "second", 7)):
        pairs = halves(rank, seed)
        gguf_adapter(folder / f"{name}.gguf", pairs, alpha=2 * rank)
        create(served, folder, name, "FROM plain", f"ADAPTER {folder / f'{name}.gguf'}")
    write_llama2c_gguf(Merged(stories, halves(4, 1), 2.0), folder / "merged.gguf")
    create(served, folder, "merged", f"FROM {folder / 'merged.gguf'}")
    return folder


def said(served: Served, name: str) -> str:
    body = {"model": name, "prompt": "Once upon", "max_tokens": 12, "ignore_eos": True}
    reply = served.post("/v1/completions", body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["text"])


def create(served: Served, folder: Path, name: str, *lines: str, check: bool = True) -> str:
    modelfile = folder / f"{name}.Modelfile"
    modelfile.write_text("\n".join([*lines, "PARAMETER temperature 0", ""]), encoding="utf-8")
    return served.command("create", name, "-f", str(modelfile), check=check).stderr


def names(served: Served) -> set[str]:
    return {row["name"].removesuffix(":latest") for row in served.get("/api/ps").json()["models"]}


def runners(served: Served) -> int:
    children = psutil.Process(served.process.pid).children(recursive=True)
    return sum("engines.runner" in child.cmdline() for child in children)


def test_models_of_one_base_share_its_runner(served: Served, models: Path) -> None:
    alone = {name: said(served, name) for name in ("plain", "first", "second")}
    assert len(set(alone.values())) == 3
    assert alone["plain"].startswith(" a time")
    assert runners(served) == 1

    order = ["plain", "first", "second", "first", "plain", "second"] * 3
    with ThreadPoolExecutor(len(order)) as pool:
        together = list(pool.map(lambda name: said(served, name), order))
    assert together == [alone[name] for name in order]
    assert runners(served) == 1

    rows = {row["name"]: row for row in served.get("/api/ps").json()["models"]}
    assert set(rows) == {"plain:latest", "first:latest", "second:latest"}
    assert rows["first:latest"]["size"] == rows["second:latest"]["size"] < rows["plain:latest"]["size"] / 4
    metrics = served.get("/metrics").text
    assert 'gemmule:num_requests_running{model="second:latest"} 0.0' in metrics
    assert 'gemmule:model_memory_bytes{model="plain:latest"}' in metrics
    assert 'gemmule:model_memory_bytes{model="first:latest"}' not in metrics

    served.command("stop", "first")
    assert names(served) == {"plain", "second"}
    served.command("stop", "plain")
    assert names(served) == {"second"}
    assert said(served, "second") == alone["second"]
    assert said(served, "first") == alone["first"]
    assert runners(served) == 1
    assert said(served, "merged") == alone["first"]
    for name in names(served):
        served.command("stop", name)
    assert runners(served) == 0


def test_adapters_that_cannot_serve_are_refused_at_create(served: Served, models: Path) -> None:
    narrow = {name: (down[:, :32], up) for name, (down, up) in halves(2, 3).items()}
    gguf_adapter(models / "narrow.gguf", narrow, alpha=1)
    refused = create(served, models, "bad", "FROM plain", f"ADAPTER {models / 'narrow.gguf'}", check=False)
    assert "ADAPTER 'narrow.gguf': the adapter of 'layers.0.down' has shapes (2, 32)" in refused
    gguf_adapter(models / "gemma.gguf", halves(2, 3), alpha=1, architecture="gemma3")
    refused = create(served, models, "bad", "FROM plain", f"ADAPTER {models / 'gemma.gguf'}", check=False)
    assert "ADAPTER 'gemma.gguf': the adapter is for 'gemma3' models, the base is of 'llama'" in refused
    both = [f"ADAPTER {models / f'{name}.gguf'}" for name in ("first", "second")]
    assert "(line 3, column 1): only one adapter" in create(
        served, models, "bad", "FROM plain", *both, check=False
    )
    assert served.post("/api/show", {"model": "bad"}).status_code == 404

"""What a server tidies at its start, and what it must not."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from gateway.housekeeping import hold, let_go
from modelfiles.files import ModelFile
from registry.store import Store
from tests.gateway.scripted_model import gateway_with


def orphan(store: Store, text: bytes = b"nobody names me") -> ModelFile:
    """A blob in the store that no manifest names."""
    digest = store.blobs.put_bytes(text).digest
    path = store.blobs.find(digest)
    assert path is not None
    return ModelFile("weights", "x.gguf", str(path), digest, len(text))


def served_once(folder: Path, **environment: str) -> None:
    """A gateway that starts and ends."""

    async def scenario() -> None:
        gateway = gateway_with(folder, **environment)
        await gateway.start()
        await gateway.close()

    asyncio.run(scenario())


def test_a_start_removes_what_nothing_names_and_reports_what_is_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store.open(tmp_path / "models")
    file = orphan(store)
    broken = tmp_path / "models" / "manifests" / "registry.ollama.ai" / "library" / "broken" / "latest"
    broken.parent.mkdir(parents=True)
    broken.write_text("{", encoding="utf-8")
    with caplog.at_level(logging.INFO, "gemmule.store"):
        served_once(tmp_path)
    assert Path(file.path).exists(), "a manifest that cannot be read may name it"
    assert "unused blobs are kept" in caplog.text
    assert caplog.text.count("in the store, ") == 1

    broken.unlink()
    served_once(tmp_path, GEMMULE_NOPRUNE="1")
    assert Path(file.path).exists()
    served_once(tmp_path)
    assert not Path(file.path).exists()


def test_files_of_a_loaded_model_stay_until_it_is_let_go(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "models")
    file = orphan(store)
    lease = hold(store, [file])
    assert lease is not None
    Store.open(tmp_path / "models").collect_garbage()
    assert Path(file.path).exists()
    let_go(store, lease, [file])
    assert not Path(file.path).exists()
    assert not list((tmp_path / "models" / "leases").iterdir())

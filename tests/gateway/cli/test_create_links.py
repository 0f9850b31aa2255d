"""`gemmule create` from a hub's cache: one copy on the disk, where server and cache share a machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from gateway.cli.main import main
from tests.gateway.live import LiveServer

BUD = (Path(__file__).resolve().parents[3] / "registry" / "bundled" / "bud.gguf").read_bytes()


def snapshot(home: Path, data: bytes) -> tuple[Path, Path]:
    """A GGUF as the cache of Hugging Face shows it, and where its bytes are."""
    repository = home / "models--org--bud"
    blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
    shown = repository / "snapshots" / "abc" / "bud.gguf"
    for path in (blob, shown):
        path.parent.mkdir(parents=True)
    blob.write_bytes(data)
    shown.symlink_to(os.path.relpath(blob, shown.parent))
    return shown, blob


@pytest.mark.parametrize("place", ["the server's store", "another store", "no store"])
def test_weights_in_a_cache_are_linked_where_the_server_sees_it(
    server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    shown, blob = snapshot(tmp_path, BUD + place.encode())
    own = server.folder / "models" if place == "the server's store" else tmp_path / "models"
    if place == "another store":
        (own / "blobs").mkdir(parents=True)
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(f"FROM {shown}")
    monkeypatch.setenv("GEMMULE_HOST", server.url)
    monkeypatch.setenv("GEMMULE_MODELS", str(own))
    monkeypatch.setenv("GEMMULE_EXTRA_STORES", str(tmp_path / "none"))
    assert main(["create", "linked", "-f", str(modelfile)]) == 0
    kept = server.folder / "models" / "blobs" / f"sha256-{blob.name}"
    assert kept.samefile(blob) == (place == "the server's store")
    assert not kept.is_symlink()
    assert own.exists() == (place != "no store")
    assert main(["rm", "linked"]) == 0
    assert blob.read_bytes() == BUD + place.encode()

"""Texts that others parse, kept as files: GEMMULE_GOLDEN=1 makes the tests write them; review the diff."""

from __future__ import annotations

import os
from pathlib import Path


def check_golden(path: Path, text: str) -> None:
    """Fails when `text` is not what the file says; writes it when asked to."""
    if os.environ.get("GEMMULE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path} is missing; GEMMULE_GOLDEN=1 writes it"
    assert text == path.read_text(encoding="utf-8")

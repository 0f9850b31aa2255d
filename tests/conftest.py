"""What tests of every package share: where the material written by others lies, and skipping without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(
    os.environ.get("GEMMULE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real material (tokenizers, a trained tiny model, templates); skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no test material at {SHARED_DATA}; set GEMMULE_TEST_DATA to its folder")
    return SHARED_DATA

"""The real `ollama` program, built from its own cmd package: the client, and a server that runs no models.

The engine behind it is cut out of the build (see stubs), so it needs no C++ and builds in a minute or two.
The binary is kept in the user's cache folder, keyed by what it is built from.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.contract.ollama_support import cache_folder, fingerprint

HERE = Path(__file__).parent
OLLAMA = Path("vendor/github.com/ollama/ollama")
STUBS = {"llama.go": "llama", "ggml.go": "ml/backend/ggml", "runner.go": "runner"}
"""What takes the place of the packages that need C++."""

SOURCES = ("main.go", "go.mod", "go.sum", *(f"stubs/{name}" for name in STUBS))
BUILD_SECONDS = 900


@pytest.fixture(scope="session")
def ollama() -> Path:
    """The binary; skips where there is no Go, or no way to the module."""
    if shutil.which("go") is None:
        pytest.skip("no Go toolchain")
    binary = cache_folder() / f"ollama-{fingerprint(HERE, *SOURCES)}"
    if not binary.exists():
        build(binary.with_name(f"build-{binary.name}"), binary)
    return binary


def build(folder: Path, binary: Path) -> None:
    """Makes the program in `folder`, which is gone afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("main.go", "go.mod", "go.sum"):
        shutil.copy(HERE / name, folder)
    command = ["go", "mod", "vendor"]
    vendored = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    if vendored.returncode:
        pytest.skip(f"the ollama module cannot be had: {vendored.stderr.strip().splitlines()[-1]}")
    for name, package in STUBS.items():
        shutil.rmtree(folder / OLLAMA / package)
        (folder / OLLAMA / package).mkdir()
        shutil.copy(HERE / "stubs" / name, folder / OLLAMA / package)
    subprocess.run(
        ["go", "build", "-mod=vendor", "-trimpath", "-buildvcs=false", "-o", str(binary), "."],
        cwd=folder,
        env=os.environ | {"CGO_ENABLED": "0"},
        timeout=BUILD_SECONDS,
        check=True,
    )
    shutil.rmtree(folder)

"""Fetches the CUDA plugin of this JAX and `ptxas` into a folder, for `tests.gpu.compile`: `make gpu-compile`.

About 600 MB, without the CUDA libraries that running something would need; versions and hashes are those of
requirements/cuda.txt. Beside the environment, not in it: there JAX would look for a card.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path(__file__).resolve().parents[2] / "requirements" / "cuda.txt"
PACKAGES = ("jax-cuda12-pjrt", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")


def locked(text: str) -> str:
    """The entries of the packages, with their hashes, as the lock has them."""
    entries = re.split(r"\n(?=\S)", text)
    return "\n".join(entry for entry in entries if entry.split("==")[0].split("[")[0] in PACKAGES)


def main(folder: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write(locked(LOCK.read_text(encoding="utf-8")))
        requirements.flush()
        flags = ["--quiet", "--no-deps", "--require-hashes", "--upgrade", "--target", folder]
        subprocess.run([*installer(), *flags, "-r", requirements.name], check=True)


def installer() -> list[str]:
    """uv where there is one, as in `make setup`: environments that it made have no pip."""
    uv = shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install"]


if __name__ == "__main__":
    main(sys.argv[1])

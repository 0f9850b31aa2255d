"""What the contract tests of all Ollama clients share: a live server, a real tiny model, scripts.

The server is a process of its own; clients get its address as OLLAMA_HOST and a home of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.live import live_server

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
MODELFILE = """FROM ./stories.gguf
TEMPLATE "{{ .Prompt }}"
PARAMETER temperature 0
PARAMETER num_predict 24
SYSTEM You tell stories.
MESSAGE user Hello
LICENSE MIT
"""


@dataclass(frozen=True)
class Server:
    """A live gemmule; `folder` is a scratch folder and the clients' home."""

    url: str
    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        """For a client process."""
        kept = {
            name: os.environ[name] for name in ("PATH", "LANG", "GOPROXY", "GOFLAGS") if name in os.environ
        }
        host = self.url.removeprefix("http://")
        own = {"OLLAMA_HOST": host, "GEMMULE_HOST": host, "HOME": str(self.folder), "NO_COLOR": "1"}
        return kept | own | more

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """A client process with our address, in the scratch folder."""
        defaults: dict[str, Any] = {"cwd": self.folder, "env": self.environment(), "timeout": 300}
        return subprocess.run(command, capture_output=True, text=True, check=False, **(defaults | options))


@contextlib.contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Server]:
    """A server over `folder`."""
    with live_server(folder, HOME=str(folder), **settings) as running:
        yield Server(running.url, folder)


def script(*steps: str | int | dict[str, Any]) -> str:
    """What the scripted engine shall say: texts, control tokens by id, or whole steps."""
    made: list[dict[str, Any]] = []
    for step in steps:
        if isinstance(step, dict):
            made.append(step)
        else:
            made.append({"tokens": [step]} if isinstance(step, int) else {"text": step})
    return json.dumps(made)


def thinking_then_tool_call() -> str:
    """A thought, then a call of `weather`."""
    from engines.scripted import CONTROL_IDS

    call = '{"name": "weather", "arguments": {"city": "Gent"}}'
    return script(
        CONTROL_IDS["<think>"],
        "hm",
        CONTROL_IDS["</think>"],
        CONTROL_IDS["<tool_call>"],
        call,
        CONTROL_IDS["</tool_call>"],
    )


def write_stories(shared_data: Path, folder: Path) -> Path:
    """The real trained tiny model as a GGUF, with a Modelfile beside it; returns the GGUF."""
    from tests.engines.decoder.conftest import Llama2c, write_llama2c_gguf

    path = folder / "stories.gguf"
    if not path.exists():
        write_llama2c_gguf(Llama2c(shared_data / "models" / "stories260K", "stories260K"), path)
    (folder / "Modelfile").write_text(MODELFILE)
    return path


def cache_folder() -> Path:
    """Where built programs and installed packages are kept between runs, outside the project."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "gemmule-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fingerprint(folder: Path, *patterns: str) -> str:
    """A short digest of the files a build is made from."""
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest()[:16]


def built_go_program(folder: Path) -> Path:
    """The program of a Go module; skips where there is no Go or no way to its dependencies."""
    if shutil.which("go") is None:
        pytest.skip("no Go toolchain")
    binary = cache_folder() / f"{folder.name}-{fingerprint(folder, '*.go', 'go.*')}"
    if not binary.exists():
        command = ["go", "build", "-buildvcs=false", "-o", str(binary), "."]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            pytest.skip(f"{folder.name} cannot be built: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return binary


def installed_npm_packages(folder: Path) -> Path:
    """A folder with the `node_modules` that package-lock.json pins; skips without npm or a network."""
    if shutil.which("npm") is None:
        pytest.skip("no npm")
    place = cache_folder() / f"{folder.name}-{fingerprint(folder, 'package*.json')}"
    if not (place / "node_modules").is_dir():
        place.mkdir(exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(folder / name, place)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            shutil.rmtree(place)
            pytest.skip(f"the packages cannot be had: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return place

"""A real server, started by the real command in a process of its own, for tests of the whole path."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import ROOT, server_process

COMMAND = (sys.executable, "-m", "gateway.cli.main")


@dataclass
class Served:
    """A running `gemmule serve`: its address, its process, and the environment its clients need."""

    url: str
    process: subprocess.Popen[str]
    environment: dict[str, str]
    lines: list[str]

    def command(
        self, *arguments: str, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Runs `gemmule ARGUMENTS` against this server."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment,
            cwd=ROOT,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=100,
        )
        if check:
            assert done.returncode == 0, f"gemmule {' '.join(arguments)} failed: {done.stderr}"
        return done

    def post(self, path: str, body: Any, **settings: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=100, **settings)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=100)


@contextlib.contextmanager
def serving(folder: Path, **changes: str) -> Iterator[Served]:
    """`gemmule serve` over a store in `folder`, on a free port."""
    environment = {
        **os.environ,
        "HOME": str(folder),
        "GEMMULE_MODELS": str(folder / "models"),
        "GEMMULE_HOST": "127.0.0.1:0",
        "GEMMULE_DEVICE": "cpu",
        "GEMMULE_CHECK": "off",
        **changes,
    }
    with server_process([*COMMAND, "serve"], environment) as started:
        environment["GEMMULE_HOST"] = started.url.removeprefix("http://")
        yield Served(started.url, started.process, environment, started.lines)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests of a module."""
    with serving(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[Served]]:
    """A server of a test's own: `with serve(GEMMULE_X="...") as served`."""
    return lambda **changes: serving(tmp_path, **changes)

"""A real server, started by the real command in a process of its own, for tests of the whole path."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "gateway.cli.main")


@dataclass
class Served:
    """A running `gemmule serve`: its address, its process, and the environment its clients need."""

    url: str
    process: subprocess.Popen[str]
    environment: dict[str, str]
    lines: list[str] = field(default_factory=list)

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
        **changes,
    }
    process = subprocess.Popen(
        [*COMMAND, "serve"], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    served = Served("", process, environment)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            served.lines.append(line)
            if " listens on " in line:
                served.url = line.split(" listens on ")[1].split()[0].rstrip(",")
                break
        else:
            raise AssertionError("the server did not start: " + "".join(served.lines))
        environment["GEMMULE_HOST"] = served.url.removeprefix("http://")
        threading.Thread(target=_drain, args=(process, served.lines), daemon=True).start()
        yield served
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()


def _drain(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stderr is not None
    with contextlib.suppress(ValueError):
        lines.extend(process.stderr)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests of a module."""
    with serving(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[Served]]:
    """A server of a test's own: `with serve(GEMMULE_X="...") as served`."""
    return lambda **changes: serving(tmp_path, **changes)

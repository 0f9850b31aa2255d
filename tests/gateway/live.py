"""A live server of the scripted model, for tests that speak HTTP."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers import ROOT, server_process

__all__ = ["ROOT", "LiveServer", "live_server"]


@dataclass
class LiveServer:
    """Where the server is, and what it said on stderr so far."""

    url: str
    process: subprocess.Popen[str]
    folder: Path
    lines: list[str]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        """Ends the server with a signal; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextlib.contextmanager
def live_server(folder: Path, **environment: str) -> Iterator[LiveServer]:
    """A server of the scripted model on a port of its own choice; killed at the end if it still runs."""
    command = [sys.executable, "-m", "tests.gateway.scripted_model", str(folder)]
    settings = {"GEMMULE_HOST": "127.0.0.1:0", "GEMMULE_SANDBOX_WORKERS": "1", "GEMMULE_CHECK": "off"}
    with server_process(command, {**os.environ, **settings, **environment}) as started:
        yield LiveServer(started.url, started.process, folder, started.lines)

"""A live server in a process of its own, for tests that speak HTTP."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0


@dataclass
class LiveServer:
    """Where the server is, and what it said on stderr so far."""

    url: str
    process: subprocess.Popen[str]
    folder: Path
    lines: list[str] = field(default_factory=list)

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
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gateway.scripted_model", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "GEMMULE_HOST": "127.0.0.1:0", "GEMMULE_SANDBOX_WORKERS": "1", **environment},
    )
    server = LiveServer("", process, folder)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            server.lines.append(line)
            if " listens on " in line:
                server.url = line.split(" listens on ")[1].split()[0].rstrip(",")
                break
        else:
            raise AssertionError("the server did not start: " + "".join(server.lines))
        threading.Thread(target=_drain, args=(process, server.lines), daemon=True).start()
        yield server
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

"""Starts a server in a process of its own and ends it: for tests that speak HTTP."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class ServerProcess:
    """Where the server is, and what it said on stderr so far."""

    url: str
    process: subprocess.Popen[str]
    lines: list[str]


@contextlib.contextmanager
def server_process(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[ServerProcess]:
    """Runs `command` until it says where it listens; killed at the end if it does not end by itself."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    assert process.stderr is not None
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line)
            if " listens on " in line:
                url = line.split(" listens on ")[1].split()[0].rstrip(",")
                break
        else:
            raise AssertionError("the server did not start: " + "".join(lines))
        threading.Thread(target=_drain, args=(process, lines), daemon=True).start()
        yield ServerProcess(url, process, lines)
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

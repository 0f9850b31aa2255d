"""A runner as an operating system process: executed (never forked), its last words kept, its end told.

Knows nothing of frames. Called by `engines.client`; `die_with_parent` is called by the runner itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

TAIL_LINES = 40
LINE_BYTES = 2000
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]
_PR_SET_PDEATHSIG = 1


def runner_command(engine: str = "decoder") -> list[str]:
    """The command of a runner on this machine; `--fd` is added by whoever starts it.

    `-P` keeps the current folder out of the import path: a stranger's `engines/` there is not ours.
    """
    return [sys.executable, "-P", "-m", "engines.runner", "--engine", engine]


CHECKUP_COMMAND = (sys.executable, "-P", "-m", "engines.decoder.checkup")
"""Looks at one model and prints what it found as JSON; the question is its standard input."""


def runner_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables and `extra`, with the packages findable when they run from a source tree."""
    environment = {**os.environ, **(extra or {})}
    if _PACKAGE_ROOT.name not in {"site-packages", "dist-packages"}:
        paths = [str(_PACKAGE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent dies (Linux; elsewhere EOF does it alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class RunnerProcess:
    """A started child; `tail` holds the last lines it wrote to stderr."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._reader = asyncio.create_task(self._read_errors())

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str], fd: int) -> RunnerProcess:
        """Executes `command` with `fd` inherited under the same number; raises `OSError`."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(fd,),
            env=dict(environment),
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def tail(self) -> str:
        return "\n".join(self._tail)

    async def wait(self, timeout: float) -> bool:
        """Whether the process was gone, its stderr read, within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._process.wait()
                await asyncio.shield(self._reader)
        except TimeoutError:
            return self._process.returncode is not None
        return True

    async def stop(self, grace: float) -> None:
        """Waits `grace` seconds for a voluntary end, then kills. Returns when the process is reaped."""
        if not await self.wait(grace):
            self.kill()
            await self._process.wait()
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def describe_end(self) -> str:
        """How it ended, in words: `was killed by SIGKILL`, `exited with code 70`."""
        code = self._process.returncode
        if code is None:
            return "closed its connection"
        if code < 0:
            return f"was killed by {_signal_name(-code)}"
        return f"exited with code {code}"

    async def _read_errors(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        rest = b""
        while chunk := await stream.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._keep(line)
            rest = rest[-LINE_BYTES:]
        if rest:
            self._keep(rest)

    def _keep(self, line: bytes) -> None:
        text = line[:LINE_BYTES].decode("utf-8", "replace").rstrip()
        if text:
            self._tail.append(text)
            logger.info("runner %d: %s", self.pid, text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

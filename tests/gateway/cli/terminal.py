"""A pseudo-terminal with a program in it: type as a person would, wait for what the screen shows."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

CURSOR_QUESTION = "\x1b[6n"
CURSOR_ANSWER = "\x1b[1;1R"


class Screen:
    """The other end of the terminal."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor = descriptor
        self._process = process
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Reads until `text` was shown; what came before it is done with."""
        deadline = time.monotonic() + seconds
        while text not in self._seen:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} never came; the screen shows {self._seen!r}"
            data = os.read(self._descriptor, 4096).decode("utf-8", "replace")
            if CURSOR_QUESTION in data:  # some line editors ask where the cursor is
                self.type(CURSOR_ANSWER)
            self._seen += data
        self._seen = self._seen.partition(text)[2]

    def exit_code(self, seconds: float = 15) -> int:
        """Waits for the program's end, reading what it still writes."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            if select.select([self._descriptor], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # the other end is closed
                    os.read(self._descriptor, 4096)
        return self._process.wait(1)


@contextlib.contextmanager
def terminal(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Iterator[Screen]:
    """The program in a terminal of its own, killed at the end if it still runs."""
    main, other = pty.openpty()
    termios.tcsetwinsize(main, (24, 80))
    process = subprocess.Popen(
        command, stdin=other, stdout=other, stderr=other, cwd=folder, env=environment, start_new_session=True
    )
    os.close(other)
    try:
        yield Screen(main, process)
    finally:
        process.kill()
        process.wait()
        os.close(main)

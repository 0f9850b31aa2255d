"""Starts and asks the transformers peer: an interpreter with torch, told by `--transformers`.

Or by the variable TRANSFORMERS_PYTHON; without one the comparison is left out, and said to be.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.shapes import config_of

VARIABLE = "TRANSFORMERS_PYTHON"
ADVICE = f"name a Python with torch and transformers with --transformers or {VARIABLE} to compare with it"
SCRIPT = Path(__file__).with_name("transformers_peer.py")


@dataclass(frozen=True, slots=True)
class TorchPeer:
    """A model of a shape in a process of its own."""

    process: subprocess.Popen[str]

    def generate(self, prompt: int, tokens: int, streams: int) -> dict[str, float]:
        """Tokens a second of the prompts and of the streams."""
        rates: dict[str, float] = self.ask({"prompt": prompt, "tokens": tokens, "streams": streams})
        return rates

    def ask(self, command: dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the transformers peer ended; its last words are above")
        return json.loads(line)


@contextlib.contextmanager
def torch_peer(python: str, shape: str, dtype: str, threads: int) -> Iterator[TorchPeer]:
    """The peer with random weights of `shape`, loaded."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"}
    process = subprocess.Popen(  # -P: the modules beside the script are not its own
        [python, "-P", str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        peer = TorchPeer(process)
        peer.ask({"load": config_of(shape), "dtype": dtype, "threads": threads})
        yield peer
    finally:
        process.kill()
        process.wait()

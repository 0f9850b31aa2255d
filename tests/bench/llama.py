"""llama.cpp as a peer: its own benches and server, as processes, on the same file with the same threads.

The folder of its programs is named by `--llama` or the variable LLAMA_CPP_BIN; without one the comparison is
left out, and said to be. It must have been built for this machine (`cmake -DGGML_NATIVE=ON`, the default):
`instructions` says which of the processor's it uses. Sources lie in the sdist of `llama-cpp-python` too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "LLAMA_CPP_BIN"
PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-server")
LIBRARIES = ("libllama.so", "libllama.dylib")
ADVICE = f"name the folder of llama.cpp's programs with --llama or {VARIABLE} to compare with it"
NEEDED = ("AVX512_VNNI", "AVX512_BF16", "AVX512", "AVX_VNNI", "AVX2", "FMA", "DOTPROD", "MATMUL_INT8")
"""Instruction sets that decide the speed of quantised products, by ggml's names."""

FLAGS = {"AVX512": "avx512f", "DOTPROD": "asimddp", "MATMUL_INT8": "i8mm"}
"""The kernel's name in /proc/cpuinfo where it is not ggml's in lower case."""


ASK = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.llama_print_system_info.restype = ctypes.c_char_p
print(library.llama_print_system_info().decode())
"""


class PeerError(Exception):
    """llama.cpp is not what this bench needs, or failed."""


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """The programs of one build."""

    folder: Path
    threads: int

    @staticmethod
    def find(folder: str | None, threads: int) -> LlamaCpp | None:
        """The build in `folder` or where LLAMA_CPP_BIN says; None when neither is given."""
        chosen = folder or os.environ.get(VARIABLE)
        if not chosen:
            return None
        found = LlamaCpp(Path(chosen), threads)
        missing = [name for name in PROGRAMS if not (found.folder / name).is_file()]
        if missing:
            raise PeerError(f"{chosen} holds no {', '.join(missing)}; build llama.cpp with its tools")
        return found

    def generate(self, model: Path, prompt: int, tokens: int) -> dict[str, float]:
        """Tokens a second of a prompt alone and of one stream from an empty context (llama-bench)."""
        options = ["-p", str(prompt), "-n", str(tokens), "-r", "1", "-o", "jsonl"]
        rows = self._rows("llama-bench", "-m", str(model), *options)
        return {("decode" if row["n_gen"] else "prefill"): row["avg_ts"] for row in rows}

    def batch(self, model: Path, prompt: int, tokens: int, streams: int) -> dict[str, float]:
        """Tokens a second of `streams` prompts and of the streams after them (llama-batched-bench)."""
        sizes = ["-npp", str(prompt), "-ntg", str(tokens), "-npl", str(streams)]
        context = ["-c", str((prompt + tokens) * streams + 64), "--output-format", "jsonl"]
        (row,) = self._rows("llama-batched-bench", "-m", str(model), *sizes, *context)
        return {"prefill": row["speed_pp"], "decode": row["speed_tg"]}

    def instructions(self) -> str:
        """The instruction sets this build uses. Raises `PeerError` when it leaves a good one out."""
        found = [self.folder / name for name in LIBRARIES if (self.folder / name).is_file()]
        if not found:
            raise PeerError(f"{self.folder} holds no {' or '.join(LIBRARIES)}; build with shared libraries")
        command = [sys.executable, "-c", ASK, str(found[0])]
        asked = subprocess.run(command, capture_output=True, text=True, check=True)
        used = set(re.findall(r"(\w+) = 1", asked.stdout))
        has = _processor_flags()
        left_out = [name for name in NEEDED if FLAGS.get(name, name.lower()) in has and name not in used]
        if left_out:
            raise PeerError(f"this llama.cpp does not use {', '.join(left_out)}; build with GGML_NATIVE=ON")
        return ", ".join(sorted(used))

    def _rows(self, program: str, *arguments: str) -> list[dict[str, Any]]:
        done = self._run(program, *arguments, "-t", str(self.threads))
        return [json.loads(line) for line in done.stdout.split("\n") if line.startswith("{")]

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([self.folder / program, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise PeerError(f"{program} failed: {done.stderr.strip()[-500:]}")
        return done

    @contextlib.contextmanager
    def server(self, model: Path, streams: int, context: int) -> Iterator[str]:
        """The address of a llama-server with `streams` slots of `context` tokens each, once it is ready."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        sizes = ["-np", str(streams), "-c", str(streams * context), "-t", str(self.threads)]
        place = ["--host", "127.0.0.1", "--port", str(port), "--no-webui"]
        command = [str(self.folder / "llama-server"), "-m", str(model), *sizes, *place]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _processor_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    line = next((line for line in text.split("\n") if line.startswith(("flags", "Features"))), ":")
    return set(line.split(":", 1)[1].split())


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise PeerError("llama-server did not become ready")

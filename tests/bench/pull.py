"""How fast a pull is against `curl | sha256sum` on the same file from the same server over loopback.

`python -m tests.bench.pull [--mib 1024] [--rounds 5]` prints a table and one JSON line. The server is a
process of its own that sends zeros. Both take turns, each round giving one ratio; the median of these ratios
counts, as other work on the machine then weighs on both. Processor seconds are told beside: they hardly
depend on that work. A pull writes to the disk, proves and publishes; curl's pipe writes nothing, so the
comparison is in its favour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.registry.conftest import gguf_bytes

SERVER = """
import asyncio, re, sys
size, head = int(sys.argv[1]), bytes.fromhex(sys.argv[2])
block = bytes(1 << 20)
async def serve(reader, writer):
    try:
        while True:
            request = (await reader.readuntil(b"\\r\\n\\r\\n")).decode()
            found = re.search(r"range: bytes=(\\d+)-(\\d+)", request, re.I)
            start, end = (int(found[1]), int(found[2]) + 1) if found else (0, size)
            lines = [f"HTTP/1.1 {206 if found else 200} X", f"Content-Length: {end - start}", 'ETag: "one"']
            if found:
                lines.append(f"Content-Range: bytes {start}-{end - 1}/{size}")
            writer.write("\\r\\n".join([*lines, "", ""]).encode())
            if request.startswith("HEAD"):
                continue
            position = start
            if position < len(head):
                writer.write(head[position:end])
                position = min(end, len(head))
            while position < end:
                piece = block[: end - position]
                writer.write(piece)
                position += len(piece)
                await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds by the clock, seconds of processor time, and the MiB that the process said it took at most."""

    seconds: float
    processor: float
    memory: int = 0


def timed(command: list[str]) -> Run:
    """Runs a command to its end, with all its children."""
    before, began = os.times(), time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, after = time.monotonic() - began, os.times()
    processor = sum(after[2:4]) - sum(before[2:4])
    said = done.stdout.split()[0]
    return Run(seconds, processor, int(said) if len(said) < 8 else 0)


def curl(url: str) -> Run:
    """`curl | sha256sum`."""
    return timed(["sh", "-c", f"curl -s {url} | sha256sum"])


def pull(url: str, folder: str | None) -> Run:
    """A pull into a new store, hashed, durable and published, in a process of its own."""
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        program = [sys.executable, "-m", "tests.registry.crash.one_pull"]
        return timed([*program, str(place / "models"), url, "8", str(8 << 20)])
    finally:
        shutil.rmtree(place)


def main() -> int:
    """Rounds of both, in turning order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where the store is made")
    arguments = parser.parse_args()
    size = (arguments.mib << 20) + len(gguf_bytes(1))
    with served(size) as url, served(len(gguf_bytes(1))) as small:
        idle = [pull(small, arguments.folder) for _ in range(3)]
        pairs: list[tuple[Run, Run]] = []
        for number in range(arguments.rounds):
            first = curl(url) if number % 2 else None
            pulled = pull(url, arguments.folder)
            pairs.append((first or curl(url), pulled))
    result = summary(size, pairs, idle) | {"bench": "pull", "mib": arguments.mib, "load": os.getloadavg()[0]}
    for name in ("curl", "pull"):
        print(f"{name:6}{result[f'{name}_mb_s']:8.0f} MB/s{result[f'{name}_cpu_s']:8.2f} s of processor time")
    print(json.dumps(result))
    return 0


def summary(size: int, pairs: list[tuple[Run, Run]], idle: list[Run]) -> dict[str, float]:
    """Medians; of a pull, less what starting its process takes."""
    start = min(run.seconds for run in idle)
    start_cpu = min(run.processor for run in idle)
    ratios = [first.seconds / (second.seconds - start) for first, second in pairs]
    return {
        "curl_mb_s": round(size / statistics.median(first.seconds for first, _ in pairs) / 1e6),
        "pull_mb_s": round(size / statistics.median(second.seconds - start for _, second in pairs) / 1e6),
        "ratio": round(statistics.median(ratios), 2),
        "least_ratio": round(min(ratios), 2),
        "best_ratio": round(max(ratios), 2),
        "curl_cpu_s": round(statistics.median(first.processor for first, _ in pairs), 2),
        "pull_cpu_s": round(statistics.median(second.processor for _, second in pairs) - start_cpu, 2),
        "rss_mib": max(second.memory for _, second in pairs),
    }


@contextlib.contextmanager
def served(size: int) -> Iterator[str]:
    """The address of a GGUF of so many bytes, from a server of its own."""
    command = [sys.executable, "-c", SERVER, str(size), gguf_bytes(1).hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/x.gguf"
        finally:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())

"""How fast a pull is against `curl | sha256sum` on the same file from the same server over loopback.

`python tests/bench/pull.py [--mib 1024]` prints a table and one JSON line. The server is a process of its
own that sends zeros; both sides write what they get to the same disk (curl's pipe writes nothing, so the
comparison is in its favour).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from registry.pull import ClientSettings, Puller
from registry.store import Store
from tests.registry.conftest import describe, gguf_bytes

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


def curl(url: str) -> float:
    """Seconds of `curl | sha256sum`."""
    began = time.monotonic()
    subprocess.run(f"curl -s {url} | sha256sum", shell=True, check=True, capture_output=True)
    return time.monotonic() - began


def pull(url: str, folder: Path) -> float:
    """Seconds of a pull into a new store, hashed, durable and published."""

    async def run() -> float:
        store = Store.open(folder / "models")
        puller = Puller(store, ClientSettings(), describe)
        began = time.monotonic()
        async for _ in puller.pull(url):
            pass
        seconds = time.monotonic() - began
        await puller.close()
        return seconds

    return asyncio.run(run())


def main() -> int:
    """Both, turn by turn, the best of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None, help="where the store is made")
    arguments = parser.parse_args()
    head = gguf_bytes(1)
    size = (arguments.mib << 20) + len(head)
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(size), head.hex()], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/x.gguf"
    curls, pulls = [], []
    try:
        for _ in range(arguments.rounds):
            curls.append(curl(url))
            folder = Path(tempfile.mkdtemp(dir=arguments.folder))
            pulls.append(pull(url, folder))
            shutil.rmtree(folder)
    finally:
        server.kill()
        server.wait()
    rates = {"curl | sha256sum": size / min(curls) / 1e6, "pull": size / min(pulls) / 1e6}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name, rate in rates.items():
        print(f"{name:20} {rate:8.0f} MB/s")
    result = {
        "bench": "pull",
        "mib": arguments.mib,
        "curl_mb_s": round(rates["curl | sha256sum"]),
        "pull_mb_s": round(rates["pull"]),
        "ratio": round(rates["pull"] / rates["curl | sha256sum"], 2),
        "rss_mib": round(memory),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the gateway itself costs: streamed tokens a second, and the time of a short request.

The scripted engine runs unthrottled in its own runner over the real frames, so that nothing but the gateway
is measured; tokens are counted in the events received, and every event holds one token. The short request is
compared with a bare FastAPI echo of the same run. Prints a table, then one JSON line.

    python -m tests.bench.gateway [--streams 32] [--tokens 1500] [--requests 300]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.gateway.live import LiveServer, live_server

ECHO_PORT = 18_977
HEADERS = "Host: localhost\r\nContent-Type: application/json\r\n"
ECHO = """
import sys, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
app = FastAPI()
class Body(BaseModel):
    prompt: str
@app.post("/echo")
async def echo(body: Body):
    return {"echo": body.prompt}
uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""


def request(path: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\n{HEADERS}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def stream(port: int, body: bytes) -> int:
    """Sends one streaming request on a connection of its own; the number of tokens received."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(body)
    tokens = 0
    rest = b""
    done = False
    while not done:
        data = await reader.read(2**18)
        if not data:
            raise RuntimeError(f"the stream broke off: {rest[-500:]!r}")
        rest += data
        done = b"data: [DONE]" in rest
        cut = rest.rfind(b"\n\n")
        tokens += rest[:cut].count(b'"delta":{"content":') if cut >= 0 else 0
        rest = rest[cut:] if cut >= 0 else rest
    writer.close()
    return tokens


async def streams(server: LiveServer, count: int, tokens: int) -> tuple[int, float]:
    """All streams at once: tokens received, seconds."""
    script = json.dumps({"steps": [{"text": "a"}], "repeat": tokens})
    body = request(
        "/v1/chat/completions",
        {
            "model": "scripted",
            "stream": True,
            "script": script,
            "messages": [{"role": "user", "content": "x"}],
        },
    )
    await stream(server.port, body)
    started = time.perf_counter()
    found = await asyncio.gather(*(stream(server.port, body) for _ in range(count)))
    return sum(found), time.perf_counter() - started


async def round_trips(port: int, body: bytes, count: int) -> list[float]:
    """Milliseconds of each of `count` requests on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    for _ in range(count):
        started = time.perf_counter()
        writer.write(body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        times.append((time.perf_counter() - started) * 1000)
    writer.close()
    return times[len(times) // 10 :]


@contextlib.contextmanager
def echo_server() -> Iterator[None]:
    """A bare FastAPI application, to compare with."""
    process = subprocess.Popen([sys.executable, "-c", ECHO, str(ECHO_PORT)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def echo_times(count: int) -> list[float]:
    """The same as `round_trips`, for the echo server once it is up."""
    for _ in range(300):
        await asyncio.sleep(0.1)
        with contextlib.suppress(ConnectionRefusedError):
            return await round_trips(ECHO_PORT, request("/echo", {"prompt": "x"}), count)
    raise RuntimeError("the echo server did not start")


async def measure(arguments: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, live_server(Path(folder)) as server:
        process = psutil.Process(server.process.pid)
        before = process.cpu_times()
        tokens, seconds = await streams(server, arguments.streams, arguments.tokens)
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        short = {"model": "scripted", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        mine = await round_trips(server.port, request("/v1/chat/completions", short), arguments.requests)
    with echo_server():
        echo = await echo_times(arguments.requests)
    return {
        "streams": arguments.streams,
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds),
        "tokens_per_cpu_second": round(tokens / used),
        "request_p50_ms": round(statistics.median(mine), 3),
        "echo_p50_ms": round(statistics.median(echo), 3),
        "ratio": round(statistics.median(mine) / statistics.median(echo), 2),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--requests", type=int, default=300)
    found = asyncio.run(measure(parser.parse_args()))
    for name, value in found.items():
        print(f"{name:24} {value}")
    print(json.dumps({"bench": "gateway"} | found))


if __name__ == "__main__":
    main()

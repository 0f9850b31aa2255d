"""Serving over HTTP: `gemmule serve` against `llama-server`, the same file, the same requests.

    python -m tests.bench.serve [--shapes 270m] [--types Q8_0] [--rounds 15] [--clients 1,4,8,32,64]
                                [--llama FOLDER] [--keep FOLDER]

A measurement starts a server and loads the model; then come, timed: the first 8 requests at once (cold), and
32 requests of which 8 run at a time (warm), every prompt 1,000 tokens that all share and 50 of its own, 96
tokens generated. Programs were compiled by an earlier start; `startup.py` measures the first. One pass of
mixed lengths for each number of clients follows. Prints tables and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench import llama
from tests.bench.llama import LlamaCpp
from tests.bench.rounds import DISTURBED, Rates, figure, run_rounds
from tests.bench.shapes import model_file, random_prompt
from tests.bench.versus import KEPT, MAIN_SHAPE, Report
from tests.servers import server_process

SLOTS = 8
CONTEXT = 2048
SHARED, OWN, GENERATED = 1000, 50, 96
COLD, WARM = 8, 32
COMMAND = (sys.executable, "-m", "gateway.cli.main")
MODEL = "bench"


@dataclass(frozen=True, slots=True)
class Request:
    prompt: tuple[int, ...]
    tokens: int

    def body(self) -> dict[str, Any]:
        return {
            "model": MODEL,
            "prompt": self.prompt,
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


@dataclass(slots=True)
class Answer:
    """When a request's parts came, in seconds since it was sent, and how many tokens it gave."""

    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def first(self) -> float:
        return self.arrivals[0]

    @property
    def gaps(self) -> np.ndarray[Any, Any]:
        return np.diff(self.arrivals)


@dataclass(frozen=True, slots=True)
class Load:
    """What requests together gave: tokens a second, seconds to the first token, gaps between tokens."""

    answers: Sequence[Answer]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds

    def first(self, quantile: float) -> float:
        return float(np.quantile([answer.first for answer in self.answers], quantile))

    def gap(self, quantile: float) -> float:
        return float(np.quantile(np.concatenate([answer.gaps for answer in self.answers]), quantile))

    @property
    def per_stream(self) -> float:
        return 1 / float(np.median([answer.gaps.mean() for answer in self.answers]))


async def ask(port: int, request: Request) -> Answer:
    """One streamed completion on a connection of its own."""
    data = json.dumps(request.body()).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    started, answer = time.perf_counter(), Answer()
    try:
        writer.write(head.encode() + data)
        while line := await reader.readline():
            if line.startswith(b'data: {"'):
                _take(answer, line, time.perf_counter() - started)
            elif b'"error"' in line:
                raise RuntimeError(line.decode())
    finally:
        writer.close()
    if not answer.tokens:
        raise RuntimeError("a stream ended without its count of tokens")
    return answer


def _take(answer: Answer, line: bytes, seconds: float) -> None:
    if b'"usage":{' in line or b'"usage": {' in line:
        answer.tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    elif b'"text":""' not in line:
        answer.arrivals.append(seconds)


async def _together(port: int, requests: Sequence[Request], clients: int) -> Load:
    free = asyncio.Semaphore(clients)

    async def one(request: Request) -> Answer:
        async with free:
            return await ask(port, request)

    started = time.perf_counter()
    answers = await asyncio.gather(*(one(request) for request in requests))
    return Load(answers, time.perf_counter() - started)


def together(port: int, requests: Sequence[Request], clients: int) -> Load:
    return asyncio.run(_together(port, requests, clients))


Server = Callable[[], contextlib.AbstractContextManager[int]]
"""Starts a server with the model loaded and gives its port."""


@contextlib.contextmanager
def llama_server(peer: LlamaCpp, model: Path) -> Iterator[int]:
    with peer.server(model, SLOTS, CONTEXT) as url:
        yield int(url.rsplit(":", 1)[1])


def environment(folder: Path, threads: int) -> dict[str, str]:
    """Settings of a server with a store of its own."""
    settings = {
        "GEMMULE_HOST": "127.0.0.1:0",
        "GEMMULE_MODELS": str(folder / "models"),
        "GEMMULE_STATE": str(folder / "state"),
        "GEMMULE_EXTRA_STORES": "",
        "GEMMULE_NUM_PARALLEL": str(SLOTS),
        "GEMMULE_CONTEXT_LENGTH": str(CONTEXT),
        "GEMMULE_THREADS": str(threads),
        "GEMMULE_DEVICE": "cpu",
    }
    return {**os.environ, **settings}


def post(url: str, body: dict[str, Any]) -> None:
    """A request whose answer does not matter, as long as it is one."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        response.read()


@contextlib.contextmanager
def gateway(folder: Path, threads: int) -> Iterator[str]:
    """The address of `gemmule serve` over the store in `folder`."""
    with server_process((*COMMAND, "serve"), environment(folder, threads)) as server:
        yield server.url


def create(model: Path, folder: Path, threads: int) -> None:
    """Makes the file a model of the store in `folder`."""
    folder.mkdir(parents=True)
    modelfile = folder / "Modelfile"
    modelfile.write_text(f"FROM {model}\n")
    with gateway(folder, threads) as url:
        settings = {**environment(folder, threads), "GEMMULE_HOST": url}
        subprocess.run([*COMMAND, "create", MODEL, "-f", str(modelfile)], env=settings, check=True)


@contextlib.contextmanager
def our_server(folder: Path, threads: int) -> Iterator[int]:
    """The port of the gateway with the model of its store loaded."""
    with gateway(folder, threads) as url:
        post(f"{url}/api/generate", {"model": MODEL, "keep_alive": "1h"})
        yield int(url.rsplit(":", 1)[1])


def shared_requests(count: int, seed: int) -> list[Request]:
    """Prompts that share all but their last tokens."""
    shared = random_prompt(SHARED, 1)
    return [Request((*shared, *random_prompt(OWN, seed + index)), GENERATED) for index in range(count)]


def mixed_requests(count: int, seed: int) -> list[Request]:
    """Prompts of 16 to 512 tokens, half of them behind one of two shared beginnings; 32 to 128 tokens out."""
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        beginning = random_prompt(128, 2 + index % 2) if random.random() < 0.5 else ()
        own = random_prompt(int(random.integers(16, 385)), seed + index)
        found.append(Request((*beginning, *own), int(random.integers(32, 129))))
    return found


def cold_and_warm(server: Server) -> Rates:
    """Rates of one server from its start: higher is better for all."""
    seed = time.monotonic_ns()
    with server() as port:
        cold = together(port, shared_requests(COLD, seed), COLD)
        warm = together(port, shared_requests(WARM, seed + COLD), SLOTS)
    return {
        "cold_tokens": cold.tokens_per_second,
        "cold_first_token": 1 / cold.first(0.5),
        "warm_tokens": warm.tokens_per_second,
        "warm_first_token": 1 / warm.first(0.5),
    }


KEYS = {
    "cold_tokens": f"serve_{COLD}_cold_tokens",
    "cold_first_token": f"serve_{COLD}_cold_first_token",
    "warm_tokens": "serve_warm_tokens",
    "warm_first_token": "serve_warm_first_token",
}


def compare(ours: Server, theirs: Server, options: argparse.Namespace, suffix: str, report: Report) -> None:
    rounds = run_rounds(
        partial(cold_and_warm, ours), partial(cold_and_warm, theirs), options.rounds, seconds=options.seconds
    )
    for name, key in KEYS.items():
        report.compare(f"{key}_vs_llamacpp{suffix}", rounds, name)
    report.line[f"serve_warm_tokens{suffix}"] = round(
        figure(rounds, lambda r: r.ours["warm_tokens"]).median, 1
    )


def sweep(name: str, server: Server, clients: Sequence[int], report: Report) -> None:
    """One pass of mixed requests for each number of clients."""
    print(f"{name:12} {'clients':>7} {'first p50':>10} {'p95':>8} {'each/s':>7} {'all/s':>7} {'gap p99':>8}")
    with server() as port:
        together(port, mixed_requests(SLOTS, 0), SLOTS)
        for count in clients:
            load = together(port, mixed_requests(max(count, SLOTS), count), count)
            times = f"{load.first(0.5) * 1e3:7.0f} ms {load.first(0.95) * 1e3:5.0f} ms"
            rates = f"{load.per_stream:7.1f} {load.tokens_per_second:7.1f} {load.gap(0.99) * 1e3:5.0f} ms"
            print(f"{'':12} {count:7} {times} {rates}", flush=True)
            report.line[f"serve_mixed_{count}_tokens_{name}"] = round(load.tokens_per_second, 1)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",") if part]

    parser.add_argument("--shapes", type=names, default=["270m"])
    parser.add_argument("--types", type=names, default=["Q8_0"])
    parser.add_argument("--rounds", type=int, default=15, help="rounds that must count (15)")
    parser.add_argument("--seconds", type=float, default=3600, help="most seconds of rounds (3600)")
    parser.add_argument("--clients", type=numbers, default=[1, 4, 8, 32, 64], help="of mixed requests")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of either side (all)")
    parser.add_argument("--llama", metavar="FOLDER", help=llama.ADVICE)
    parser.add_argument("--keep", type=Path, default=KEPT, help=f"where models and programs stay ({KEPT})")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    peer = LlamaCpp.find(options.llama, options.threads)
    report = Report({"bench": "serve", "threads": options.threads})
    print(f"llama-server: {peer.instructions() if peer else 'left out; ' + llama.ADVICE}")
    print(f"a round counts when others had less than {DISTURBED:.0%} of the processors, steal included")
    for shape in options.shapes:
        for kind in options.types:
            model = model_file(options.keep, shape, kind).resolve()
            folder = options.keep.resolve() / f"server-{shape}-{kind}"
            if not folder.exists():
                create(model, folder, options.threads)
            ours: Server = partial(our_server, folder, options.threads)
            suffix = "" if shape == MAIN_SHAPE else f"_{shape}"
            if peer is not None:
                theirs: Server = partial(llama_server, peer, model)
                compare(ours, theirs, options, suffix, report)
                sweep("llamacpp", theirs, options.clients, report)
            sweep("gemmule", ours, options.clients, report)
    print(json.dumps({**report.line, "busy": report.busy}))


if __name__ == "__main__":
    main()

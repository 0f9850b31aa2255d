"""The command bench: how fast a model answers over HTTP, for its owner's machine and model.

Sends the same requests that clients send and reads the server's own counts. Called by main.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from gateway.cli.connect import connect
from gateway.cli.errors import OK, USAGE, CommandError
from gateway.cli.output import table
from gateway.cli.progress import Board
from gateway.client import Client, ClientError

WORDS = "the quick brown fox jumps over the lazy dog and runs into the wood "


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: seconds to the first token and in all, tokens generated and read."""

    first_token: float
    total: float
    generated: int
    prompt: int


@dataclass(frozen=True, slots=True)
class Row:
    """What several requests at once gave; times in seconds, rates in tokens per second."""

    streams: int
    prompt_tokens: int
    first_token_p50: float
    first_token_p95: float
    per_stream: float
    in_all: float


def bench(arguments: argparse.Namespace) -> int:
    """`gemmule bench MODEL`."""
    if arguments.tokens < 2 or arguments.rounds < 1 or min(arguments.streams) < 1:
        raise CommandError("--tokens must be 2 or more, --rounds and --streams 1 or more", code=USAGE)
    client = connect(check=True)
    rows = []
    with Board() as board:
        board.update(f"loading {arguments.model}")
        ask(client, arguments.model, arguments.prompt_words, 2)
        for streams in arguments.streams:
            board.update(f"{streams} at once")
            rows.append(measure(client, arguments, streams))
        board.clear()
    if arguments.json:
        print(json.dumps({"model": arguments.model, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print(render(rows), end="")
    return OK


def measure(client: Client, arguments: argparse.Namespace, streams: int) -> Row:
    """All rounds of one number of streams."""
    samples: list[Sample] = []
    spent = 0.0
    for _ in range(arguments.rounds):
        started = time.monotonic()
        samples += together(client, arguments.model, arguments.prompt_words, arguments.tokens, streams)
        spent += time.monotonic() - started
    return summarize(samples, streams, spent)


def together(client: Client, model: str, words: int, tokens: int, streams: int) -> list[Sample]:
    """The samples of requests sent at the same time. Raises the first fault."""
    samples: list[Sample] = []
    faults: list[ClientError] = []

    def one() -> None:
        try:
            samples.append(ask(client, model, words, tokens))
        except ClientError as error:
            faults.append(error)

    threads = [threading.Thread(target=one, daemon=True) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return samples


def ask(client: Client, model: str, words: int, tokens: int) -> Sample:
    """One greedy request; the number in the prompt keeps it from being a copy of another's."""
    text = (WORDS * (words // 13 + 1)).split()[:words]
    body = {
        "model": model,
        "prompt": f"{time.monotonic_ns()} {' '.join(text)}",
        "raw": True,
        "options": {"temperature": 0, "num_predict": tokens, "stop": []},
    }
    started = time.monotonic()
    first = 0.0
    done: dict[str, object] = {}
    for line in client.stream("/api/generate", body):
        first = first or time.monotonic() - started
        done = line
    counts = [done.get(key, 0) for key in ("eval_count", "prompt_eval_count")]
    generated, prompt = (count if isinstance(count, int) else 0 for count in counts)
    return Sample(first, time.monotonic() - started, generated, prompt)


def summarize(samples: Sequence[Sample], streams: int, spent: float) -> Row:
    """The figures of a table row. `spent` is the wall time of all rounds."""
    firsts = sorted(sample.first_token for sample in samples)
    rates = [
        (sample.generated - 1) / (sample.total - sample.first_token)
        for sample in samples
        if sample.generated > 1 and sample.total > sample.first_token
    ]
    return Row(
        streams=streams,
        prompt_tokens=round(statistics.median(sample.prompt for sample in samples)),
        first_token_p50=statistics.median(firsts),
        first_token_p95=firsts[min(len(firsts) - 1, int(len(firsts) * 0.95))],
        per_stream=statistics.median(rates) if rates else 0.0,
        in_all=sum(sample.generated for sample in samples) / spent,
    )


def render(rows: Sequence[Row]) -> str:
    """The table for people."""
    return table(
        ("STREAMS", "PROMPT", "FIRST TOKEN", "P95", "TOKENS/S EACH", "TOKENS/S"),
        [
            (
                str(row.streams),
                str(row.prompt_tokens),
                f"{row.first_token_p50 * 1000:.0f} ms",
                f"{row.first_token_p95 * 1000:.0f} ms",
                f"{row.per_stream:.1f}",
                f"{row.in_all:.1f}",
            )
            for row in rows
        ],
    )

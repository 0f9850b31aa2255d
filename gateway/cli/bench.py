"""The command bench: how fast a model answers over HTTP, for its owner's machine and model.

Measures what llama-bench measures, under its names: `pp512` reads a prompt of 512 tokens, `tg128` generates
128 after a short one, in one stream or several. Prompts are the model's own tokens in random order, so that
no cache knows them. Called by main.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from gateway.cli.connect import connect
from gateway.cli.errors import OK, USAGE, CommandError
from gateway.cli.output import table
from gateway.cli.progress import Board
from gateway.client import Client, ClientError

TEXT = "The quick brown fox jumps over the lazy dog, and at 9:30 runs home. "
SHORT_PROMPT = 16
"""Tokens of the prompt before those that `tg` generates."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: when its first and its last token came, in seconds of one clock, and how many."""

    sent: float
    first: float
    last: float
    generated: int

    @property
    def first_token(self) -> float:
        return self.first - self.sent


@dataclass(frozen=True, slots=True)
class Row:
    """One test: rates in tokens per second, over all streams and of the median one; times in seconds."""

    test: str
    streams: int
    tokens_per_second: float
    per_stream: float
    first_token_p50: float
    first_token_p95: float


Ask = Callable[[int, int], Sample]
"""Sends a request with so many tokens of prompt for so many new ones."""


def bench(arguments: argparse.Namespace) -> int:
    """`gemmule bench MODEL`."""
    least = min(arguments.prompt, arguments.rounds, *arguments.streams)
    if arguments.tokens < 2 or least < 1:
        raise CommandError(
            "--tokens must be 2 or more, --prompt, --rounds and --streams 1 or more", code=USAGE
        )
    client = connect(check=True)
    with Board() as board:
        board.update(f"loading {arguments.model}")
        ask = partial(ask_model, client, arguments.model, vocabulary(client, arguments.model))
        together(ask, SHORT_PROMPT, 2, 1)
        board.update(f"reading prompts of {arguments.prompt}")
        rows = [prompt_row(ask, arguments.prompt, arguments.rounds)]
        for streams in arguments.streams:
            board.update(f"generating in {streams} at once")
            rows.append(stream_row(ask, arguments.tokens, streams, arguments.rounds))
        board.clear()
    if arguments.json:
        print(json.dumps({"model": arguments.model, "rows": [asdict(row) for row in rows]}))
    else:
        print(render(rows), end="")
    return OK


def vocabulary(client: Client, model: str) -> Sequence[int]:
    """Token ids of plain text, to make prompts of."""
    body = {"model": model, "content": TEXT, "add_special": False}
    tokens: list[int] = client.request("POST", "/tokenize", body)["tokens"]
    return tokens


def ask_model(client: Client, model: str, words: Sequence[int], prompt: int, tokens: int) -> Sample:
    """One greedy request that goes on to its last token. Raises ClientError."""
    body = {
        "model": model,
        "prompt": random.choices(words, k=prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent = time.monotonic()
    first = last = 0.0
    generated = 0
    for event in client.events("/v1/completions", body):
        if event.get("choices"):
            last = time.monotonic()
            first = first or last
        usage: dict[str, Any] = event.get("usage") or {}
        generated = usage.get("completion_tokens", generated)
    return Sample(sent, first, last, generated)


def together(ask: Ask, prompt: int, tokens: int, streams: int) -> list[Sample]:
    """The samples of requests sent at the same time. Raises the first fault."""
    samples: list[Sample] = []
    faults: list[ClientError] = []

    def one() -> None:
        try:
            samples.append(ask(prompt, tokens))
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


def prompt_row(ask: Ask, prompt: int, rounds: int) -> Row:
    """`pp`: prompts one after the other, each until the token behind it."""
    samples = [ask(prompt, 1) for _ in range(rounds)]
    rate = prompt / statistics.median(sample.first_token for sample in samples)
    return _row(f"pp{prompt}", 1, samples, rate, rate)


def stream_row(ask: Ask, tokens: int, streams: int, rounds: int) -> Row:
    """`tg`: all tokens after the first ones, over the time from the earliest first to the latest last one."""
    samples: list[Sample] = []
    rates = []
    for _ in range(rounds):
        found = together(ask, SHORT_PROMPT, tokens, streams)
        seconds = max(one.last for one in found) - min(one.first for one in found)
        rates.append(sum(one.generated - 1 for one in found) / max(seconds, 1e-9))
        samples += found
    each = [(one.generated - 1) / max(one.last - one.first, 1e-9) for one in samples]
    return _row(f"tg{tokens}", streams, samples, statistics.median(rates), statistics.median(each))


def _row(test: str, streams: int, samples: Sequence[Sample], rate: float, each: float) -> Row:
    firsts = sorted(sample.first_token for sample in samples)
    slow = firsts[min(len(firsts) - 1, int(len(firsts) * 0.95))]
    return Row(test, streams, rate, each, statistics.median(firsts), slow)


def render(rows: Sequence[Row]) -> str:
    """The table for people."""
    return table(
        ("TEST", "STREAMS", "TOKENS/S", "EACH", "FIRST TOKEN", "P95"),
        [
            (
                row.test,
                str(row.streams),
                f"{row.tokens_per_second:.1f}",
                f"{row.per_stream:.1f}",
                f"{row.first_token_p50 * 1000:.0f} ms",
                f"{row.first_token_p95 * 1000:.0f} ms",
            )
            for row in rows
        ],
    )

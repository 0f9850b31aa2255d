"""Our engine against llama.cpp and transformers: decoding and prefill, same machine, same threads.

    python -m tests.bench.versus [--shapes 270m,1b] [--types Q8_0,BF16] [--cases one,batch,long] [--rounds 15]
                                 [--llama FOLDER] [--transformers PYTHON] [--keep FOLDER]

Both engines read the same GGUF file of random weights. Rounds are in ABBA order; which ones count is told in
`tests/bench/rounds.py`. Ratios above 1 are in our favour. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import llama, torch_peer
from tests.bench.llama import LlamaCpp
from tests.bench.memory import Reader, readers
from tests.bench.ours import Ours
from tests.bench.rounds import DISTURBED, Figure, Rates, Round, figure, ratio, run_rounds
from tests.bench.shapes import SHAPES, TYPES, model_file, weight_bytes

STREAMS = 8
LONG = 8192
SHORT_PROMPT = 16
MAIN_SHAPE = "270m"
"""The shape whose keys carry no suffix."""

KEPT = Path(".cache/bench")
HEADER = f"{'':42} {'ours':>8} {'peer':>8} {'ratio':>6}  90 % interval, rounds"


@dataclass(slots=True)
class Report:
    """What was found, in the order it was: printed at once, joined at the end."""

    line: dict[str, Any] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)

    def add(self, key: str, found: Figure, ours: float, theirs: float) -> None:
        self.line[key] = round(found.median, 3)
        self.line[f"{key}_low"] = round(found.low, 3)
        if found.busy:
            self.busy.append(key)
        print(f"{key:42} {ours:8.1f} {theirs:8.1f} {found}", flush=True)

    def compare(self, key: str, rounds: Sequence[Round], name: str, tokens_key: str = "") -> None:
        ours = figure(rounds, lambda one: one.ours[name]).median
        theirs = figure(rounds, lambda one: one.theirs[name]).median
        self.add(key, ratio(rounds, name), ours, theirs)
        if tokens_key:
            self.line[tokens_key] = round(ours, 1)


@dataclass(frozen=True, slots=True)
class Bench:
    """One file, one peer, how long to measure."""

    shape: str
    kind: str
    path: Path
    ours: Ours
    options: argparse.Namespace
    report: Report

    def key(self, what: str, peer: str = "llamacpp") -> str:
        suffix = "" if self.shape == MAIN_SHAPE else f"_{self.shape}"
        return f"{what.format(self.kind.lower())}_vs_{peer}{suffix}"

    def rounds(self, ours: Callable[[], Rates], theirs: Callable[[], Rates], **more: Any) -> list[Round]:
        return run_rounds(ours, theirs, self.options.rounds, seconds=self.options.seconds, **more)

    def one(self, peer: LlamaCpp) -> None:
        """One stream from an empty context, and a prompt of 512 tokens by itself."""
        tokens = self.options.tokens

        def ours() -> Rates:
            prefill = self.ours.generate(512, 0)["prefill"]
            return {"prefill": prefill, "decode": self.ours.generate(1, tokens)["decode"]}

        beside = measured_readers(self.options.threads) if self.kind == "Q8_0" else None
        rounds = self.rounds(ours, lambda: peer.generate(self.path, 512, tokens), beside=beside)
        kind = self.kind.lower()
        self.report.compare(
            self.key("decode_{}_b1"), rounds, "decode", f"decode_{kind}_b1_{self.shape}_tokens"
        )
        self.report.compare(
            self.key("prefill_512_{}"), rounds, "prefill", f"prefill_512_{kind}_{self.shape}_tokens"
        )
        if beside:
            self._bandwidth(rounds)

    def _bandwidth(self, rounds: Sequence[Round]) -> None:
        """What of the best reader's bandwidth one stream's weights take up."""
        size = weight_bytes(self.shape, self.kind)

        def best(one: Round) -> float:
            return max(*one.beside.values(), one.theirs["decode"] * size)

        found = figure(rounds, lambda one: one.ours["decode"] * size / best(one))
        suffix = "" if self.shape == MAIN_SHAPE else f"_{self.shape}"
        used = figure(rounds, lambda one: one.ours["decode"] * size / 1e9).median
        self.report.add(
            f"decode_q8_0_bandwidth_fraction{suffix}", found, used, figure(rounds, best).median / 1e9
        )

    def batch(self, peer: LlamaCpp) -> None:
        """Eight streams after short prompts."""
        sizes = (SHORT_PROMPT, self.options.tokens // 2, STREAMS)
        ours = partial(self._decode_only, *sizes)
        rounds = self.rounds(ours, lambda: peer.batch(self.path, *sizes))
        kind = self.kind.lower()
        self.report.compare(
            self.key(f"decode_{{}}_b{STREAMS}"),
            rounds,
            "decode",
            f"decode_{kind}_b{STREAMS}_{self.shape}_tokens",
        )

    def _decode_only(self, prompt: int, tokens: int, streams: int) -> Rates:
        return {"decode": self.ours.generate(prompt, tokens, streams)["decode"]}

    def long(self, peer: LlamaCpp) -> None:
        """A prompt of 8,192 tokens, and one stream behind it."""
        sizes = (LONG, max(self.options.tokens // 2, 8), 1)
        rounds = self.rounds(lambda: self.ours.generate(*sizes), lambda: peer.batch(self.path, *sizes))
        self.report.compare(self.key(f"decode_{{}}_b1_{LONG}"), rounds, "decode")
        self.report.compare(self.key(f"prefill_{LONG}_{{}}"), rounds, "prefill")

    def transformers(self, python: str) -> None:
        """The same decoding by transformers, in float32 as by default and in bfloat16."""
        tokens = max(self.options.tokens // 4, 4)
        for dtype, name in (("float32", "f32"), ("bfloat16", "bf16")):
            with torch_peer.torch_peer(python, self.shape, dtype, self.options.threads) as peer:
                for streams in (1, STREAMS):
                    sizes = (SHORT_PROMPT, tokens, streams)
                    rounds = self.rounds(partial(self._decode_only, *sizes), partial(peer.generate, *sizes))
                    key = self.key(f"decode_{{}}_b{streams}", f"transformers_{name}")
                    self.report.compare(key, rounds, "decode")


CASES: dict[str, Callable[[Bench, LlamaCpp], None]] = {
    "one": Bench.one,
    "batch": Bench.batch,
    "long": Bench.long,
}
LONG_TYPES = ("Q8_0",)
"""Types measured at long contexts too: what differs there does not depend on the weights."""


def measured_readers(threads: int) -> Callable[[], Rates]:
    found: dict[str, Reader] = readers(threads)
    return lambda: {name: read() for name, read in found.items()}


@contextlib.contextmanager
def loaded(path: Path, options: argparse.Namespace) -> Iterator[Ours]:
    context = LONG + 1024 if "long" in options.cases else 1024
    yield Ours(
        path,
        slots=STREAMS,
        context=context,
        threads=options.threads,
        cache=options.keep.resolve() / "compiled",
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--shapes", type=names, default=["270m", "1b"], help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--types", type=names, default=list(TYPES), help=f"of {', '.join(TYPES)}")
    parser.add_argument("--cases", type=names, default=[*CASES, "transformers"])
    parser.add_argument("--rounds", type=int, default=15, help="rounds that must count (15)")
    parser.add_argument("--seconds", type=float, default=1800, help="most seconds of one comparison (1800)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of one stream in one measurement (64)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of either side (all)")
    parser.add_argument("--llama", metavar="FOLDER", help=llama.ADVICE)
    parser.add_argument("--transformers", metavar="PYTHON", default=os.environ.get(torch_peer.VARIABLE))
    parser.add_argument("--keep", type=Path, default=KEPT, help=f"where models and programs stay ({KEPT})")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, peer: LlamaCpp | None, report: Report) -> None:
    for shape in options.shapes:
        for kind in options.types:
            path = model_file(options.keep, shape, kind)
            with loaded(path, options) as ours:
                bench = Bench(shape, kind, path, ours, options, report)
                for case in options.cases:
                    if peer and case in CASES and (case != "long" or kind in LONG_TYPES):
                        CASES[case](bench, peer)
                if options.transformers and "transformers" in options.cases and kind == "BF16":
                    bench.transformers(options.transformers)


def main() -> None:
    options = parse()
    peer = LlamaCpp.find(options.llama, options.threads)
    report = Report({"bench": "versus", "threads": options.threads})
    print(f"llama.cpp: {peer.instructions() if peer else 'left out; ' + llama.ADVICE}")
    print(f"transformers: {options.transformers or 'left out; ' + torch_peer.ADVICE}")
    print(f"a round counts when others had less than {DISTURBED:.0%} of the processors, steal included")
    print(HEADER, flush=True)
    started = time.monotonic()
    measure(options, peer, report)
    print(json.dumps({**report.line, "busy": report.busy, "seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()

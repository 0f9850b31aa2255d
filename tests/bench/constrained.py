"""What a grammar costs: decoding with a JSON schema beside the same decoding without one, eight streams.

    python -m tests.bench.constrained [--model bud|270m] [--type Q8_0] [--tokens 100] [--rounds 5] [--profile]

Both runs draw in the same way (greedily, or at temperature 0.8) from the same engine, in ABBA order; the
grammar is a list of records that cannot end before the run does. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import json
import os
import pstats
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.base import GenerateRequest, Grammar, SamplingParams
from engines.grammar import Matcher
from tests.bench.ours import Ours
from tests.bench.shapes import model_file
from tests.bench.versus import KEPT

BUD = Path(__file__).parents[2] / "registry" / "bundled" / "bud.gguf"
STREAMS = 8
PROMPT = 16
SCHEMA = {
    "type": "array",
    "minItems": 1_000_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "count": {"type": "integer", "minimum": 0, "maximum": 9999},
            "kind": {"enum": ["star", "planet", "comet"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
        },
        "required": ["name", "count", "kind", "tags"],
        "additionalProperties": False,
    },
}
WAYS = {"greedy": SamplingParams(temperature=0.0), "sampled": SamplingParams(temperature=0.8, seed=7)}
ids = itertools.count(1_000_000)


def prompt(ours: Ours, seed: int) -> tuple[int, ...]:
    """Ordinary tokens of the model's vocabulary."""
    size = ours.engine._config.vocabulary_size
    return tuple(np.random.default_rng(seed).integers(300, size, PROMPT).tolist())


def submit(ours: Ours, sampling: SamplingParams, grammar: Grammar | None, tokens: int, seed: int) -> int:
    request = GenerateRequest(
        next(ids), prompt(ours, seed), tokens, ignore_eos=True, sampling=sampling, grammar=grammar
    )
    ours.engine.submit(request, ours.engine.prepare(request) if grammar else None)
    return request.request_id


def rates(ours: Ours, sampling: SamplingParams, grammar: Grammar | None, tokens: int) -> NDArray[np.float64]:
    """Tokens a second, and a second of processor time, of all streams from the step the last began in."""
    seed = time.monotonic_ns()
    missing = {submit(ours, sampling, grammar, tokens + STREAMS + 2, seed + i) for i in range(STREAMS)}
    running = set(missing)
    while missing:
        missing -= ours.step().counts.keys()
    clock, processor, total = time.perf_counter(), time.process_time(), 0
    for _ in range(tokens):
        total += sum(ours.step().counts.values())
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    for request_id in running:
        ours.engine.cancel(request_id)
    while ours.engine.wait_seconds() == 0:
        ours.step()
    return np.array((total / clock, total / processor))


def compare(
    ours: Ours, way: str, tokens: int, rounds: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rates without and with the grammar, [rounds, 2]."""
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    free, bound = [], []
    for _ in range(rounds):
        order: list[Grammar | None] = [None, grammar, grammar, None]
        found = [rates(ours, WAYS[way], each, tokens) for each in order]
        free.append((found[0] + found[3]) / 2)
        bound.append((found[1] + found[2]) / 2)
    return np.array(free), np.array(bound)


def mask_seconds(ours: Ours, tokens: int) -> float:
    """Processor time to make one row's mask and take one token, along a random walk through the grammar."""
    request = GenerateRequest(0, (1,), 1, grammar=Grammar("json_schema", json.dumps(SCHEMA)))
    matcher = ours.engine.prepare(request)
    assert isinstance(matcher, Matcher)
    words = -(-ours.engine._config.vocabulary_size // 32)
    row, random, spent = np.zeros(words, np.uint32), np.random.default_rng(0), 0.0
    for _ in range(tokens):
        started = time.process_time()
        matcher.fill_mask(row)
        spent += time.process_time() - started
        allowed = np.nonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))[0]
        token = int(random.choice(allowed))
        started = time.process_time()
        matcher.take(token)
        spent += time.process_time() - started
    return spent / tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bud", help="bud, or a shape of tests.bench.shapes")
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--keep", type=Path, default=KEPT, help=f"where models and programs stay ({KEPT})")
    options = parser.parse_args()
    path = BUD if options.model == "bud" else model_file(options.keep, options.model, options.type)
    compiled = options.keep.resolve() / "compiled"
    ours = Ours(path, slots=STREAMS, context=1024, threads=os.cpu_count() or 1, cache=compiled)
    line: dict[str, object] = {"bench": "constrained", "model": options.model, "streams": STREAMS}
    for way in WAYS:
        free, bound = compare(ours, way, options.tokens, options.rounds)
        for column, what in enumerate(("clock", "processor")):
            one, two = np.median(free[:, column]), np.median(bound[:, column])
            ratio = float(np.median(bound[:, column] / free[:, column]))
            print(
                f"{options.model} {way:8} by {what:9} {one:8.1f} tokens/s free, {two:8.1f} bound: {ratio:.3f}"
            )
            line |= {f"{way}_{what}": [round(float(one), 1), round(float(two), 1), round(ratio, 3)]}
    line["mask_ms"] = round(mask_seconds(ours, 200) * 1e3, 4)
    print(f"{line['mask_ms']} ms of processor time for the mask of one row and its token")
    if options.profile:
        with cProfile.Profile() as profile:
            rates(ours, WAYS["sampled"], Grammar("json_schema", json.dumps(SCHEMA)), options.tokens)
        pstats.Stats(profile).sort_stats("tottime").print_stats(14)
    print(json.dumps(line))


if __name__ == "__main__":
    main()

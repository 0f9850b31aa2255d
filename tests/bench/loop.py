"""The loop around a step: what it costs on the host, and what a long prompt does to running streams.

    python -m tests.bench.loop [--shape 270m] [--type Q8_0] [--tokens 200] [--repeats 5] [--keep FOLDER]

Host time is measured at eight streams: the processor time of the engine's thread in a turn (what runs in
XLA's own threads is not in it), and the wall time of a turn beyond that of the same programs back to back.
Then, with seven streams running, a prompt of 2,000 tokens is admitted: gaps between tokens before and during.
Prints a table, with `--profile` the functions that cost the most, and one JSON line.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.ours import Ours
from tests.bench.shapes import model_file, random_prompt
from tests.bench.versus import KEPT

STREAMS = 8
CONTEXT = 4096
PROMPT, LONG_PROMPT = 16, 2000


def drain(ours: Ours) -> None:
    while ours.engine.wait_seconds() == 0:
        ours.step()


def start_streams(ours: Ours, count: int, tokens: int) -> set[int]:
    """So many streams, each past its first token."""
    seed = time.monotonic_ns()
    missing = {ours.submit(random_prompt(PROMPT, seed + index), tokens) for index in range(count)}
    started = set(missing)
    while missing:
        missing -= ours.step().counts.keys()
    return started


def host_time(ours: Ours, tokens: int, profile: cProfile.Profile | None) -> tuple[float, float]:
    """Seconds of a turn at eight streams: of the engine's thread, and on the clock."""
    start_streams(ours, STREAMS, tokens + 32)
    for _ in range(8):
        ours.step()
    if profile:
        profile.enable()
    clock, thread = time.perf_counter(), time.thread_time()
    for _ in range(tokens):
        ours.step()
    spent = (time.thread_time() - thread) / tokens, (time.perf_counter() - clock) / tokens
    if profile:
        profile.disable()
    drain(ours)
    return spent


def bare_time(ours: Ours, tokens: int) -> tuple[float, float]:
    """The same for the two programs of a step alone, each result awaited one step later."""
    programs = ours.engine._programs
    slots, adapters = list(range(STREAMS)), [0] * STREAMS
    waiting: Any = None
    clock, thread = time.perf_counter(), time.thread_time()
    for position in range(PROMPT, PROMPT + tokens):
        logits = programs.decode(slots, [position] * STREAMS, adapters, STREAMS)
        sampled = programs.sample(logits, slots, [position + 1] * STREAMS, None, None)
        if waiting is not None:
            np.asarray(waiting.packed)
        waiting = sampled
    np.asarray(waiting.packed)
    spent = (time.thread_time() - thread) / tokens, (time.perf_counter() - clock) / tokens
    ours.engine._scheduler.forget_contents()
    return spent


def stall(ours: Ours, tokens: int) -> tuple[list[float], list[float]]:
    """Gaps between tokens of seven streams: without a prompt, and while a long one is admitted."""
    running = start_streams(ours, STREAMS - 1, tokens * 8)
    last = dict.fromkeys(running, time.perf_counter())
    plain: list[float] = []
    disturbed: list[float] = []
    gaps = plain
    late: int | None = None
    for turn in range(100_000):
        if turn == tokens:
            late = ours.submit(random_prompt(LONG_PROMPT, time.monotonic_ns()), 1)
            gaps = disturbed
        arrival = ours.step()
        for request_id in running & arrival.counts.keys():
            if turn:
                gaps.append(arrival.seconds - last[request_id])
            last[request_id] = arrival.seconds
        if late in arrival.counts:
            break
    for request_id in running:
        ours.engine.cancel(request_id)
    drain(ours)
    return plain, disturbed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="270m")
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--keep", type=Path, default=KEPT, help=f"where models and programs stay ({KEPT})")
    options = parser.parse_args()
    model = model_file(options.keep, options.shape, options.type)
    compiled = options.keep.resolve() / "compiled"
    threads = os.cpu_count() or 1
    ours = Ours(model, slots=STREAMS, context=CONTEXT, threads=threads, cache=compiled)
    profile = cProfile.Profile() if options.profile else None
    host_time(ours, 8, None)
    pairs = [
        (host_time(ours, options.tokens, None), bare_time(ours, options.tokens))
        for _ in range(options.repeats)
    ]
    own = float(np.median([loop[0] - bare[0] for loop, bare in pairs]))
    clock = float(np.median([loop[1] - bare[1] for loop, bare in pairs]))
    dispatch = float(np.median([bare[0] for _, bare in pairs]))
    step = float(np.median([loop[1] for loop, _ in pairs]))
    print(f"a step of {STREAMS} streams        {step * 1e3:8.3f} ms")
    print(f"  engine's thread, the loop  {own * 1e3:8.3f} ms beside dispatching, {dispatch * 1e3:.3f} ms")
    print(f"  on the clock, the loop     {clock * 1e3:8.3f} ms beyond the programs back to back")
    if profile:
        host_time(ours, options.tokens, profile)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    gaps = [stall(ours, options.tokens // 2) for _ in range(options.repeats)]
    plain, disturbed = (np.concatenate([pair[which] for pair in gaps]) for which in (0, 1))
    middle, slowest = float(np.median(plain)), float(np.quantile(disturbed, 0.99))
    usual = float(np.quantile(plain, 0.99))
    print(
        f"between tokens of {STREAMS - 1} streams   {middle * 1e3:8.1f} ms (median), p99 {usual * 1e3:.1f} ms"
    )
    print(f"  p99 while {LONG_PROMPT} are admitted {slowest * 1e3:8.1f} ms, {slowest / middle:.2f} times")
    line = {
        "bench": "loop",
        "loop_host_ms_b8": round(own * 1e3, 4),
        "loop_dispatch_ms_b8": round(dispatch * 1e3, 4),
        "loop_clock_ms_b8": round(clock * 1e3, 4),
        "stall_p99_of_median": round(slowest / middle, 3),
        "plain_p99_of_median": round(usual / middle, 3),
        "stall_p99_ms": round(slowest * 1e3, 2),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()

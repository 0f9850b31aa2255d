"""Our side of a comparison: the decoder's whole engine in this process, without HTTP.

What is measured is what a runner does: prompts are submitted, steps are made, tokens are read, each one
drawn and looked at. Called by the benches that compare engines.
"""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

from engines.base import GenerateRequest, Limits, LoadRequest, Ready, SamplingParams
from engines.runner import device_environment
from modelfiles.files import ModelFile
from tests.bench.shapes import random_prompt

GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a step's tokens were there, and how many of each request."""

    seconds: float
    counts: dict[int, int]


class Ours:
    """A loaded engine with every program compiled."""

    def __init__(
        self, model: Path, *, slots: int, context: int, threads: int, cache: Path | None = None
    ) -> None:
        load = LoadRequest(
            files=(ModelFile("weights", model.name, str(model), "sha256:" + "0" * 64, model.stat().st_size),),
            limits=Limits(slots, context),
            threads=threads,
            compile_cache=str(cache) if cache else None,
        )
        os.environ.update(device_environment(load, lambda index: 0))
        from engines.decoder.engine import DecoderEngine  # JAX reads those variables when it is imported

        self.engine = DecoderEngine()
        self.ready: Ready = self.engine.load(load, lambda progress: None)
        self.engine._programs.wait_all()
        self._ids = itertools.count(1)

    def submit(self, prompt: tuple[int, ...], tokens: int) -> int:
        """A greedy request that stops at nothing but its length; its id."""
        request_id = next(self._ids)
        request = GenerateRequest(request_id, prompt, tokens, ignore_eos=True, sampling=GREEDY)
        self.engine.submit(request, None)
        return request_id

    def step(self) -> Arrival:
        """One turn of the engine. Raises what a request failed with."""
        result = self.engine.step()
        for _, error in result.failures:
            raise error
        counts = {output.request_id: len(output.token_ids) for output in result.outputs}
        return Arrival(time.perf_counter(), counts)

    def generate(self, prompt: int, tokens: int, streams: int = 1) -> dict[str, float]:
        """Tokens a second of the prompts together, and of the streams while all of them run."""
        wanted = [random_prompt(prompt, time.monotonic_ns() + index) for index in range(streams)]
        started = time.perf_counter()
        arrived = dict.fromkeys((self.submit(each, tokens + 1) for each in wanted), 0)
        since = until = total = 0.0
        while self.engine.wait_seconds() == 0:
            arrival = self.step()
            for request_id, count in arrival.counts.items():
                arrived[request_id] += count
            if not since and all(arrived.values()):
                since, total = arrival.seconds, float(sum(arrived.values()))
            if since and not until and max(arrived.values()) > tokens:
                until, total = arrival.seconds, sum(arrived.values()) - total
        rates = {"prefill": prompt * streams / (since - started)}
        return rates | {"decode": total / (until - since)} if until > since else rates

"""Paired measurements: rounds in ABBA order, which of them count, and medians with their uncertainty.

The rule, stated before any figure: a round counts when time stolen by the host and time used by processes
other than ours and the peer's together stay below `DISTURBED` of what the processors could give while it ran.
Called by every bench that compares two programs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

DISTURBED = 0.05
ENOUGH = 3
"""With fewer undisturbed rounds than this all are used, and the figure says so."""

RESAMPLES = 2000

Rates = Mapping[str, float]
Measure = Callable[[], Rates]


@dataclass(frozen=True, slots=True)
class Round:
    """Rates of both sides in one round, by name; `beside` was measured once in it."""

    ours: Rates
    theirs: Rates
    beside: Rates
    disturbed: float


@dataclass(frozen=True, slots=True)
class Figure:
    """A median over rounds with its bootstrap 90 % interval. `busy` says that no quiet machine was had."""

    median: float
    low: float
    high: float
    rounds: int
    busy: bool

    def __str__(self) -> str:
        note = " (busy machine)" if self.busy else ""
        return f"{self.median:6.2f}  {self.low:.2f}-{self.high:.2f}  {self.rounds}{note}"


class Watch:
    """Processor time of others, and stolen time, since it was made."""

    def __init__(self) -> None:
        self._started, self._others = time.monotonic(), _others_seconds()

    def share(self) -> float:
        """What others took, of all that the processors could give since; 0 where the system does not tell."""
        capacity = (time.monotonic() - self._started) * (os.cpu_count() or 1)
        return max(0.0, _others_seconds() - self._others) / capacity


def _others_seconds() -> float:
    """Busy and stolen seconds of the machine less those of this process and everything it started."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _, _, interrupts, soft, stolen = (int(field) for field in fields)
    busy = (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    process = psutil.Process()
    return busy - sum(_used(one) for one in (process, *process.children(recursive=True)))


def _used(process: psutil.Process) -> float:
    try:
        spent = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(spent.user + spent.system + spent.children_user + spent.children_system)


def run_rounds(
    ours: Measure, theirs: Measure, rounds: int, beside: Measure | None = None, seconds: float = float("inf")
) -> list[Round]:
    """Rounds in ABBA order until so many count, twice as many were tried, or `seconds` have passed."""
    done: list[Round] = []
    until = time.monotonic() + seconds
    ours(), theirs()  # what runs for the first time is not what is measured
    while sum(one.disturbed < DISTURBED for one in done) < rounds and len(done) < 2 * rounds:
        if done and time.monotonic() > until:
            break
        watch = Watch()
        first, second, third, fourth = ours(), theirs(), theirs(), ours()
        other = beside() if beside else {}
        done.append(Round(_both(first, fourth), _both(second, third), other, watch.share()))
    return done


def _both(one: Rates, two: Rates) -> dict[str, float]:
    """The rate over two equal measurements together."""
    return {name: 2 / (1 / rate + 1 / two[name]) for name, rate in one.items()}


def counted(rounds: Sequence[Round]) -> tuple[Sequence[Round], bool]:
    """The rounds that count, and whether these are disturbed ones for want of others."""
    quiet = [one for one in rounds if one.disturbed < DISTURBED]
    return (quiet, False) if len(quiet) >= min(ENOUGH, len(rounds)) else (rounds, True)


def figure(rounds: Sequence[Round], value: Callable[[Round], float]) -> Figure:
    """The median of `value` over the rounds that count."""
    chosen, busy = counted(rounds)
    values = np.array([value(one) for one in chosen])
    random = np.random.default_rng(0)
    drawn = np.median(random.choice(values, (RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(drawn, (0.05, 0.95))
    return Figure(float(np.median(values)), float(low), float(high), len(values), busy)


def ratio(rounds: Sequence[Round], name: str) -> Figure:
    """How many times the peer's rate ours is."""
    return figure(rounds, lambda one: one.ours[name] / one.theirs[name])

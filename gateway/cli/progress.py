"""Progress of long operations as lines on a terminal: one per layer, with share, sizes, speed and time left.

Silent when stderr is no terminal. Sans-IO renderer (`bar_line`, `Rate`) and a thin board that redraws.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any

from gateway.cli.output import human_bytes, width

REDRAW_SECONDS = 0.1
STAGE_SECONDS = 0.3
"""Between two questions what a server is doing."""

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
BLOCKS = " ▏▎▍▌▋▊▉█"
RATE_MEMORY_SECONDS = 5.0


@dataclass(slots=True)
class Rate:
    """Bytes per second over the last few seconds, by an injected clock."""

    samples: list[tuple[float, int]] = field(default_factory=list)

    def push(self, moment: float, completed: int) -> float:
        """Notes where a transfer stands; returns the present speed, 0 while unknown."""
        self.samples = [s for s in self.samples if moment - s[0] <= RATE_MEMORY_SECONDS]
        self.samples.append((moment, completed))
        start, first = self.samples[0]
        return (completed - first) / (moment - start) if moment > start else 0.0


def bar_line(label: str, completed: int, total: int, rate: float, columns: int) -> str:
    """`label  45% ▕███    ▏ 2.1 GB/4.7 GB   50 MB/s     52s`, fitted to the columns given."""
    share = min(completed / total, 1.0) if total > 0 else 0.0
    left = f"{label} {share * 100:3.0f}% "
    if completed >= total:
        right = f" {human_bytes(total):>6}"
    else:
        speed = f"{human_bytes(int(rate))}/s" if rate >= 1 else ""
        remaining = _remaining((total - completed) / rate) if rate >= 1 else ""
        right = f" {human_bytes(completed):>6}/{human_bytes(total):<6} {speed:>9} {remaining:>7}"
    room = columns - width(left) - width(right) - 3
    if room < 3:
        return (left + right)[: max(columns - 1, 0)]
    return f"{left}▕{_blocks(share, room)}▏{right}"


def _blocks(share: float, room: int) -> str:
    eighths = round(share * room * 8)
    full, part = divmod(eighths, 8)
    text = "█" * full + (BLOCKS[part] if part else "")
    return f"{text:<{room}}"


def _remaining(seconds: float) -> str:
    whole = int(seconds)
    if whole >= 100 * 3600:
        return "99h+"
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{whole % 60}s" if minutes else f"{whole}s"


@dataclass(slots=True)
class Step:
    """One line of the board; `total` 0 while there is nothing to measure."""

    label: str
    started: float
    completed: int = 0
    total: int = 0
    speed: float = 0.0
    done: bool = False
    rate: Rate = field(default_factory=Rate)


class Board:
    """The lines of one operation. A context manager: leaves the finished lines standing."""

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._steps: dict[str, Step] = {}
        self._drawn = 0
        self._next_draw = 0.0
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            for step in self._steps.values():
                step.done = True
        self._draw()

    def update(self, label: str, completed: int = 0, total: int = 0) -> None:
        """Notes a step; the steps before a new one are done unless they are being measured."""
        step = self._steps.get(label)
        if step is None:
            for earlier in self._steps.values():
                earlier.done = earlier.done or not earlier.total
            step = self._steps[label] = Step(label, self._clock())
        step.total = total
        if total:
            step.completed = completed
            step.speed = step.rate.push(self._clock(), completed)
            step.done = completed >= total
        if self._clock() >= self._next_draw:
            self._draw()

    def clear(self) -> None:
        """Wipes the board, to make room for an answer."""
        if self._live and self._drawn:
            self._stream.write(f"\033[{self._drawn}A\033[J")
            self._stream.flush()
        self._steps, self._drawn = {}, 0

    def _draw(self) -> None:
        if not self._live:
            return
        columns, rows = shutil.get_terminal_size()
        lines = [self._line(step, columns) for step in list(self._steps.values())[-(rows - 1) :]]
        up = f"\033[{self._drawn}A" if self._drawn else ""
        self._stream.write(up + "".join(f"\r\033[K{line}\n" for line in lines))
        self._stream.flush()
        self._drawn = max(len(lines), 0)
        self._next_draw = self._clock() + REDRAW_SECONDS

    def _line(self, step: Step, columns: int) -> str:
        if step.total:
            return bar_line(step.label, step.completed, step.total, step.speed, columns)
        turn = int((self._clock() - step.started) / REDRAW_SECONDS) % len(SPINNER)
        return (step.label if step.done else f"{step.label} {SPINNER[turn]}")[: columns - 1]


class Waiting:
    """A turning mark beside a label while something blocks; gone without a trace afterwards.

    `stage` is asked now and then what is being done, and shown after the label; with `verbose` every new
    answer also stands as a line of its own, on a terminal or not. One thread draws and one asks; what is
    drawn is erased before anything else is written.
    """

    def __init__(
        self,
        label: str,
        stream: IO[str] | None = None,
        stage: Callable[[], str] | None = None,
        verbose: bool = False,
    ) -> None:
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._ask = stage
        self._stage = ""
        self._verbose = verbose
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Waiting:
        if self._live or self._verbose:
            self._thread = threading.Thread(target=self._turn, daemon=True)
            self._thread.start()
            if self._ask is not None:
                threading.Thread(target=self._watch, args=(self._ask,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """Stops turning; calling it again does nothing."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._erase()

    def _turn(self) -> None:
        told = ""
        for mark in itertools.cycle(SPINNER):
            if self._over.wait(REDRAW_SECONDS):
                return
            text = f"{self._label}: {self._stage}" if self._stage else self._label
            if self._verbose and self._stage.partition(",")[0] != told:
                told = self._stage.partition(",")[0]
                self._erase()
                self._stream.write(f"{self._label}: {told}\n" if told else "")
            if self._live:
                self._stream.write(f"\r\033[K{text} {mark}")
            self._stream.flush()

    def _erase(self) -> None:
        if self._live:
            self._stream.write("\r\033[K")
        self._stream.flush()

    def _watch(self, ask: Callable[[], str]) -> None:
        while not self._over.wait(STAGE_SECONDS):
            self._stage = ask()


def follow(lines: Iterable[dict[str, Any]], board: Board) -> str:
    """Shows the progress objects of create, pull and push; returns the last status."""
    status = ""
    for line in lines:
        status = str(line.get("status", ""))
        label = status
        if line.get("digest") and line.get("total"):
            label = status if status.split(" ")[0] in {"pulling", "pushing"} else f"{status} "
            board.update(label.strip(), int(line.get("completed") or 0), int(line["total"]))
        elif status:
            board.update(label)
    return status

"""Bars and boards: what a line says, how speed is known, silence when nobody watches."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

import pytest

from gateway.cli.answer import timings
from gateway.cli.output import width
from gateway.cli.progress import Board, Rate, Waiting, bar_line, follow
from gateway.cli.run import described_stage


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_a_line_shows_share_sizes_speed_and_time_left() -> None:
    line = bar_line("pulling 6a0746a1ec1a", 2_100_000_000, 4_700_000_000, 50e6, 100)
    assert line.startswith("pulling 6a0746a1ec1a  45% ▕██")
    assert line.endswith("2.1 GB/4.7 GB   50 MB/s     52s")
    assert width(line) <= 100
    assert bar_line("pulling x", 10, 10, 5.0, 60).endswith("▏   10 B")


@pytest.mark.parametrize("columns", [0, 1, 10, 40, 80, 200])
@pytest.mark.parametrize("completed", [0, 1, 999, 1000, 5000])
def test_a_line_fits_any_terminal(columns: int, completed: int) -> None:
    assert width(bar_line("pulling 6a0746a1ec1a", completed, 1000, 1.0, columns)) <= max(columns, 0)


def test_speed_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.push(0, 0) == 0
    assert rate.push(1, 100) == 100
    for second in range(2, 12):
        speed = rate.push(second, 100 + 10 * second)
    assert speed == pytest.approx(10)


LINES = [
    {"status": "pulling manifest"},
    {"status": "pulling aaaaaaaaaaaa", "digest": "sha256:a", "total": 10, "completed": 0},
    {"status": "pulling aaaaaaaaaaaa", "digest": "sha256:a", "total": 10, "completed": 10},
    {"status": "writing manifest"},
    {"status": "success"},
]


def test_nothing_is_written_where_nobody_watches() -> None:
    silent = io.StringIO()
    with Board(silent, Clock()) as board:
        assert follow(LINES, board) == "success"
    with Waiting("loading", silent):
        pass
    assert silent.getvalue() == ""


def test_a_board_on_a_terminal_ends_with_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "20")
    screen = Terminal()
    with Board(screen, Clock()) as board:
        follow(LINES, board)
    last = screen.getvalue().rpartition("\x1b[4A")[2].replace("\r\x1b[K", "").splitlines()
    assert [line.split()[0] for line in last] == ["pulling", "pulling", "writing", "success"]
    assert "100% ▕" in last[1]


def test_waiting_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    with Waiting("loading bud", screen) as waiting:
        waiting.end()
        waiting.end()
    assert screen.getvalue().endswith("\r\x1b[K")


def test_waiting_says_what_is_done_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("gateway.cli.progress.STAGE_SECONDS", 0.01)
    monkeypatch.setattr("gateway.cli.progress.REDRAW_SECONDS", 0.01)
    screen, pipe, seen = Terminal(), io.StringIO(), threading.Event()

    def stage() -> str:
        seen.set()
        return "compiling, 2 of 7 programs"

    with Waiting("loading bud", screen, stage):
        assert seen.wait(5)
        time.sleep(0.1)
    assert "loading bud: compiling, 2 of 7 programs " in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")
    seen.clear()
    with Waiting("loading bud", pipe, stage, verbose=True):
        assert seen.wait(5)
        time.sleep(0.1)
    assert pipe.getvalue() == "loading bud: compiling\n"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"stage": "reading", "completed": 9, "total": 20}, "reading weights, 45%"),
        ({"stage": "reading"}, "reading weights"),
        ({"stage": "compiling", "completed": 2, "total": 7}, "compiling, 2 of 7 programs"),
        ({"stage": "warming", "completed": 0, "total": 1}, "warming"),
        ({}, ""),
    ],
)
def test_stages_of_a_load_in_words(row: dict[str, Any], expected: str) -> None:
    assert described_stage(row) == expected


def test_timings_say_what_the_server_counted() -> None:
    text = timings(
        {
            "total_duration": 1_500_000_000,
            "load_duration": 30_000,
            "prompt_eval_count": 6,
            "prompt_eval_duration": 100_000_000,
            "eval_count": 40,
            "eval_duration": 2_000_000_000,
        }
    )
    assert text.splitlines() == [
        "total duration:       1.5s",
        "load duration:        30µs",
        "prompt eval count:    6 token(s)",
        "prompt eval duration: 100ms",
        "prompt eval rate:     60.00 tokens/s",
        "eval count:           40 token(s)",
        "eval duration:        2s",
        "eval rate:            20.00 tokens/s",
    ]

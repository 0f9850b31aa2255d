"""Prints one streamed answer: thinking apart, words wrapped, timings on request.

Takes the objects of /api/generate or /api/chat; knows no connection. Called by run and repl.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import IO, Any

from gateway.cli.output import WordWrap, colours
from gateway.duration import format_duration

MIN_WRAP_COLUMNS = 20


@dataclass(frozen=True, slots=True)
class Display:
    """How answers are shown."""

    word_wrap: bool = True
    verbose: bool = False
    hide_thinking: bool = False

    def changed(self, **changes: bool) -> Display:
        return replace(self, **changes)


@dataclass(slots=True)
class Answer:
    """What was said, so far when the user stopped it."""

    content: str = ""
    thinking: str = ""
    done: dict[str, Any] | None = None


class Printer:
    """Writes deltas as they come; a context in which Ctrl-C leaves the terminal tidy."""

    def __init__(self, display: Display, out: IO[str]) -> None:
        self._display = display
        self._out = out
        columns = shutil.get_terminal_size().columns - 1 if out.isatty() and display.word_wrap else 0
        self._columns = columns if columns >= MIN_WRAP_COLUMNS else 0
        self._wrap = WordWrap(self._columns)
        self._in_thinking = False

    def think(self, text: str) -> None:
        """More reasoning, between two marks and grey."""
        if self._display.hide_thinking:
            return
        if not self._in_thinking:
            self._in_thinking = True
            self._write("Thinking...\n", grey=True)
        self._write(self._wrap.push(text), grey=True)

    def say(self, text: str) -> None:
        """More of the answer."""
        self._end_thinking()
        self._write(self._wrap.push(text))

    def finish(self) -> None:
        """The last word and the line's end."""
        self._end_thinking()
        self._write(self._wrap.finish() + "\n")

    def _end_thinking(self) -> None:
        if self._in_thinking:
            self._in_thinking = False
            self._write(self._wrap.finish() + "\n...done thinking.\n\n", grey=True)
            self._wrap = WordWrap(self._columns)

    def _write(self, text: str, grey: bool = False) -> None:
        if not text:
            return
        self._out.write(f"\033[90m{text}\033[0m" if grey and colours(self._out) else text)
        self._out.flush()


def show_answer(lines: Iterable[dict[str, Any]], display: Display, answer: Answer) -> Answer:
    """Prints a reply and fills `answer` as it comes, so that a Ctrl-C in between loses nothing said."""
    printer = Printer(display, sys.stdout)
    try:
        for line in lines:
            said = line.get("message", line)
            if thinking := said.get("thinking"):
                answer.thinking += thinking
                printer.think(thinking)
            text = said.get("content") or (said.get("response") if "message" not in line else None)
            if text:
                answer.content += text
                printer.say(text)
            for call in said.get("tool_calls") or ():
                printer.say(f"{call['function']['name']}({call['function']['arguments']})\n")
            if line.get("done"):
                answer.done = line
    finally:
        printer.finish()
    if display.verbose and answer.done is not None:
        sys.stderr.write(timings(answer.done))
    return answer


def timings(done: dict[str, Any]) -> str:
    """The block that `--verbose` prints: durations, counts and rates."""
    rows = []
    for key in ("total_duration", "load_duration"):
        if done.get(key):
            rows.append((key, format_duration(done[key])))
    for kind in ("prompt_eval", "eval"):
        count, spent = done.get(f"{kind}_count"), done.get(f"{kind}_duration")
        if count:
            rows.append((f"{kind}_count", f"{count} token(s)"))
        if spent:
            rows.append((f"{kind}_duration", format_duration(spent)))
        if count and spent:
            rows.append((f"{kind}_rate", f"{count / spent * 1e9:.2f} tokens/s"))
    return "".join(f"{name.replace('_', ' ') + ':':<22}{value}\n" for name, value in rows)

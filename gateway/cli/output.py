"""Text for people: sizes, times, tables, wrapped words. Pure functions and one sans-IO filter.

Formats are those of Ollama's command, since scripts cut its columns. Called by the commands.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import IO

BYTE_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3))
COLUMN_GAP = 4
FOREVER = timedelta(days=20 * 365)
"""Times further away than this are shown as for ever: it is how the wire writes it."""


def human_bytes(count: int) -> str:
    """Decimal units, one digit below ten: `4.7 GB`, `19 GB`, `512 B`."""
    for unit, size in BYTE_UNITS:
        if count >= size:
            value = count / size
            if value >= 10 or value == int(value):
                return f"{int(value)} {unit}"
            return f"{value:.1f} {unit}"
    return f"{count} B"


def human_count(count: int) -> str:
    """Parameters: `270M`, `4.3B`, `8.3K`."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            value = f"{count / size:.2f}" if unit == "M" else f"{count / size:.1f}"
            return (value.rstrip("0").rstrip(".") if "." in value else value) + unit
    return str(count)


def human_span(span: timedelta) -> str:
    """A span in its largest unit: `About a minute`, `4 minutes`, `2 weeks`."""
    seconds = int(span.total_seconds())
    hours = round(seconds / 3600)
    days = seconds // 86400
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < 60:
        return f"{seconds} seconds"
    if seconds < 120:
        return "About a minute"
    if seconds < 3600:
        return f"{seconds // 60} minutes"
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    for limit, size, unit in ((14, 1, "days"), (60, 7, "weeks"), (730, 30, "months")):
        if days < limit:
            return f"{days // size} {unit}"
    return f"{days // 365} years"


def human_time(moment: datetime | None, now: datetime, zero: str) -> str:
    """`4 minutes from now`, `2 weeks ago`, `Forever`; `zero` for no time at all."""
    if moment is None or moment.year <= 1:
        return zero
    ahead = moment - now
    if ahead > FOREVER:
        return "Forever"
    return f"{human_span(ahead)} from now" if ahead > timedelta() else f"{human_span(-ahead)} ago"


_FRACTION = re.compile(r"\.(\d{1,6})\d*")


def parse_time(text: str | None) -> datetime | None:
    """RFC 3339 with any number of fraction digits (Go writes nine) and a zone."""
    if not text:
        return None
    shortened = _FRACTION.sub(lambda match: f".{match[1]:0<6}", text).replace("Z", "+00:00")
    try:
        moment = datetime.fromisoformat(shortened)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def width(text: str) -> int:
    """Columns a terminal gives the text: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns four spaces apart, no borders; each line ends with a newline."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(width(line[column]) for line in lines) for column in range(len(headings))]
    text = ""
    for line in lines:
        cells = [cell + " " * (widths[column] - width(cell) + COLUMN_GAP) for column, cell in enumerate(line)]
        text += "".join(cells).rstrip() + "\n"
    return text


def sections(blocks: Iterable[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """The form of `show`: a heading indented by two, its rows by four, columns aligned within a block."""
    text = ""
    for heading, rows in blocks:
        columns = max((len(row) for row in rows), default=0)
        widths = [max((width(row[i]) for row in rows if i < len(row)), default=0) for i in range(columns)]
        text += f"  {heading}\n"
        for row in rows:
            cells = [cell + " " * (widths[i] - width(cell) + COLUMN_GAP) for i, cell in enumerate(row)]
            text += ("    " + "".join(cells)).rstrip() + "\n"
        text += "\n"
    return text


def colours(stream: IO[str]) -> bool:
    """Whether to colour: a terminal, and nobody set NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def grey(text: str, stream: IO[str]) -> str:
    return f"\033[90m{text}\033[0m" if text and colours(stream) else text


def warn(message: str) -> None:
    """A line for people beside the data."""
    print(f"gemmule: {message}", file=sys.stderr)


class WordWrap:
    """Breaks streamed text between words. Holds back at most one word; `finish` gives the rest.

    `columns` 0 leaves the text alone. Words longer than a line are cut; wide characters may be parted
    anywhere, as East Asian text is.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._used = 0
        self._word = ""
        self._space = ""

    def push(self, text: str) -> str:
        """What can be printed now."""
        if not self._columns:
            return text
        return "".join(map(self._character, text))

    def finish(self) -> str:
        """The last word."""
        return self._place() + self._drop_space()

    def _character(self, character: str) -> str:
        if character == "\n":
            text = self._place()
            self._used, self._space = 0, ""
            return text + "\n"
        if character.isspace():
            text = self._place()
            self._space += character
            return text
        if width(character) == 2 or width(self._word + character) > self._columns:
            text = self._place()
            self._word = character
            return text + (self._place() if width(character) == 2 else "")
        self._word += character
        return ""

    def _place(self) -> str:
        if not self._word:
            return ""
        word, space = self._word, self._drop_space()
        self._word = ""
        if self._used and self._used + width(space) + width(word) > self._columns:
            self._used = width(word)
            return "\n" + word
        self._used += width(space) + width(word)
        return space + word

    def _drop_space(self) -> str:
        space, self._space = self._space, ""
        return space

"""Go's durations as text: `1h30m`, `350ms`, `-1s`; the form of time spans in settings, in Ollama's API and in
its command.

Pure functions, standard library only, so that the command line may load them. Called by settings, the native
API's schema and cli.
"""

from __future__ import annotations

import re
from decimal import Decimal

NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5 micro sign
    "μs": 1_000,  # U+03BC Greek mu; Go accepts both
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
MAX_NANOSECONDS = 2**63 - 1

_TERM = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of a Go duration, or of a bare number (`-1`, which Go refuses: the environment allows it).

    Raises ValueError naming the text and the accepted forms.
    """
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return _checked(Decimal(text) * NANOSECONDS["s"], text)
    unsigned = text[1:] if text[:1] in {"+", "-"} else text
    terms = list(_TERM.finditer(unsigned))
    if not terms or "".join(term.group() for term in terms) != unsigned:
        raise ValueError(f'invalid duration "{text}"; write 30s, 5m, 1h30m, a number of seconds, or -1')
    total = sum((Decimal(term[1]) * NANOSECONDS[term[2]] for term in terms), Decimal(0))
    return _checked(-total if text.startswith("-") else total, text)


def _checked(nanoseconds: Decimal, text: str) -> float:
    if abs(nanoseconds) > MAX_NANOSECONDS:
        raise ValueError(f'invalid duration "{text}"; the longest is about 292 years, -1 means for ever')
    return float(nanoseconds) / NANOSECONDS["s"]


def format_duration(nanoseconds: int) -> str:
    """As Go prints a time.Duration: `0s`, `1.5µs`, `350ms`, `2.5s`, `1h0m3.2s`."""
    if nanoseconds == 0:
        return "0s"
    sign = "-" if nanoseconds < 0 else ""
    rest = abs(nanoseconds)
    for unit in ("ns", "µs", "ms"):
        if rest < NANOSECONDS[unit] * 1000:
            return f"{sign}{_plain(Decimal(rest) / NANOSECONDS[unit])}{unit}"
    hours, rest = divmod(rest, NANOSECONDS["h"])
    minutes, rest = divmod(rest, NANOSECONDS["m"])
    seconds = f"{_plain(Decimal(rest) / NANOSECONDS['s'])}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{seconds}"
    return f"{sign}{minutes}m{seconds}" if minutes else f"{sign}{seconds}"


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text

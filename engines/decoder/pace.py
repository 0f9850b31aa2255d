"""How many prompt tokens a step may compute so that running streams keep their pace.

Learns from measured steps what decoding and each chunk size cost on this machine, and never lets prompts
stretch a step beyond `STRETCH` times the plain one. Pure Python; called by the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence

STRETCH = 2.5
"""Longest step with a prompt chunk, relative to one without: leaves room below three for noise."""

WEIGHT = 0.2
"""Share of a new measurement in the running average."""


class Pace:
    """Running averages of seconds per decode step and per prefill chunk size."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)
        self._decode: float | None = None
        self._chunks: dict[int, float] = {}

    def observe(self, buckets: Sequence[int], decode_rows: int, seconds: float) -> None:
        """A step took `seconds` for these prefill `buckets` and `decode_rows` rows of decoding."""
        if not buckets and decode_rows:
            self._decode = _average(self._decode, seconds)
        elif buckets:
            rest = max(seconds - (self._decode or 0.0 if decode_rows else 0.0), 0.0)
            total = sum(buckets)
            for bucket in set(buckets):
                self._chunks[bucket] = _average(self._chunks.get(bucket), rest * bucket / total)

    def chunk_seconds(self, size: int) -> float | None:
        """Expected cost of a chunk, scaled from the nearest measured size; None before any measurement."""
        if not self._chunks:
            return None
        nearest = min(self._chunks, key=lambda known: abs(known - size))
        return self._chunks[nearest] * size / nearest

    def prefill_tokens(self, decode_rows: int, ready: Sequence[int]) -> int:
        """Prompt tokens, padding included, that the next step may take: at least the smallest chunk."""
        if not decode_rows:
            return ready[-1]
        if self._decode is None:
            return ready[0]
        room = (STRETCH - 1) * self._decode
        fitting = [size for size in ready if (self.chunk_seconds(size) or room) <= room]
        return max(fitting, default=ready[0])


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)

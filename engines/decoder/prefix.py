"""Which prompt prefixes the cache already holds: slots, running or left behind, and stored copies.

Pure Python over token ids. A slot holds one run of tokens; its first `cut` tokens may be used again when no
sliding-window ring has overwritten what comes before the cut. Owners (salt, adapter, attachments) never see
each other's. Called by the scheduler alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Ring:
    """A sliding-window layer's cache: it sees `window` tokens back and keeps the last `length`."""

    window: int
    length: int


@dataclass(slots=True)
class Content:
    """What a slot holds: `count` of its `tokens` are known, the first `written` positions were touched."""

    owner: Hashable
    tokens: Tokens
    count: int
    written: int
    used: int


@dataclass(frozen=True, slots=True)
class Match:
    """The first `length` tokens wanted are in `slot`; `exact` when nothing else was ever written there."""

    slot: int
    length: int
    held: int


def common_prefix(left: Tokens, right: Tokens) -> int:
    """How many leading ids two sequences share."""
    count = min(len(left), len(right))
    different = np.nonzero(left[:count] != right[:count])[0]
    return int(different[0]) if len(different) else count


class PrefixIndex:
    """Contents by slot, numbered 0 .. slots - 1 for running sequences and from there for stored copies."""

    def __init__(self, slots: int, stored: int, rings: Sequence[Ring], context: int) -> None:
        self._slots = slots
        self._stored = range(slots, slots + stored)
        self._rings = tuple(set(rings))
        self._context = context
        self._contents: dict[int, Content] = {}
        self._time = 0

    @property
    def tokens_held(self) -> int:
        return sum(content.count for content in self._contents.values())

    def reusable(self, written: int, cut: int) -> bool:
        """Whether a run of `written` positions may be continued from position `cut`.

        A ring of L cells holds positions [written - L, written). Going on at `cut` reads back to
        `cut - window + 1`, and what lies beyond the cut must not be taken for older positions.
        """
        return all(
            written <= ring.length or written - cut <= ring.length - ring.window for ring in self._rings
        )

    def match(self, owner: Hashable, prompt: Tokens) -> Match | None:
        """The longest usable prefix; of equal ones, the slot that holds least beyond it."""
        found = [
            Match(slot, cut, content.count)
            for slot, content, cut in self._shared(owner, prompt)
            if self.reusable(content.written, cut)
        ]
        return max(found, key=lambda match: (match.length, -match.held), default=None)

    def longest_shared(self, owner: Hashable, prompt: Tokens) -> int:
        """The longest prefix any slot was once given, usable or overwritten since."""
        return max((cut for _, _, cut in self._shared(owner, prompt)), default=0)

    def _shared(self, owner: Hashable, prompt: Tokens) -> Iterable[tuple[int, Content, int]]:
        for slot, content in self._contents.items():
            if content.owner == owner and content.count:
                yield slot, content, common_prefix(content.tokens[: content.count], prompt)

    def start(self, slot: int, owner: Hashable, prompt: Tokens, cut: int) -> None:
        """A sequence begins in `slot`, whose first `cut` tokens are there already."""
        tokens = np.zeros(self._context, np.int32)
        tokens[:cut] = prompt[:cut]
        held = self._contents.get(slot)
        written = max(cut, held.written if held else 0) if cut else 0
        self._contents[slot] = Content(owner, tokens, cut, written, self._tick())

    def extend(self, slot: int, ids: Sequence[int] | Tokens) -> None:
        """Tokens whose keys were written behind what the slot held."""
        content = self._contents[slot]
        end = content.count + len(ids)
        content.tokens[content.count : end] = ids
        content.count = end
        content.written = max(content.written, end)
        content.used = self._tick()

    def count(self, slot: int) -> int:
        """How many tokens of a slot's run are known."""
        return self._contents[slot].count

    def touch_written(self, slot: int, written: int) -> None:
        """Positions below `written` were touched on the device, their tokens perhaps not known (yet)."""
        content = self._contents[slot]
        content.written = max(content.written, written)

    def copy(self, source: int, target: int, cut: int) -> None:
        """The device copies a whole slot; only the first `cut` tokens are claimed."""
        held = self._contents[source]
        self._contents[target] = Content(held.owner, held.tokens.copy(), cut, held.written, self._tick())
        held.used = self._tick()

    def forget_all(self) -> None:
        self._contents.clear()

    def least_recent(self, free: Iterable[int]) -> int:
        """The free slot to overwrite: an empty one, else the one unused for longest."""
        return min(free, key=lambda slot: self._used(slot))

    def store_target(self) -> int | None:
        """The stored copy to replace, None when there is no room for any."""
        return self.least_recent(self._stored) if self._stored else None

    def _used(self, slot: int) -> int:
        content = self._contents.get(slot)
        return content.used if content is not None and content.count else -1

    def _tick(self) -> int:
        self._time += 1
        return self._time

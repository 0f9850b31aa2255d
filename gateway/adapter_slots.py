"""The adapter slots of one runner: which adapter lies where, who uses it, which makes place for another.

Pure: counts and an order of use, no clock, no waiting. Owned by the manager's record of a runner.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Slot:
    """`number` counts from 1; `placing` is the work that fills it, done or not."""

    number: int
    name: str
    users: int = 0
    used: int = 0
    placing: asyncio.Future[None] | None = None


class AdapterSlots:
    """At most `count` adapters, each in one slot; those in use stay, of the others the least recent goes."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._slots: dict[str, Slot] = {}
        self._uses = 0

    def take(self, name: str) -> Slot | None:
        """The slot of an adapter, now in use; with `placing` None it is still to be filled.

        None while every slot is used by other adapters.
        """
        slot = self._slots.get(name) or self._new(name)
        if slot is not None:
            slot.users += 1
            self._touch(slot)
        return slot

    def _new(self, name: str) -> Slot | None:
        if len(self._slots) < self._count:
            free = min(set(range(1, self._count + 1)) - {slot.number for slot in self._slots.values()})
        else:
            idle = [slot for slot in self._slots.values() if not slot.users]
            if not idle:
                return None
            oldest = min(idle, key=lambda slot: slot.used)
            del self._slots[oldest.name]
            free = oldest.number
        self._slots[name] = Slot(free, name)
        return self._slots[name]

    def give_back(self, slot: Slot) -> None:
        """One user less."""
        slot.users -= 1
        self._touch(slot)

    def empty(self, slot: Slot) -> None:
        """What was to fill the slot failed: the next who wants the adapter tries again."""
        if self._slots.get(slot.name) is slot:
            del self._slots[slot.name]

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that lie in slots, in the order of their slots."""
        return tuple(slot.name for slot in sorted(self._slots.values(), key=lambda slot: slot.number))

    def _touch(self, slot: Slot) -> None:
        self._uses += 1
        slot.used = self._uses

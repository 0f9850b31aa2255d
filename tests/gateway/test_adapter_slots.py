"""Slots of a runner: adapters in use stay, of the others the least recently used one makes place."""

from __future__ import annotations

from gateway.adapter_slots import AdapterSlots, Slot


def taken(slots: AdapterSlots, name: str) -> Slot:
    slot = slots.take(name)
    assert slot is not None
    return slot


def test_an_idle_adapter_makes_place_the_least_recent_first() -> None:
    slots = AdapterSlots(2)
    first, second = taken(slots, "a"), taken(slots, "b")
    assert (first.number, second.number) == (1, 2)
    assert slots.take("c") is None
    slots.give_back(second)
    slots.give_back(first)
    assert taken(slots, "c").number == second.number
    assert slots.names == ("a", "c")
    assert taken(slots, "a") is first


def test_an_adapter_in_use_is_shared_and_stays() -> None:
    slots = AdapterSlots(1)
    slot = taken(slots, "a")
    assert taken(slots, "a") is slot
    slots.give_back(slot)
    assert slots.take("b") is None
    slots.give_back(slot)
    assert taken(slots, "b").number == 1


def test_a_slot_that_could_not_be_filled_is_free_again() -> None:
    slots = AdapterSlots(1)
    broken = taken(slots, "a")
    slots.empty(broken)
    slots.give_back(broken)
    fresh = taken(slots, "a")
    assert fresh is not broken
    slots.empty(broken)
    assert slots.names == ("a",)


def test_a_runner_without_room_has_no_slot() -> None:
    assert AdapterSlots(0).take("a") is None

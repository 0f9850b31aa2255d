"""What a runner is told to load: models of one base share it, and its room for their adapters."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.base import AdapterRoom
from engines.decoder.params import MAX_STORED_PREFIXES, memory_needed, one_slot_bytes
from engines.decoder.weights.headers import read_headers
from gateway.adapters import SLOTS, AdapterRooms, adapter_name, adapter_of
from gateway.errors import LoadError
from gateway.sandbox_calls import Measure, MeasureAdapter, Measured
from gateway.sandbox_worker import measure
from modelfiles.files import ModelFile
from tests.gateway.scripted_model import scripted_model


def adapter(weights: str) -> tuple[ModelFile, ...]:
    """Two files, of which the first is the same for every adapter."""
    return (
        ModelFile("adapter", "adapter_config.json", "/x", "sha256:" + "c" * 64, 10),
        ModelFile("adapter", "adapter_model.safetensors", "/y", "sha256:" + weights * 64, 1000),
    )


class Measuring:
    """A sandbox that knows what each adapter needs, by the last digit of its weights' digest."""

    def __init__(self) -> None:
        self.asked = 0
        self.needs = {"1": AdapterRoom(SLOTS, 8, ("q", "v")), "2": AdapterRoom(SLOTS, 16, ("up",))}

    async def call(self, question: MeasureAdapter, result: object) -> Any:
        self.asked += 1
        return self.needs[question.adapter[1].digest[-1]]


def test_an_adapter_is_called_by_the_digest_of_all_its_files(tmp_path: Path) -> None:
    base = scripted_model(tmp_path)
    one, other = replace(base, adapters=(adapter("1"),)), replace(base, adapters=(adapter("2"),))
    renamed = replace(one, name="else", adapters=(adapter("1")[::-1],))
    assert adapter_name(base) is None
    assert adapter_name(one) != adapter_name(other)
    assert adapter_name(one) == adapter_name(renamed)
    with pytest.raises(LoadError, match="2 adapters"):
        adapter_of(replace(one, adapters=(adapter("1"), adapter("2"))))


def test_a_base_has_room_for_all_adapters_asked_for_so_far(tmp_path: Path) -> None:
    async def scenario() -> None:
        sandbox = Measuring()
        rooms = AdapterRooms(sandbox)  # type: ignore[arg-type]
        base = scripted_model(tmp_path)
        one, other = replace(base, adapters=(adapter("1"),)), replace(base, adapters=(adapter("2"),))
        assert await rooms.beside(base) is None
        assert await rooms.beside(one) == sandbox.needs["1"]
        assert await rooms.beside(base) == sandbox.needs["1"]
        both = AdapterRoom(SLOTS, 16, ("q", "up", "v"))
        assert await rooms.beside(other) == await rooms.beside(one) == both
        assert sandbox.asked == 2
        assert await rooms.beside(replace(base, weights_digest="0" * 64)) is None

    asyncio.run(scenario())


BUNDLED = Path(__file__).resolve().parents[2] / "registry" / "bundled" / "bud.gguf"


def measured_bundled(budget: int) -> Measured:
    """The bundled model, whose sliding windows make stored prefixes worth having."""
    file = ModelFile("weights", BUNDLED.name, str(BUNDLED), "sha256:" + "0" * 64, BUNDLED.stat().st_size)
    return measure(Measure((file,), slots=(4,), wanted=1024, budget=budget, most=budget))


def test_memory_left_over_is_given_to_stored_prefixes() -> None:
    file = ModelFile("weights", BUNDLED.name, str(BUNDLED), "sha256:" + "0" * 64, BUNDLED.stat().st_size)
    needed = memory_needed((file,), 4, 1024)
    one = one_slot_bytes(read_headers((file,)).config, 1024)
    plenty = measured_bundled(1 << 32)
    assert plenty.memory_bytes == needed + MAX_STORED_PREFIXES * one
    assert measured_bundled(needed + one + one // 2).memory_bytes == needed + one
    tight = measured_bundled(needed + 1)
    assert (tight.slots, tight.context, tight.memory_bytes) == (4, 1024, needed)

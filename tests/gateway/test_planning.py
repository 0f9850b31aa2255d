"""What a runner is told to load: models of one base share it, and its room for their adapters."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.base import AdapterRoom
from gateway.adapters import SLOTS, AdapterRooms, adapter_name, adapter_of
from gateway.errors import LoadError
from gateway.sandbox_calls import MeasureAdapter
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

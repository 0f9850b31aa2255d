"""Which adapter a model has, and how much room the adapters of one base need beside it.

A base has no room, and pays for none, until the first model with an adapter on it is asked for; then its
runner starts anew with room for every adapter asked for so far. Called by `planning`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from engines.base import AdapterFiles, AdapterRoom
from gateway.catalog import ServedModel
from gateway.errors import LoadError
from gateway.sandbox import Sandbox
from gateway.sandbox_calls import MeasureAdapter
from modelfiles.files import ModelFile

SLOTS = 8
"""Adapters beside a base at once, where memory allows; one that no request uses makes place for another."""
REMEMBERED = 256


def adapter_of(model: ServedModel) -> AdapterFiles | None:
    """The model's LoRA adapter, under one SHA-256 over all its files: a config alone may be shared.

    Raises LoadError for more than one, which other programs' models may have.
    """
    if len(model.adapters) > 1:
        raise LoadError(
            f"{model.name} has {len(model.adapters)} adapters, but one at a time can be applied; "
            "create it again with a single ADAPTER"
        )
    return next((AdapterFiles(_digest(files), files) for files in model.adapters), None)


def adapter_name(model: ServedModel) -> str | None:
    """What requests to the model call its adapter; raises as `adapter_of`."""
    adapter = adapter_of(model)
    return adapter.name if adapter else None


def _digest(files: tuple[ModelFile, ...]) -> str:
    lines = sorted(f"{file.name} {file.digest}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class AdapterRooms:
    """The room beside each base, growing with the adapters that are asked for and never shrinking."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._rooms: OrderedDict[str, AdapterRoom] = OrderedDict()
        self._measured: OrderedDict[tuple[str, str], AdapterRoom] = OrderedDict()

    async def beside(self, model: ServedModel) -> AdapterRoom | None:
        """The room to load the base with; raises `SandboxError` for an adapter that does not fit it."""
        adapter = adapter_of(model)
        if adapter is not None:
            needed = await self._needed(model, adapter)
            known = self._rooms.get(model.weights_digest, needed)
            self._rooms[model.weights_digest] = known.joined(needed)
            while len(self._rooms) > REMEMBERED:
                self._rooms.popitem(last=False)
        return self._rooms.get(model.weights_digest)

    async def _needed(self, model: ServedModel, adapter: AdapterFiles) -> AdapterRoom:
        key = (model.weights_digest, adapter.name)
        if key not in self._measured:
            question = MeasureAdapter(model.files, adapter.files, SLOTS)
            self._measured[key] = await self._sandbox.call(question, AdapterRoom)
            while len(self._measured) > REMEMBERED:
                self._measured.popitem(last=False)
        return self._measured[key]

"""How a model is to be loaded: device, context, slots and the bytes that takes, all before a runner starts.

Arithmetic on what the files' headers say, done in a sandbox worker and remembered. Called by `service`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from engines.base import AdapterRoom, Limits, LoadRequest
from gateway.adapters import AdapterRooms, adapter_of
from gateway.catalog import ServedModel
from gateway.errors import GatewayError
from gateway.memory import Device
from gateway.residency import LoadPlan
from gateway.sandbox import Sandbox, SandboxError
from gateway.sandbox_calls import Measure, Measured
from gateway.settings import Settings
from modelfiles.files import ModelFile
from registry.errors import HeadersCut, RegistryError, UnsupportedFormat
from registry.plan import Fit

AUTOMATIC_SLOTS = {"cpu": 8, "gpu": 16}
AUTOMATIC_CONTEXT = {"cpu": 8192, "gpu": 32768}
"""Longest context taken without being asked: more would fill the memory with a cache hardly anyone uses."""

AUTOMATIC_SHARE = 0.5
"""Of the budget, for one model whose context nobody chose: another one should still fit."""

SCRIPTED_MEMORY = 2**20
SCRIPTED_SLOTS = 64
CLASSIFIER_MEMORY = 64 * 2**20
"""For the activations of one image, whatever the network; its weights come on top."""

SCRIPTED_CONTEXT = 131_072
REMEMBERED = 256
HEADER_ERRORS = frozenset({"GgufError", "SafetensorsError"})
"""What a reader raises for a header that does not end where it should, by class name."""


class Planner:
    """Plans loads on one device."""

    def __init__(self, sandbox: Sandbox, settings: Settings, device: Device) -> None:
        self._sandbox = sandbox
        self._settings = settings
        self._device = device
        self._rooms = AdapterRooms(sandbox)
        self._known: OrderedDict[tuple[str, int, AdapterRoom | None], Measured] = OrderedDict()

    async def plan(
        self, model: ServedModel, num_ctx: int | None = None, keep_alive: float | None = None
    ) -> LoadPlan:
        """The plan for `model`; a context that does not fit is cut to the longest that does."""
        measured = await self._measure(model, self._wanted(model, num_ctx))
        adapter = adapter_of(model)
        load = LoadRequest(
            files=model.files,
            limits=Limits(measured.slots, measured.context),
            device=self._device.kind,
            device_index=self._device.index,
            memory_bytes=measured.memory_bytes,
            threads=self._settings.threads,
            adapter_room=measured.room,
            compile_cache=str(self._settings.state / "compiled"),
            kv_type=self._settings.kv_type,
        )
        return LoadPlan(
            key=model.weights_digest,
            name=model.name,
            load=load,
            memory_bytes=measured.memory_bytes,
            keep_alive=self._settings.keep_alive if keep_alive is None else keep_alive,
            engine=model.engine,
            adapter=adapter,
            adapter_bytes=measured.adapter_bytes if adapter else 0,
        )

    async def context(self, model: ServedModel, num_ctx: int | None) -> int:
        """The context, in tokens, that the model would be loaded with."""
        return (await self._measure(model, self._wanted(model, num_ctx))).context

    def _wanted(self, model: ServedModel, num_ctx: int | None) -> int:
        """The context somebody chose, the nearest one first; 0 when nobody did."""
        return int(num_ctx or model.parameters.get("num_ctx") or self._settings.context or 0)

    async def _measure(self, model: ServedModel, wanted: int) -> Measured:
        if model.engine == "scripted":
            slots = self._settings.parallel or SCRIPTED_SLOTS
            return Measured(slots, min(wanted or SCRIPTED_CONTEXT, SCRIPTED_CONTEXT), SCRIPTED_MEMORY)
        if model.engine == "classifier":
            return Measured(1, 1, CLASSIFIER_MEMORY + sum(file.size for file in model.files))
        room = await self._rooms.beside(model)
        key = (model.weights_digest, wanted, room)
        if key not in self._known:
            self._known[key] = await self._sandbox.call(self._question(model.files, wanted, room), Measured)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]

    async def fit(self, files: Sequence[ModelFile]) -> Fit:
        """What files take that are not a model yet; only their headers need to be there.

        Raises HeadersCut, UnsupportedFormat or RegistryError, as `registry.plan.Measure` says.
        """
        try:
            question = self._question(tuple(files), self._settings.context or 0)
            measured = await self._sandbox.call(question, Measured)
        except SandboxError as error:
            cut = error.kind_of_error in HEADER_ERRORS
            raise (HeadersCut if cut else UnsupportedFormat)(str(error)) from error
        except GatewayError as error:
            raise RegistryError(f"what the model needs cannot be told now: {error}") from error
        return Fit(measured.memory_bytes, self._device.budget, measured.context)

    def _question(
        self, files: tuple[ModelFile, ...], wanted: int, room: AdapterRoom | None = None
    ) -> Measure:
        kind = self._device.kind
        chosen = self._settings.parallel
        slots = (chosen,) if chosen else tuple(AUTOMATIC_SLOTS[kind] // 2**power for power in range(4))
        return Measure(
            files=files,
            slots=slots,
            wanted=wanted or AUTOMATIC_CONTEXT[kind],
            budget=self._device.budget if wanted else int(self._device.budget * AUTOMATIC_SHARE),
            most=self._device.budget,
            kv_type=self._settings.kv_type or "bf16",
            device=kind,
            room=room,
        )

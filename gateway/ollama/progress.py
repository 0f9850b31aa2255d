"""The native API's long operations: create, pull, push, each a stream of progress lines.

Work runs in a task of its own and is cancelled when the caller leaves. Included by `routes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.errors import BadRequest, describe
from gateway.gateway import Gateway
from gateway.ollama.access import named, native_body, open_gateway
from gateway.ollama.convert import messages
from gateway.ollama.options import checked, parameter_lines
from gateway.ollama.quantize import quantization
from gateway.ollama.schema import CreateBody, PullBody, TransferBody
from gateway.sandbox import SandboxError
from gateway.sandbox_calls import CheckTemplate
from gateway.streaming import JSONReply, LineStream, ndjson, unless_gone
from modelfiles.modelfile import Modelfile
from modelfiles.templates.builtin import UnknownName, check_names
from modelfiles.templates.source import TemplateSource
from registry import errors as registry_errors
from registry.blobs import parse_digest
from registry.bundled import NAME as BUNDLED
from registry.create import create as create_model
from registry.name import ModelName
from registry.plan import Plan
from registry.progress import OnProgress, Progress
from registry.pull import Puller
from registry.push import Pusher
from registry.reference import Reference

router = APIRouter()
log = logging.getLogger("gemmule.check")
Work = Callable[[OnProgress], Awaitable[Any]]


@router.post("/api/create")
async def create(request: Request) -> Response:
    """A model from another one, or from uploaded files."""
    body = await native_body(request, CreateBody)
    name = ModelName.parse(named(body.model))
    gateway = open_gateway(request, name.display())
    made, quantize = modelfile(body), quantization(body.quantize)
    await check_texts(gateway, made)
    files = {path: parse_digest(digest) for path, digest in (body.files or {}).items()}
    adapters = {path: parse_digest(digest) for path, digest in (body.adapters or {}).items()}

    async def work(on_progress: OnProgress) -> None:
        if not files:
            await _have_base(gateway, made.base, on_progress)
        await create_model(
            gateway.store,
            name,
            made,
            files=files or None,
            adapters=adapters or None,
            inspect=gateway.examine,
            check_adapter=gateway.examine_adapter,
            quantize=quantize,
            on_progress=_without_success(on_progress),
        )
        if body.stream is not False and (files or adapters or quantize):
            await _look_at(gateway, name, on_progress)

    return await _reply(request, work, body.stream)


async def check_texts(gateway: Gateway, made: Modelfile) -> None:
    """Refuses now what would fail at every chat: a template that does not parse, a name nobody knows."""
    try:
        check_names(made.renderer, made.parser)
    except UnknownName as error:
        raise BadRequest(error.sentence) from None
    if made.template:
        try:
            await gateway.sandbox.call(CheckTemplate(TemplateSource("go", made.template)), bool)
        except SandboxError as error:
            raise BadRequest(f"template error: {error}", param="template") from None


async def _have_base(gateway: Gateway, base: str, on_progress: OnProgress) -> None:
    """Pulls the model that FROM names, when it is not here."""
    try:
        await asyncio.to_thread(gateway.store.entry, base)
    except registry_errors.ModelNotFound:
        await fetch(gateway.puller, Reference.parse(base), on_progress)


def modelfile(body: CreateBody) -> Modelfile:
    """What the body's fields say, as the Modelfile they were made from. Raises BadRequest."""
    if body.modelfile:
        return Modelfile.parse(body.modelfile)
    if not body.from_ and not body.files:
        raise BadRequest("neither 'from' or 'files' was specified")
    licenses = [body.license] if isinstance(body.license, str) else body.license or []
    return Modelfile(
        base=body.from_ or "",
        parameters=parameter_lines(checked(body.parameters or {})),
        template=body.template or None,
        system=body.system or None,
        messages=messages(body.messages or []),
        licenses=tuple(text for text in licenses if text),
        renderer=body.renderer or None,
        parser=body.parser or None,
        requires=body.requires or None,
    )


@router.post("/api/pull")
async def pull(request: Request) -> Response:
    """A model from a registry or a hub; callers that want the same one share its download."""
    body = await native_body(request, PullBody)
    reference = Reference.parse(named(body.model))
    if body.insecure:
        reference = replace(reference, insecure=True)
    gateway = open_gateway(request, reference.name.display())

    async def work(on_progress: OnProgress) -> None:
        if _ships_with_us(gateway, reference.name):
            return
        if body.dry_run:
            await estimate(gateway.puller, reference, on_progress)
            return
        try:
            before = await asyncio.to_thread(_digest, gateway, reference.name)
            await fetch(gateway.puller, reference, _without_success(on_progress))
            if (
                body.stream is not False
                and await asyncio.to_thread(_digest, gateway, reference.name) != before
            ):
                await _look_at(gateway, reference.name, on_progress)
        except (registry_errors.Unavailable, registry_errors.NotFound) as error:
            await asyncio.to_thread(_require_local, gateway, reference.name, error)
            on_progress(Progress(f"keeping the model that is here: {error}"))

    return await _reply(request, work, body.stream)


def _without_success(on_progress: OnProgress) -> OnProgress:
    """Holds the last line back: what is told after the work belongs before it."""
    return lambda progress: None if progress.status == "success" else on_progress(progress)


def _digest(gateway: Gateway, name: ModelName) -> str | None:
    """What the name means now; None when it means nothing."""
    try:
        return gateway.store.entry(name).digest
    except registry_errors.RegistryError:
        return None


async def _look_at(gateway: Gateway, name: ModelName, on_progress: OnProgress) -> None:
    """Says what is suspicious about a new model. The model is there, so nothing is a reason to fail."""
    try:
        model = await gateway.catalog.get(name.display())
        looking = Progress("looking whether the model makes sense")
        for warning in await gateway.checker.warnings(model, lambda: on_progress(looking)):
            log.warning("%s: %s", model.name, warning)
            on_progress(Progress(f"warning: {warning}"))
    except Exception:
        log.exception("%s could not be looked at", name.display())


async def fetch(puller: Puller, reference: Reference, on_progress: OnProgress) -> None:
    """Pulls to the end; cancelling it keeps what came so far for the next time."""
    async with contextlib.aclosing(puller.pull(reference)) as lines:  # type: ignore[type-var]
        async for progress in lines:
            on_progress(progress)


async def estimate(puller: Puller, reference: Reference, on_progress: OnProgress) -> None:
    """Tells what a pull would cost; raises DiskFull where there is no room for it."""
    plan = await puller.plan(reference)
    on_progress(Progress("pulling manifest", plan=plan))
    plan.require_room()


@router.post("/api/push")
async def push(request: Request) -> Response:
    """A model to the registry its name says."""
    body = await native_body(request, TransferBody)
    name = ModelName.parse(named(body.model))
    gateway = open_gateway(request, name.display())
    pusher = Pusher(gateway.store, gateway.puller)

    async def work(on_progress: OnProgress) -> None:
        async with contextlib.aclosing(pusher.push(name, bool(body.insecure))) as lines:  # type: ignore[type-var]
            async for progress in lines:
                on_progress(progress)

    return await _reply(request, work, body.stream)


def _ships_with_us(gateway: Gateway, name: ModelName) -> bool:
    """Whether there is nowhere to pull it from; some clients pull before every request."""
    if any(name.display() == model.name for model in gateway.catalog.built_in()):
        return True
    return name == BUNDLED and _is_local(gateway, name)


def _is_local(gateway: Gateway, name: ModelName) -> bool:
    try:
        gateway.store.entry(name)
    except registry_errors.ModelNotFound:
        return False
    return True


def _require_local(gateway: Gateway, name: ModelName, error: Exception) -> None:
    """Raises `error` unless the model is here already, so that work goes on without a network."""
    if not _is_local(gateway, name):
        raise error


async def _reply(request: Request, work: Work, stream: bool | None) -> Response:
    """Lines as they come; for `stream: false` the last one, or the fault with its status."""
    if stream is not False:
        return LineStream(_lines(work))
    return JSONReply({"status": "success"} | await unless_gone(request, _run(work)))


async def _run(work: Work) -> dict[str, Any]:
    """Does the work; returns the plan, where it told one."""
    found: dict[str, Any] = {}

    def note(progress: Progress) -> None:
        if progress.plan is not None:
            found["plan"] = plan_object(progress.plan)

    await work(note)
    return found


async def _lines(work: Work) -> AsyncIterator[bytes]:
    """Progress as NDJSON, ending in `success` or in the error; leaving early cancels the work."""
    queue: asyncio.Queue[Progress] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def on_progress(progress: Progress) -> None:  # called from threads too
        loop.call_soon_threadsafe(queue.put_nowait, progress)

    task = asyncio.ensure_future(work(on_progress))
    try:
        last = ""
        while (progress := await _next(queue, task)) is not None:
            last = progress.status
            yield ndjson(line(progress))
        if (error := task.exception()) is not None:
            yield ndjson({"error": describe(error).message})
        elif last != "success":
            yield ndjson({"status": "success"})
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def _next(queue: asyncio.Queue[Progress], task: asyncio.Future[Any]) -> Progress | None:
    """The next thing told; None once the work is over and everything was told."""
    getter = asyncio.ensure_future(queue.get())
    try:
        await asyncio.wait({getter, task}, return_when=asyncio.FIRST_COMPLETED)
        if not getter.done():
            await asyncio.sleep(0)  # what a thread told last is still on its way through the loop
        return getter.result() if getter.done() else None
    finally:
        getter.cancel()


def line(progress: Progress) -> dict[str, Any]:
    """One progress object; absent fields are left out."""
    found: dict[str, Any] = {"status": progress.status}
    for key in ("digest", "total", "completed"):
        if (value := getattr(progress, key)) is not None:
            found[key] = value
    if progress.plan is not None:
        found["plan"] = plan_object(progress.plan)
    return found


def plan_object(plan: Plan) -> dict[str, Any]:
    """What a pull would cost, as clients that know it read it; bytes throughout, absent where unknown."""
    found: dict[str, Any] = {
        "total_bytes": plan.total_bytes,
        "download_bytes": plan.download_bytes,
        "sizes_known": plan.complete,
        "disk_free_bytes": plan.free_bytes,
        "fits_disk": plan.has_room,
    }
    if plan.fit is not None:
        found |= {
            "memory_bytes": plan.fit.memory_bytes,
            "memory_budget_bytes": plan.fit.budget_bytes,
            "context_length": plan.fit.context,
            "fits_memory": plan.fit.fits,
        }
    told = {
        "quantization": plan.chosen,
        "quantizations": plan.choices,
        "largest_that_fits": plan.best,
        "obstacle": plan.obstacle,
    }
    return found | {key: value for key, value in told.items() if value}

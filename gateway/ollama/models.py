"""The native API's view of the store: tags, ps, show, copy, delete, blobs.

Turns models into Ollama's JSON; changes names through the store only. Included by `routes`.
"""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.errors import BadRequest, NotFound
from gateway.gateway import Gateway
from gateway.ollama.access import gateway_of, may_see, named, native_body, open_gateway
from gateway.ollama.capabilities import CapabilityMemory
from gateway.ollama.encode import now, timestamp
from gateway.ollama.rows import built_in_row, described, details, tag_row
from gateway.ollama.schema import CopyBody, DeleteBody, ShowBody
from gateway.ollama.show import shown_model
from gateway.residency import FOREVER, Loaded
from gateway.streaming import JSONReply
from registry import errors as registry_errors
from registry.blobs import parse_digest
from registry.name import ModelName

FOREVER_YEARS = 292
"""What the wire says for a model that stays: as far ahead as Go's clocks reach."""

COPILOT = "GitHubCopilotChat/"
"""It lists a model under `general.basename`; two names of the same weights would look the same."""

router = APIRouter()
memory = CapabilityMemory()


@router.api_route("/api/tags", methods=["GET", "HEAD"])
async def tags(request: Request) -> Response:
    """All models the caller may use, newest first."""
    gateway = gateway_of(request)
    found = [model for model in await gateway.catalog.list() if may_see(request, model.name.display())]
    known = await memory.look_up(gateway.catalog, found)
    rows = [tag_row(model, known.get(model.digest)) for model in found]
    rows += [built_in_row(each) for each in {each.name: each for each in gateway.catalog.built_in()}.values()]
    return JSONReply({"models": rows})


@router.get("/api/ps")
async def running(request: Request) -> Response:
    """What is in memory, one row for each name it was asked by, the last to leave first.

    Models that are still being loaded are told of apart, with how far that is; Ollama's clients pass over it.
    """
    gateway = gateway_of(request)
    moment = now()
    visible = [loaded for loaded in gateway.manager.loaded() if may_see(request, loaded.name)]
    rows = [await _running_row(request, each, moment) for each in visible if each.state != "loading"]
    loading = [_loading_row(gateway, each) for each in visible if each.state == "loading"]
    reply = {"models": sorted(rows, key=lambda row: str(row["expires_at"]), reverse=True)}
    return JSONReply(reply | ({"loading": loading} if loading else {}))


@router.post("/api/show")
async def show(request: Request) -> Response:
    """Everything about one model."""
    body = await native_body(request, ShowBody)
    name = named(body.model)
    gateway = open_gateway(request, name)
    served = await gateway.catalog.get(name)
    contents = await gateway.catalog.contents(served) if body.verbose else None
    shown = shown_model(served, body, contents)
    if request.headers.get("user-agent", "").startswith(COPILOT):
        shown["model_info"]["general.basename"] = name
    return JSONReply(shown)


@router.post("/api/copy")
async def copy(request: Request) -> Response:
    """A second name for a model."""
    body = await native_body(request, CopyBody)
    source = _parsed(body.source, "source")
    destination = _parsed(body.destination, "destination")
    gateway = open_gateway(request, source.display(), destination.display())
    try:
        await asyncio.to_thread(gateway.store.copy, source, destination)
    except registry_errors.ModelNotFound:
        raise NotFound(f'model "{body.source}" not found') from None
    return Response(status_code=200)


@router.delete("/api/delete")
async def delete(request: Request) -> Response:
    """A name and the layers only it used."""
    body = await native_body(request, DeleteBody)
    written = named(body.model)
    name = _parsed(written, "name")
    gateway = open_gateway(request, name.display())
    try:
        await asyncio.to_thread(gateway.store.delete, name)
    except registry_errors.ModelNotFound:
        raise NotFound(f"model '{written}' not found", param="model") from None
    return Response(status_code=200)


@router.head("/api/blobs/{digest}")
async def has_blob(request: Request, digest: str) -> Response:
    """200 when the blob is here, 404 when not."""
    gateway = open_gateway(request)
    wanted = parse_digest(digest)
    if not await asyncio.to_thread(gateway.store.blobs.exists, wanted):
        raise NotFound(f'blob "{wanted}" not found')
    return Response(status_code=200)


@router.post("/api/blobs/{digest}")
async def upload_blob(request: Request, digest: str) -> Response:
    """Stores a blob under its digest: 201 when it is new, 200 when it was here."""
    gateway = open_gateway(request)
    wanted = parse_digest(digest)
    if await asyncio.to_thread(gateway.store.blobs.owns, wanted):
        return Response(status_code=200)
    try:
        stored = await gateway.store.blobs.put_stream(request.stream(), wanted)
    except registry_errors.DigestMismatch as error:
        raise BadRequest(f'digest mismatch, expected "{error.want}", got "{error.got}"') from None
    return Response(status_code=200 if stored.existed else 201)


async def _running_row(request: Request, loaded: Loaded, moment: datetime) -> dict[str, Any]:
    gateway, name = gateway_of(request), loaded.name
    row: dict[str, Any] = {"name": name, "model": name}
    try:
        served = await gateway.catalog.get(name)
        row["digest"] = served.digest.removeprefix("sha256:")
        row["details"] = details(served.model) if served.model else described(served.description)
    except Exception:  # deleted or broken since it was loaded: it runs on all the same
        row |= {"digest": loaded.key, "details": {"family": "", "families": []}}
    return row | {
        "size": loaded.memory_bytes,
        "size_vram": loaded.memory_bytes if loaded.device != "cpu" else 0,
        "expires_at": timestamp(expiry(loaded, moment)),
        "context_length": loaded.context,
    }


def _loading_row(gateway: Gateway, loaded: Loaded) -> dict[str, Any]:
    row: dict[str, Any] = {"name": loaded.name, "model": loaded.name}
    progress = gateway.load_progress.get(loaded.name)
    if progress is not None:
        row |= {"stage": progress.stage, "completed": progress.completed, "total": progress.total}
    return row


def expiry(loaded: Loaded, moment: datetime) -> datetime:
    """When it goes; just past while it is going."""
    if loaded.state == "closing":
        return moment - timedelta(seconds=1)
    if loaded.expires_in == FOREVER:
        return moment + timedelta(days=365 * FOREVER_YEARS)
    return moment + timedelta(seconds=loaded.expires_in)


def _parsed(text: str | None, what: str) -> ModelName:
    try:
        return ModelName.parse(text or "")
    except registry_errors.InvalidName:
        shown = json.dumps((text or "")[:200], ensure_ascii=False)
        raise BadRequest(f"{what} {shown} is invalid", code="invalid_model_name") from None

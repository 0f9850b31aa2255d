"""The routes of the Responses API: create, get, delete, cancel, list input, count."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.bodies import read_body
from gateway.errors import BadRequest, NotFound, describe
from gateway.gateway import Gateway
from gateway.openai.keeping import owner_of, page, page_size, saved
from gateway.openai.responses.convert import input_items, response_request
from gateway.openai.responses.encode import ResponseStream, new_id
from gateway.openai.responses.replay import replay
from gateway.openai.responses.schema import ResponseBody
from gateway.openai.routes import lenient, open_gateway, rendered
from gateway.streaming import EventStream, JSONReply, encoded, unless_gone
from gateway.types import ChatRequest, Event, Failed

KIND = "response"
MAX_CHAIN = 1000

log = logging.getLogger("gemmule.responses")
router = APIRouter(prefix="/v1/responses")


@router.post("")
async def create_response(request: Request) -> Response:
    """A response, streamed, whole, or made in the background."""
    body = await read_body(request, ResponseBody)
    gateway = open_gateway(request, body.model)
    owner = owner_of(request)
    history = await _history(gateway, body.previous_response_id, owner)
    asked = await lenient(gateway, response_request(body, history))
    if body.render_only:
        return JSONReply(await rendered(gateway, asked))
    encoder = ResponseStream(body, function_tools(body))
    items = [*history, *with_ids(input_items(body))]

    async def save() -> None:
        if body.store is not False:
            await gateway.archive.put(KIND, encoder.response(), items, owner)

    if body.background:
        return await _in_background(gateway, asked, encoder, save)
    events = await unless_gone(request, _started(gateway, asked))
    if body.stream:
        return EventStream(encoded(saved(events, save), encoder))
    await unless_gone(request, _fold(events, encoder))
    await save()
    return JSONReply(encoder.response())


@router.post("/input_tokens")
async def count_input_tokens(request: Request) -> Response:
    """How many tokens the prompt of a request has."""
    body = await read_body(request, ResponseBody)
    gateway = open_gateway(request, body.model)
    history = await _history(gateway, body.previous_response_id, owner_of(request))
    asked = await lenient(gateway, response_request(body, history))
    found = await gateway.service.render(asked)
    return JSONReply({"object": "response.input_tokens", "input_tokens": len(found.token_ids)})


@router.get("/{identity}")
async def get_response(request: Request, identity: str) -> Response:
    """A stored response; with `stream=true` as events, once it has ended."""
    gateway: Gateway = request.app.state.gateway
    stored = await _find(gateway, identity, owner_of(request))
    if request.query_params.get("stream") != "true":
        return JSONReply(stored.body)
    return EventStream(_replayed(gateway, identity, owner_of(request), _starting_after(request)))


@router.delete("/{identity}")
async def delete_response(request: Request, identity: str) -> Response:
    """Forgets a stored response."""
    gateway: Gateway = request.app.state.gateway
    if not await gateway.archive.delete(KIND, identity, owner_of(request)):
        raise not_found(identity)
    return JSONReply({"id": identity, "object": "response", "deleted": True})


@router.post("/{identity}/cancel")
async def cancel_response(request: Request, identity: str) -> Response:
    """Stops a background response; one that is over stays as it is."""
    gateway: Gateway = request.app.state.gateway
    stored = await _find(gateway, identity, owner_of(request))
    if not stored.body.get("background"):
        raise BadRequest(f"response {identity} does not run in the background and cannot be cancelled")
    task = gateway.background.get(identity)
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        stored = await _find(gateway, identity, owner_of(request))
    return JSONReply(stored.body)


@router.get("/{identity}/input_items")
async def list_input_items(request: Request, identity: str) -> Response:
    """What a stored response was an answer to."""
    stored = await _find(request.app.state.gateway, identity, owner_of(request))
    query = request.query_params
    items = list(stored.extra)
    if query.get("order", "desc") == "desc":
        items.reverse()
    return JSONReply(page(items, query.get("after"), page_size(query.get("limit"))))


def not_found(identity: str) -> NotFound:
    """The id is unknown, expired or someone else's: all look alike."""
    return NotFound(f"response with id {identity[:128]!r} not found", param="response_id")


def with_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Input items as they are kept: each with an id to page by."""
    return [item if item.get("id") else {"id": new_id("item")} | item for item in items]


def function_tools(body: ResponseBody) -> list[dict[str, Any]]:
    """The tools that are repeated in the response: with every field its schema wants."""
    return [
        {"description": None, "parameters": {}, "strict": False} | tool
        for tool in body.tools or []
        if tool.get("type") == "function"
    ]


async def _replayed(gateway: Gateway, identity: str, owner: str, after: int) -> AsyncIterator[bytes]:
    """The events of a stored response, whose end is waited for if it is still being made."""
    task = gateway.background.get(identity)
    if task is not None:
        await asyncio.wait({task})
    yield replay((await _find(gateway, identity, owner)).body, after)


def _starting_after(request: Request) -> int:
    text = request.query_params.get("starting_after", "")
    if not text:
        return -1
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadRequest("starting_after must be the sequence number of an event", param="starting_after")
    return int(text)


async def _find(gateway: Gateway, identity: str, owner: str) -> Any:
    stored = await gateway.archive.get(KIND, identity, owner)
    if stored is None:
        raise not_found(identity)
    return stored


async def _history(gateway: Gateway, identity: str | None, owner: str) -> list[dict[str, Any]]:
    """Everything said up to and in the response `identity`."""
    if identity is None:
        return []
    stored = await gateway.archive.get(KIND, identity, owner)
    if stored is None:
        raise NotFound(
            f"previous response with id {identity[:128]!r} not found",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return [*stored.extra, *stored.body["output"]]


async def _started(gateway: Gateway, asked: ChatRequest) -> AsyncIterator[Event]:
    """The events of a response; what is wrong with its format is named as this API calls it."""
    try:
        return await gateway.service.chat(asked)
    except BadRequest as error:
        if error.param == "response_format":
            error.param = "text.format"
        raise


async def _fold(events: AsyncIterator[Event], encoder: ResponseStream) -> None:
    async with contextlib.aclosing(events):  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            encoder.push(event)


async def _in_background(
    gateway: Gateway, asked: ChatRequest, encoder: ResponseStream, save: Callable[[], Awaitable[None]]
) -> Response:
    """Answers at once; the response is made by a task that outlives the request."""
    await save()

    async def work() -> None:
        try:
            await _fold(await gateway.service.chat(asked), encoder)
        except asyncio.CancelledError:
            encoder.cancel()
        except Exception as error:
            encoder.break_off(describe(error))
        finally:
            gateway.background.pop(encoder.id, None)
            await save()

    gateway.background[encoder.id] = asyncio.ensure_future(work())
    return JSONReply(encoder.response())

"""The routes of the Anthropic dialect: messages and the counting of their tokens."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.anthropic.convert import message_request
from gateway.anthropic.encode import MessageStream
from gateway.anthropic.schema import CountBody, MessagesBody
from gateway.bodies import read_body
from gateway.openai.routes import lenient, open_gateway, rendered
from gateway.streaming import EventStream, JSONReply, encoded, unless_gone
from gateway.types import Event, Failed

router = APIRouter(prefix="/v1/messages")


@router.post("")
async def create_message(request: Request) -> Response:
    """A message, streamed or whole."""
    body = await read_body(request, MessagesBody)
    gateway = open_gateway(request, body.model)
    asked = await lenient(gateway, message_request(body))
    if body.render_only:
        return JSONReply(await rendered(gateway, asked))
    events = await unless_gone(request, gateway.service.chat(asked))
    if body.stream:
        return EventStream(encoded(events, MessageStream(body.model)))
    encoder = MessageStream(body.model)
    await unless_gone(request, _fold(events, encoder))
    return JSONReply(encoder.message())


@router.post("/count_tokens")
async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of a request has, by the model's own tokenizer."""
    body = await read_body(request, CountBody)
    gateway = open_gateway(request, body.model)
    found = await gateway.service.render(await lenient(gateway, message_request(body)))
    return JSONReply({"input_tokens": len(found.token_ids)})


async def _fold(events: AsyncIterator[Event], encoder: MessageStream) -> None:
    async with contextlib.aclosing(events):  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            encoder.push(event)

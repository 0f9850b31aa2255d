"""Chat, completions and embeddings of the OpenAI dialect: parse, call, encode."""

from __future__ import annotations

import base64
from array import array
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.auth import require_model
from gateway.bodies import read_body
from gateway.errors import BadRequest
from gateway.gateway import Gateway
from gateway.openai import chat, completions
from gateway.openai.convert import chat_request, chosen_from, completion_requests, keep_alive
from gateway.openai.keeping import owner_of, saved
from gateway.openai.schema import ChatBody, CompletionBody, EmbeddingBody
from gateway.openai.stored import store_chat
from gateway.running import merged
from gateway.streaming import EventStream, JSONReply, encoded, unless_gone
from gateway.types import ChatRequest, CompletionRequest, EmbedRequest, Event, Failed

router = APIRouter(prefix="/v1")

TOKEN_INPUT = (
    "input must be text: token ids of another tokenizer mean nothing to {model}; with LangChain's "
    "OpenAIEmbeddings set check_embedding_ctx_length=False"
)


@router.post("/chat/completions")
async def chat_completions(request: Request) -> Response:
    """A chat, streamed or whole."""
    body = await read_body(request, ChatBody)
    gateway = open_gateway(request, body.model)
    asked = await lenient(gateway, chat_request(body))
    if body.render_only:
        return JSONReply(await rendered(gateway, asked))
    events = await unless_gone(request, gateway.service.chat(asked))
    heading = chat.Heading.new("chatcmpl-", body.model)
    legacy = bool(body.functions)
    whole = chat.ChatReply(heading, with_logprobs=bool(body.logprobs), legacy=legacy)

    async def save() -> None:
        if body.store:
            await store_chat(gateway, body, whole.reply(), owner_of(request))

    if body.stream:
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        encoder = chat.ChatStream(heading, include_usage=include_usage, legacy=legacy)
        kept = saved(chat.watched(events, whole), save) if body.store else events
        return EventStream(encoded(kept, encoder))
    reply = await unless_gone(request, chat.collect(events, whole))
    await save()
    return JSONReply(reply)


@router.post("/completions")
async def legacy_completions(request: Request) -> Response:
    """Text continued, one or several prompts at once."""
    body = await read_body(request, CompletionBody)
    gateway = open_gateway(request, body.model)
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options needs stream: true", param="stream_options")
    asked = completion_requests(body)
    if body.render_only:
        return JSONReply(await rendered(gateway, asked[0]))
    events = await unless_gone(request, start_all(gateway, asked))
    heading = chat.Heading.new("cmpl-", body.model)
    if body.stream:
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        encoder = completions.CompletionStream(heading, include_usage=include_usage, n=body.n or 1)
        return EventStream(encoded(events, encoder))
    n, best_of = body.n or 1, chosen_from(body)
    reply = await unless_gone(request, completions.collect(events, heading, best_of))
    if best_of > n:
        reply = completions.keep_best(reply, n, best_of, body.logprobs is not None)
    return JSONReply(reply)


@router.post("/embeddings")
async def embeddings(request: Request) -> Response:
    """Vectors of texts, as floats or as base64 of little-endian float32."""
    body = await read_body(request, EmbeddingBody)
    gateway = open_gateway(request, body.model)
    if body.encoding_format not in (None, "float", "base64"):
        raise BadRequest("encoding_format must be float or base64", param="encoding_format")
    asked = EmbedRequest(body.model, _texts(body), body.dimensions, keep_alive=keep_alive(body.keep_alive))
    found = await unless_gone(request, gateway.service.embed(asked))
    as_base64 = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _encode(vector, as_base64)}
        for index, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.usage.prompt, "total_tokens": found.usage.prompt}
    return JSONReply({"object": "list", "data": data, "model": body.model, "usage": usage})


def open_gateway(request: Request, model: str) -> Gateway:
    """The gateway, if it takes new requests and the caller's key may use `model`."""
    gateway: Gateway = request.app.state.gateway
    gateway.check_open()
    require_model(request, model)
    return gateway


async def lenient(gateway: Gateway, asked: ChatRequest) -> ChatRequest:
    """OpenAI's clients send an effort to every model: one that cannot think ignores it."""
    if asked.think is None:
        return asked
    model = await gateway.catalog.get(asked.model)
    return asked if "thinking" in model.capabilities else replace(asked, think=None)


async def rendered(gateway: Gateway, asked: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """The exact prompt, not run."""
    found = await gateway.service.render(asked)
    debug = {"rendered_template": found.text}
    return {"_debug_info": debug, "prompt": found.text, "token_ids": list(found.token_ids)}


async def start_all(gateway: Gateway, asked: list[CompletionRequest]) -> AsyncIterator[Event]:
    """The events of several prompts as one stream, choices numbered through."""
    if len(asked) == 1:
        return await gateway.service.complete(asked[0])
    sources: list[AsyncIterator[Event]] = []
    try:
        for position, each in enumerate(asked):
            events = await gateway.service.complete(each)
            sources.append(_renumbered(events, position * each.options.n))
    except BaseException:
        for source in sources:
            await source.aclose()  # type: ignore[attr-defined]
        raise
    return merged(sources)


async def _renumbered(events: AsyncIterator[Event], first: int) -> AsyncIterator[Event]:
    async for event in events:
        yield event if isinstance(event, Failed) else replace(event, index=event.index + first)


def _texts(body: EmbeddingBody) -> tuple[str, ...]:
    given = [body.input] if isinstance(body.input, str) else body.input
    texts = tuple(text for text in given if isinstance(text, str))
    if len(texts) != len(given):
        raise BadRequest(TOKEN_INPUT.format(model=body.model), param="input")
    if not texts or "" in texts:
        raise BadRequest("input must be a text or a list of texts, none of them empty", param="input")
    if len(texts) > 2048:
        raise BadRequest(f"input has {len(texts)} texts; the limit is 2048", param="input")
    return texts


def _encode(vector: bytes, as_base64: bool) -> str | list[float]:
    if as_base64:
        return base64.b64encode(vector).decode()
    numbers = array("f")
    numbers.frombytes(vector)
    return numbers.tolist()

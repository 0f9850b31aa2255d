"""The native API's generating half: generate, chat, embed, embeddings, and the two hellos.

A handler is parse, call, encode. Model management is in `models`, long operations in `progress`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from array import array
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from gateway import __version__
from gateway.client import GEMMULE_HEADER
from gateway.errors import Fault, ModelNotFound, NotFound
from gateway.gateway import Gateway
from gateway.ollama import models, progress
from gateway.ollama.access import named, native_body, open_gateway
from gateway.ollama.convert import chat_request, completion_request, embed_request, embeddings_request
from gateway.ollama.encode import ReplyEncoder, collect
from gateway.ollama.schema import ChatBody, EmbedBody, EmbeddingsBody, GenerateBody, GenerationBody
from gateway.service import Embeddings
from gateway.streaming import JSONReply, LineStream, encoded, ndjson, unless_gone
from gateway.types import ChatRequest, CompletionRequest, EmbedRequest, Event, Failed, GenerationOptions

OLLAMA_COMPATIBILITY = "0.35.0"
"""The version of Ollama's API that these routes speak; clients compare it, so it is digits and dots."""

UNLOAD_SECONDS = 10.0
"""How long an unload waits for the memory to be free; a busy model goes when its last request is done."""

router = APIRouter()
router.include_router(models.router)
router.include_router(progress.router)


@router.api_route("/", methods=["GET", "HEAD"])
async def running() -> Response:
    """What every Ollama client asks first."""
    return PlainTextResponse("Ollama is running", headers={GEMMULE_HEADER: __version__})


@router.api_route("/api/version", methods=["GET", "HEAD"])
async def version() -> Response:
    return JSONReply({"version": OLLAMA_COMPATIBILITY}, headers={GEMMULE_HEADER: __version__})


@router.get("/api/status")
async def status() -> Response:
    """There is no cloud behind this server, ever."""
    return JSONReply({"cloud": {"disabled": True, "source": "config"}})


@router.post("/api/chat")
async def chat(request: Request) -> Response:
    """A conversation continued; without messages the model is loaded or unloaded."""
    body = await native_body(request, ChatBody)
    model = named(body.model)
    gateway = open_gateway(request, model)
    encoder = ReplyEncoder("chat", model)
    asked = chat_request(body, model)
    if not asked.messages:
        return await _load_or_unload(request, gateway, model, asked.options, encoder)
    if body.debug_render_only:
        return JSONReply(await _rendered(gateway, asked, encoder))
    return await _reply(request, await unless_gone(request, gateway.service.chat(asked)), body, encoder)


@router.post("/api/generate")
async def generate(request: Request) -> Response:
    """A text continued; with an empty prompt the model is loaded or unloaded."""
    body = await native_body(request, GenerateBody)
    model = named(body.model)
    gateway = open_gateway(request, model)
    encoder = ReplyEncoder("generate", model, context=not body.raw)
    asked = completion_request(body, model)
    if not asked.prompt and not asked.suffix:
        return await _load_or_unload(request, gateway, model, asked.options, encoder)
    if body.debug_render_only:
        return JSONReply(await _rendered(gateway, asked, encoder))
    return await _reply(request, await unless_gone(request, gateway.service.complete(asked)), body, encoder)


@router.post("/api/embed")
async def embed(request: Request) -> Response:
    """One vector for each input; without input the model is loaded."""
    body = await native_body(request, EmbedBody)
    model = named(body.model)
    started = time.monotonic_ns()
    found = await _embeddings(request, model, embed_request(body, model))
    reply: dict[str, Any] = {"model": model, "embeddings": [_numbers(vector) for vector in found.vectors]}
    counts = {
        "total_duration": time.monotonic_ns() - started,
        "load_duration": found.load_ns,
        "prompt_eval_count": found.usage.prompt,
    }
    return JSONReply(reply | {name: count for name, count in counts.items() if count})


@router.post("/api/embeddings")
async def embeddings(request: Request) -> Response:
    """The older form: one prompt, one vector."""
    body = await native_body(request, EmbeddingsBody)
    model = named(body.model)
    found = await _embeddings(request, model, embeddings_request(body, model))
    return JSONReply({"embedding": _numbers(found.vectors[0]) if found.vectors else []})


class NativeStream:
    """An `Encoder` of NDJSON: one compact object a line and nothing else, ever."""

    def __init__(self, encoder: ReplyEncoder) -> None:
        self._encoder = encoder

    def push(self, event: Event) -> bytes:
        return b"".join(map(ndjson, self._encoder.push(event)))

    def finish(self) -> bytes:
        return b""

    def fail(self, fault: Fault) -> bytes:
        return ndjson({"error": fault.message})


async def _reply(
    request: Request, events: AsyncIterator[Event], body: GenerationBody, encoder: ReplyEncoder
) -> Response:
    """Lines as they come, unless the caller asked for one object."""
    if body.stream is not False:
        return LineStream(encoded(events, NativeStream(encoder)))
    return JSONReply(await unless_gone(request, _whole(events, encoder)))


async def _whole(events: AsyncIterator[Event], encoder: ReplyEncoder) -> dict[str, Any]:
    lines: list[dict[str, Any]] = []
    async with contextlib.aclosing(events):  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            lines += encoder.push(event)
    return collect(lines)


async def _load_or_unload(
    request: Request, gateway: Gateway, model: str, options: GenerationOptions, encoder: ReplyEncoder
) -> Response:
    """One JSON object, not a stream: clients decode it whole."""
    if options.keep_alive == 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gateway.service.unload(model), UNLOAD_SECONDS)
        return JSONReply(encoder.done("unload"))
    await unless_gone(request, gateway.service.load(model, options))
    return JSONReply(encoder.done("load"))


async def _rendered(
    gateway: Gateway, asked: ChatRequest | CompletionRequest, encoder: ReplyEncoder
) -> dict[str, Any]:
    return encoder.rendered((await gateway.service.render(asked)).text)


async def _embeddings(request: Request, model: str, asked: EmbedRequest) -> Embeddings:
    gateway = open_gateway(request, model)
    try:
        return await unless_gone(request, gateway.service.embed(asked))
    except ModelNotFound as error:
        if not error.well_formed:
            raise
        raise NotFound(f'model "{model}" not found, try pulling it first', param="model") from None


def _numbers(vector: bytes) -> list[float]:
    numbers = array("f")
    numbers.frombytes(vector)
    return numbers.tolist()

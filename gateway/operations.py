"""Routes for those who run the server: liveness, readiness, metrics, tokens of a text.

Belong to no dialect. Liveness never waits for anything; readiness is false while the server drains.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.auth import require_model
from gateway.bodies import read_body
from gateway.errors import BadRequest
from gateway.metrics import CONTENT_TYPE
from gateway.openai.messages import messages as convert_messages
from gateway.openai.schema import DetokenizeBody, TokenizeBody
from gateway.streaming import JSONReply
from gateway.types import ChatRequest

router = APIRouter()


@router.api_route("/livez", methods=["GET", "HEAD"])
async def livez() -> Response:
    """200 as long as the process answers at all."""
    return JSONReply({"status": "ok"})


@router.api_route("/readyz", methods=["GET", "HEAD"])
async def readyz(request: Request) -> Response:
    """200 when new requests are taken, 503 while the server drains."""
    if request.app.state.gateway.draining:
        return JSONReply({"status": "draining"}, status_code=503)
    return JSONReply({"status": "ok"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(request.app.state.gateway.metrics.render(), media_type=CONTENT_TYPE)


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    """Token ids of a text or of a rendered conversation; with `with_pieces` the text of each."""
    body = await read_body(request, TokenizeBody)
    require_model(request, body.model)
    service = request.app.state.gateway.service
    model = await service.catalog.get(body.model)
    if body.messages is not None:
        asked = ChatRequest(body.model, convert_messages(body.messages))
        token_ids = (await service.render(asked)).token_ids
    else:
        text = body.content if body.content is not None else body.prompt
        if text is None:
            raise BadRequest("content is required", param="content")
        bos = body.add_special if body.add_special is not None else body.add_special_tokens
        special = body.parse_special is not False
        token_ids = await service.tokenize(model, text, bos=bool(bos), special=special)
    tokens: list[Any] = list(token_ids)
    if body.with_pieces:
        tokens = [{"id": each, "piece": _piece(model.vocabulary.token_bytes[each])} for each in token_ids]
    reply = {"tokens": tokens, "count": len(tokens), "max_model_len": model.description.context_length}
    return JSONReply(reply)


@router.post("/detokenize")
async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    body = await read_body(request, DetokenizeBody)
    require_model(request, body.model)
    service = request.app.state.gateway.service
    model = await service.catalog.get(body.model)
    text = await service.detokenize(model, tuple(body.tokens))
    return JSONReply({"content": text, "prompt": text})


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)

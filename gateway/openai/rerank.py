"""`/v1/rerank`: documents by how close their vectors are to a query's, over embedding models."""

from __future__ import annotations

from array import array
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from gateway.bodies import read_body
from gateway.errors import BadRequest
from gateway.openai.convert import keep_alive
from gateway.openai.routes import open_gateway
from gateway.openai.schema import Body
from gateway.streaming import JSONReply, unless_gone
from gateway.types import EmbedRequest

router = APIRouter(prefix="/v1")


class RerankBody(Body):
    """POST /v1/rerank, in Jina's words."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[list[str | dict[str, Any]], Field(min_length=1, max_length=2048)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    keep_alive: int | float | str | None = None


@router.post("/rerank")
async def rerank(request: Request) -> Response:
    """Documents, the closest first; `relevance_score` is the cosine of the angle between the vectors."""
    body = await read_body(request, RerankBody)
    gateway = open_gateway(request, body.model)
    texts = tuple(_text(document, index) for index, document in enumerate(body.documents))
    asked = EmbedRequest(body.model, (body.query, *texts), keep_alive=keep_alive(body.keep_alive))
    found = await unless_gone(request, gateway.service.embed(asked))
    query, *documents = [_numbers(vector) for vector in found.vectors]
    scores = [sum(a * b for a, b in zip(query, vector, strict=True)) for vector in documents]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or len(scores)]
    results = [
        {"index": index, "relevance_score": scores[index]}
        | ({"document": {"text": texts[index]}} if body.return_documents else {})
        for index in order
    ]
    usage = {"prompt_tokens": found.usage.prompt, "total_tokens": found.usage.prompt}
    return JSONReply({"object": "list", "model": body.model, "results": results, "usage": usage})


def _text(document: str | dict[str, Any], index: int) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str) or not text:
        raise BadRequest(f"documents.{index} must be a text that is not empty", param=f"documents.{index}")
    return text


def _numbers(vector: bytes) -> array[float]:
    numbers = array("f")
    numbers.frombytes(vector)
    return numbers

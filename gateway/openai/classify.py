"""`/v1/classify`: the labels of images, likeliest first, in the shape of vLLM's route of that name.

An image is base64 or a data URL of a PNG, JPEG, WebP, GIF or BMP, or of the raw planes that frames carry.
"""

from __future__ import annotations

import base64
import binascii
import time
import uuid
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
from gateway.types import ClassifyRequest

router = APIRouter(prefix="/v1")

MAX_IMAGES = 64


class ClassifyBody(Body):
    """POST /v1/classify."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)]
    keep_alive: int | float | str | None = None


@router.post("/classify")
async def classify(request: Request) -> Response:
    """`label` is the likeliest; `probs` are in the order of the model's own `labels`."""
    body = await read_body(request, ClassifyBody)
    gateway = open_gateway(request, body.model)
    given = [body.input] if isinstance(body.input, str) else body.input
    images = tuple(_image(text, index) for index, text in enumerate(given))
    asked = ClassifyRequest(body.model, images, keep_alive(body.keep_alive))
    found = await unless_gone(request, gateway.service.classify(asked))
    reply = {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model,
        "labels": list(found.labels),
        "data": [_row(index, dict(scores), found.labels) for index, scores in enumerate(found.scores)],
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    return JSONReply(reply)


def _row(index: int, scores: dict[str, float], labels: tuple[str, ...]) -> dict[str, Any]:
    probabilities = [scores[label] for label in labels]
    best = max(scores, key=lambda label: scores[label])
    return {"index": index, "label": best, "probs": probabilities, "num_classes": len(labels)}


def _image(text: str, index: int) -> bytes:
    """The bytes of an image; addresses are refused, since nothing is fetched for a caller."""
    if text.startswith(("http:", "https:")):
        raise BadRequest(
            f"input.{index} is an address; images are taken as base64 or data: URLs only",
            param=f"input.{index}",
        )
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"input.{index} is not valid base64", param=f"input.{index}") from None

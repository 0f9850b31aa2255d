"""`/v1/models`: what can be asked for, in OpenAI's words."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.auth import Key
from gateway.catalog import ServedModel
from gateway.errors import ModelNotFound
from gateway.gateway import Gateway
from gateway.streaming import JSONReply
from registry.model import Model

router = APIRouter(prefix="/v1")


@router.get("/models")
async def list_models(request: Request) -> Response:
    """All models the caller may use."""
    gateway: Gateway = request.app.state.gateway
    key: Key | None = getattr(request.state, "key", None)
    rows = [_row(model) for model in await gateway.catalog.list()]
    rows += [_built_in_row(model) for model in gateway.catalog.built_in()]
    return JSONReply(
        {"object": "list", "data": [row for row in rows if key is None or key.allows(row["id"])]}
    )


@router.get("/models/{name:path}")
async def retrieve_model(request: Request, name: str) -> Response:
    """One model; its name may hold `/` and `:`."""
    gateway: Gateway = request.app.state.gateway
    key: Key | None = getattr(request.state, "key", None)
    if key is not None and not key.allows(name):
        raise ModelNotFound(name)
    model = await gateway.catalog.get(name)
    row = _row(model.model) if model.model is not None else _built_in_row(model)
    return JSONReply(row | {"id": name})


def _row(model: Model) -> dict[str, Any]:
    return {
        "id": model.name.display(),
        "object": "model",
        "created": int(model.modified_at.timestamp()),
        "owned_by": model.name.namespace,
    }


def _built_in_row(model: ServedModel) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "library"}

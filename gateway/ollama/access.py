"""What every native route does first: read the body, find the gateway, check the caller's key.

Called by the routes of this dialect only.
"""

from __future__ import annotations

from typing import TypeVar

from starlette.requests import Request

from gateway.auth import Key, require_model
from gateway.bodies import WrongMediaType
from gateway.errors import BadRequest
from gateway.gateway import Gateway
from gateway.ollama.schema import Body, read_body

B = TypeVar("B", bound=Body)


async def native_body(request: Request, kind: type[B]) -> B:
    """The checked body, whatever type it claims: `curl -d` says form. Not from a web page, though.

    A page can send a form or text to any address without asking first; browsers add `origin` to those.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "origin" in request.headers and not media_type.endswith("json"):
        raise WrongMediaType("send the body with Content-Type: application/json")
    return read_body(kind, await request.body())


def named(model: str | None) -> str:
    """The model a body names. Raises BadRequest when it names none."""
    if not model:
        raise BadRequest("model is required", param="model")
    return model


def gateway_of(request: Request) -> Gateway:
    """The gateway, whatever it is doing."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def open_gateway(request: Request, *models: str) -> Gateway:
    """The gateway, if it takes new requests and the caller's key may use `models`."""
    gateway = gateway_of(request)
    gateway.check_open()
    for model in models:
        require_model(request, model)
    return gateway


def may_see(request: Request, model: str) -> bool:
    """Whether the caller's key lists this model."""
    key: Key | None = getattr(request.state, "key", None)
    return key is None or key.allows(model)

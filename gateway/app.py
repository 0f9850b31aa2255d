"""The ASGI application: routers of all dialects behind one guard, one authority and one fault table.

Knows which routers there are and nothing of what they do. Called by `server` and by tests.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway import __version__
from gateway.auth import authorize
from gateway.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound
from gateway.faults import FaultBoundary, answer
from gateway.gateway import Gateway
from gateway.guard import Guard

ROUTERS = (
    "gateway.operations",
    "gateway.openai.routes",
    "gateway.openai.models",
    "gateway.openai.rerank",
    "gateway.openai.stored",
    "gateway.openai.responses.routes",
    "gateway.anthropic.routes",
    "gateway.ollama.routes",
)
"""Modules with a `router`."""


def create_app(gateway: Gateway) -> FastAPI:
    """The application over `gateway`, which is started and closed with it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.close()

    app = FastAPI(
        title="gemmule",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        dependencies=[Depends(authorize)],
    )
    app.state.gateway = gateway
    for router in _routers():
        app.include_router(router)
    app.add_exception_handler(HTTPException, _http_fault)
    app.add_exception_handler(RequestValidationError, _http_fault)
    app.add_middleware(FaultBoundary)
    return app


def guarded(app: FastAPI) -> ASGIApp:
    """`app` behind the guard: what a server is given."""
    return Guard(app, app.state.gateway.settings)


def _routers() -> list[APIRouter]:
    found = []
    for name in ROUTERS:
        with contextlib.suppress(ModuleNotFoundError):
            found.append(importlib.import_module(name).router)
    return found


async def _http_fault(request: Request, error: Exception) -> Response:
    """What the router itself found wrong, in the dialect of the path."""
    path = request.scope["path"][:200]
    status = getattr(error, "status_code", 400)
    if status == 404:
        fault: GatewayError = NotFound(f"invalid request: there is nothing at {request.method} {path}")
    elif status == 405:
        fault = MethodNotAllowed(f"invalid request: {path} does not take {request.method}")
    else:
        fault = BadRequest(f"invalid request: {getattr(error, 'detail', 'malformed')}")
    reply = answer(request.scope, fault)
    if allow := (getattr(error, "headers", None) or {}).get("Allow"):
        reply.headers["allow"] = allow
    return reply

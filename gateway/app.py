"""The ASGI application: routers of all dialects behind one guard, one authority and one fault table.

Knows which routers there are and nothing of what they do. Called by `server` and by tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway import __version__, operations
from gateway.anthropic import routes as anthropic_routes
from gateway.auth import authorize
from gateway.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound
from gateway.faults import FaultBoundary, answer
from gateway.gateway import Gateway
from gateway.guard import Guard
from gateway.ollama import routes as ollama_routes
from gateway.openai import classify as openai_classify
from gateway.openai import models as openai_models
from gateway.openai import rerank as openai_rerank
from gateway.openai import routes as openai_routes
from gateway.openai import stored as openai_stored
from gateway.openai.responses import routes as responses_routes

ROUTERS = (
    operations.router,
    openai_routes.router,
    openai_models.router,
    openai_rerank.router,
    openai_classify.router,
    openai_stored.router,
    responses_routes.router,
    anthropic_routes.router,
    ollama_routes.router,
)
"""Where every path belongs; the first that matches answers."""


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
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(HTTPException, _http_fault)
    app.add_exception_handler(RequestValidationError, _http_fault)
    app.add_middleware(FaultBoundary)
    return app


def guarded(app: FastAPI) -> ASGIApp:
    """`app` behind the guard: what a server is given."""
    return Guard(app, app.state.gateway.settings)


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

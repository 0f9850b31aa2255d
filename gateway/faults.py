"""Answers a fault in the dialect of the path it happened on: one table from path to error shape.

`FaultBoundary` stands around the routes and turns whatever they raise before they answer into a reply.
Called by the guard and by `app`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import Fault, ModelNotFound, describe
from gateway.streaming import ClientGone, JSONReply, StreamBroken

ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def openai_body(fault: Fault) -> dict[str, Any]:
    """OpenAI's error object: `code` is a string or null, never a number."""
    return {"error": {"message": fault.message, "type": fault.kind, "param": fault.param, "code": fault.code}}


def ollama_body(fault: Fault) -> dict[str, Any]:
    """Ollama's error: one string."""
    return {"error": fault.message}


def anthropic_body(fault: Fault, request_id: str | None = None) -> dict[str, Any]:
    """Anthropic's error envelope."""
    kind = ANTHROPIC_KINDS.get(fault.status, "invalid_request_error" if fault.status < 500 else "api_error")
    body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": fault.message}}
    return body | ({"request_id": request_id} if request_id else {})


BODIES: tuple[tuple[str, Callable[[Fault], dict[str, Any]]], ...] = (
    ("/v1/messages", anthropic_body),
    ("/api", ollama_body),
    ("/", openai_body),
)
"""Path prefix and error shape, the first that matches."""


def answer(scope: Scope, error: BaseException) -> JSONReply:
    """The response for `error` on the path of `scope`."""
    path = scope.get("path", "/")
    body = next(body for prefix, body in BODIES if path.startswith(prefix))
    if isinstance(error, ModelNotFound) and body is ollama_body:
        if not error.well_formed:
            return JSONReply({"error": "invalid model name"}, status_code=400)
        return JSONReply({"error": f"model '{error.name}' not found"}, status_code=error.status)
    fault = describe(error)
    return JSONReply(body(fault), status_code=fault.status, headers=fault.headers)


class FaultBoundary:
    """Innermost middleware. An exception after the response began goes on: the connection must break."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except (StreamBroken, ClientGone):
            raise
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            await answer(scope, error)(scope, receive, send)

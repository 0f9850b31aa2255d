"""The thin ASGI layer around everything: who may ask (Host, Origin), how much, how long, and request ids.

Refuses before any work is done. Answers in the dialect of the path through `faults.answer`. Decides on
`scope` alone, never on a URL rebuilt from headers. Built by `app`.
"""

from __future__ import annotations

import asyncio
import fnmatch
import ipaddress
import logging
import re
import secrets
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import BadRequest, Forbidden, GatewayError, TooLarge
from gateway.faults import answer
from gateway.settings import Settings
from gateway.streaming import ClientGone, StreamBroken

MAX_BODY = 10 * 2**20
MAX_HEADERS = 100
MAX_HEADER_BYTES = 64 * 1024
MAX_PATH = 8 * 1024
BODY_SECONDS = 60.0
WRITE_STALL_SECONDS = 60.0
UPLOAD_PREFIX = "/api/blobs/"

LOCAL_ORIGINS = (
    *(
        f"{scheme}://{host}{port}"
        for scheme in ("http", "https")
        for host in ("localhost", "127.0.0.1", "0.0.0.0", "[::1]")
        for port in ("", ":*")
    ),
    *("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*"),
)
"""Pages that may call us without being listed: those of this machine and of desktop programs."""

ALLOWED_METHODS = "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
ALLOWED_HEADERS = (
    "authorization, content-type, user-agent, accept, x-requested-with, x-api-key, api-key, idempotency-key, "
    "openai-beta, openai-organization, openai-project, anthropic-version, anthropic-beta, "
    "anthropic-dangerous-direct-browser-access, x-request-id, x-stainless-arch, x-stainless-async, "
    "x-stainless-custom-poll-interval, x-stainless-helper-method, x-stainless-lang, x-stainless-os, "
    "x-stainless-package-version, x-stainless-poll-helper, x-stainless-retry-count, x-stainless-runtime, "
    "x-stainless-runtime-version, x-stainless-timeout"
)
EXPOSED_HEADERS = "x-request-id, retry-after, retry-after-ms, x-should-retry, openai-processing-ms"

_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?")

log = logging.getLogger("gemmule.gateway")


class HostPolicy:
    """Which Host headers are ours. Without it a web page could reach us through a name it controls."""

    def __init__(self, settings: Settings) -> None:
        self._extra = {host.lower() for host in settings.allowed_hosts}
        self._any = "*" in self._extra
        self._names = {"localhost", socket.gethostname().lower(), settings.host.lower()}
        self._loopback = settings.is_loopback

    def allows(self, header: str) -> bool:
        """Whether a Host header names us; one with anything but a name and a port in it does not."""
        host = _host_of(header) if _HOST.fullmatch(header) else ""
        if self._any or host in self._names or host in self._extra:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host.endswith((".localhost", ".local", ".internal")) and not self._loopback
        return address.is_loopback or address.is_private or address.is_unspecified or not self._loopback


class OriginPolicy:
    """Which web pages may call us: those of this machine and those listed (with `*` as wildcard)."""

    def __init__(self, settings: Settings) -> None:
        self._patterns = [*LOCAL_ORIGINS, *settings.origins]
        self._own = settings.port

    def allows(self, origin: str) -> bool:
        lowered = origin.lower()
        return any(fnmatch.fnmatchcase(lowered, _escape(pattern.lower())) for pattern in self._patterns)


def _escape(pattern: str) -> str:
    """fnmatch knows `[...]`; in an origin it is an IPv6 address."""
    return pattern.replace("[", "[[]")


def _host_of(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


class Guard:
    """The ASGI application around the router."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = HostPolicy(settings)
        self._origins = OriginPolicy(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        origin = _one(headers, b"origin")
        extra = [(b"x-request-id", request_id.encode())]
        try:
            self._check(scope, headers)
            if origin:
                self._check_origin(origin)
                extra += _cors(origin)
                if scope["method"] == "OPTIONS" and _one(headers, b"access-control-request-method"):
                    await _preflight(send, extra)
                    return
        except GatewayError as error:
            await answer(scope, error)(scope, receive, _adding(send, extra))
            return
        limited = receive if scope["path"].startswith(UPLOAD_PREFIX) else _limited(receive, scope)
        try:
            await self._app(scope, limited, _adding(send, extra))
        except StreamBroken as error:
            log.warning("request %s broke off: %s", request_id, error)
        except ClientGone:
            log.debug("request %s: the client hung up", request_id)

    def _check(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        if len(headers) > MAX_HEADERS or sum(len(n) + len(v) for n, v in headers) > MAX_HEADER_BYTES:
            raise _TooManyHeaders(f"request headers exceed {MAX_HEADERS} lines or {MAX_HEADER_BYTES} bytes")
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_PATH:
            raise _PathTooLong(f"request path exceeds {MAX_PATH} bytes")
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and scope.get("http_version") == "1.1"):
            raise BadRequest("send exactly one Host header")
        over_unix_socket = scope.get("client") is None
        if hosts and not over_unix_socket and not self._hosts.allows(hosts[0].decode("latin-1")):
            raise Forbidden("this Host is not served here; list it in GEMMULE_ALLOWED_HOSTS")
        names = [name for name, _ in headers]
        if b"content-length" in names and b"transfer-encoding" in names:
            raise BadRequest("send Content-Length or Transfer-Encoding, not both")
        if names.count(b"content-length") > 1:
            raise BadRequest("send exactly one Content-Length header")
        length = _one(headers, b"content-length")
        if length.isdigit() and int(length) > MAX_BODY and not scope["path"].startswith(UPLOAD_PREFIX):
            raise TooLarge(f"request body has {length} bytes; the limit is {MAX_BODY}")

    def _check_origin(self, origin: str) -> None:
        if not self._origins.allows(origin):
            raise Forbidden("this web origin may not call; list it in GEMMULE_ORIGINS")


class _TooManyHeaders(BadRequest):
    status = 431


class _PathTooLong(BadRequest):
    status = 414


def _one(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in headers if name == wanted), "")


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    given = _one(headers, b"x-request-id")
    if 0 < len(given) <= 128 and given.isascii() and given.replace("-", "").replace("_", "").isalnum():
        return given
    return f"req_{secrets.token_hex(12)}"


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", EXPOSED_HEADERS.encode()),
        (b"vary", b"Origin"),
    ]


async def _preflight(send: Send, extra: list[tuple[bytes, bytes]]) -> None:
    headers = [
        *extra,
        (b"access-control-allow-methods", ALLOWED_METHODS.encode()),
        (b"access-control-allow-headers", ALLOWED_HEADERS.encode()),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _adding(send: Send, extra: list[tuple[bytes, bytes]]) -> Send:
    """Adds headers to the response, and gives up on a client that reads nothing for a minute."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)
            return
        try:
            async with asyncio.timeout(WRITE_STALL_SECONDS):
                await send(message)
        except TimeoutError:
            raise StreamBroken("the client stopped reading") from None

    return sending


def _limited(receive: Receive, scope: Scope) -> Receive:
    """Stops a body that grows past the limit or trickles in for too long."""
    seen = 0
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS
    complete = False

    async def receiving() -> Message:
        nonlocal seen, complete
        if complete:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise _BodyTooSlow(f"request body took longer than {BODY_SECONDS:g} seconds") from None
        seen += len(message.get("body", b""))
        complete = message["type"] != "http.request" or not message.get("more_body", False)
        if seen > MAX_BODY:
            raise TooLarge(f"request body exceeds {MAX_BODY} bytes")
        return message

    return receiving


class _BodyTooSlow(BadRequest):
    status = 408
    should_retry = False

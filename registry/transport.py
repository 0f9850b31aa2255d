"""The one place that makes outbound requests, and the rules they keep.

Redirects are followed here, by hand: at most ten, never from https to http, never from the public network
to a private address; credentials stay with the origin they are for. Names are resolved once, checked, and
the checked address is what is connected to. Bodies arrive as sent: nothing is ever decompressed.
Knows no hub. Sources and the downloader call it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import re
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2
import msgspec

from registry.addresses import Address, is_private, literal_of, origin_of
from registry.errors import AddressRefused, NotFound, SourceError, Unauthorized, Unavailable

METADATA_LIMIT = 16 << 20
REDIRECT_LIMIT = 10
ADDRESSES_TRIED = 4
REDIRECTS = frozenset({301, 302, 303, 307, 308})
CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How to reach the world; `environment` is where proxies, certificates, tokens and endpoints are read.

    `allow_private` lets a reference that was typed (or configured) name a private address. `public_networks`
    are private ranges to be taken as public, for networks that number themselves so. Seconds throughout.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    allow_private: bool = True
    public_networks: tuple[str, ...] = ()
    connect_timeout: float = 10.0
    stall_timeout: float = 30.0
    attempts: int = 6
    backoff: float = 0.5
    longest_wait: float = 60.0
    connections: int = 8
    least_part: int = 8 << 20
    """Bytes of the smallest part of a parallel download; what a resumed one may have to repeat."""
    user_agent: str = "gemmule"

    def variable(self, *names: str) -> str:
        """The first of these variables that is set and not empty, else ""."""
        return next((self.environment[name] for name in names if self.environment.get(name)), "")


class Reply:
    """An answer whose body has not been read; closed by the `async with` that gave it."""

    def __init__(self, response: httpx2.Response, url: str) -> None:
        self._response = response
        self.url = url
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in _RETRYABLE

    @property
    def retry_after(self) -> float | None:
        """Seconds the server asks to wait; None when it says nothing sensible."""
        return parse_retry_after(self.headers.get("retry-after", ""))

    @property
    def length(self) -> int | None:
        """Content-Length, or None where absent or no number."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isdecimal() and len(text) < 20 else None

    @property
    def total(self) -> int | None:
        """Bytes of the whole object, also where this is a part of it; None where the server does not say."""
        if self.status != 206:
            return self.length
        match = CONTENT_RANGE.fullmatch(self.headers.get("content-range", ""))
        return int(match[3]) if match and match[3] != "*" else None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; raises Unavailable when the connection breaks or stalls."""
        try:
            async for chunk in self._response.aiter_raw():
                yield chunk
        except httpx2.TransportError as error:
            raise _unavailable(self.url, error) from error

    async def read(self, limit: int = METADATA_LIMIT) -> bytes:
        """The whole body; raises SourceError when it is longer than `limit` or compressed unasked."""
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise SourceError(f"{origin_of(self.url)} answered with compression that was not asked for")
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > limit:
                raise SourceError(
                    f"{origin_of(self.url)} answered with more than the {limit:,} bytes allowed"
                )
        return bytes(body)

    async def json(self, limit: int = METADATA_LIMIT) -> Any:
        """The body as JSON; raises SourceError."""
        body = await self.read(limit)
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise SourceError(f"{origin_of(self.url)} answered with something that is no JSON") from error

    def failure(self, what: str, hint: str = "") -> SourceError:
        """The error that the status means; `what` names the thing that was asked for."""
        host = origin_of(self.url)
        end = f"; {hint}" if hint else ""
        if self.status in (401, 403):
            return Unauthorized(
                f"{host} refuses {what} (status {self.status}){end or '; check your credentials'}"
            )
        if self.status in (404, 410):
            return NotFound(f"{host} has no {what}{end}")
        if self.retryable:
            return Unavailable(f"{host} cannot give {what} now (status {self.status})", self.retry_after)
        return SourceError(f"{host} answered status {self.status} for {what}{end}")


def parse_retry_after(text: str) -> float | None:
    """Seconds from `Retry-After`, which is a number or a date; negative and absurd ones are 0 and None."""
    text = text.strip()
    if text.lstrip("-").isdecimal():
        return max(0.0, float(text)) if len(text) < 12 else None
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max(0.0, (when - datetime.now(UTC)).total_seconds()) if when.tzinfo else None


class Transport:
    """All connections of one puller; close it when done. One event loop only."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self._clients: dict[tuple[str, str], httpx2.AsyncClient] = {}
        self._tls: ssl.SSLContext | None = None
        self._public = [ipaddress.ip_network(text) for text in settings.public_networks]

    async def close(self) -> None:
        """Closes every connection."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    async def pause(self, failures: int, retry_after: float | None = None) -> None:
        """Waits before try number `failures` + 1: what the server asks, else doubling with jitter; never
        longer than the settings allow."""
        settings = self.settings
        if retry_after is None:
            retry_after = settings.backoff * 2.0 ** (failures - 1) * random.uniform(0.5, 1.0)
        await asyncio.sleep(min(retry_after, settings.longest_wait))

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        credentials: Mapping[str, str] | None = None,
        content: bytes | None = None,
        follow: bool = True,
        named_by: str = "",
    ) -> AsyncIterator[Reply]:
        """Sends one request and gives the reply, redirects followed by rule unless `follow` is off.

        `credentials` are headers that go to the origin of `url` and nowhere else. `named_by` is the address
        whose answer named `url`, for which the rules of a redirect from there then hold. Raises
        AddressRefused, Unavailable (connection refused, broken, stalled), SourceError (redirect loop).
        """
        home = origin_of(url)
        trusted: bool | None = None
        if named_by:
            trusted = (await self._checked_addresses(named_by, None))[1]
            _redirected(named_by, url)
        for _ in range(REDIRECT_LIMIT + 1):
            addresses, private = await self._checked_addresses(url, trusted)
            trusted = private if trusted is None else trusted and private
            sent = dict(headers or {})
            if origin_of(url) == home:
                sent |= credentials or {}
            response = await self._send_to_any(method, url, addresses, sent, content)
            try:
                target = response.headers.get("location")
                if not follow or response.status_code not in REDIRECTS or not target:
                    yield Reply(response, url)
                    return
            finally:
                await response.aclose()
            url = _redirected(url, target)
            if response.status_code == 303 or (response.status_code in (301, 302) and method == "POST"):
                method, content = ("HEAD" if method == "HEAD" else "GET"), None  # as every browser does
        raise SourceError(f"{home} redirects more than {REDIRECT_LIMIT} times")

    async def _send_to_any(
        self,
        method: str,
        url: str,
        addresses: Sequence[str | None],
        headers: dict[str, str],
        content: bytes | None,
    ) -> httpx2.Response:
        """Sends to the first address that accepts a connection: many hosts have one that is not reachable."""
        try:
            for address in addresses[:-1]:
                with contextlib.suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                    return await self._send(method, url, address, headers, content)
            return await self._send(method, url, addresses[-1], headers, content)
        except httpx2.TransportError as error:
            raise _unavailable(url, error) from error

    async def _send(
        self, method: str, url: str, address: str | None, headers: dict[str, str], content: bytes | None
    ) -> httpx2.Response:
        parts = urlsplit(url)
        client = self._client(url)
        headers |= {"User-Agent": self.settings.user_agent, "Accept-Encoding": "identity"}
        extensions = {}
        target = httpx2.URL(url)
        if address is not None:
            headers["Host"] = parts.netloc.rpartition("@")[2]
            extensions["sni_hostname"] = parts.hostname
            target = target.copy_with(host=address)
        request = client.build_request(
            method, target, headers=headers, content=content, extensions=extensions
        )
        return await client.send(request, stream=True)

    def _client(self, url: str) -> httpx2.AsyncClient:
        """One pool for each origin: connections to one address are never shared between two hosts."""
        proxy = proxy_for(url, self.settings.environment)
        key = (origin_of(url), proxy)
        if key not in self._clients:
            settings = self.settings
            self._clients[key] = httpx2.AsyncClient(
                proxy=proxy or None,
                verify=self._tls_context() if origin_of(url).startswith("https") else False,
                trust_env=False,
                follow_redirects=False,
                timeout=httpx2.Timeout(
                    settings.stall_timeout, connect=settings.connect_timeout, pool=settings.stall_timeout * 4
                ),
                limits=httpx2.Limits(max_connections=4 * settings.connections, keepalive_expiry=30),
            )
        return self._clients[key]

    def _tls_context(self) -> ssl.SSLContext:
        """Made once, and only when needed: reading the system's certificates takes a while."""
        if self._tls is None:
            self._tls = _tls_context(self.settings.environment)
        return self._tls

    async def _checked_addresses(self, url: str, trusted: bool | None) -> tuple[Sequence[str | None], bool]:
        """The addresses to connect to (None: the proxy resolves) and whether one is private.

        `trusted` is None for the address that was typed, then whether all so far were private.
        """
        parts = urlsplit(url)
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host:
            raise AddressRefused(
                f"refusing to open {url[:100]!r}: only http and https addresses are followed"
            )
        if proxy_for(url, self.settings.environment):
            literal = literal_of(host)
            private = literal is not None and is_private(literal, self._public)
            self._allow(host, [literal] if literal else [], private, trusted)
            return [None], private
        addresses = await _resolve(host, parts.port or 443)
        private = any(is_private(address, self._public) for address in addresses)
        self._allow(host, addresses, private, trusted)
        return [str(address) for address in addresses[:ADDRESSES_TRIED]], private

    def _allow(self, host: str, addresses: Sequence[Address], private: bool, trusted: bool | None) -> None:
        if not private:
            return
        if trusted is None:
            if self.settings.allow_private:
                return
            raise AddressRefused(f"{host!r} is a private address; only the operator may name one")
        if not trusted:
            raise AddressRefused(
                f"refusing a redirect from the public network to the private address of {host!r}"
            )
        if any(address.is_link_local for address in addresses):
            raise AddressRefused(f"refusing a redirect to the link-local address of {host!r}")


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http":
        raise AddressRefused(f"{origin_of(url)} redirects from https to http, which is never followed")
    return target


async def _resolve(host: str, port: int) -> list[Address]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"cannot find the host {host!r}; check its spelling and your network") from error
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


def proxy_for(url: str, environment: Mapping[str, str]) -> str:
    """The proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY choose for this address, or ""."""
    parts = urlsplit(url)
    host = parts.hostname or ""

    def variable(name: str) -> str:
        return environment.get(name.lower()) or environment.get(name.upper()) or ""

    proxy = variable(f"{parts.scheme}_proxy") or variable("all_proxy")
    excluded = variable("no_proxy")
    if not proxy or not excluded:
        return proxy
    literal = literal_of(host)
    for entry in excluded.split(","):
        with contextlib.suppress(ValueError):
            if literal and literal in ipaddress.ip_network(entry.strip(), strict=False):
                return ""
    netloc = f"{host}:{parts.port}" if parts.port else host
    return "" if urllib.request.proxy_bypass_environment(netloc, {"no": excluded}) else proxy  # type: ignore[attr-defined]


def _tls_context(environment: Mapping[str, str]) -> ssl.SSLContext:
    """The system's trust, or what SSL_CERT_FILE and SSL_CERT_DIR name."""
    file, folder = environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR")
    if not file and not folder:
        return httpx2.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    except OSError as error:
        raise SourceError(
            f"SSL_CERT_FILE or SSL_CERT_DIR cannot be read: {error.strerror or error}"
        ) from error


def _unavailable(url: str, error: httpx2.TransportError) -> Unavailable:
    reasons: list[tuple[type[Exception], str]] = [
        (httpx2.ConnectTimeout, "does not accept a connection"),
        (httpx2.TimeoutException, "stopped answering"),
        (httpx2.ProxyError, "cannot be reached through the proxy"),
        (httpx2.ConnectError, "cannot be connected to"),
    ]
    reason = next((text for kind, text in reasons if isinstance(error, kind)), "broke the connection")
    cause = f" ({error.__cause__ or error})" if isinstance(error, httpx2.ConnectError) else ""
    return Unavailable(f"{origin_of(url)} {reason}{cause}")

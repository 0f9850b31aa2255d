"""API keys: who may ask. Every route that is not listed public depends on `authorize`.

Keys come from the environment or from a file of SHA-256 hashes; comparing takes the same time whatever was
sent. Knows networks and names, not models' contents. Used by `app`.

The file has one key a line, `#` begins a comment:

    name sha256:<64 hex digits> [models=gemma3*,bud] [rate=60/m]
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from gateway.errors import Forbidden, RateLimited, Unauthorized
from gateway.settings import IPNetwork, Settings, SettingsError

PUBLIC_PATHS = frozenset({"/", "/livez", "/readyz", "/api/version"})
"""What says nothing but that the server is there."""

MANAGING = frozenset(
    {
        "/api/create", "/api/copy", "/api/delete", "/api/pull", "/api/push", "/api/blobs/{digest}",
        "/api/blobs/{digest:path}",
    }
)  # fmt: skip
"""Routes that change the store: never open to a network without a key."""

_RATE = re.compile(r"([0-9]+)/(s|m|h)")
_PERIODS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Key:
    """A key's name, hash and limits; `rate` is in requests a second, `burst` how many at once."""

    name: str
    digest: bytes
    models: tuple[str, ...] = ()
    rate: float = 0.0
    burst: int = 0

    def allows(self, model: str) -> bool:
        """Whether the key may use `model`; a key without a list may use all."""
        return not self.models or any(fnmatch.fnmatchcase(model.lower(), p.lower()) for p in self.models)


def hash_key(key: str) -> bytes:
    """What is kept of a key. Keys are long and random, so one round of SHA-256 is enough."""
    return hashlib.sha256(key.encode()).digest()


def read_keys(settings: Settings) -> tuple[Key, ...]:
    """The keys of the settings; raises `SettingsError` for a file that cannot be used."""
    keys = []
    for position, given in enumerate(settings.api_keys):
        name, colon, secret = given.partition(":")
        keys.append(Key(name if colon else f"key{position + 1}", hash_key(secret if colon else given)))
    if settings.api_key_file is not None:
        keys += _read_file(settings.api_key_file)
    return tuple(keys)


def _read_file(path: Path) -> Iterable[Key]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as fault:
        raise SettingsError(f"GEMMULE_API_KEY_FILE: cannot read {path}: {fault.strerror}") from None
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if words:
            yield _parse_line(words, f"GEMMULE_API_KEY_FILE, line {number}")


def _parse_line(words: list[str], where: str) -> Key:
    if len(words) < 2 or not re.fullmatch(r"sha256:[0-9a-f]{64}", words[1]):
        raise SettingsError(f"{where}: write `name sha256:<64 hex digits>`, as `gemmule key` prints it")
    models: tuple[str, ...] = ()
    rate, burst = 0.0, 0
    for word in words[2:]:
        option, _, value = word.partition("=")
        match = _RATE.fullmatch(value)
        if option == "models" and value:
            models = tuple(value.split(","))
        elif option == "rate" and match:
            rate, burst = int(match[1]) / _PERIODS[match[2]], int(match[1])
        else:
            raise SettingsError(f"{where}: {word!r} is neither models=a,b nor rate=60/m")
    return Key(words[0], bytes.fromhex(words[1][7:]), models, rate, burst)


class Authority:
    """Decides about requests. Without any key everything that reaches the address is allowed."""

    def __init__(
        self,
        keys: tuple[Key, ...],
        anonymous: tuple[IPNetwork, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._anonymous = anonymous
        self._clock = clock
        self._allowances: dict[str, tuple[float, float]] = {}

    def check(self, secret: str, client: str | None, manages: bool) -> Key | None:
        """The key of a request, or None where none is needed. Raises `Unauthorized` or `RateLimited`."""
        key = self._find(secret)
        if key is not None:
            self._spend(key)
            return key
        if not manages and self._is_anonymous(client):
            return None
        if not self._keys and not self._anonymous:
            return None
        what = "incorrect api key provided" if secret else "an api key is required"
        raise Unauthorized(f"{what}; send it as `Authorization: Bearer <key>`")

    def _find(self, secret: str) -> Key | None:
        """Compares with every key, so that the time tells nothing."""
        digest = hash_key(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    def _is_anonymous(self, client: str | None) -> bool:
        if not self._anonymous:
            return False
        try:
            address = ipaddress.ip_address(client or "127.0.0.1")
        except ValueError:
            return False
        return any(address in network for network in self._anonymous)

    def _spend(self, key: Key) -> None:
        """A bucket that fills at `rate` and holds `burst`."""
        if not key.rate:
            return
        now = self._clock()
        allowance, then = self._allowances.get(key.name, (float(key.burst), now))
        allowance = min(float(key.burst), allowance + (now - then) * key.rate)
        if allowance < 1:
            wait = (1 - allowance) / key.rate
            raise RateLimited(f"rate limit exceeded for key {key.name!r}; wait {wait:.1f} s", wait)
        self._allowances[key.name] = (allowance - 1, now)


async def authorize(request: Request) -> None:
    """The dependency of every route: decides on the matched route, never on a URL made of headers."""
    path = getattr(request.scope.get("route"), "path", request.scope["path"])
    if path in PUBLIC_PATHS:
        return
    authority: Authority = request.app.state.gateway.authority
    client = request.client.host if request.client else None
    key = authority.check(_secret(request), client, path in MANAGING)
    request.state.key = key


def require_model(request: Request, model: str) -> None:
    """Refuses a model that the request's key may not use."""
    key: Key | None = getattr(request.state, "key", None)
    if key is not None and not key.allows(model):
        raise Forbidden(f"this key may not use {model!r}")


def _secret(request: Request) -> str:
    """The key as any of our dialects' clients send it."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return request.headers.get("x-api-key") or request.headers.get("api-key") or ""


def check_exposure(settings: Settings, keys: tuple[Key, ...]) -> None:
    """Refuses to listen beyond this machine without a key; raises `SettingsError` with both remedies."""
    if not (settings.is_loopback or keys or settings.anonymous):
        raise SettingsError(
            f"refusing to listen on {settings.host} without an API key: anyone who reaches it could use and "
            "delete models; set GEMMULE_API_KEYS=<secret>, or GEMMULE_ANONYMOUS=192.168.0.0/16 for networks "
            "that may infer without one"
        )

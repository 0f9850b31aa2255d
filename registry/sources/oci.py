"""Registries that speak the OCI distribution protocol: Ollama's, Docker's, Hugging Face's own bridge.

Manifests by tag, blobs by digest, bearer tokens. A token is asked for where the registry says: of its own
host by a signed request (Ollama's way), of any other anonymously (Docker Hub's way).
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from registry.addresses import origin_of
from registry.blobs import digest_of
from registry.errors import DigestMismatch, InvalidManifest, SourceError, Unauthorized
from registry.identity import Identity
from registry.manifest import MANIFEST_LIMIT, MANIFEST_TYPE, OCI_MANIFEST_TYPE, Layer, Manifest
from registry.name import ModelName
from registry.reference import Reference
from registry.remote import RemoteFile
from registry.sources.base import Listing, SourceFile
from registry.transport import Reply, Transport

_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+)(:\d+)?")
ACCEPT = f"{MANIFEST_TYPE}, {OCI_MANIFEST_TYPE}"


def base_url(name: ModelName, insecure: bool) -> str:
    """`https://host/v2/<namespace>/<model>`; http for this machine itself or where it was allowed."""
    scheme = "http" if insecure or _LOOPBACK.fullmatch(name.host) else "https"
    return f"{scheme}://{name.host}/v2/{name.namespace}/{name.model}"


@dataclass(slots=True)
class RegistrySession:
    """Talks to one repository of one registry, with a token once one was asked for."""

    transport: Transport
    identity: Callable[[], Identity]
    base: str
    token: str = ""
    challenge: str = ""

    async def credentials(self, refresh: bool = False) -> Mapping[str, str]:
        """The headers that authorize; with `refresh`, of a new token."""
        if refresh:
            await self._refresh()
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def _refresh(self) -> None:
        """A new token; the registry is asked for its challenge where it has given none yet."""
        if self.challenge:
            self.token = await self._fetch_token(self.challenge)
            return
        async with self.transport.request("GET", f"{origin_of(self.base)}/v2/") as reply:
            if reply.status == 401:
                await self.authorize(reply)

    async def authorize(self, reply: Reply) -> None:
        """Gets the token that a 401 asks for; raises Unauthorized when it asks for none."""
        challenge = reply.headers.get("www-authenticate", "")
        if not challenge.lower().startswith("bearer ") or "realm=" not in challenge:
            raise reply.failure("this model", "it wants credentials of a kind that is not supported")
        self.challenge = challenge
        self.token = await self._fetch_token(challenge)

    async def _fetch_token(self, challenge: str) -> str:
        fields: dict[str, str] = dict(_CHALLENGE.findall(challenge))
        realm = fields.get("realm", "")
        there = urlsplit(realm)
        ours = there.hostname == urlsplit(self.base).hostname
        query = [("service", fields["service"])] if fields.get("service") else []
        if ours:
            nonce = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
            query += [("ts", str(int(time.time()))), ("nonce", nonce)]
        query += [("scope", scope) for scope in fields.get("scope", "").split()]
        url = f"{realm}{'&' if there.query else '?'}{urlencode(query)}"
        signed = {"Authorization": self._signature(url)} if ours else {}
        async with self.transport.request("GET", url, credentials=signed, named_by=self.base) as reply:
            if reply.status != 200:
                hint = "add this machine's public key to your account there" if ours else ""
                raise reply.failure("a token", hint)
            answer = await reply.json()
        token = answer.get("token") or answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(token, str) or not token:
            raise SourceError(f"{origin_of(realm)} answered without a token")
        return token

    def _signature(self, url: str) -> str:
        """This machine's key and its signature over a GET of the address, as Ollama's registry wants them."""
        nothing = base64.b64encode(hashlib.sha256(b"").hexdigest().encode()).decode()
        return self.identity().sign(f"GET,{url},{nothing}".encode())

    async def fetch(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        limit: int = MANIFEST_LIMIT,
    ) -> tuple[Reply, bytes]:
        """One request below the repository (or to a whole address); asks for a token once when told to."""
        url = path if "://" in path else f"{self.base}{path}"
        for attempt in (1, 2):
            credentials = await self.credentials()
            if origin_of(url) != origin_of(self.base):
                credentials = {}
            async with self.transport.request(
                method, url, headers=headers, credentials=credentials, content=content
            ) as reply:
                if reply.status == 401 and attempt == 1:
                    await self.authorize(reply)
                    continue
                return reply, b"" if method == "HEAD" else await reply.read(limit)
        raise Unauthorized(f"{origin_of(self.base)} refuses its own token")


class OciSource:
    """Models in registries."""

    def __init__(self, transport: Transport, identity: Callable[[], Identity]) -> None:
        self._transport = transport
        self._identity = identity

    def session(self, reference: Reference) -> RegistrySession:
        """A connection to the repository of the reference."""
        return RegistrySession(self._transport, self._identity, base_url(reference.name, reference.insecure))

    async def resolve(self, reference: Reference) -> Listing:
        """The manifest, proved where the registry gives its digest, and every blob it names."""
        session = self.session(reference)
        reply, data = await session.fetch("GET", f"/manifests/{reference.name.tag}", {"Accept": ACCEPT})
        if reply.status == 404:
            raise reply.failure(f"model '{reference.name}'", "check the name and the tag")
        if reply.status != 200:
            raise reply.failure(f"model '{reference.name}'")
        declared = reply.headers.get("docker-content-digest", "")
        if declared.startswith("sha256:") and declared != digest_of(data):
            raise DigestMismatch(declared, digest_of(data))
        try:
            manifest = Manifest.parse(data)
        except InvalidManifest as error:
            raise SourceError(f"{origin_of(session.base)} gives a {error}") from error
        layers = {layer.digest: layer for layer in (manifest.config, *manifest.layers)}
        return Listing(tuple(_file(session, layer) for layer in layers.values()), data)


def _file(session: RegistrySession, layer: Layer) -> SourceFile:
    remote = RemoteFile(
        url=f"{session.base}/blobs/{layer.digest}",
        identity=layer.digest,
        size=layer.size,
        sha256=layer.digest,
        credentials=session.credentials,
    )
    return SourceFile(remote, layer.kind, layer.name)

"""A hub to test against: one asyncio server that speaks OCI distribution, Hugging Face and Kaggle.

Faults are scripted by path: a list of `Fault`s, taken one per request whose path contains the key. It runs
on a thread of its own, so that blocking clients (the real ones) can talk to it. Independent of `registry`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request.

    `status` answers with that; `headers` are added; `reset_at` tears the connection down after that many
    body bytes; `hang_at` stops sending there; `close_at` ends the connection properly there; `drip` sends
    one byte each so many seconds; `body` replaces the bytes; `ignore_range` sends 200 and everything;
    `location` redirects; `no_length` leaves Content-Length out.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    reset_at: int | None = None
    hang_at: int | None = None
    close_at: int | None = None
    drip: float = 0.0
    delay: float = 0.0
    body: bytes | None = None
    ignore_range: bool = False
    location: str = ""
    no_length: bool = False


@dataclass(slots=True)
class Request:
    """One request as it came; `sent` counts the body bytes of its answer."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    sent: int = 0


@dataclass(slots=True)
class Answer:
    """Status, headers and body; ranges are cut by the server."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class FakeHub:
    """Start with `with FakeHub() as hub`; fill `oci`, `repos` and `kaggle`; read `requests` afterwards."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.host = host
        self._tls = tls
        self.port = 0
        self.requests: list[Request] = []
        self.faults: dict[str, list[Fault]] = {}
        self.always: dict[str, Fault] = {}
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.kaggle: dict[str, dict[int, dict[str, bytes]]] = {}
        self.kaggle_archives: dict[str, bytes] = {}
        self.consent: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.token = ""
        self.realm = ""
        self.kaggle_token = ""
        self.hf_token = ""
        self.uploads: dict[str, bytearray] = {}
        self.cdn_origin = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()

    # life

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, self.host, 0, limit=1 << 20, ssl=self._tls), self._loop
        ).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def netloc(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """`http://host:port`."""
        return f"{'https' if self._tls else 'http'}://{self.netloc}"

    # content

    def add_oci(
        self, name: str, layers: list[tuple[str, bytes]], config: bytes = b"{}", tag: str = "latest"
    ) -> str:
        """A model `namespace/model` whose layers are (kind, bytes); returns its full name."""

        def descriptor(media_type: str, data: bytes) -> dict[str, Any]:
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            self.blobs[digest] = data
            return {"mediaType": media_type, "digest": digest, "size": len(data)}

        document = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": descriptor("application/vnd.docker.container.image.v1+json", config),
            "layers": [descriptor(f"application/vnd.ollama.image.{kind}", data) for kind, data in layers],
        }
        self.manifests[f"{name}:{tag}"] = json.dumps(document).encode()
        return f"{self.netloc}/{name}:{tag}"

    def sent(self, part: str) -> int:
        """Body bytes sent for paths that contain `part`."""
        return sum(request.sent for request in self.requests if part in request.path)

    def asked(self, part: str, method: str = "GET") -> list[Request]:
        """The requests whose path contains `part`."""
        return [each for each in self.requests if part in each.path and each.method == method]

    # protocol

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
            with suppress(Exception, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.split("\r\n")
        method, target, _ = line.split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields if each)
        }
        body = b"".join([chunk async for chunk in _body(reader, headers)])
        parts = urlsplit(target)
        request = Request(method, unquote(parts.path), parse_qs(parts.query), headers, body)
        self.requests.append(request)
        fault = self._fault(request)
        if fault.delay:
            await asyncio.sleep(fault.delay)
        answer = self._route(request)
        if fault.location:
            answer = Answer(302, b"", {"Location": fault.location})
        if fault.status:
            answer = Answer(fault.status, b"{}" if fault.body is None else fault.body)
        if fault.body is not None and not fault.status:
            answer.body = fault.body
        answer.headers |= fault.headers
        return await self._send(writer, request, answer, fault)

    def _fault(self, request: Request) -> Fault:
        for part, faults in self.faults.items():
            if part in request.path and faults and request.method in ("GET", "POST", "PUT", "PATCH"):
                return faults.pop(0)
        return next((fault for part, fault in self.always.items() if part in request.path), Fault())

    async def _send(
        self, writer: asyncio.StreamWriter, request: Request, answer: Answer, fault: Fault
    ) -> bool:
        body, headers = answer.body, {"Accept-Ranges": "bytes", **answer.headers}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        fresh = request.headers.get("if-range") in (None, headers.get("ETag"))
        if wanted and answer.status == 200 and request.method == "GET" and fresh and not fault.ignore_range:
            start, end = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1)
            if start >= len(body):
                answer.status, body = 416, b""
            else:
                headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
                answer.status, body = 206, body[start : end + 1]
        headers |= fault.headers
        if not fault.no_length:
            headers.setdefault("Content-Length", str(len(body)))
        else:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if request.method == "HEAD":
            await writer.drain()
            return True
        for position in range(0, len(body), 1 if fault.drip else 65536):
            chunk = body[position : position + (1 if fault.drip else 65536)]
            for limit, act in ((fault.reset_at, _reset), (fault.close_at, _close), (fault.hang_at, _hang)):
                if limit is not None and position + len(chunk) > limit:
                    writer.write(chunk[: max(0, limit - position)])
                    request.sent += max(0, limit - position)
                    await writer.drain()
                    await act(writer)
                    return False
            writer.write(chunk)
            request.sent += len(chunk)
            await writer.drain()
            if fault.drip:
                await asyncio.sleep(fault.drip)
        await writer.drain()
        return not fault.no_length

    def _route(self, request: Request) -> Answer:
        routes: list[tuple[str, Callable[..., Answer]]] = [
            (r"/v2/", self._oci_root),
            (r"/token", self._oci_token),
            (r"/v2/(.+)/manifests/([^/]+)", self._oci_manifest),
            (r"/v2/(.+)/blobs/uploads/(.*)", self._oci_upload),
            (r"/v2/(.+)/blobs/(sha256:[0-9a-f]+)", self._oci_blob),
            (r"/api/models/([^/]+/[^/]+)/revision/(.+)", self._hf_revision),
            (r"/api/models/([^/]+/[^/]+)", self._hf_revision),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self._hf_tree),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._hf_resolve),
            (r"/cdn/(.+)", self._cdn),
            (r"(?:/api)?/v1/models\.ModelApiService/(\w+)", self._kaggle_call),
            (r"(/files/.+)", self._file),
        ]
        for pattern, handler in routes:
            match = re.fullmatch(pattern, request.path)
            if match:
                return handler(request, *match.groups())
        return Answer(404, b"{}")

    # OCI distribution

    def _challenge(self, request: Request) -> Answer | None:
        if not self.token or request.headers.get("authorization") == f"Bearer {self.token}":
            return None
        realm = self.realm or f"{self.url}/token"
        scope = "repository:any:pull,push"
        challenge = f'Bearer realm="{realm}",service="fakehub",scope="{scope}"'
        return Answer(401, b'{"errors":[{"code":"UNAUTHORIZED"}]}', {"WWW-Authenticate": challenge})

    def _oci_root(self, request: Request) -> Answer:
        return self._challenge(request) or Answer(200, b"{}")

    def _oci_token(self, request: Request) -> Answer:
        return Answer(200, json.dumps({"token": self.token}).encode())

    def _oci_manifest(self, request: Request, name: str, tag: str) -> Answer:
        refused = self._challenge(request)
        if refused:
            return refused
        if request.method == "PUT":
            document = json.loads(request.body)
            missing = [
                each["digest"]
                for each in [document["config"], *document["layers"]]
                if each["digest"] not in self.blobs
            ]
            if missing:
                return Answer(400, json.dumps({"errors": [{"code": "MANIFEST_BLOB_UNKNOWN"}]}).encode())
            self.manifests[f"{name}:{tag}"] = request.body
            return Answer(201)
        data = self.manifests.get(f"{name}:{tag}")
        if data is None or "manifest.v2+json" not in request.headers.get("accept", ""):
            return Answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return Answer(200, data, {"Docker-Content-Digest": digest})

    def _oci_blob(self, request: Request, name: str, digest: str) -> Answer:
        refused = self._challenge(request)
        if refused:
            return refused
        data = self.blobs.get(digest)
        if data is None:
            return Answer(404, b"{}")
        if self.cdn_origin:
            return Answer(307, b"", {"Location": f"{self.cdn_origin}/cdn/{digest}"})
        return Answer(200, data, {"Docker-Content-Digest": digest, "ETag": f'"{digest}"'})

    def _oci_upload(self, request: Request, name: str, upload: str) -> Answer:
        refused = self._challenge(request)
        if refused:
            return refused
        if request.method == "POST":
            mount = request.query.get("mount", [""])[0]
            if mount in self.blobs:
                return Answer(201, b"", {"Docker-Content-Digest": mount})
            upload = f"u{len(self.uploads)}"
            self.uploads[upload] = bytearray()
        if upload not in self.uploads:
            return Answer(404, b"{}")
        data = self.uploads[upload]
        where = {"Location": f"/v2/{name}/blobs/uploads/{upload}"}
        if request.method == "PATCH":
            start = int(request.headers.get("content-range", f"{len(data)}-").split("-")[0])
            if start != len(data):
                return Answer(416, b"", {**where, "Range": f"0-{len(data) - 1}"})
            data += request.body
        if request.method == "PUT":
            data += request.body
            digest = request.query["digest"][0]
            if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
                return Answer(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
            self.blobs[digest] = bytes(data)
            return Answer(201, b"", {"Docker-Content-Digest": digest})
        return Answer(
            202 if request.method != "GET" else 204, b"", {**where, "Range": f"0-{max(0, len(data) - 1)}"}
        )

    # Hugging Face

    def _hf_error(self, request: Request, repo: str) -> Answer | None:
        if repo not in self.repos:
            return Answer(401 if not self.hf_token else 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if repo in self.gated and request.headers.get("authorization") != f"Bearer {self.hf_token}":
            return Answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        return None

    def _hf_revision(self, request: Request, repo: str, revision: str = "main") -> Answer:
        refused = self._hf_error(request, repo)
        if refused:
            return refused
        if revision not in ("main", "v1", COMMIT):
            return Answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return Answer(200, json.dumps({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": []}).encode())

    def _hf_tree(self, request: Request, repo: str, commit: str) -> Answer:
        refused = self._hf_error(request, repo)
        if refused:
            return refused
        entries = []
        for path, data in self.repos[repo].items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
            if len(data) > 100:
                entry["lfs"] = {
                    "oid": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 130,
                }
            entries.append(entry)
        page = int(request.query.get("page", ["0"])[0])
        headers = {}
        if len(entries) > (page + 1) * 10:
            headers["Link"] = (
                f'<{self.url}/api/models/{repo}/tree/{commit}?recursive=true&page={page + 1}>; rel="next"'
            )
        return Answer(200, json.dumps(entries[page * 10 : page * 10 + 10]).encode(), headers)

    def _hf_resolve(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        refused = self._hf_error(request, repo)
        if refused:
            return refused
        data = self.repos[repo].get(path)
        if data is None:
            return Answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{git_sha1(data)}"'}
        if len(data) > 100:
            digest = hashlib.sha256(data).hexdigest()
            self.blobs[f"sha256:{digest}"] = data
            headers |= {
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                "ETag": f'"{digest}"',
            }
            if self.cdn_origin:
                return Answer(302, b"", {**headers, "Location": f"{self.cdn_origin}/cdn/sha256:{digest}"})
        return Answer(200, data, headers)

    def _cdn(self, request: Request, key: str) -> Answer:
        data = self.blobs.get(key)
        if data is None:
            return Answer(404)
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        return Answer(200, data, {"ETag": f'"cdn-{key[-8:]}"', "x-goog-hash": f"crc32c=AAAAAA==,md5={md5}"})

    # Kaggle

    def _kaggle_call(self, request: Request, method: str) -> Answer:
        asked = json.loads(request.body)
        framework = asked["framework"].removeprefix("MODEL_FRAMEWORK_").lower()
        handle = f"{asked['ownerSlug']}/{asked['modelSlug']}/{framework}/{asked['instanceSlug']}"
        if self.kaggle_token and request.headers.get("authorization") != f"Bearer {self.kaggle_token}":
            return Answer(401, b'{"code":401,"message":"Unauthenticated"}')
        if handle in self.consent:
            return Answer(403, b'{"code":403,"message":"Permission denied"}')
        versions = self.kaggle.get(handle)
        if not versions:
            return Answer(404, b'{"code":404,"message":"Not found"}')
        if method == "GetModelInstance":
            return Answer(
                200, json.dumps({"versionNumber": max(versions), "slug": asked["instanceSlug"]}).encode()
            )
        files = versions.get(asked["versionNumber"])
        if files is None:
            return Answer(404, b"{}")
        if method == "ListModelInstanceVersionFiles":
            names, start = list(files), int(asked.get("pageToken") or 0)
            size = asked.get("pageSize") or 20
            following = str(start + size) if len(names) > start + size else ""
            listed = [{"name": name, "size": len(files[name])} for name in names[start : start + size]]
            return Answer(200, json.dumps({"files": listed, "nextPageToken": following}).encode())
        data = files[asked["path"]] if asked.get("path") else self.kaggle_archives[handle]
        key = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[key] = data
        return Answer(302, b"", {"Location": f"{self.cdn_origin or self.url}/cdn/{key}"})

    def _file(self, request: Request, path: str) -> Answer:
        data = self.files.get(path)
        if data is None:
            return Answer(404)
        return Answer(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'})


def git_sha1(data: bytes) -> str:
    """The id git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
    elif int(headers.get("content-length", 0)):
        yield await reader.readexactly(int(headers["content-length"]))


async def _reset(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.05)  # let what was written leave first
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)

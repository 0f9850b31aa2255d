"""A hub to test against: OCI distribution, Hugging Face and Kaggle on one server that fails by script.

Independent of `registry`, and checked against the hubs' real clients.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import ssl
from collections.abc import Callable
from typing import Any

from tests.registry.hubserver import Answer, Fault, HubServer, Request

__all__ = ["COMMIT", "Answer", "FakeHub", "Fault", "Request", "git_sha1"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(HubServer):
    """Start with `with FakeHub() as hub`; fill `oci`, `repos` and `kaggle`; read `requests` afterwards."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        super().__init__(host, tls)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.xet: set[str] = set()
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
            if repo in self.xet:
                headers |= self._xet_headers(repo, data)
            if self.cdn_origin:
                return Answer(302, b"", {**headers, "Location": f"{self.cdn_origin}/cdn/sha256:{digest}"})
        return Answer(200, data, headers)

    def _xet_headers(self, repo: str, data: bytes) -> dict[str, str]:
        """What tells clients of the Xet protocol that they might use it; the redirect is for all others."""
        refresh = f"{self.url}/api/models/{repo}/xet-read-token/{COMMIT}"
        return {
            "X-Xet-Hash": hashlib.blake2b(data, digest_size=32).hexdigest(),
            "X-Xet-Refresh-Route": refresh,
            "Link": f'<{refresh}>; rel="xet-auth", <{self.url}/reconstruct>; rel="xet-reconstruction-info"',
        }

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

"""Models on Kaggle: the versions of a variation, file by file or as one archive.

Three calls of its API, made as its own client makes them; a download is a POST that leads on to a signed
address. Credentials are read where its own client reads them. Only MD5 sums are declared there.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from registry.errors import Gated, InvalidManifest, NotFound, SourceError, Unauthorized, Unavailable
from registry.manifest import safe_relative
from registry.reference import Reference
from registry.remote import RemoteFile
from registry.sources.base import Listing, SourceFile
from registry.sources.local import kinds_of_names
from registry.transport import Reply, Transport

DEFAULT_ENDPOINT = "https://api.kaggle.com"
SERVICE = "v1/models.ModelApiService"
FILES_ONE_BY_ONE = 200
"""Above this many files the archive of the whole version is fetched instead."""
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
_PAGE = 100
_FRAMEWORKS = {
    "tensorflow1": "TENSOR_FLOW_1", "tensorflow2": "TENSOR_FLOW_2", "tflite": "TF_LITE", "tfjs": "TF_JS",
    "pytorch": "PY_TORCH", "maxtext": "MAX_TEXT", "gemmacpp": "GEMMA_CPP", "tensorrtllm": "TENSOR_RT_LLM",
    "scikitlearn": "SCIKIT_LEARN",
}  # fmt: skip
"""Names in addresses whose name in the API differs by more than case."""


class KaggleSource:
    """Versions of variations of models."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._settings = transport.settings

    @property
    def endpoint(self) -> str:
        """The API; `KAGGLE_API_ENDPOINT` names another."""
        return (self._settings.variable("KAGGLE_API_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")

    async def resolve(self, reference: Reference) -> Listing:
        """Every file of the version wanted, else of the newest."""
        handle = _handle(reference)
        version = reference.revision
        if not version:
            newest = (await self._call("GetModelInstance", handle, reference)).get("versionNumber")
            if not isinstance(newest, int):
                raise SourceError(f"{self.endpoint} answered without a version of {reference.address}")
            version = str(newest)
        versioned = handle | {"versionNumber": int(version)}
        listed = await self._names(versioned, reference)
        where = f"kaggle://{reference.address}/{version}"
        if listed is None:
            return Listing((SourceFile(self._remote(versioned, None, where), "archive"),))
        only = next(iter(listed)) if len(listed) == 1 else ""
        if only.endswith(ARCHIVES):
            remote = self._remote(versioned, only, where)
            return Listing((SourceFile(remote, "archive", expected=listed[only]),))
        cached = self._cached(reference.address, version)
        kinds = kinds_of_names(list(listed), reference.address)
        single = sum(kind == "model" for kind, _ in kinds) == 1
        files = []
        for kind, name in kinds:
            remote = self._remote(versioned, name, where, tuple(folder / name for folder in cached))
            shown = None if single and name.endswith(".gguf") else name
            files.append(SourceFile(remote, kind, shown, listed[name]))
        return Listing(tuple(files))

    def _cached(self, address: str, version: str) -> list[Path]:
        """The folder in which Kaggle's own client keeps this version, where it has brought it whole."""
        home = Path(self._settings.environment.get("HOME") or "~").expanduser()
        cache = Path(self._settings.variable("KAGGLEHUB_CACHE") or home / ".cache" / "kagglehub")
        folder = cache / "models" / address / version
        return [folder] if folder.with_name(f"{version}.complete").exists() else []

    async def _names(self, handle: Mapping[str, Any], reference: Reference) -> dict[str, int | None] | None:
        """The files by name, with their bytes where these are told; None when there are too many to fetch one
        by one."""
        names: dict[str, int | None] = {}
        token = ""
        while len(names) <= FILES_ONE_BY_ONE:
            asked = {**handle, "pageSize": _PAGE, **({"pageToken": token} if token else {})}
            answer = await self._call("ListModelInstanceVersionFiles", asked, reference)
            found = answer.get("files") or []
            try:
                names |= {safe_relative(str(item["name"])): _size(item.get("size")) for item in found}
            except (KeyError, TypeError, AttributeError, InvalidManifest) as error:
                raise SourceError(f"{self.endpoint} lists a file with a strange name") from error
            token = str(answer.get("nextPageToken") or "")
            if not token or not found:
                break
        return names if len(names) <= FILES_ONE_BY_ONE else None

    def _remote(
        self, handle: Mapping[str, Any], path: str | None, where: str, copies: tuple[Path, ...] = ()
    ) -> RemoteFile:
        asked = {**handle, **({"path": path} if path else {})}
        return RemoteFile(
            url=f"{self.endpoint}/{SERVICE}/DownloadModelInstanceVersion",
            identity=f"{where}/{path or ''}",
            body=msgspec.json.encode(asked),
            credentials=self.credentials,
            google_hash=True,
            copies=copies,
        )

    async def _call(self, method: str, body: Mapping[str, Any], reference: Reference) -> dict[str, Any]:
        url = f"{self.endpoint}/{SERVICE}/{method}"
        for attempt in range(1, 4):
            try:
                async with self._transport.request(
                    "POST",
                    url,
                    headers={"Content-Type": "application/json"},
                    credentials=await self.credentials(False),
                    content=msgspec.json.encode(body),
                ) as reply:
                    if reply.status != 200:
                        raise self._failure(reply, reference)
                    answer = await reply.json()
                    if not isinstance(answer, dict):
                        raise SourceError(f"{self.endpoint} answered {method} with no JSON object")
                    return answer
            except Unavailable as error:
                if attempt == 3:
                    raise
                await self._transport.pause(attempt, error.retry_after)
        raise AssertionError("unreachable")

    async def credentials(self, refresh: bool) -> Mapping[str, str]:
        """The user's token or key, where there is one."""
        return find_credentials(self._settings.environment)

    def _failure(self, reply: Reply, reference: Reference) -> SourceError:
        owner, model = reference.address.split("/")[:2]
        page = f"https://www.kaggle.com/models/{owner}/{model}"
        if reply.status == 403:
            return Gated(
                f"Kaggle wants your consent for {reference.address}: accept its terms at {page}", page
            )
        if reply.status == 401:
            return Unauthorized(
                f"Kaggle wants to know who you are for {reference.address}: set KAGGLE_API_TOKEN, "
                "or KAGGLE_USERNAME and KAGGLE_KEY"
            )
        if reply.status == 404:
            return NotFound(f"Kaggle has no model {reference.address}; see {page}")
        return reply.failure(reference.address)


def _size(told: Any) -> int | None:
    """Bytes, as a number or, as large numbers travel in this API, as text."""
    return int(told) if isinstance(told, int | str) and re.fullmatch(r"[0-9]{1,18}", str(told)) else None


def _handle(reference: Reference) -> dict[str, Any]:
    owner, model, framework, variation = reference.address.split("/")
    plain = framework.lower().replace("-", "").replace("_", "").replace(".", "")
    enum = f"MODEL_FRAMEWORK_{_FRAMEWORKS.get(plain, framework.upper())}"
    return {"ownerSlug": owner, "modelSlug": model, "framework": enum, "instanceSlug": variation}


def find_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """`Authorization`, from where Kaggle's own client reads it; {} when there is nothing."""
    home = Path(
        environment.get("KAGGLE_CONFIG_DIR") or Path(environment.get("HOME", "~")).expanduser() / ".kaggle"
    )
    token = environment.get("KAGGLE_API_TOKEN", "").strip()
    if token and "/" in token:
        token = _read(Path(token))
    token = token or _read(home / "access_token")
    if token:
        return {"Authorization": f"Bearer {token}"}
    user, key = environment.get("KAGGLE_USERNAME", ""), environment.get("KAGGLE_KEY", "")
    if not (user and key):
        try:
            found = msgspec.json.decode(_read(home / "kaggle.json") or "{}")
            user, key = str(found.get("username") or ""), str(found.get("key") or "")
        except (msgspec.DecodeError, AttributeError):
            return {}
    if not (user and key):
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""

"""Models on the Hugging Face hub (or a mirror): which files of a repository make the model wanted.

Metadata and files come through our own transport, so that downloads resume and are verified; large files
declare their SHA-256 there. The token (renewed when it came from a login in a browser) and the cache folder
are asked of `huggingface_hub`, imported at the first pull; it knows the environment of this process alone, so
for any other one they are read here.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urljoin

from registry.blobs import Digest, parse_digest
from registry.errors import (
    Gated,
    InvalidDigest,
    InvalidManifest,
    NotFound,
    SourceError,
    Unauthorized,
    Unavailable,
    UnsupportedFormat,
)
from registry.manifest import safe_relative
from registry.reference import Reference
from registry.remote import RemoteFile
from registry.sources.base import Listing, SourceFile
from registry.sources.local import kinds_of_names
from registry.transport import Reply, Transport

DEFAULT_ENDPOINT = "https://huggingface.co"
QUANTIZATION = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d(?:_[0-9A-Z]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))(?=$|[-._/])",
    re.IGNORECASE,
)
PREFERRED = ("Q4_K_M", "Q4_0", "Q4_K_S", "Q5_K_M", "Q5_0", "Q6_K", "Q8_0", "BF16", "F16", "F32")
"""What is taken when no quantization is asked for: the usual best for its size first."""
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_TEXT_FILES = {"template": "template", "system": "system", "params": "params"}
_PAGES = 100


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository as its listing tells; `sha256` for large files, `git_sha1` for the others."""

    path: str
    size: int
    sha256: Digest | None
    git_sha1: str


class HuggingFaceSource:
    """Repositories of models."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._settings = transport.settings

    @property
    def endpoint(self) -> str:
        """The hub or the mirror."""
        return (self._settings.variable("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")

    async def resolve(self, reference: Reference) -> Listing:
        """The GGUF wanted, else safetensors, else an Orbax tree, with what belongs to it."""
        if self._settings.variable("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE").lower() in (
            "1",
            "true",
            "yes",
            "on",
        ):
            raise Unavailable("offline mode is on; unset HF_HUB_OFFLINE to reach the hub")
        commit = await self._commit(reference)
        files = await self._files(reference, commit)
        chosen = choose(files, reference.selector, reference.address)
        groups = quantizations(files)
        taken = {file for _, _, file in chosen}

        def source(kind: str, name: str | None, file: HubFile) -> SourceFile:
            return SourceFile(self._remote(reference, commit, file), kind, name)

        return Listing(
            tuple(source(*each) for each in chosen),
            choices={
                quantization: tuple(source(*each) for each in as_weights(group))
                for quantization, group in groups.items()
            },
            chosen=next((name for name, group in groups.items() if taken.issuperset(group)), ""),
        )

    async def credentials(self, refresh: bool) -> Mapping[str, str]:
        """The user's token, where there is one."""
        token = await asyncio.to_thread(find_token, self._settings.environment)
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def _commit(self, reference: Reference) -> str:
        revision = quote(reference.revision or "main", safe="")
        url = f"{self.endpoint}/api/models/{reference.address}/revision/{revision}"
        found, _ = await self._json(url, reference)
        commit = found.get("sha") if isinstance(found, dict) else None
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
            raise SourceError(f"{self.endpoint} answered without the commit of {reference.address}")
        return commit

    async def _files(self, reference: Reference, commit: str) -> list[HubFile]:
        url = f"{self.endpoint}/api/models/{reference.address}/tree/{commit}?recursive=true&expand=false"
        files: list[HubFile] = []
        for _ in range(_PAGES):
            found, following = await self._json(url, reference)
            if not isinstance(found, list):
                raise SourceError(f"{self.endpoint} answered without the files of {reference.address}")
            files += [file for file in map(_hub_file, found) if file]
            if not following:
                return files
            url = urljoin(url, following)
        raise SourceError(f"{reference.address} has more files than a model can have")

    async def _json(self, url: str, reference: Reference) -> tuple[Any, str]:
        """The answer, and the address of the next page where there is one."""
        for attempt in range(1, 4):
            try:
                async with self._transport.request(
                    "GET", url, credentials=await self.credentials(False)
                ) as reply:
                    if reply.status != 200:
                        raise self._failure(reply, reference)
                    following = re.search(r'<([^>]+)>;\s*rel="next"', reply.headers.get("link", ""))
                    return await reply.json(), following[1] if following else ""
            except Unavailable as error:
                if attempt == 3:
                    raise
                await self._transport.pause(attempt, error.retry_after)
        raise AssertionError("unreachable")

    def _failure(self, reply: Reply, reference: Reference) -> SourceError:
        page = f"{self.endpoint}/{reference.address}"
        code = reply.headers.get("x-error-code", "")
        if code == "GatedRepo":
            return Gated(f"{reference.address} is gated: accept its terms at {page} and set HF_TOKEN", page)
        if code == "RevisionNotFound":
            return NotFound(f"{reference.address} has no revision {reference.revision or 'main'!r}")
        if code == "RepoNotFound" or reply.status == 404:
            return NotFound(
                f"{self.endpoint} has no model {reference.address}, or it is private: set HF_TOKEN"
            )
        return reply.failure(reference.address, "set HF_TOKEN" if reply.status in (401, 403) else "")

    def _remote(self, reference: Reference, commit: str, file: HubFile) -> RemoteFile:
        copies = [
            cache
            / f"models--{reference.address.replace('/', '--')}"
            / "blobs"
            / file.sha256.partition(":")[2]
            for cache in hub_caches(self._settings.environment)
            if file.sha256
        ]
        return RemoteFile(
            url=f"{self.endpoint}/{reference.address}/resolve/{commit}/{quote(file.path)}",
            identity=file.sha256 or f"{reference.address}@{commit}/{file.path}",
            size=file.size,
            sha256=file.sha256,
            git_sha1=file.git_sha1,
            credentials=self.credentials,
            copies=tuple(copies),
        )


def _hub_file(item: Any) -> HubFile | None:
    """One entry of the listing; folders and files with strange names are passed over."""
    if not isinstance(item, dict) or item.get("type") != "file":
        return None
    found = item.get("lfs")
    lfs: dict[str, Any] = found if isinstance(found, dict) else {}
    path, size = item.get("path"), lfs.get("size", item.get("size"))
    if not isinstance(path, str) or not isinstance(size, int) or size < 0:
        return None
    try:
        sha256 = parse_digest(f"sha256:{lfs['oid']}") if lfs.get("oid") else None
        oid = str(item.get("oid") or "")
        git = oid if not sha256 and re.fullmatch(r"[0-9a-f]{40}", oid) else ""
        return HubFile(safe_relative(path), size, sha256, git)
    except (InvalidManifest, InvalidDigest):
        return None


def quantization_of(path: str) -> str:
    """The quantization that the name of a GGUF file (or its folder) tells, upper-case, or ""."""
    stem = _SHARD.sub("", PurePosixPath(path).with_suffix("").as_posix())
    found = QUANTIZATION.findall(PurePosixPath(stem).name) or QUANTIZATION.findall(stem)
    return str(found[-1]).upper().replace("FP", "F") if found else ""


def quantizations(files: list[HubFile]) -> dict[str, list[HubFile]]:
    """The GGUF models of a repository by quantization, shards together; projectors left out."""
    groups: dict[str, dict[str, list[HubFile]]] = {}
    for file in files:
        if file.path.lower().endswith(".gguf") and "mmproj" not in file.path.lower():
            stem = _SHARD.sub("", file.path[: -len(".gguf")])
            groups.setdefault(quantization_of(file.path), {}).setdefault(stem, []).append(file)
    return {
        quantization: sorted(min(stems.items(), key=lambda item: len(item[0]))[1], key=lambda file: file.path)
        for quantization, stems in groups.items()
    }


def choose(files: list[HubFile], selector: str, shown: str) -> list[tuple[str, str | None, HubFile]]:
    """Kind, layer name and file of everything to fetch; raises NotFound or UnsupportedFormat."""
    by_path = {file.path: file for file in files}
    ggufs = quantizations(files)
    if selector.lower().endswith(".gguf"):
        if selector not in by_path:
            raise NotFound(f"{shown} has no file {selector!r}; it has {_listed(by_path)}")
        stem = _SHARD.sub("", selector[: -len(".gguf")])
        group = [
            file for path, file in sorted(by_path.items()) if _SHARD.sub("", path[: -len(".gguf")]) == stem
        ]
    elif ggufs:
        group = _by_quantization(ggufs, selector, shown)
    else:
        if selector:
            raise NotFound(f"{shown} has no GGUF files, so no {selector!r} among them")
        return _tree(by_path, shown)
    texts = [(kind, None, by_path[path]) for path, kind in _TEXT_FILES.items() if path in by_path]
    return [*as_weights(group), *texts]


def as_weights(group: Sequence[HubFile]) -> list[tuple[str, str | None, HubFile]]:
    """Kind, layer name and file of each file of one GGUF model."""
    return [("model", None if len(group) == 1 else PurePosixPath(file.path).name, file) for file in group]


def _by_quantization(ggufs: dict[str, list[HubFile]], selector: str, shown: str) -> list[HubFile]:
    if selector:
        wanted = selector.upper()
        for name, group in ggufs.items():
            if name == wanted or (name and name == wanted.replace("FP", "F")):
                return group
        raise NotFound(f"{shown} has no quantization {selector!r}; it has {_listed(ggufs)}")
    for name in PREFERRED:
        if name in ggufs:
            return ggufs[name]
    return min(ggufs.values(), key=lambda group: sum(file.size for file in group))


def _tree(files: Mapping[str, HubFile], shown: str) -> list[tuple[str, str | None, HubFile]]:
    """Safetensors or an Orbax tree: files at the top, or the tree and what lies at the top beside it."""
    top = [path for path in files if "/" not in path]
    try:
        kinds = kinds_of_names(top, shown)
    except UnsupportedFormat:
        kinds = kinds_of_names(list(files), shown)
    return [(kind, path, files[path]) for kind, path in kinds]


def _listed(names: Mapping[str, Any]) -> str:
    known = sorted(name for name in names if name)
    return ", ".join(known[:20]) + (", ..." if len(known) > 20 else "") if known else "none"


def find_token(environment: Mapping[str, str]) -> str:
    """The user's token, or ""; raises Unauthorized when a login cannot be renewed."""
    if not _is_ours(environment):
        return _read_token(environment)
    from huggingface_hub import get_token

    try:
        return get_token() or ""
    except Exception as error:  # of the network, the login, or the file it is kept in
        raise Unauthorized(
            f"the Hugging Face login cannot be used ({type(error).__name__}); run `hf auth login` again"
        ) from error


def hub_caches(environment: Mapping[str, str]) -> list[Path]:
    """Where the hub's own client keeps what it downloaded."""
    if not _is_ours(environment):
        return [Path(environment.get("HF_HUB_CACHE") or _home(environment) / "hub")]
    from huggingface_hub.constants import HF_HUB_CACHE

    return [Path(HF_HUB_CACHE)]


def _is_ours(environment: Mapping[str, str]) -> bool:
    """Whether these are the variables of this process, the only ones that `huggingface_hub` reads."""
    return dict(environment) == dict(os.environ)


def _read_token(environment: Mapping[str, str]) -> str:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if environment.get(name, "").strip():
            return environment[name].strip()
    path = Path(environment.get("HF_TOKEN_PATH") or _home(environment) / "token")
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _home(environment: Mapping[str, str]) -> Path:
    return Path(
        environment.get("HF_HOME") or Path(environment.get("HOME", "~")).expanduser() / ".cache/huggingface"
    )

"""What a user types after `pull`, parsed into where the model comes from and what it is called here.

A table of forms, no network and no disk: whether the thing exists is found out by its source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from registry.errors import InvalidName, InvalidReference
from registry.name import DEFAULT_TAG, ModelName

SourceKind = Literal["oci", "huggingface", "kaggle", "url", "local"]
HUGGINGFACE_HOSTS = frozenset({"hf.co", "huggingface.co", "www.huggingface.co"})
_FILE_SUFFIXES = (".gguf", ".llamafile")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}")
_FORMS = (
    "model[:tag], host/namespace/model[:tag], hf.co/org/repo[:quant][@revision], "
    "kaggle://owner/model/framework/variation[/version], https://host/file.gguf or ./path"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A place to pull from.

    `name` is what the model is called in the store. `address` is the repository (`org/repo`), the handle
    (`owner/model/framework/variation`), the URL or the path; `selector` a quantization or file name;
    `revision` a branch, tag, commit or version, "" for the newest. `insecure` allows plain http.
    """

    kind: SourceKind
    name: ModelName
    address: str
    selector: str = ""
    revision: str = ""
    insecure: bool = False

    @staticmethod
    def parse(text: str) -> Reference:
        """The reference that `text` spells; raises InvalidReference or InvalidName."""
        text = text.strip()
        if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
            return _local(text)
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "", text
        if scheme == "file":
            return _local(urlsplit(text).path)
        if scheme == "kaggle":
            return _kaggle(rest)
        if scheme not in ("", "http", "https"):
            raise InvalidReference(f"cannot pull from {scheme}://; give {_FORMS}")
        if rest.split("/", 1)[0].lower() in HUGGINGFACE_HOSTS:
            return _huggingface(rest.split("/", 1)[-1])
        if scheme and urlsplit(text).path.lower().endswith(_FILE_SUFFIXES):
            return _url(text)
        name = ModelName.parse(text)
        return Reference("oci", name, f"{name.namespace}/{name.model}", insecure=scheme == "http")


def word(text: str, default: str = "model") -> str:
    """`text` as a part of a model name: what is not allowed becomes a dash."""
    cleaned = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:80]
    return cleaned or default


def _huggingface(rest: str) -> Reference:
    rest, _, revision = rest.partition("@")
    repository, _, selector = rest.partition(":")
    parts = repository.strip("/").split("/")
    if len(parts) > 3 and parts[2] in ("tree", "resolve", "blob"):  # an address copied from the browser
        revision, parts = revision or parts[3], [*parts[:2], *parts[4:]]
    if len(parts) > 2:
        selector, parts = selector or "/".join(parts[2:]), parts[:2]
    if len(parts) != 2 or (revision and not _REVISION.fullmatch(revision)):
        raise InvalidReference(f"cannot read {rest[:200]!r}: want hf.co/org/repo[:quant or file][@revision]")
    chosen = PurePosixPath(selector).stem if selector.lower().endswith(_FILE_SUFFIXES) else selector
    tag = word("-".join(each for each in (chosen, revision) if each), DEFAULT_TAG)
    name = ModelName.of("hf.co", parts[0], parts[1], tag)
    return Reference(
        "huggingface", name, "/".join(parts), "" if selector == DEFAULT_TAG else selector, revision
    )


def _kaggle(rest: str) -> Reference:
    parts = rest.strip("/").split("/")
    if len(parts) not in (4, 5) or not all(re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", part) for part in parts):
        raise InvalidReference(
            f"cannot read {rest[:200]!r}: want kaggle://owner/model/framework/variation[/version]"
        )
    if len(parts) == 5 and not parts[4].isdecimal():
        raise InvalidReference(f"version {parts[4][:40]!r} is no number: leave it away for the newest")
    name = ModelName.of("kaggle.com", parts[0], parts[1], word("-".join(parts[2:])))
    return Reference("kaggle", name, "/".join(parts[:4]), revision=parts[4] if len(parts) == 5 else "")


def _url(text: str) -> Reference:
    parts = urlsplit(text)
    stem = word(PurePosixPath(parts.path).stem)
    try:
        host = f"{parts.hostname}:{parts.port}" if parts.port else f"{parts.hostname}"
        name = ModelName.of(host if parts.hostname else "", "files", stem, DEFAULT_TAG)
    except (ValueError, InvalidName) as error:
        raise InvalidReference(f"cannot read the address {text[:200]!r}") from error
    if parts.username or parts.password:
        raise InvalidReference("put no password into the address: it would be kept and shown")
    return Reference("url", name, text, insecure=parts.scheme == "http")


def _local(text: str) -> Reference:
    stem = Path(text).expanduser().absolute().name
    stem = stem.rsplit(".", 1)[0] if stem.lower().endswith(_FILE_SUFFIXES) else stem
    return Reference("local", ModelName.parse(word(stem).lower()), text)

"""The name of a model: `[host/][namespace/]model[:tag]`, parsed once and passed around as a value.

Knows nothing of the store or the network. The rules (characters, lengths, defaults, splitting from the
right) are Ollama's, so that names and folders are interchangeable with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.errors import InvalidName

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_PARTS = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}
_LONGEST = 350 + 3 * 80 + len("https://") + 3


@dataclass(frozen=True, slots=True, order=True)
class ModelName:
    """A complete, valid name; the four parts can safely be names of files."""

    host: str
    namespace: str
    model: str
    tag: str

    @staticmethod
    def parse(text: str) -> ModelName:
        """The name that `text` spells, defaults filled in; raises InvalidName.

        A leading `scheme://` is dropped: how to reach a host is not part of a model's name.
        """
        if len(text) > _LONGEST:
            raise InvalidName(f"invalid model name: {len(text)} characters, at most {_LONGEST} are allowed")
        tag = DEFAULT_TAG
        rest = text
        if text.rfind(":") > text.rfind("/"):
            rest, _, tag = text.rpartition(":")
        rest, slash, model = rest.rpartition("/")
        host, namespace = DEFAULT_HOST, DEFAULT_NAMESPACE
        if slash:
            rest, slash, namespace = rest.rpartition("/")
            if slash:
                host = rest.split("://", 1)[-1]
        return ModelName.of(host, namespace, model, tag, text)

    @staticmethod
    def of(host: str, namespace: str, model: str, tag: str, text: str | None = None) -> ModelName:
        """The name with these parts, each checked; `text` is what the error quotes."""
        parts = {"host": host, "namespace": namespace, "model": model, "tag": tag}
        for kind, part in parts.items():
            if not _PARTS[kind].fullmatch(part):
                shown = text if text is not None else f"{host}/{namespace}/{model}:{tag}"
                raise InvalidName(
                    f"invalid model name {shown[:200]!r}: {kind} {part[:100]!r} is not of the form "
                    "[host/][namespace/]model[:tag] with letters, digits, '_', '-' and '.'"
                )
        return ModelName(host, namespace, model, tag)

    def display(self) -> str:
        """The shortest text that parses to this name; the tag is always shown."""
        if self.host != DEFAULT_HOST:
            return self.full()
        if self.namespace != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    def full(self) -> str:
        """All four parts."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    def parts(self) -> tuple[str, str, str, str]:
        """Host, namespace, model, tag: the folders of the manifest, in order."""
        return (self.host, self.namespace, self.model, self.tag)

    def folded(self) -> tuple[str, str, str, str]:
        """The key under which two names are the same model, whatever their case."""
        return (self.host.lower(), self.namespace.lower(), self.model.lower(), self.tag.lower())

    def __str__(self) -> str:
        return self.display()

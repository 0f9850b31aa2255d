"""What may be typed after `pull`, and the names that references give."""

from __future__ import annotations

import pytest

from registry.errors import (
    RegistryError,
)
from registry.pull import Reference


@pytest.mark.parametrize(
    "text",
    [
        "ftp://x/y.gguf", "kaggle://a/b/c", "kaggle://a/b/c/d/e", "kaggle://a/../c/d", "hf.co/onlyorg",
        "hf.co/a/b@../x",         "https://user:pass@h.example/x.gguf", "", "hf.co/a b/c", "https:///x.gguf",
    ],
)  # fmt: skip
def test_references_that_are_refused(text: str) -> None:
    with pytest.raises(RegistryError):
        Reference.parse(text)


def test_references_and_the_names_they_give() -> None:
    parsed = {
        text: Reference.parse(text)
        for text in ("gemma3:4b", "./x/My Fox.gguf", "http://h.example/a/b:c", "h.example/a/b")
    }
    assert [(each.kind, each.name.display()) for each in parsed.values()] == [
        ("oci", "gemma3:4b"), ("local", "my-fox:latest"),
        ("oci", "h.example/a/b:c"), ("oci", "h.example/a/b:latest"),
    ]  # fmt: skip
    assert parsed["http://h.example/a/b:c"].insecure

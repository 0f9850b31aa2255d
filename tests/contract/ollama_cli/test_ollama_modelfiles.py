"""Ollama's own Modelfile parser beside ours: the same verdict and the same values, on files of both kinds."""

from __future__ import annotations

import base64
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modelfiles.modelfile import Modelfile, ModelfileError

pytestmark = pytest.mark.contract

PIECES = (
    *(
        "FROM ",
        "from x",
        "SYSTEM ",
        "TEMPLATE ",
        "LICENSE ",
        "MESSAGE user ",
        "MESSAGE assistant ",
        "ADAPTER a",
    ),
    *(
        "PARAMETER stop ",
        "PARAMETER top_k ",
        "PARAMETER temperature ",
        "REQUIRES 1.2.3",
        "RENDERER r",
        "PARSER p",
    ),
    *(
        '"',
        '"""',
        "\n",
        "\n\n",
        " ",
        "\t",
        "#",
        "# c\n",
        "word",
        "a b",
        "7",
        "0.5",
        "é🦊",
        "\r\n",
        "{{ .Prompt }}",
    ),
)
GENERATED = 4000


def verdicts(ollama: Path, texts: list[bytes]) -> list[dict[str, Any]]:
    """What Ollama's parser makes of each text."""
    given = json.dumps([base64.b64encode(text).decode() for text in texts])
    done = subprocess.run(
        [str(ollama), "parse-modelfiles"], input=given, capture_output=True, text=True, timeout=60, check=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def ours(text: bytes) -> list[tuple[str, str]] | None:
    """The commands of a text by name, sorted; None when it is refused."""
    try:
        parsed = Modelfile.parse(text)
    except ModelfileError:
        return None
    found = [("model", base) for base in (parsed.base, *parsed.bases)]
    found += [("adapter", adapter) for adapter in parsed.adapters]
    found += [("license", text) for text in parsed.licenses]
    found += [("message", f"{message.role}: {message.text}") for message in parsed.messages]
    for name in ("template", "system", "renderer", "parser", "requires"):
        if (value := getattr(parsed, name)) is not None:
            found.append((name, value))
    return sorted([*found, *parsed.parameters])


def theirs(verdict: dict[str, Any]) -> list[tuple[str, str]] | None:
    """The same of Ollama's commands: of those that count once, the last."""
    if verdict.get("error"):
        return None
    single: dict[str, str] = {}
    found = []
    for name, value in verdict["commands"]:
        if name in ("template", "system", "renderer", "parser", "requires"):
            single[name] = value.removeprefix("v") if name == "requires" else value
        else:
            found.append((name, value))
    if sum(name == "adapter" for name, _ in found) > 1 or ("model", "") in found:
        return None  # parsed, and refused by its server
    return sorted([*found, *single.items()])


DIFFERENT = {
    "012.Modelfile": "draft_num_predict is younger than this version of Ollama",
    "076.Modelfile": "zero-width spaces, which Ollama drops, stay in our text",
}


def test_modelfiles_in_the_wild_mean_the_same(ollama: Path, shared_data: Path) -> None:
    paths = sorted((shared_data / "modelfiles").glob("*.Modelfile"))
    texts = [path.read_bytes() for path in paths]
    different = [
        path.name
        for path, text, verdict in zip(paths, texts, verdicts(ollama, texts), strict=True)
        if ours(text) != theirs(verdict)
    ]
    assert len(paths) >= 80
    assert different == sorted(DIFFERENT)


def test_generated_modelfiles_mean_the_same(ollama: Path) -> None:
    chance = random.Random(7)
    texts = [
        ("FROM x\n" + "".join(chance.choices(PIECES, k=chance.randrange(12)))).encode()
        for _ in range(GENERATED)
    ]
    found = verdicts(ollama, texts)
    assert sum(theirs(verdict) is not None for verdict in found) > GENERATED / 20
    different = [text for text, verdict in zip(texts, found, strict=True) if ours(text) != theirs(verdict)]
    assert different == []

"""The README's table of fields is the user's truth: every field of every body is in it, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import gateway.ollama
from gateway.ollama import schema

README = Path(gateway.ollama.__file__).parent / "README.md"
BODIES = {
    "generate": schema.GenerateBody,
    "chat": schema.ChatBody,
    "embed": schema.EmbedBody,
    "embeddings": schema.EmbeddingsBody,
    "show": schema.ShowBody,
    "copy": schema.CopyBody,
    "delete": schema.DeleteBody,
    "pull": schema.PullBody,
    "create": schema.CreateBody,
}


def wire_names(body: type[schema.Body]) -> set[str]:
    """The fields as clients write them."""
    names = set()
    for name, field in body.model_fields.items():
        alias = field.validation_alias
        names.add(alias if isinstance(alias, str) else name)
    return names - {"script"}


def test_every_field_is_in_the_table_and_no_other() -> None:
    rows = re.findall(r"^\| ([a-z, ]+) \| (`.*`) \| .+ \|$", README.read_text(), re.MULTILINE)
    told: dict[str, set[str]] = {}
    for places, fields in rows:
        for place in places.split(", "):
            told.setdefault(place, set()).update(re.findall(r"`([^`]+)`", fields))
    for place, body in BODIES.items():
        assert wire_names(body) <= told[place], place
    known = set().union(*map(wire_names, BODIES.values()))
    assert set().union(*told.values()) <= known

"""An examiner that shares no code with the product: reads a store's files, says what is wrong with them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Finding:
    """`view` maps each name to the SHA-256 of its manifest; `problems` are what must never be."""

    view: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    orphans: set[str] = field(default_factory=set)
    staged: list[str] = field(default_factory=list)


def examine(root: Path) -> Finding:
    """Everything about the store at `root`."""
    found = Finding()
    used: set[str] = set()
    for path in sorted((root / "manifests").rglob("*")) if (root / "manifests").is_dir() else []:
        if not path.is_file():
            continue
        name = "/".join(path.relative_to(root / "manifests").parts)
        data = path.read_bytes()
        try:
            document = json.loads(data)
            layers = [document["config"], *document["layers"]]
        except (ValueError, KeyError, TypeError):
            found.problems.append(f"{name}: torn manifest of {len(data)} bytes")
            continue
        found.view[name] = hashlib.sha256(data).hexdigest()
        for layer in layers:
            file = root / "blobs" / layer["digest"].replace(":", "-")
            used.add(file.name)
            if not file.is_file():
                found.problems.append(f"{name}: {file.name[:20]} is missing")
            elif file.stat().st_size != layer["size"]:
                found.problems.append(
                    f"{name}: {file.name[:20]} has {file.stat().st_size} of {layer['size']} bytes"
                )
    for file in (root / "blobs").iterdir() if (root / "blobs").is_dir() else []:
        if file.name != f"sha256-{hashlib.sha256(file.read_bytes()).hexdigest()}":
            found.problems.append(f"{file.name[:20]} holds other bytes than its name says")
        if file.name not in used:
            found.orphans.add(file.name)
    if (root / "staging").is_dir():
        found.staged = sorted(path.name for path in (root / "staging").iterdir())
    return found

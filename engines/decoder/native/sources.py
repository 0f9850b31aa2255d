"""One number for the C++ sources, so that a library built from others is not used: layouts may differ.

Standard library only, since `setup.py` loads this file by its path before anything is installed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(folder: Path) -> int:
    """60 bits of a SHA-256 over the C++ files; 0 where there are none, as in an installed wheel."""
    files = sorted(path for path in folder.glob("*") if path.suffix in (".cc", ".h"))
    found = hashlib.sha256()
    for path in files:
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return int(found.hexdigest()[:15], 16) if files else 0

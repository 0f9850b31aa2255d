"""The import direction of the four packages, and where JAX may be imported, proved by reading the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "modelfiles": {"modelfiles"},
    "registry": {"registry", "modelfiles"},
    "engines": {"engines", "modelfiles"},
    "gateway": {"gateway", "registry", "engines", "modelfiles"},
}
JAX_FREE = {
    ("engines", "decoder"): {"config.py", "scheduler.py", "params.py", "plan.py"},
    ("engines", "classifier"): {"config.py", "storage.py"},
}
"""Folders that import JAX, and which of their files do not: the gateway reads those."""
FORBIDDEN_RUNTIME = {"torch", "transformers", "gemma", "flax", "tensorflow", "pickle", "requests"}

NETWORK_AND_LOOPS = {"asyncio", "socket", "httpx2", "httpx", "fastapi"}


def imported_modules(path: Path) -> Iterator[str]:
    """Full names of the modules a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def imports(path: Path) -> Iterator[str]:
    """Top-level names of the modules a file imports."""
    return (name.split(".")[0] for name in imported_modules(path))


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no sources below {package}"
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_one_way(package: str) -> None:
    ours = set(ALLOWED)
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imports(path)
        if name in ours - ALLOWED[package]
    ]
    assert not wrong


def test_jax_is_imported_only_below_the_two_networks() -> None:
    wrong = []
    for package in ALLOWED:
        for path in sources(package):
            relative = path.relative_to(ROOT)
            free = JAX_FREE.get(relative.parts[:2])
            if free is not None and path.name not in free:
                continue
            wrong += [f"{relative} imports {name}" for name in imports(path) if name in {"jax", "jaxlib"}]
    assert not wrong


def test_no_oracle_or_pickle_is_imported_at_run_time() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package in ALLOWED
        for path in sources(package)
        for name in imports(path)
        if name in FORBIDDEN_RUNTIME
    ]
    assert not wrong


def test_modelfiles_knows_no_network_and_no_event_loop() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("modelfiles")
        for name in imported_modules(path)
        if name == "urllib.request" or name.split(".")[0] in NETWORK_AND_LOOPS
    ]
    assert not wrong


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(  # a fresh interpreter: this one has loaded everything already
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {line.split(".")[0] for line in done.stdout.splitlines()}


def test_the_gateway_and_the_store_never_load_jax() -> None:
    assert "jax" not in loaded_after("import gateway.types, engines.base, registry, modelfiles")

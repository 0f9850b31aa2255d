"""One gate for each danger, proved by reading the source: a fix made there holds on every path."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

REGISTRY = Path(__file__).resolve().parents[2] / "registry"
CHANGES = {
    "rename", "replace", "unlink", "rmdir", "mkdir", "makedirs", "symlink", "symlink_to", "hardlink_to",
    "link", "write_bytes", "write_text", "touch", "remove", "removedirs", "truncate", "ftruncate",
    "rmtree", "move",
    "copyfile", "copytree", "copy2",
}  # fmt: skip
"""Names of calls on `os`, `shutil` or a path that change the file system."""


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Every file of the package, parsed."""
    found = {
        path.relative_to(REGISTRY).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(REGISTRY.rglob("*.py"))
    }
    assert len(found) > 20
    return found


@functools.cache
def functions() -> list[tuple[str, ast.AST]]:
    """Every function of the package as `file.py:name`."""
    return [
        (f"{path}:{node.name}", node)
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def imports_of(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def importers(*modules: str) -> set[str]:
    """The files that import one of these, or something inside it."""
    return {
        path
        for path, tree in trees().items()
        for name in imports_of(tree)
        if any(name == module or name.startswith(f"{module}.") for module in modules)
    }


def calls(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Receiver and name of every call written with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func.value), node.func.attr


def joins_below_blobs(tree: ast.AST) -> bool:
    """Whether something is put behind a folder called `blobs`."""
    return any(
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and isinstance(node.left, ast.BinOp)
        and isinstance(node.left.right, ast.Constant)
        and node.left.right.value == "blobs"
        for node in ast.walk(tree)
    )


def test_one_function_builds_the_path_of_a_blob() -> None:
    found = {name for name, tree in functions() if joins_below_blobs(tree)}
    assert found == {
        "blobs.py:blob_path",
        "sources/huggingface.py:_remote",  # in the cache of the hub's own client, only ever read
    }


def test_one_place_makes_digests() -> None:
    made = {
        name.split(":")[0]
        for name, tree in functions()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Digest"
    }
    assert made == {"blobs.py"}


def test_one_function_makes_outbound_requests() -> None:
    assert importers("httpx2", "http", "urllib3", "aiohttp", "requests", "ftplib") == {"transport.py"}
    assert importers("socket", "ssl", "urllib.request") == {"transport.py"}
    senders = {name for name, tree in functions() for receiver, call in calls(tree) if call == "send"}
    assert senders == {"transport.py:_send"}
    forbidden = {"urlopen", "create_connection", "open_connection", "urlretrieve"}
    assert not {name for name, tree in functions() for _, call in calls(tree) if call in forbidden}


def test_one_module_opens_archives() -> None:
    assert importers("tarfile", "zipfile", "gzip", "zlib", "bz2", "lzma") == {"archive.py", "transfer.py"}
    writing = [
        ast.unparse(node)
        for name, tree in functions()
        if name.startswith("transfer.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tarfile.open"
    ]
    assert len(writing) == 1
    assert "mode='w|'" in writing[0]
    extracting = {"extractall", "extract", "unpack_archive"}
    assert not {name for name, tree in functions() for _, call in calls(tree) if call in extracting}


def test_one_class_changes_the_file_system() -> None:
    changing = set()
    for name, tree in functions():
        for receiver, call in calls(tree):
            on_text = call == "replace" and receiver not in ("os", "shutil", "path")
            ours = receiver.endswith(("disk", "_disk", "super()", "lease", "watchers")) or "blobs" in receiver
            if call in CHANGES and not on_text and not ours and not name.startswith("disk.py:"):
                changing.add(f"{name} calls {receiver}.{call}")
    allowed = {
        "store.py:write calls self.own.write",
        "store.py:delete calls self.own.remove",
    }
    assert changing <= allowed
    opening = {
        name
        for name, tree in functions()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("O_CREAT", "O_WRONLY", "O_TRUNC")
    }
    assert opening == {"disk.py:create", "disk.py:open_or_create"}

"""One folder of models, two programs: Ollama's own server and ours, each reading what the other wrote.

Ollama's server lists, shows, creates and copies with its own code; running is cut out of it (see `conftest`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.ollama_support import Server, serving, write_stories

pytestmark = pytest.mark.contract

SECOND = '''FROM tale
SYSTEM "Be quiet."
TEMPLATE """{{ if .System }}S {{ .System }}
{{ end }}{{ .Prompt }}"""
PARAMETER stop "<x>"
PARAMETER stop y
PARAMETER top_k 3
MESSAGE user a
MESSAGE assistant """b
c"""
'''
NAMES = ("tale:latest", "me/second:v1", "other:latest")
START_SECONDS = 60


def run(ollama: Path, server: Server, *arguments: str, **options: Any) -> str:
    """What the command says to the server; it must succeed."""
    done = server.run([str(ollama), *arguments], **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def ollama_serving(ollama: Path, folder: Path, models: Path) -> Iterator[Server]:
    """Ollama's own server over `models`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = Server(f"http://{address}", folder)
    environment = server.environment(OLLAMA_MODELS=str(models), OLLAMA_NO_CLOUD="1")
    with (folder / "ollama.log").open("wb") as log:
        process = subprocess.Popen([str(ollama), "serve"], env=environment, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while server.run([str(ollama), "list"]).returncode:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "ollama.log").read_text()
            time.sleep(0.2)
        yield server
        assert process.poll() is None, "it did not survive the other program"
    finally:
        process.terminate()
        process.wait(20)


def fill(ollama: Path, server: Server, shared_data: Path) -> None:
    """Three models of the same weights: one of a GGUF, one on top of it, one a copy."""
    write_stories(shared_data, server.folder)
    (server.folder / "Second").write_text(SECOND)
    run(ollama, server, "create", "tale", "-f", "Modelfile")
    run(ollama, server, "create", "me/second:v1", "-f", "Second")
    run(ollama, server, "cp", "tale", "other")


def ask(server: Server, path: str, body: dict[str, Any] | None = None) -> Any:
    """A JSON reply; with a body, of a POST."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"{server.url}{path}", data, timeout=60) as reply:
        return json.load(reply)


def models(server: Server) -> dict[str, dict[str, Any]]:
    """The rows of /api/tags by name; only ours tell capabilities there."""
    rows = {row["name"]: row for row in ask(server, "/api/tags")["models"] if row["name"] in NAMES}
    for row in rows.values():
        row["modified_at"] = to_the_second(row["modified_at"])
        row.pop("capabilities", None)
        row["details"] = details(row)
    return rows


def details(reply: dict[str, Any]) -> dict[str, Any]:
    """`details`, less the keys that this version of Ollama does not have yet."""
    return {
        key: value
        for key, value in reply["details"].items()
        if key not in ("context_length", "embedding_length")
    }


def shown(server: Server, name: str, verbose: bool) -> dict[str, Any]:
    """/api/show, without what each program says in its own way.

    Those are the program's name, the order of parameters (Ollama's is random) and digits of the time; long
    arrays are null there and empty here unless verbose; tensors come with verbose only here.
    """
    reply: dict[str, Any] = ask(server, "/api/show", {"model": name, "verbose": verbose})
    reply["modelfile"] = sorted(reply["modelfile"].splitlines()[1:])
    reply["parameters"] = sorted(reply["parameters"].splitlines())
    reply["modified_at"] = to_the_second(reply["modified_at"])
    reply["details"] = details(reply)
    if not verbose:
        reply.pop("tensors", None)
        reply["model_info"] = {key: value or None for key, value in reply["model_info"].items()}
    return reply


def to_the_second(moment: str) -> str:
    """RFC 3339 cut where the rounding of nanoseconds cannot be seen."""
    return moment[:19]


def tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every file and folder: mode, time of the last change, digest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, digest)
    return found


def test_a_folder_that_ollama_filled_is_served_in_place(
    ollama: Path, tmp_path: Path, shared_data: Path
) -> None:
    theirs_folder, ours_folder, store = tmp_path / "theirs", tmp_path / "ours", tmp_path / "models"
    for folder in (theirs_folder, ours_folder, store):
        folder.mkdir()
    with ollama_serving(ollama, theirs_folder, store) as theirs:
        fill(ollama, theirs, shared_data)
        before = tree(store)
        with serving(ours_folder, GEMMULE_EXTRA_STORES=str(store)) as ours:
            assert models(ours) == models(theirs)
            assert set(models(ours)) == set(NAMES)
            for name in NAMES:
                for verbose in (False, True):
                    assert shown(ours, name, verbose) == shown(theirs, name, verbose)
                told = [run(ollama, server, "show", "-v", name) for server in (ours, theirs)]
                assert sorted(told[0].splitlines()) == sorted(told[1].splitlines())
            answer = run(ollama, ours, "run", "tale", "Once upon a time")
            assert len(answer.split()) > 5
            run(ollama, ours, "create", "mine", "-f", "Second", cwd=theirs_folder)
            assert run(ollama, ours, "run", "mine", "Once upon a time")
            refused = ours.run([str(ollama), "rm", "tale"])
            assert refused.returncode == 1
            assert models(theirs) == models(ours)
        assert tree(store) == before


def test_a_folder_that_we_filled_is_listed_and_shown_by_ollama(
    ollama: Path, tmp_path: Path, shared_data: Path
) -> None:
    ours_folder, theirs_folder = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours_folder, theirs_folder):
        folder.mkdir()
    with serving(ours_folder) as ours:
        fill(ollama, ours, shared_data)
        listed = models(ours)
        assert set(listed) == set(NAMES)
        with ollama_serving(ollama, theirs_folder, ours_folder / "models") as theirs:
            assert models(theirs) == listed
            for name in NAMES:
                for verbose in (False, True):
                    assert shown(theirs, name, verbose) == shown(ours, name, verbose)
            run(ollama, theirs, "cp", "tale", "copied")
            assert run(ollama, ours, "show", "copied", "--system").strip() == "You tell stories."
            assert run(ollama, ours, "run", "copied", "Once upon a time")
            run(ollama, ours, "rm", "copied")
            assert models(theirs) == models(ours) == listed

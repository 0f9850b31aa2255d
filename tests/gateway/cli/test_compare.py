"""`gemmule check --compare`: which program is meant, and what the rows say of its answer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from engines.decoder.checkup import Continuation
from gateway.cli.compare import Theirs, compared, encoding_row, find_program, greedy_row
from gateway.cli.errors import CommandError
from modelfiles.files import ModelFile

OURS = Continuation("Hi", (1, 5), (7, 8, 9), (2.0, 0.01, 3.0))


def theirs(*tokens: int, encoded: tuple[int, ...] | None = None) -> Theirs:
    return Theirs("llama.cpp", tokens, encoded)


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_program_is_a_path_a_folder_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = program(tmp_path / "llama" / "llama-server")
    cli = program(tmp_path / "llama" / "llama-cli")
    python = program(tmp_path / "venv" / "bin" / "python")
    assert find_program(str(server)) == find_program(str(server.parent)) == find_program(str(cli)) == server
    assert find_program(str(tmp_path / "venv")) == python
    monkeypatch.setenv("PATH", str(server.parent))
    assert find_program("") == find_program("llama-cli") == server
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(CommandError, match="no program llama-server here"):
        find_program("")
    with pytest.raises(CommandError, match="holds neither"):
        find_program(str(tmp_path))
    server.unlink()
    with pytest.raises(CommandError, match="no llama-server beside"):
        find_program(str(cli))


@pytest.mark.parametrize(
    ("tokens", "state", "words"),
    [
        ((7, 8, 9), "ok", "3 tokens equal"),
        ((7,), "ok", "1 tokens equal"),
        ((), "warn", "ended at once"),
        ((7, 3, 9), "warn", "token 2 of 3 differs from that of llama.cpp: 8 here, 3 there"),
        ((4, 8, 9), "fail", "two likeliest are 2.000 nats apart"),
    ],
)
def test_a_difference_counts_where_the_choice_was_sure(
    tokens: tuple[int, ...], state: str, words: str
) -> None:
    row = greedy_row(OURS, theirs(*tokens))
    assert row.state == state
    assert words in row.detail


def test_texts_are_encoded_alike_or_not() -> None:
    assert list(encoding_row(OURS, theirs(7))) == []
    (same,) = encoding_row(OURS, theirs(7, encoded=(1, 5)))
    (other,) = encoding_row(OURS, theirs(7, encoded=(1, 2, 3)))
    assert (same.state, other.state) == ("ok", "fail")


LIBRARY = """
__version__ = "9"
class Llama:
    def __init__(self, model_path, n_ctx, verbose):
        assert open(model_path, "rb").read(4) == b"GGUF" and n_ctx > 5
        print("libraries talk")
    def generate(self, prompt, **settings):
        return iter(range(prompt[-1] + 2, 100))
    def tokenize(self, text, add_bos, special):
        return [1, 5]
"""


def test_a_python_is_asked_for_what_its_library_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = tmp_path / "sha256-00"
    blob.write_bytes(b"GGUF and more")
    files = (ModelFile("weights", "model.gguf", str(blob), "sha256:" + "0" * 64, 13),)
    (tmp_path / "llama_cpp.py").write_text(LIBRARY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    encoding, greedy = compared(Path(sys.executable), files, OURS)
    assert (encoding.state, greedy.state) == ("ok", "ok")
    assert greedy.detail == "3 tokens equal to those of llama_cpp 9"
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('no such thing')")
    with pytest.raises(CommandError, match="no such thing"):
        compared(Path(sys.executable), files, OURS)


def test_a_server_is_not_asked_about_what_it_cannot_read(tmp_path: Path) -> None:
    blob = tmp_path / "sha256-00"
    blob.write_bytes(b"not one")
    files = (ModelFile("weights", "model.safetensors", str(blob), "sha256:" + "0" * 64, 7),)
    (row,) = compared(Path("/bin/llama-server"), files, OURS)
    assert row.state == "warn"
    assert "reads GGUF files only" in row.detail

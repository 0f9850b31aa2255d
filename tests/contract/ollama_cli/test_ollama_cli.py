"""The real `ollama` command, built from its own cmd package, against a live server; transcripts are golden.

How the command is built is said in `conftest`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.ollama_support import Server, serving, write_stories
from tests.gateway.cli.golden import check_golden
from tests.gateway.cli.terminal import terminal
from tests.registry.fakehub import FakeHub

pytestmark = pytest.mark.contract

HERE = Path(__file__).parent
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FRAME = "\x1b[?2026h"
"""Begins each redrawing of a progress board."""

VARYING = (
    (r"\b(About an? \w+|\d+ \w+|Less than a second)( ago| from now)", r"<time>\2"),
    (r"\b[0-9.]+(ns|µs|ms|s)\b", "<duration>"),
    (r"[0-9.]+ tokens/s", "<rate>"),
    (r"/\S+/blobs/", "<store>/blobs/"),
    (r"sha256([:-])[0-9a-f]{64}", r"sha256\1<digest>"),
    (r"(?m)^(\S+ +)[0-9a-f]{12}\b", r"\1<id>"),
)
SPINNER = re.compile(r"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] ?")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[Server]:
    """A server, and a client's folder with the tiny model and its Modelfile."""
    with serving(tmp_path_factory.mktemp("ollama-cli")) as running:
        write_stories(shared_data, running.folder)
        yield running


class Transcript:
    """Runs commands and writes down what a person would have seen."""

    def __init__(self, ollama: Path, server: Server) -> None:
        self._ollama = ollama
        self._server = server
        self.text = ""

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = self._server.run([str(self._ollama), *arguments], input=stdin)
        pipe = f"printf {stdin!r} | " if stdin else ""
        self.text += f"$ {pipe}ollama {' '.join(arguments)}\n{cleaned(done.stdout)}"
        if errors := cleaned(done.stderr):
            self.text += "".join(f"2> {line}\n" for line in errors.splitlines())
        if done.returncode:
            self.text += f"exit {done.returncode}\n"
        return done


def cleaned(text: str) -> str:
    """The last frame of a progress board, without escapes, and without what differs from day to day."""
    text = text.rpartition(FRAME)[2]
    text = SPINNER.sub("", ESCAPES.sub("", text))
    for pattern, word in VARYING:
        text = re.sub(pattern, word, text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def test_a_model_from_its_file_to_its_end(ollama: Path, server: Server) -> None:
    run = Transcript(ollama, server)
    run("--version")
    run("create", "tale", "-f", "Modelfile")
    run("list")
    run("ls", "ta")
    run("show", "tale")
    for part in ("--license", "--modelfile", "--parameters", "--template", "--system"):
        run("show", "tale", part)
    run("show", "tale", "--verbose")
    run("show", "tale", "--system", "--template")
    assert run("run", "tale", "Once upon a time").returncode == 0
    assert run("run", "tale", "--verbose", stdin="Once upon a time").returncode == 0
    run("ps")
    run("stop", "tale")
    run("ps")
    run("cp", "tale", "me/tale:v1")
    run("rm", "tale", "me/tale:v1")
    run("list", "tale")
    run("rm", "tale")
    run("show", "tale")
    run("cp", "tale", "other")
    check_golden(HERE / "golden" / "transcript.txt", run.text)


def test_what_the_show_command_prints_makes_the_same_model_again(ollama: Path, server: Server) -> None:
    run = Transcript(ollama, server)
    run("create", "first", "-f", "Modelfile")
    (server.folder / "Again").write_text(run("show", "first", "--modelfile").stdout)
    assert run("create", "second", "-f", "Again").returncode == 0
    for part in ("--parameters", "--template", "--system", "--license"):
        assert run("show", "first", part).stdout == run("show", "second", part).stdout
    ids = {
        line.split()[1] for line in run("list").stdout.splitlines() if line.startswith(("first", "second"))
    }
    assert len(ids) == 1, "the same layers make the same manifest"


def test_push_and_pull_with_a_registry(ollama: Path, server: Server) -> None:
    run = Transcript(ollama, server)
    with FakeHub() as hub:
        name = f"{hub.netloc}/me/tale"
        server.run([str(ollama), "create", name, "-f", "Modelfile"])
        run("push", name, "--insecure")
        run("rm", name)
        run("pull", name, "--insecure")
        run("show", name, "--system")
        run("pull", f"{hub.netloc}/me/ghost", "--insecure")
        text = run.text.replace(hub.netloc, "<registry>")
    text = re.sub(r"▕.*", "<bar>", re.sub(r"(pulling|pushing) [0-9a-f]{12}", r"\1 <id>", text))
    check_golden(HERE / "golden" / "registry.txt", text)


def test_chatting_in_a_terminal(ollama: Path, server: Server) -> None:
    server.run([str(ollama), "create", "chatty", "-f", "Modelfile"])
    environment = server.environment(TERM="xterm", COLUMNS="80", LINES="24")
    with terminal([str(ollama), "run", "chatty"], environment, server.folder) as screen:
        screen.wait_for(">>> ", 120)
        screen.type("/show parameters\r")
        screen.wait_for("num_predict")
        screen.wait_for(">>> ")
        screen.type("/set parameter num_predict 4\r")
        screen.wait_for("Set parameter 'num_predict' to '4'")
        screen.type("Once upon a time\r")
        screen.wait_for("Once upon a time")
        screen.wait_for(">>> ", 120)
        screen.type("/save chatty2\r")
        screen.wait_for("Created new model 'chatty2'")
        screen.type("/bye\r")
        assert screen.exit_code() == 0
    shown = server.run([str(ollama), "show", "chatty2", "--modelfile"]).stdout
    assert "PARAMETER num_predict 4" in shown
    assert "MESSAGE user Once upon a time" in shown
    assert "MESSAGE assistant" in shown


def test_a_folder_of_the_command_itself_tells_of_a_missing_server(ollama: Path, server: Server) -> None:
    done = server.run([str(ollama), "list"], env=server.environment(OLLAMA_HOST="127.0.0.1:9"))
    assert done.returncode == 1

"""A real model being loaded, and chatted with in a real terminal: what is typed, what the screen shows."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from tests.gateway.cli.terminal import terminal
from tests.servers import ROOT
from tests.whole.conftest import Served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


def test_ps_tells_how_far_a_load_is_and_run_says_it(served: Served) -> None:
    loading = threading.Thread(target=served.post, args=("/api/generate", {"model": "bud"}))
    loading.start()
    seen: set[str] = set()
    while loading.is_alive():
        reply = served.get("/api/ps").json()
        for row in reply.get("loading", ()):
            assert row["name"] == row["model"] == "bud:latest"
            seen.add(row.get("stage", ""))
        time.sleep(0.02)
    loading.join()
    assert seen & {"reading", "compiling"}
    reply = served.get("/api/ps").json()
    assert [row["name"] for row in reply["models"]] == ["bud:latest"]
    assert "loading" not in reply


def test_a_chat_as_a_person_has_it(served: Served, tmp_path: Path) -> None:
    environment = served.environment | {
        "TERM": "xterm",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "NO_COLOR": "1",
    }
    command = [sys.executable, "-m", "gateway.cli.main", "run", "bud"]
    with terminal(command, environment, tmp_path) as screen:
        for typed, shown in (
            ("/set parameter num_predict 4000", "Set parameter 'num_predict' to '4000'"),
            ("/set parameter repeat_penalty 1.5", "Set parameter 'repeat_penalty' to '1.5'"),
            ("/set parameter nonsense 1", "there is no 'nonsense'"),
            ('/set system "Be kind."', "Set system message."),
            ("/show system", "Be kind."),
            ("/show parameters", "User defined parameters:"),
            ("/nothing", "Unknown command '/nothing'. Type /? for help"),
        ):
            screen.wait_for(">>> ", 100)
            screen.type(f"{typed}\r")
            screen.wait_for(shown)
        screen.wait_for(">>> ")
        screen.type('"""Tell me a story\r')
        screen.wait_for("... ")
        screen.type('of a fox."""\r')
        screen.wait_for(". ", 60)
        screen.type(CTRL_C)  # stops the answer; the program goes on
        screen.wait_for(">>> ")
        screen.type(CTRL_C)
        screen.wait_for("Use Ctrl + d or /bye to exit.")
        screen.wait_for(">>> ")
        screen.type("/save fox\r")
        screen.wait_for("Created new model 'fox'")
        screen.wait_for(">>> ")
        screen.type("/load fox\r")
        screen.wait_for("Loading model 'fox'", 60)
        screen.wait_for(">>> ")
        screen.type("/clear\r")
        screen.wait_for("Cleared session context")
        screen.wait_for(">>> ")
        screen.type(UP + UP)
        screen.wait_for("/load fox")
        screen.type("\x15" + CTRL_D)
        assert screen.exit_code() == 0
    assert "/save fox" in (tmp_path / ".gemmule" / "history").read_text()
    shown_again = served.command("show", "fox", "--modelfile").stdout
    assert "SYSTEM Be kind." in shown_again
    assert 'MESSAGE user "Tell me a story\nof a fox."' in shown_again

"""The interactive chat over a live server: slash commands, blocks, stopping an answer, a real terminal."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from gateway.cli.conversation import Conversation, unquoted
from gateway.cli.repl import converse, read_message
from gateway.cli.run import Setup
from gateway.client import Client
from tests.gateway.cli.terminal import terminal
from tests.gateway.live import LiveServer

ROOT = Path(__file__).resolve().parents[3]
SLOW = json.dumps({"steps": [{"text": "x", "delay_ms": 20}], "repeat": 2000})


class Lines:
    """A reader of prepared lines; an exception among them is raised."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines = iter(lines)

    def read(self, prompt: str, keep: bool) -> str:
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


@pytest.fixture
def conversation(server: LiveServer) -> Conversation:
    client = Client(server.url)
    return Conversation(client, Setup("scripted"), client.request("POST", "/api/show", {"model": "scripted"}))


def obey(conversation: Conversation, *commands: str) -> str:
    return "".join(conversation.command(command) for command in commands)


def test_an_exchange_is_printed_and_remembered(
    conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    assert converse(conversation, Lines("hello", "again")) == 0
    said = capsys.readouterr().out
    assert "hello" in said
    assert [turn["role"] for turn in conversation.messages] == ["user", "assistant"] * 2
    assert "hello" in conversation.messages[3]["content"], "the second prompt holds the first exchange"
    obey(conversation, "/clear")
    assert conversation.messages == []


def test_settings_reach_the_request(conversation: Conversation) -> None:
    said = obey(
        conversation,
        "/set parameter temperature 0.5",
        "/set parameter num_predict 3",
        "/set parameter stop a b",
        '/set system "Be brief."',
        "/set format json",
        "/set think low",
        "/set verbose",
        "/set nowordwrap",
        "/set nohistory",
    )
    assert "Set parameter 'temperature' to '0.5'" in said
    body = conversation.body("hi")
    assert body["options"] == {"temperature": 0.5, "num_predict": 3, "stop": ["a", "b"]}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["format"], body["think"]) == ("json", "low")
    display = conversation.setup.display
    assert (display.verbose, display.word_wrap, conversation.keep_history) == (True, False, False)
    obey(conversation, "/set noformat", "/set nothink", "/set quiet", "/set wordwrap", "/set history")
    assert "format" not in conversation.body("hi")
    assert conversation.body("hi")["think"] is False


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/set parameter temperature hot", "Couldn't set parameter: temperature: invalid float value [hot]"),
        ("/set parameter warmth 1", "Couldn't set parameter: there is no 'warmth'; there are"),
        ("/set parameter top_k", "Usage: /set parameter"),
        ("/set think very", "Unknown level 'very'"),
        ("/set", "/set parameter <name> <value>"),
        ("/fly", "Unknown command '/fly'. Type /? for help"),
        ("/load nope", "model 'nope' not found"),
        ("/save", "Usage: /save <model>"),
        ("/save a b", "invalid model name"),
        ("/show license", "No license was specified"),
        ("/show", "/show modelfile"),
        ("/?", "/load <model>"),
        ("/? shortcuts", "Ctrl + c"),
        ("/help set", "/set nothink"),
        ("/show parameters", "temperature"),
        ("/show info", "Capabilities"),
        ("/list", "scripted:latest"),
        ("/load scripted", "Loading model 'scripted'"),
    ],
)
def test_what_commands_say(conversation: Conversation, command: str, said: str) -> None:
    assert said in conversation.command(command)


def test_goodbye_ends_it_and_ctrl_c_at_the_prompt_does_not(
    conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    assert converse(conversation, Lines(KeyboardInterrupt, "/bye", "never")) == 0
    assert "Use Ctrl + d or /bye to exit." in capsys.readouterr().out
    assert conversation.messages == []


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation.setup = Setup("scripted", options={"script": SLOW})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
    timer.start()
    started = time.monotonic()
    try:
        assert converse(conversation, Lines("go")) == 0
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 10
    assert conversation.messages[1]["content"].startswith("xx")
    assert "xx" in capsys.readouterr().out


def test_a_fault_is_a_line_and_the_exchange_is_forgotten(
    conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation.setup = Setup("nope")
    assert converse(conversation, Lines("hello")) == 0
    assert "model 'nope' not found" in capsys.readouterr().err
    assert conversation.messages == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['"""one', "two", 'three"""'], "one\ntwo\nthree"),
        (['"""one"""'], "one"),
        (['"""', "  kept", '"""'], "\n  kept\n"),
        (['/set system """be', 'brief"""'], '/set system """be\nbrief"""'),
        (['say """ aloud'], 'say """ aloud'),
        (["plain"], "plain"),
    ],
)
def test_blocks_of_lines(lines: Iterable[str], message: str) -> None:
    assert read_message(Lines(*lines), keep=True) == message


def test_quotes_come_off() -> None:
    assert unquoted('"""a\nb"""') == "a\nb"
    assert unquoted('"a"') == "a"
    assert unquoted("a") == "a"


@pytest.mark.slow
def test_a_real_terminal(server: LiveServer, tmp_path: Path) -> None:
    """Types into a pseudo-terminal as a person would and reads the screen."""
    environment = {"GEMMULE_HOST": server.url, "HOME": str(tmp_path), "TERM": "xterm"}
    command = [sys.executable, "-m", "gateway.cli.main", "run", "scripted"]
    with terminal(command, {**os.environ, **environment}, ROOT) as screen:
        screen.wait_for(">>> ")
        screen.type("/show parameters\r")
        screen.wait_for("temperature")
        screen.type("a word\r")
        screen.wait_for("a word")
        screen.wait_for("model")
        screen.wait_for(">>> ")  # the answer is over: Ctrl-C is for the prompt
        screen.type("\x03")
        screen.wait_for("/bye to exit")
        screen.type("/bye\r")
        assert screen.exit_code() == 0
    history = (tmp_path / ".gemmule" / "history").read_text()
    assert "+a word" in history
    assert (tmp_path / ".gemmule" / "history").stat().st_mode & 0o077 == 0

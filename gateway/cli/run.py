"""The command run: one question from the arguments or a pipe, or a chat on a terminal.

Reads arguments and stdin, pulls a model that is not there, and hands over to `answer` or `repl`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gateway.cli.answer import Answer, Display, show_answer
from gateway.cli.connect import connect
from gateway.cli.errors import OK, USAGE, CommandError
from gateway.cli.progress import Waiting
from gateway.cli.transfer import fetch
from gateway.client import Client, ClientError, ServerRefused
from gateway.duration import parse_duration

THINK_WORDS: dict[str, bool | str] = {
    "true": True,
    "false": False,
    "high": "high",
    "medium": "medium",
    "low": "low",
    "max": "max",
}


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything a request repeats; changed by replacing. `think` None leaves the choice to the model."""

    model: str
    format: Any = None
    think: bool | str | None = None
    keep_alive: str | None = None
    system: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    display: Display = field(default_factory=Display)

    def body(self) -> dict[str, Any]:
        """The fields that generate and chat share."""
        body: dict[str, Any] = {"model": self.model, "stream": True, "options": self.options}
        for key, value in (("format", self.format), ("think", self.think), ("keep_alive", self.keep_alive)):
            if value is not None:
                body[key] = value
        return body


def run(arguments: argparse.Namespace) -> int:
    """`gemmule run MODEL [PROMPT...]`."""
    setup = _setup(arguments)
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    prompt = "\n\n".join(part for part in (piped.rstrip("\n"), " ".join(arguments.prompt)) if part)
    client = connect(check=True)
    shown = find_model(client, setup.model, arguments.insecure)
    capabilities = shown.get("capabilities") or []
    setup = thinking_by_default(setup, shown)
    if "embedding" in capabilities and "completion" not in capabilities:
        return _embed(client, setup, prompt, arguments)
    if prompt or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _answer(client, setup, prompt)
    load(client, setup)
    from gateway.cli.repl import chat

    return chat(client, setup, shown)


def thinking_by_default(setup: Setup, shown: dict[str, Any]) -> Setup:
    """A model that can think does unless told not to, as in Ollama's command."""
    can_think = "thinking" in (shown.get("capabilities") or [])
    return replace(setup, think=True) if can_think and setup.think is None else setup


def find_model(client: Client, model: str, insecure: bool) -> dict[str, Any]:
    """What /api/show says; a model that is not there is pulled first."""
    try:
        shown = client.request("POST", "/api/show", {"model": model})
    except ServerRefused as error:
        if error.status != 404:
            raise
        fetch(client, model, insecure)
        shown = client.request("POST", "/api/show", {"model": model})
    return dict(shown or {})


def load(client: Client, setup: Setup) -> None:
    """Loads the model before the first question, saying what is waited for."""
    body: dict[str, Any] = {"model": setup.model}
    if setup.keep_alive is not None:
        body["keep_alive"] = setup.keep_alive
    with waiting(client, setup, "loading"):
        client.request("POST", "/api/generate", body)


def waiting(client: Client, setup: Setup, what: str) -> Waiting:
    """A mark that says, while the model loads, how far that is."""
    label = f"{what} {setup.model}"
    return Waiting(label, stage=lambda: loading_stage(client, setup.model), verbose=setup.display.verbose)


def loading_stage(client: Client, model: str) -> str:
    """What the server says of the model's loading; nothing when it does not, as an Ollama does not."""
    try:
        running = client.request("GET", "/api/ps")
    except ClientError:
        return ""
    rows = running.get("loading") or () if isinstance(running, dict) else ()
    wanted = model if ":" in model.rpartition("/")[2] else f"{model}:latest"
    row = next((row for row in rows if row.get("model") == wanted), None)
    return described_stage(row) if row else ""


def described_stage(row: dict[str, Any]) -> str:
    """`reading weights, 45%`, `compiling, 2 of 7 programs`."""
    stage, done, total = str(row.get("stage", "")), int(row.get("completed", 0)), int(row.get("total", 0))
    if stage == "compiling" and total:
        return f"compiling, {done} of {total} programs"
    if stage == "reading":
        return f"reading weights, {100 * done // total}%" if total else "reading weights"
    return stage


def _answer(client: Client, setup: Setup, prompt: str) -> int:
    if not prompt:
        load(client, setup)
        return OK
    body = setup.body() | {"prompt": prompt}
    if setup.system is not None:
        body["system"] = setup.system
    answer_stream(client, "/api/generate", body, setup, Answer())
    return OK


def answer_stream(client: Client, path: str, body: dict[str, Any], setup: Setup, said: Answer) -> None:
    """Sends a request and prints its answer into `said`; whatever ends it early cancels the request."""
    with (
        contextlib.closing(client.stream(path, body)) as lines,
        waiting(client, setup, "waiting for") as mark,
    ):
        first = next(lines, None)
        mark.end()
        if first is not None:
            show_answer(itertools.chain([first], lines), setup.display, said)


def _embed(client: Client, setup: Setup, prompt: str, arguments: argparse.Namespace) -> int:
    """An embedding model prints the vector of its input as JSON."""
    if not prompt:
        raise CommandError(
            f"{setup.model} embeds text and cannot chat",
            f'give it text: gemmule run {setup.model} "some words"',
            USAGE,
        )
    body: dict[str, Any] = {"model": setup.model, "input": prompt, "truncate": arguments.truncate}
    if arguments.dimensions:
        body["dimensions"] = arguments.dimensions
    if setup.keep_alive is not None:
        body["keep_alive"] = setup.keep_alive
    print(json.dumps(client.request("POST", "/api/embed", body)["embeddings"][0]))
    return OK


def _setup(arguments: argparse.Namespace) -> Setup:
    display = Display(not arguments.nowordwrap, arguments.verbose, arguments.hidethinking)
    if arguments.keepalive is not None:
        try:
            parse_duration(arguments.keepalive)
        except ValueError as error:
            raise CommandError(f"--keepalive: {error}", code=USAGE) from None
    setup = Setup(arguments.model, keep_alive=arguments.keepalive, display=display)
    if arguments.think is not None:
        if arguments.think not in THINK_WORDS:
            words = ", ".join(THINK_WORDS)
            raise CommandError(f'--think: "{arguments.think}" is none of {words}', code=USAGE)
        setup = replace(setup, think=THINK_WORDS[arguments.think])
    return replace(setup, format=read_format(arguments.format)) if arguments.format else setup


def read_format(text: str) -> Any:
    """`json`, a JSON Schema, or the name of a file that holds one."""
    if text == "json":
        return text
    source = text
    try:
        if not text.lstrip().startswith("{"):
            source = Path(text).read_text(encoding="utf-8")
        schema = json.loads(source)
    except OSError:
        raise CommandError(
            f'--format: "{text}" is neither json, a JSON Schema nor a file', code=USAGE
        ) from None
    except json.JSONDecodeError as error:
        raise CommandError(f"--format: the schema is no JSON: {error}", code=USAGE) from None
    if not isinstance(schema, dict):
        raise CommandError("--format: a JSON Schema is an object", code=USAGE)
    return schema

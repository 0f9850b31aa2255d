"""The interactive chat: reads lines, gathers blocks, prints answers. Ctrl-C stops an answer, not the program.

The terminal is prompt_toolkit's, behind the one method `Reader.read`; state and slash commands are in
`conversation`. Called by run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gateway.cli.answer import Answer
from gateway.cli.conversation import COMMANDS, QUOTES, Conversation
from gateway.cli.errors import OK, explain
from gateway.cli.output import warn
from gateway.cli.run import Setup, answer_stream
from gateway.client import Client, ClientError

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completion
    from prompt_toolkit.document import Document

PROMPT = ">>> "
CONTINUATION = "... "
PLACEHOLDER = "Send a message (/? for help)"


class Reader(Protocol):
    """Reads one line; raises EOFError at the end of input, KeyboardInterrupt for Ctrl-C."""

    def read(self, prompt: str, keep: bool) -> str: ...


def chat(client: Client, setup: Setup, shown: dict[str, Any]) -> int:
    """Talks until the user leaves."""
    return converse(Conversation(client, setup, shown), TerminalReader())


def converse(conversation: Conversation, reader: Reader) -> int:
    """The loop, over any source of lines."""
    while not conversation.finished:
        try:
            line = read_message(reader, conversation.keep_history)
        except KeyboardInterrupt:
            print("\nUse Ctrl + d or /bye to exit.\n")
            continue
        except EOFError:
            print()
            break
        if line.startswith("/"):
            print(conversation.command(line), end="", flush=True)
        elif line.strip():
            answer(conversation, line)
    return OK


def read_message(reader: Reader, keep: bool) -> str:
    """One line, or the block that three quotes open, at the beginning or in `/set system`.

    A block keeps its line breaks and loses its quotes, except after a command, which unquotes by itself.
    """
    line = reader.read(PROMPT, keep)
    head, opened, rest = line.partition(QUOTES)
    if not opened or (head.strip() and not head.startswith("/set system")):
        return line
    lines = [rest]
    while QUOTES not in lines[-1]:
        lines.append(reader.read(CONTINUATION, keep))
    lines[-1] = lines[-1].partition(QUOTES)[0]
    text = "\n".join(lines)
    return f"{head}{QUOTES}{text}{QUOTES}" if head.strip() else text


def answer(conversation: Conversation, message: str) -> None:
    """Asks and prints; a fault is a line, and the conversation goes on without the exchange."""
    said = Answer()
    try:
        answer_stream(conversation.client, "/api/chat", conversation.body(message), conversation.setup, said)
    except KeyboardInterrupt:
        print()
    except ClientError as error:
        fault = explain(error)
        warn(str(fault))
        if fault.hint:
            print(f"hint: {fault.hint}", file=sys.stderr)
        return
    conversation.remember(message, said.content, said.thinking)
    print()


class TerminalReader:
    """prompt_toolkit with Emacs keys, a history file of the user's own, and completion of slash commands."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.formatted_text import HTML
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings

        bindings = KeyBindings()

        @bindings.add("c-g")
        def _(event: Any) -> None:
            event.current_buffer.open_in_editor()

        path = history_file(os.environ)
        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(path)) if path else InMemoryHistory(),
            completer=_SlashCompleter.make(),
            complete_while_typing=False,
            key_bindings=bindings,
            enable_open_in_editor=True,
        )
        self._placeholder = HTML(f"<ansibrightblack>{PLACEHOLDER}</ansibrightblack>")

    def read(self, prompt: str, keep: bool) -> str:
        history = self._session.default_buffer.history
        before = len(history.get_strings())
        placeholder = self._placeholder if prompt == PROMPT else None
        line = self._session.prompt(prompt, placeholder=placeholder)
        if not keep and len(history.get_strings()) > before:
            history._loaded_strings.pop(0)
        return line


class _SlashCompleter:
    """Completes the first word when it begins with a slash."""

    @staticmethod
    def make() -> Any:
        from prompt_toolkit.completion import Completer, Completion

        class SlashCompleter(Completer):
            def get_completions(self, document: Document, event: Any) -> Iterable[Completion]:
                typed = document.text_before_cursor
                if typed.startswith("/") and " " not in typed:
                    for command in COMMANDS:
                        if command.startswith(typed):
                            yield Completion(command, start_position=-len(typed))

        return SlashCompleter()


def history_file(environment: Any) -> Path | None:
    """Where typed lines are kept, readable by their owner only; None when nothing shall be kept."""
    if environment.get("GEMMULE_NOHISTORY") or environment.get("OLLAMA_NOHISTORY"):
        return None
    path = Path("~/.gemmule/history").expanduser()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)
    except OSError:
        return None
    return path

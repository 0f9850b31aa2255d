"""The state of an interactive chat and the slash commands that change it. No terminal, no stream of tokens.

`Conversation.command` takes a line that begins with `/` and returns what to print. Called by repl.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gateway.cli.errors import CommandError, explain
from gateway.cli.models import description
from gateway.cli.output import human_bytes, sections, table
from gateway.cli.run import THINK_WORDS, Setup, load, read_format, thinking_by_default
from gateway.client import Client, ClientError, ServerRefused

QUOTES = '"""'
HELP = """\
Available Commands:
  /set            Set session variables
  /show           Show model information
  /load <model>   Load another model, or start over with this one
  /save <model>   Save this session as a model
  /clear          Forget the conversation
  /list           List the models of the server
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keyboard shortcuts

Use \"\"\" to begin a multi-line message.
"""
SET_HELP = """\
Available Commands:
  /set parameter <name> <value>  Set a parameter
  /set system <text>             Set the system message
  /set history                   Keep what is typed for the next time
  /set nohistory                 Keep nothing
  /set wordwrap                  Break lines between words
  /set nowordwrap                Leave lines alone
  /set format json               Ask for JSON (or for a JSON Schema, or a file with one)
  /set noformat                  Ask for text
  /set verbose                   Print timings after each answer
  /set quiet                     Print no timings
  /set think [level]             Think first
  /set nothink                   Do not think
"""
SHOW_HELP = """\
Available Commands:
  /show info        Everything about the model
  /show license     Its license
  /show modelfile   The Modelfile that makes it
  /show parameters  Its parameters and those of this session
  /show system      Its system message
  /show template    Its prompt template
"""
SHORTCUTS = """\
Available keyboard shortcuts:
  Ctrl + a    Move to the beginning of the line
  Ctrl + e    Move to the end of the line
  Alt + b     Move back by a word
  Alt + f     Move forward by a word
  Ctrl + k    Delete from here to the end of the line
  Ctrl + u    Delete from here to the beginning of the line
  Ctrl + w    Delete the word before here
  Ctrl + l    Clear the screen
  Ctrl + r    Search in the history
  Ctrl + g    Write the message in an editor
  Ctrl + c    Stop the answer, or discard what is typed
  Ctrl + d    Exit
"""
DISPLAY_WORDS = {
    "wordwrap": ({"word_wrap": True}, "Set 'wordwrap' mode."),
    "nowordwrap": ({"word_wrap": False}, "Set 'nowordwrap' mode."),
    "verbose": ({"verbose": True}, "Set 'verbose' mode."),
    "quiet": ({"verbose": False}, "Set 'quiet' mode."),
}
COMMANDS = ("/set", "/show", "/load", "/save", "/clear", "/list", "/bye", "/exit", "/?", "/help")


class Conversation:
    """Messages so far, and everything a request repeats. `finished` once the user has said goodbye."""

    def __init__(self, client: Client, setup: Setup, shown: dict[str, Any]) -> None:
        self.client = client
        self.setup = setup
        self.shown = shown
        self.messages: list[dict[str, Any]] = []
        self.keep_history = True
        self.finished = False
        self._commands: dict[str, Callable[[str], str]] = {
            "/set": self._set,
            "/show": self._show,
            "/load": self._load,
            "/save": self._save,
            "/clear": self._clear,
            "/list": self._list,
            "/bye": self._bye,
            "/exit": self._bye,
            "/?": self._help,
            "/help": self._help,
        }

    def command(self, line: str) -> str:
        """Obeys a slash command; returns the text to print, which may be empty."""
        name, _, rest = line.strip().partition(" ")
        if name not in self._commands:
            return f"Unknown command '{name}'. Type /? for help\n"
        try:
            return self._commands[name](rest.strip())
        except CommandError as error:
            return f"{error}\n"
        except ClientError as error:
            fault = explain(error)
            return f"{fault}\n" + (f"hint: {fault.hint}\n" if fault.hint else "")

    def body(self, message: str) -> dict[str, Any]:
        """The request that continues the conversation with a message of the user."""
        system = [{"role": "system", "content": self.setup.system}] if self.setup.system else []
        turns = [*system, *self.messages, {"role": "user", "content": message}]
        return self.setup.body() | {"messages": turns}

    def remember(self, message: str, content: str, thinking: str) -> None:
        """Both turns of an exchange; what was stopped half-way was said all the same."""
        answer = {"role": "assistant", "content": content}
        if thinking:
            answer["thinking"] = thinking
        self.messages += [{"role": "user", "content": message}, answer]

    # -- commands ---------------------------------------------------------------------------------------

    def _set(self, text: str) -> str:
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name in DISPLAY_WORDS:
            changes, said = DISPLAY_WORDS[name]
            self.setup = replace(self.setup, display=self.setup.display.changed(**changes))
            return said + "\n"
        match name:
            case "parameter":
                return self._set_parameter(rest)
            case "system":
                self.setup = replace(self.setup, system=unquoted(rest))
                return "Set system message.\n"
            case "history" | "nohistory":
                self.keep_history = name == "history"
                return f"Set '{name}' mode.\n"
            case "format":
                self.setup = replace(self.setup, format=read_format(rest or "json"))
                return f"Set format to '{rest or 'json'}' mode.\n"
            case "noformat":
                self.setup = replace(self.setup, format=None)
                return "Disabled format.\n"
            case "think" | "nothink":
                return self._set_think(name, rest)
        return SET_HELP

    def _set_think(self, name: str, level: str) -> str:
        if name == "nothink":
            self.setup = replace(self.setup, think=False)
            return "Set 'nothink' mode.\n"
        if level and level not in THINK_WORDS:
            return f"Unknown level '{level}': it is one of {', '.join(THINK_WORDS)}\n"
        if "thinking" not in (self.shown.get("capabilities") or []):
            return f"{self.setup.model} cannot think\n"
        self.setup = replace(self.setup, think=THINK_WORDS[level or "true"])
        return f"Set 'think' mode{f' to {level}' if level else ''}.\n"

    def _set_parameter(self, text: str) -> str:
        name, *words = text.split()
        if not words:
            return "Usage: /set parameter <name> <value>\n"
        value = parameter_value(name, words)
        self.setup = replace(self.setup, options=self.setup.options | {name: value})
        shown = ", ".join(words)
        return f"Set parameter '{name}' to '{shown}'\n"

    def _show(self, text: str) -> str:
        match text:
            case "info":
                return sections(description(self.shown, verbose=False))
            case "parameters":
                return self._parameters()
            case "system" if self.setup.system:
                return f"{self.setup.system}\n"
            case "license" | "modelfile" | "system" | "template":
                value = self.shown.get(text)
                return f"{value}\n" if value else f"No {text} was specified for this model.\n"
        return SHOW_HELP

    def _parameters(self) -> str:
        own = self.shown.get("parameters") or ""
        text = f"Model defined parameters:\n{_indented(own)}\n" if own else ""
        if self.setup.options:
            lines = "\n".join(f"{name:<30} {value}" for name, value in self.setup.options.items())
            text += f"User defined parameters:\n{_indented(lines)}\n"
        return text or "No parameters were specified for this model.\n"

    def _load(self, text: str) -> str:
        name = text or self.setup.model
        self.shown = dict(self.client.request("POST", "/api/show", {"model": name}) or {})
        think = self.setup.think if "thinking" in (self.shown.get("capabilities") or []) else None
        self.setup = thinking_by_default(replace(self.setup, model=name, think=think), self.shown)
        self.messages = []
        load(self.client, self.setup)
        return f"Loading model '{name}'\n"

    def _save(self, text: str) -> str:
        if not text:
            return "Usage: /save <model>\n"
        body: dict[str, Any] = {"model": text, "from": self.setup.model, "stream": False}
        for key, value in (
            ("system", self.setup.system),
            ("parameters", self.setup.options),
            ("messages", [{"role": turn["role"], "content": turn["content"]} for turn in self.messages]),
        ):
            if value:
                body[key] = value
        try:
            self.client.request("POST", "/api/create", body)
        except ServerRefused as error:
            return f"Couldn't save '{text}': {error}\n"
        return f"Created new model '{text}'\n"

    def _clear(self, text: str) -> str:
        self.messages = []
        return "Cleared session context\n"

    def _list(self, text: str) -> str:
        models = (self.client.request("GET", "/api/tags") or {}).get("models") or []
        rows = [(str(model.get("name")), human_bytes(model.get("size", 0))) for model in models]
        return table(("NAME", "SIZE"), rows)

    def _bye(self, text: str) -> str:
        self.finished = True
        return ""

    def _help(self, text: str) -> str:
        topics = {"set": SET_HELP, "show": SHOW_HELP, "shortcut": SHORTCUTS, "shortcuts": SHORTCUTS}
        return topics.get(text.lstrip("/"), HELP)


def parameter_value(name: str, words: list[str]) -> Any:
    """The value of a parameter as typed. Raises CommandError naming what it should be."""
    from modelfiles.parameters import PARAMETERS, ParameterError, UnknownParameter, parse_parameter

    try:
        value = parse_parameter(name, words[0])
    except UnknownParameter:
        known = ", ".join(sorted(row.name for row in PARAMETERS.values() if not row.deprecated))
        raise CommandError(f"Couldn't set parameter: there is no '{name}'; there are {known}") from None
    except ParameterError as error:
        raise CommandError(f"Couldn't set parameter: {name}: {error}") from None
    return words if isinstance(value, tuple) else value


def unquoted(text: str) -> str:
    """A text without the quotes around it, three or one."""
    for quotes in (QUOTES, '"'):
        if len(text) >= 2 * len(quotes) and text.startswith(quotes) and text.endswith(quotes):
            return text[len(quotes) : -len(quotes)]
    return text.removeprefix(QUOTES).removesuffix(QUOTES)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())

"""The manual page, made from the table of commands, the table of settings and the exit codes.

roff of the `man` macros and nothing else: no file, no date, so that the page is as new as the program that
prints it. Called by `gemmule help --man`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from gateway import __version__
from gateway.cli.errors import EXIT_CODES
from gateway.cli.parser import COMMANDS, Command, parsers

DESCRIPTION = """gemmule keeps language models on this machine, runs them, and answers programs that speak the
HTTP APIs of OpenAI, Ollama or Anthropic. Every command but serve, doctor, check, fsck, prune, export, import
and train is a client of that server, which may be elsewhere."""

CLIENT_VARIABLES = (
    ("GEMMULE_HOST", "where the server is (or OLLAMA_HOST): host:port, a URL, or unix:///path/to/socket"),
    ("GEMMULE_API_KEY", "sent to the server as a bearer token"),
    ("GEMMULE_NOHISTORY", "keeps chats from writing ~/.gemmule/history"),
    ("GEMMULE_DEBUG", "prints a traceback where a command fails unexpectedly"),
    ("NO_COLOR", "keeps colours out of what is printed"),
)
FILES = (
    ("~/.gemmule/models", "the models: manifests and blobs in the layout of Ollama"),
    ("~/.gemmule/history", "what was typed into chats"),
    ("~/.ollama/models", "models of an Ollama on this machine, read in place and never changed"),
)


def manual() -> str:
    """The page `gemmule(1)`; words are not parted nor lines stretched, as flags and paths would suffer."""
    sections = [
        f'.TH GEMMULE 1 "" "gemmule {text(__version__)}" "User Commands"',
        ".nh",
        ".ad l",
        *section("NAME", r"gemmule \- run language models on this machine"),
        *section("SYNOPSIS", r".B gemmule", r"[\fB\-\-version\fR] \fICOMMAND\fR [\fIARGUMENT\fR ...]"),
        *section("DESCRIPTION", *map(text, DESCRIPTION.splitlines())),
        *section("COMMANDS", *(line for command in COMMANDS for line in described(command))),
        *section("EXIT STATUS", *terms((str(code), said) for code, said in EXIT_CODES.items())),
        *section("ENVIRONMENT", "Of every command:", *terms(CLIENT_VARIABLES), ".PP", *server_variables()),
        *section("FILES", *terms(FILES)),
        *section("SEE ALSO", r"\fBgemmule help\fR \fICOMMAND\fR"),
    ]
    return "\n".join(sections) + "\n"


def section(title: str, *lines: str) -> list[str]:
    """A section; titles of several words stand in quotes."""
    return [f'.SH "{title}"', *lines]


def described(command: Command) -> Iterable[str]:
    """A command: how it is written, what it does, its arguments and flags, an example."""
    actions = [action for action in parsers()[command.name]._actions if action.dest != "help"]
    words = [usage(action) for action in actions]
    yield ".TP"
    yield " ".join([rf"\fBgemmule {text(command.name)}\fR", *words])
    also = f" (also \\fB{', '.join(command.aliases)}\\fR)" if command.aliases else ""
    yield f"{text(command.help)}{also}."
    if actions:
        yield ".RS"
        yield from terms_of(actions)
        yield ".RE"
    yield ".IP"
    yield rf"Example: \fB{text(command.example)}\fR"


def usage(action: argparse.Action) -> str:
    """An argument or flag as the synopsis of its command has it."""
    if not action.option_strings:
        name = italic(action)
        return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}.get(str(action.nargs), name)
    shown = option(action)
    return shown if action.required else f"[{shown}]"


def option(action: argparse.Action) -> str:
    """A flag by its longest name, with its value."""
    name = rf"\fB{text(action.option_strings[-1])}\fR"
    if action.nargs == 0:
        return name
    return f"{name} {italic(action)}" + (" ..." if action.nargs == "+" else "")


def italic(action: argparse.Action) -> str:
    return rf"\fI{text(str(action.metavar or action.dest.upper()))}\fR"


def terms_of(actions: Iterable[argparse.Action]) -> Iterable[str]:
    for action in actions:
        names = [rf"\fB{text(name)}\fR" for name in action.option_strings[:-1]]
        shown = option(action) if action.option_strings else italic(action)
        yield from (".TP", ", ".join([*names, shown]), text(action.help or ""))


def terms(pairs: Iterable[tuple[str, str]]) -> Iterable[str]:
    """A list of names and what they mean."""
    for name, meaning in pairs:
        yield from (".TP", rf"\fB{text(name)}\fR", text(meaning))


def server_variables() -> Iterable[str]:
    """The settings that `serve` reads; Ollama's names count where ours are unset."""
    from gateway.settings import VARIABLES

    yield "Of the server:"
    for variable in VARIABLES:
        also = f" ({variable.foreign})" if variable.foreign else ""
        default = text(variable.default).replace(":", r":\:")
        meaning = f"{text(variable.help)}; default {default}" if default else text(variable.help)
        yield from (".TP", rf"\fB{text(variable.name)}\fR{text(also)}", meaning)


def text(plain: str) -> str:
    """Text as roff takes it: nothing in it is a request, hyphens of flags stay ASCII."""
    escaped = plain.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    escaped = escaped.replace("~", r"\(ti").replace("^", r"\(ha").replace('"', r"\(dq")
    return rf"\&{escaped}" if escaped[:1] == "." else escaped

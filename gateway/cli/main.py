"""The entry point `gemmule`: parses, imports the chosen command, turns every fault into a line and a code.

Nothing heavier than argparse is imported before a command is chosen. Called by the console script.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from gateway import __version__
from gateway.cli.errors import FAILED, INTERRUPTED, OK, CommandError, explain, unforeseen
from gateway.cli.parser import BY_NAME, build_parser, parse
from gateway.client import ClientError

Handler = Callable[[argparse.Namespace], int | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code of `errors.EXIT_CODES`. Never lets a traceback out."""
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return FAILED
    except CommandError as error:
        return _report(error)
    except ClientError as error:
        return _report(explain(error))
    except Exception as error:
        if os.environ.get("GEMMULE_DEBUG"):
            raise
        return _report(unforeseen(error))


def show_help(arguments: argparse.Namespace) -> int:
    """`gemmule help [COMMAND]`, `gemmule help --man`."""
    if arguments.man:
        from gateway.cli.manual import manual

        print(manual(), end="")
        return OK
    name: str | None = arguments.topic
    if name is not None and name not in BY_NAME:
        raise CommandError(f'unknown command "{name}"', "`gemmule help` lists the commands", 2)
    return _dispatch([name, "--help"] if name else ["--help"])


def _dispatch(arguments: list[str]) -> int:
    try:
        parsed = parse(arguments)
    except SystemExit as leaving:  # argparse has printed help or the fault
        return leaving.code if isinstance(leaving.code, int) else FAILED
    if parsed.version:
        return _print_versions()
    if parsed.command is None:
        build_parser().print_help()
        return OK
    module, _, function = parsed.target.partition(":")
    handler: Handler = getattr(importlib.import_module(f"gateway.cli.{module}"), function)
    return handler(parsed) or OK


def _print_versions() -> int:
    from gateway.cli.connect import connect

    print(f"gemmule version is {__version__}")
    try:
        server = connect().server_version()
    except ClientError:
        print("Warning: no running gemmule server answers", file=sys.stderr)
        return OK
    if server is None:
        print("Warning: the server that answers is an Ollama", file=sys.stderr)
    elif server != __version__:
        print(f"Warning: the server's version is {server}", file=sys.stderr)
    return OK


def _report(error: CommandError) -> int:
    print(f"gemmule: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.code


def _silence_stdout() -> None:
    """The reader of a pipe has gone; closing stdout again at exit must not complain."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())

"""The command line as one table: every command, its arguments, its example, the function behind it.

argparse only: modules of commands are imported when one is chosen, so that help is instant. Called by main
and by the completion scripts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

Adder = Callable[[argparse.ArgumentParser], None]


@dataclass(frozen=True, slots=True)
class Command:
    """One row. `target` is `module:function` below gateway.cli; the function gets the parsed arguments."""

    name: str
    help: str
    target: str
    example: str
    add: Adder
    aliases: tuple[str, ...] = ()


def _nothing(parser: argparse.ArgumentParser) -> None:
    pass


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of a model, such as bud or gemma3:4b")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="only names that begin so")
    _json(parser)


def _insecure(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("--insecure", action="store_true", help="allow a registry without TLS")


def _pull(parser: argparse.ArgumentParser) -> None:
    _insecure(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it takes and whether it fits, and stop"
    )
    parser.add_argument(
        "--warm", action="store_true", help="load it afterwards, so that its first answer comes fast"
    )


def _create(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("-f", "--file", metavar="FILE", help="the Modelfile (default: ./Modelfile)")
    parser.add_argument(
        "-q", "--quantize", metavar="TYPE", help="store float weights as q8_0, q4_K_M or q4_0"
    )


def _show(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    for part in ("license", "modelfile", "parameters", "template", "system"):
        parser.add_argument(f"--{part}", action="store_true", help=f"print the {part} only")
    parser.add_argument("-v", "--verbose", action="store_true", help="print metadata and tensors too")
    _json(parser)


def _run(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="*", default=[], help="what to ask; none starts a chat"
    )
    parser.add_argument("--keepalive", metavar="DURATION", help="how long the model stays loaded (5m, -1)")
    parser.add_argument("--verbose", action="store_true", help="print timings after each answer")
    parser.add_argument("--insecure", action="store_true", help="allow a registry without TLS when pulling")
    parser.add_argument("--nowordwrap", action="store_true", help="do not break lines between words")
    parser.add_argument("--format", metavar="FORMAT", help="answer in this format: json, or a JSON Schema")
    parser.add_argument("--think", metavar="LEVEL", help="think first: true, false, high, medium, low or max")
    parser.add_argument("--hidethinking", action="store_true", help="think, but do not print it")
    parser.add_argument("--truncate", action="store_true", help="embeddings: cut input that is too long")
    parser.add_argument("--dimensions", metavar="N", type=int, help="embeddings: keep the first N numbers")


def _copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="an existing model")
    parser.add_argument("destination", metavar="DESTINATION", help="its second name")


def _remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="+", help="models to remove")


def _check(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument(
        "--compare",
        metavar="PROGRAM",
        nargs="?",
        const="",
        help="also compare greedy tokens with llama-server (the default), or a Python with transformers",
    )
    _json(parser)


def _train(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument(
        "--images", metavar="FOLDER", required=True, help="a folder with one folder of images for each label"
    )
    parser.add_argument("--epochs", metavar="N", type=int, default=30, help="times each image is seen (30)")
    parser.add_argument("--side", metavar="N", type=int, default=32, help="pixels images are scaled to (32)")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="another one trains another model (0)"
    )
    parser.add_argument("--output", metavar="FOLDER", help="write the model here instead of creating it")


def _doctor(parser: argparse.ArgumentParser) -> None:
    _json(parser)


def _fsck(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="move what is damaged to quarantine/")
    parser.add_argument(
        "--fetch", action="store_true", help="repair, and fetch the damaged files, and no others, again"
    )


def _export(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="the tar to write (default: standard output)")


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a tar that export wrote")
    parser.add_argument("--name", metavar="MODEL", help="call it this instead of its own name")


def _bench(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("--prompt", metavar="N", type=int, default=512, help="tokens of the prompt (512)")
    parser.add_argument("--tokens", metavar="N", type=int, default=128, help="tokens to generate (128)")
    parser.add_argument(
        "--streams", metavar="N", type=int, nargs="+", default=[1, 8], help="generate so many at once (1 8)"
    )
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="times each is measured (3)")
    _json(parser)


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


def _help(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", metavar="COMMAND", nargs="?", help="the command to explain")
    parser.add_argument("--man", action="store_true", help="print the manual page, for man -l or a file")


COMMANDS = (
    Command("serve", "Start the server", "serve:serve",
            "GEMMULE_HOST=127.0.0.1:8080 gemmule serve", _nothing, ("start",)),
    Command("create", "Create a model from a Modelfile", "create:create",
            "gemmule create fox -f Modelfile", _create),
    Command("show", "Show what a model is made of", "models:show", "gemmule show bud --modelfile", _show),
    Command("run", "Ask a model, or chat with it", "run:run",
            'gemmule run bud "Tell me a story about a fox."', _run),
    Command("stop", "Unload a running model", "models:stop", "gemmule stop bud", _model),
    Command("pull", "Fetch a model from a registry", "transfer:pull", "gemmule pull gemma3:4b", _pull),
    Command("push", "Send a model to a registry", "transfer:push", "gemmule push me/fox", _insecure),
    Command("list", "List models", "models:list_models", "gemmule list gemma --json", _list, ("ls",)),
    Command("ps", "List running models", "models:list_running", "gemmule ps", _list),
    Command("cp", "Give a model a second name", "models:copy", "gemmule cp bud me/bud", _copy),
    Command("rm", "Remove models", "models:remove", "gemmule rm fox owl", _remove),
    Command("doctor", "Check this machine and say what to fix", "doctor:doctor", "gemmule doctor", _doctor),
    Command("check", "Load a model and see whether it makes sense of plain text", "check:check",
            "gemmule check bud", _check),
    Command("train", "Make an image classifier from folders of images", "train:train",
            "gemmule train pets --images ./photos", _train),
    Command("fsck", "Read every byte of every model and say what is damaged", "store:fsck",
            "gemmule fsck --repair", _fsck),
    Command("prune", "Remove what no model uses, and partial downloads", "store:prune",
            "gemmule prune", _nothing),
    Command("export", "Write a model into one file", "store:export",
            "gemmule export bud -o bud.tar", _export),
    Command("import", "Take a model out of such a file", "store:import_",
            "gemmule import bud.tar --name me/bud", _import),
    Command("bench", "Measure how fast a model answers here", "bench:bench",
            "gemmule bench bud --streams 1 8", _bench),
    Command("completion", "Print a completion script for a shell", "completion:completion",
            'eval "$(gemmule completion bash)"', _completion),
    Command("help", "Help about any command", "main:show_help", "gemmule help run", _help),
)  # fmt: skip

BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}
"""Commands by name and alias."""


class Parser(argparse.ArgumentParser):
    """Errors as ours: lower-case, one line, with where to look."""

    def error(self, message: str) -> NoReturn:
        self.exit(
            2, f"gemmule: {message[:1].lower()}{message[1:]}\nhint: `{self.prog} --help` shows the usage\n"
        )


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Flags as `-f, --file FILE` on every Python: argparse itself writes them so from 3.13 on."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `--help` of each command ends with its example."""
    parser = Parser(
        prog="gemmule",
        description="Run language models on this machine, behind the APIs of OpenAI and Ollama.",
        epilog="Example:\n  gemmule run bud\n\n"
        "GEMMULE_HOST says where the server is (default 127.0.0.1:11434).",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("-v", "--version", action="store_true", help="print versions and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            aliases=command.aliases,
            help=command.help,
            description=f"{command.help}.",
            epilog=f"Example:\n  {command.example}",
            formatter_class=Formatter,
            allow_abbrev=False,
        )
        command.add(sub)
        sub.set_defaults(target=command.target)
    return parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by name and alias."""
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the command line has commands")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The parsed command line. Exits as argparse does.

    Words after options belong to the command's last, open-ended argument (`run bud --verbose hello`), and a
    bare `--think` means yes: both as in Ollama's command.
    """
    parser = build_parser()
    _refuse_unknown_command(arguments, parser)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    spelled = [f"{word}=true" if word == "--think" and i < end else word for i, word in enumerate(arguments)]
    parsed, rest = parser.parse_known_args(spelled)
    if not rest:
        return parsed
    told = parsers().get(parsed.command, parser)
    if any(word.startswith("-") for word in rest):
        told.error(f"unknown flag: {next(word for word in rest if word.startswith('-'))}")
    if isinstance(getattr(parsed, "prompt", None), list):
        parsed.prompt = [*parsed.prompt, *rest]
    elif getattr(parsed, "prefix", None) == "" and len(rest) == 1:
        parsed.prefix = rest[0]
    else:
        told.error(f"unexpected argument: {rest[0]}")
    return parsed


def _refuse_unknown_command(arguments: list[str], parser: argparse.ArgumentParser) -> None:
    """Says which command may have been meant, where argparse would list them all."""
    if not arguments or arguments[0].startswith("-") or arguments[0] in BY_NAME:
        return
    from difflib import get_close_matches

    close = get_close_matches(arguments[0], BY_NAME, 1, 0.6)
    hint = f"did you mean `gemmule {close[0]}`?" if close else "`gemmule help` lists the commands"
    parser.exit(2, f'gemmule: unknown command "{arguments[0]}"\nhint: {hint}\n')

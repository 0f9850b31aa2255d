"""Completion scripts for bash, zsh and fish, made from the table of commands.

Model names come from `gemmule list` at the moment of completing; without a server there are none. The
scripts hold no path and no host. Called by main.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from gateway.cli.errors import OK
from gateway.cli.parser import COMMANDS, parsers

NAMES_MODELS = ("MODEL", "SOURCE", "PREFIX")
"""What arguments that stand for models that are there are called."""

NAMES_A_NEW_MODEL = ("create", "train")
LIST_NAMES = "gemmule list 2>/dev/null | awk 'NR>1 {print $1}'"


def completion(arguments: argparse.Namespace) -> int:
    """`gemmule completion SHELL`."""
    print({"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell](), end="")
    return OK


def takes_model() -> list[str]:
    """The commands, by name and alias, whose first argument is a model that is there."""
    return [
        name
        for name, parser in parsers().items()
        if name not in NAMES_A_NEW_MODEL
        and next((a.metavar for a in parser._actions if not a.option_strings), None) in NAMES_MODELS
    ]


def flags() -> dict[str, list[tuple[str, str]]]:
    """Long flags and their help by command name and alias, read from the parser itself."""
    return {
        name: [
            (option, action.help or "")
            for action in parser._actions
            for option in action.option_strings
            if option.startswith("--")
        ]
        for name, parser in parsers().items()
    }


def _names() -> list[str]:
    return [name for command in COMMANDS for name in (command.name, *command.aliases)]


def bash() -> str:
    cases = "".join(
        f"        {name}) words='{' '.join(option for option, _ in options)}' ;;\n"
        for name, options in flags().items()
    )
    return f"""# bash completion for gemmule: eval "$(gemmule completion bash)"
_gemmule() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} words=''
    _gemmule_join
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W '{" ".join(_names())} --help --version' -- "$current"))
        return
    fi
    case "$command" in
{cases}    esac
    if [[ $current != -* ]]; then
        case "$command" in
            {"|".join(takes_model())}) words=$({LIST_NAMES}) ;;
            help) words='{" ".join(_names())}' ;;
            completion) words='bash zsh fish' ;;
            *) COMPREPLY=($(compgen -f -- "$current")); return ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    _gemmule_trim
}}
# Readline parts words at the colon of `bud:latest`: look at the whole, answer with what follows the colon.
_gemmule_join() {{
    colon_prefix=''
    if [[ $COMP_WORDBREAKS == *:* ]]; then
        local line=${{COMP_LINE:0:COMP_POINT}}
        current=${{line##*[[:space:]]}}
        [[ $current == *:* ]] && colon_prefix=${{current%:*}}:
    fi
}}
_gemmule_trim() {{
    local i
    for i in "${{!COMPREPLY[@]}}"; do COMPREPLY[i]=${{COMPREPLY[i]#"$colon_prefix"}}; done
}}
complete -F _gemmule gemmule
"""


def zsh() -> str:
    commands = "\n".join(
        f"        '{name}:{_quoted(command.help)}'"
        for command in COMMANDS
        for name in (command.name, *command.aliases)
    )
    cases = "".join(
        f"        {name}) options=({' '.join(_zsh_option(*option) for option in options)}) ;;\n"
        for name, options in flags().items()
    )
    return f"""#compdef gemmule
# zsh completion for gemmule: source <(gemmule completion zsh)
_gemmule() {{
    local -a commands options models
    commands=(
{commands}
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    case $words[2] in
{cases}    esac
    if [[ $words[CURRENT] == -* ]]; then
        _describe option options
        return
    fi
    case $words[2] in
        {"|".join(takes_model())})
            models=(${{(f)"$({LIST_NAMES})"}})
            compadd -a models ;;
        help) _describe command commands ;;
        completion) compadd bash zsh fish ;;
        *) _files ;;
    esac
}}
compdef _gemmule gemmule
"""


def fish() -> str:
    lines = [
        "# fish completion for gemmule: gemmule completion fish | source",
        f"function __gemmule_models\n    {LIST_NAMES}\nend",
        "complete -c gemmule -f",
    ]
    for command in COMMANDS:
        for name in (command.name, *command.aliases):
            lines.append(
                f"complete -c gemmule -n __fish_use_subcommand -a {name} -d '{_quoted(command.help)}'"
            )
    lines += _fish_arguments()
    for name, options in flags().items():
        for option, text in options:
            lines.append(
                f"complete -c gemmule -n '__fish_seen_subcommand_from {name}' "
                f"-l {option.removeprefix('--')} -d '{_quoted(text)}'"
            )
    return "\n".join(lines) + "\n"


def _fish_arguments() -> Iterable[str]:
    seen = "complete -c gemmule -n '__fish_seen_subcommand_from"
    yield f"{seen} {' '.join(takes_model())}' -a '(__gemmule_models)'"
    yield f"{seen} create import export' -F"
    yield f"{seen} help' -a '{' '.join(_names())}'"
    yield f"{seen} completion' -a 'bash zsh fish'"


def _zsh_option(option: str, text: str) -> str:
    return f"'{option}:{_quoted(text)}'"


def _quoted(text: str) -> str:
    """Text for single quotes in all three shells; colons would part zsh's descriptions."""
    return text.replace("'", "").replace(":", ",")

"""The command line: every command has help with an example, faults are short, nothing heavy is loaded."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli.main import main
from gateway.cli.parser import COMMANDS, parse

ROOT = Path(__file__).resolve().parents[3]
HEAVY = (
    "jax",
    "jaxlib",
    "fastapi",
    "starlette",
    "pydantic",
    "numpy",
    "httpx2",
    "prompt_toolkit",
    "rich",
    "msgspec",
)
NOWHERE = {"GEMMULE_HOST": "127.0.0.1:9"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_ends_with_an_example_that_parses(command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command.name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.rstrip().endswith(command.example)
    assert main(["help", command.name]) == 0
    assert capsys.readouterr().out == text


def test_no_arguments_show_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(command.help in text for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], 'unknown command "fly"'),
        (["run"], "the following arguments are required: MODEL"),
        (["list", "--colour"], "unknown flag: --colour"),
        (["stop", "a", "b"], "unexpected argument: b"),
        (["help", "fly"], 'unknown command "fly"'),
    ],
)
def test_a_wrong_command_line_is_two_lines_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    first, hint = capsys.readouterr().err.splitlines()
    assert first.startswith(f"gemmule: {message}")
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    "line",
    [
        ["run", "bud", "tell", "me"],
        ["run", "--verbose", "bud", "tell", "me"],
        ["run", "bud", "--verbose", "tell", "me"],
        ["run", "bud", "tell", "--verbose", "me"],
        ["run", "bud", "tell", "me", "--verbose"],
    ],
)
def test_flags_may_stand_anywhere(line: list[str]) -> None:
    parsed = parse(line)
    assert (parsed.model, parsed.prompt) == ("bud", ["tell", "me"])


def test_a_bare_think_means_yes_and_takes_no_word_away() -> None:
    assert parse(["run", "--think", "bud", "hi"]).prompt == ["hi"]
    assert parse(["run", "--think", "bud"]).think == "true"
    assert parse(["run", "--think=low", "bud"]).think == "low"
    assert parse(["run", "bud", "--", "--think"]).prompt == ["--think"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["pul", "bud"], ['unknown command "pul"', "did you mean `gemmule pull`?"]),
        (["zzz"], ['unknown command "zzz"', "`gemmule help` lists the commands"]),
        (
            ["show", "bud", "--nonsense"],
            ["unknown flag: --nonsense", "`gemmule show --help` shows the usage"],
        ),
        (["ls", "a", "b"], ["unexpected argument: b", "`gemmule list --help` shows the usage"]),
        (["run"], ["the following arguments are required: MODEL", "`gemmule run --help` shows the usage"]),
    ],
)
def test_a_wrong_line_says_where_to_look(
    line: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse(line)
    assert leaving.value.code == 2
    first, hint = capsys.readouterr().err.splitlines()
    assert [first.removeprefix("gemmule: "), hint.removeprefix("hint: ")] == said


def test_words_of_one_prompt_do_not_stay_for_the_next() -> None:
    assert parse(["run", "--verbose", "bud", "--format", "json", "hi"]).prompt == ["hi"]
    assert parse(["run", "bud"]).prompt == []


def test_a_prefix_may_follow_a_flag() -> None:
    assert parse(["list", "--json", "gem"]).prefix == "gem"


def run_fresh(*arguments: str, code: str = "") -> tuple[subprocess.CompletedProcess[str], float]:
    """A command in a fresh interpreter, and the processor seconds it took (others may be busy here)."""
    program = (
        "import sys\nfrom gateway.cli.main import main\n"
        f"code = main({list(arguments)!r})\n{code}\nsys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=NOWHERE,
        timeout=30,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["ps"], ["run", "--help"]])
def test_nothing_heavy_is_loaded_and_it_is_quick(arguments: list[str]) -> None:
    code = f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done, seconds = run_fresh(*arguments, code=code)
    assert done.stderr.splitlines()[-1] == "[]"
    assert seconds < 0.25

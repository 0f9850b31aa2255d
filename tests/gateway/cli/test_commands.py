"""Commands as a user runs them, against a live server and a real store."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.completion import flags, takes_model
from gateway.cli.errors import EXIT_CODES, FAILED, NOT_FOUND, OK, UNREACHABLE, USAGE
from gateway.cli.main import main
from gateway.cli.parser import COMMANDS
from gateway.settings import VARIABLES
from tests.contract.ollama_support import write_stories
from tests.gateway.cli.golden import check_golden
from tests.gateway.cli.terminal import terminal
from tests.gateway.live import LiveServer

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).parent / "golden"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def gemmule(
    server: LiveServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs `gemmule ...` in a scratch folder with our server, in this process: starting one takes longer."""
    monkeypatch.chdir(tmp_path)
    settings = {
        "HOME": str(tmp_path),
        "GEMMULE_HOST": server.url,
        "GEMMULE_MODELS": str(server.folder / "models"),
        "GEMMULE_EXTRA_STORES": str(tmp_path / "none"),
    }

    def run(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        for name, value in (settings | variables).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main(list(arguments))
        written = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, written.out, written.err)

    return run


def out(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == OK, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_columns_of_list_and_ps(gemmule: Run) -> None:
    out(gemmule("run", "scripted", "hello"))
    heading, row = [line for line in out(gemmule("list", "scripted")).splitlines() if line]
    assert re.fullmatch(r"NAME {15}ID {14}SIZE +MODIFIED", heading)
    assert re.match(r"scripted:latest    [0-9a-f]{12}    0 B ", row)
    assert out(gemmule("ls", "scripted")) == out(gemmule("list", "scripted"))
    assert out(gemmule("list", "nothing-like-it")).split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    heading, row = out(gemmule("ps", "scripted")).splitlines()
    assert heading.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert re.search(r"1\.0 MB +100% CPU +\d+ +\d+ minutes from now$", row)


def test_json_for_programs(gemmule: Run) -> None:
    assert json.loads(out(gemmule("list", "--json", "scripted")))["models"][0]["name"] == "scripted:latest"
    assert "models" in json.loads(out(gemmule("ps", "--json")))
    assert "capabilities" in json.loads(out(gemmule("show", "scripted", "--json")))
    assert {check["name"] for check in json.loads(gemmule("doctor", "--json").stdout)["checks"]} >= {
        "python", "device", "jax", "kernels", "port", "disk", "memory", "store", "proxy",
    }  # fmt: skip


def test_answers_go_to_stdout_and_timings_to_stderr(gemmule: Run) -> None:
    done = gemmule("run", "scripted", "--verbose", "what is", "this")
    assert "what is this" in out(done)
    assert "eval count:" in done.stderr
    assert "tokens/s" in done.stderr
    piped = gemmule("run", "scripted", "and", "this", stdin="first\n")
    assert "first\n\nand this" in out(piped)
    assert piped.stderr == ""
    assert out(gemmule("run", "scripted")) == "", "nothing asked: the model is loaded"


def test_a_model_from_its_file_to_its_end(gemmule: Run, tmp_path: Path, shared_data: Path) -> None:
    write_stories(shared_data, tmp_path)
    assert gemmule("create", "cli/tale").stderr == "", "no bars when nobody watches"
    shown = out(gemmule("show", "cli/tale"))
    assert re.search(r"architecture +llama\n +parameters +260K\n +context length +512\n", shown)
    assert "  System\n    You tell stories.\n" in shown
    assert out(gemmule("show", "cli/tale", "--template")) == "{{ .Prompt }}\n"
    (tmp_path / "Again").write_text(out(gemmule("show", "cli/tale", "--modelfile")))
    out(gemmule("create", "cli/again", "--file", "Again"))
    same = {row["digest"] for row in json.loads(out(gemmule("list", "cli/", "--json")))["models"]}
    assert len(same) == 1
    (tmp_path / "Child").write_text("FROM cli/tale\nSYSTEM Be brief.\nPARAMETER top_k 3\n")
    out(gemmule("create", "cli/child", "-f", "Child"))
    assert out(gemmule("show", "cli/child", "--system")) == "Be brief.\n"
    assert out(gemmule("cp", "cli/child", "cli/copy")) == "copied 'cli/child' to 'cli/copy'\n"
    exported = tmp_path / "tale.tar"
    out(gemmule("export", "cli/tale", "-o", str(exported)))
    out(gemmule("import", str(exported), "--name", "cli/back"))
    assert out(gemmule("show", "cli/back", "--system")) == "You tell stories.\n"
    names = [f"cli/{name}" for name in ("tale", "again", "child", "copy", "back")]
    assert out(gemmule("rm", *names)).splitlines() == [f"deleted '{name}'" for name in names]
    assert gemmule("rm", "cli/tale", "cli/again").returncode == NOT_FOUND


def test_the_store_is_read_and_cleaned(gemmule: Run) -> None:
    assert "nothing wrong" in out(gemmule("fsck"))
    assert out(gemmule("prune")).startswith("removed ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "nope"], NOT_FOUND, "model 'nope' not found"),
        (["run", "scripted", "--format", "nofile", "x"], USAGE, '--format: "nofile" is neither json'),
        (["run", "scripted", "--think=very", "x"], USAGE, '--think: "very" is none of true, false'),
        (["run", "scripted", "--keepalive", "soon", "x"], USAGE, '--keepalive: invalid duration "soon"'),
        (["show", "scripted", "--system", "--license"], USAGE, "only one of '--license', '--modelfile'"),
        (["stop", "nope"], NOT_FOUND, "couldn't find model 'nope' to stop"),
        (["cp", "nope", "x"], NOT_FOUND, 'model "nope" not found'),
        (["create", "x", "-f", "absent"], FAILED, "cannot read absent: no such file or directory"),
        (["export", "nope", "-o", "x.tar"], NOT_FOUND, "model 'nope:latest' not found"),
        (["import", "absent.tar"], FAILED, "absent.tar: no such file"),
        (["create", "x"], FAILED, "unsupported format: "),
    ],
)
def test_faults_are_lines_on_stderr_with_a_stable_code(
    gemmule: Run, arguments: list[str], code: int, message: str
) -> None:
    done = gemmule(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith(f"gemmule: {message}")
    assert len(done.stderr.splitlines()) <= 2
    assert code in EXIT_CODES


@pytest.mark.parametrize(
    ("modelfile", "message"),
    [
        ("FROM ./absent.gguf\n", "./absent.gguf: no such file or folder"),
        ("FROM x\nTURN left\n", '(line 2, column 1): command must be one of "from"'),
        ("FROM x\nPARAMETER warmth 1\n", "(line 2, column 1): unknown parameter 'warmth'"),
        ("SYSTEM x\n", "no FROM line"),
        ("FROM ./text.gguf\n", "unsupported format: "),
    ],
)
def test_a_wrong_modelfile_is_named_before_anything_is_sent(
    gemmule: Run, tmp_path: Path, modelfile: str, message: str
) -> None:
    (tmp_path / "Modelfile").write_text(modelfile)
    (tmp_path / "text.gguf").write_text("no weights")
    done = gemmule("create", "x")
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert done.stderr.startswith(f"gemmule: {message}"), done.stderr


def test_without_a_server_every_command_says_how_to_start_one(gemmule: Run) -> None:
    for arguments in (["run", "bud", "hi"], ["list"], ["ps"], ["rm", "x"], ["create", "x"]):
        done = gemmule(*arguments, GEMMULE_HOST="127.0.0.1:9")
        assert done.returncode == UNREACHABLE
        first, hint = done.stderr.splitlines()
        assert first == "gemmule: no server answers at http://127.0.0.1:9 (connection refused)"
        assert hint.startswith("hint: start one with `gemmule serve`")


def test_bench_measures(gemmule: Run) -> None:
    sizes = ["--prompt", "20", "--tokens", "4", "--streams", "1", "2", "--rounds", "2"]
    printed = out(gemmule("bench", "scripted", *sizes, "--json"))
    assert printed.count("\n") == 1
    rows = json.loads(printed)["rows"]
    assert [(row["test"], row["streams"]) for row in rows] == [("pp20", 1), ("tg4", 1), ("tg4", 2)]
    assert all(row["tokens_per_second"] > 0 and row["per_stream"] > 0 for row in rows)
    assert all(row["first_token_p95"] >= row["first_token_p50"] > 0 for row in rows)


def test_completion_scripts_know_every_command(gemmule: Run) -> None:
    for shell in ("bash", "zsh", "fish"):
        script = out(gemmule("completion", shell))
        assert all(command.name in script for command in COMMANDS)
    assert gemmule("completion", "tcsh").returncode == USAGE


@pytest.fixture
def shell_environment(tmp_path: Path, server: LiveServer) -> dict[str, str]:
    """A home of its own and the command on the path."""
    (tmp_path / "gemmule").write_text(f'#!/bin/sh\nexec {sys.executable} -m gateway.cli.main "$@"\n')
    (tmp_path / "gemmule").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    own = {"PATH": path, "GEMMULE_HOST": server.url, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    return {**own, "TERM": "xterm", "LC_ALL": "C.UTF-8"}


def test_bash_completes_commands_flags_and_models(gemmule: Run, shell_environment: dict[str, str]) -> None:
    script = out(gemmule("completion", "bash"))

    def completed(line: str) -> list[str]:
        words = line.split(" ")
        driver = (
            f"{script}\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
            f"COMP_LINE='{line}'; COMP_POINT={len(line)}\n_gemmule\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(
            ["bash", "-c", driver], capture_output=True, text=True, env=shell_environment, check=True
        )
        return done.stdout.split()

    assert completed("gemmule cre") == ["create"]
    assert completed("gemmule run --hid") == ["--hidethinking"]
    assert completed("gemmule run scr") == ["scripted:latest"]
    assert completed("gemmule run scripted:la") == ["latest"]


@pytest.mark.slow
def test_fish_completes_commands_flags_and_models(shell_environment: dict[str, str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("no fish here")

    def completed(line: str) -> list[str]:
        driver = f"gemmule completion fish | source; complete --do-complete '{line}'"
        command = ["fish", "--no-config", "-c", driver]
        done = subprocess.run(command, capture_output=True, text=True, env=shell_environment, check=True)
        assert not done.stderr
        return [entry.split("\t")[0] for entry in done.stdout.splitlines()]

    assert completed("gemmule cre") == ["create"]
    assert completed("gemmule run --hid") == ["--hidethinking"]
    assert completed("gemmule run scr") == ["scripted:latest"]
    assert completed("gemmule run scripted:la") == ["scripted:latest"]
    assert completed("gemmule completion f") == ["fish"]


@pytest.mark.slow
def test_zsh_completes_commands_flags_and_models(shell_environment: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("no zsh here")
    (tmp_path / ".zshrc").write_text(
        "autoload -Uz compinit && compinit -u -D\nPS1='ready> '\nsource <(gemmule completion zsh)\n"
    )
    with terminal(["zsh", "-i"], shell_environment, tmp_path) as screen:
        screen.wait_for("ready> ", 30)
        for typed, rest in (
            ("gemmule cre\t", "ate"),
            ("gemmule run --hid\t", "ethinking"),
            ("gemmule run scr\t", "ipted:latest"),
        ):
            screen.type(typed)
            screen.wait_for(rest, 30)
            screen.type("\x15")


def test_only_commands_that_want_a_model_complete_one() -> None:
    found = takes_model()
    assert {"run", "show", "rm", "cp", "check", "ls", "bench"} <= set(found)
    assert not {"create", "import", "serve", "help", "fsck"} & set(found)


def test_the_manual_page_names_everything_and_is_clean(gemmule: Run, tmp_path: Path) -> None:
    page = out(gemmule("help", "--man"))
    for command in COMMANDS:
        assert f"\\fBgemmule {command.name}\\fR" in page
        for option, _ in flags()[command.name]:
            assert option == "--help" or option.replace("-", "\\-") in page
    assert all(variable.name in page for variable in VARIABLES)
    if shutil.which("groff") is None:
        pytest.skip("no groff here to read it")
    (tmp_path / "gemmule.1").write_text(page)
    command = ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", str(tmp_path / "gemmule.1")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stderr
    for line in (
        "gemmule run MODEL [PROMPT ...] [--keepalive DURATION]",
        "-f, --file FILE",
        "~/.ollama/models",
    ):
        assert line in " ".join(done.stdout.split())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_is_as_reviewed(
    command: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert main([command.name, "--help"]) == OK
    check_golden(GOLDEN / f"help-{command.name}.txt", capsys.readouterr().out)


def test_the_readme_lists_the_exit_codes() -> None:
    text = (ROOT / "gateway" / "cli" / "README.md").read_text()
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in text

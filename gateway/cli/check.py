"""The command check: loads a model in a process of its own and prints what it found, one line each.

Opens the store itself, so it works without a server and beside one; with `--compare` another program answers
too. Exit code 1 when something fails; warnings are 0. Knows neither tensors nor JAX:
`engines.decoder.checkup` does. Called by main.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import msgspec

from engines.process import CHECKUP_COMMAND, runner_environment
from gateway.cli.checks import Check
from gateway.cli.compare import TOKENS, compared, find_program
from gateway.cli.doctor import line
from gateway.cli.errors import FAILED, OK, CommandError
from gateway.cli.output import colours
from gateway.cli.progress import Waiting
from gateway.cli.store import open_store
from gateway.memory import find_gpus, has_cuda_build
from gateway.settings import Settings

if TYPE_CHECKING:
    from engines.decoder.checkup import Answer, Question


def check(arguments: argparse.Namespace) -> int:
    """`gemmule check MODEL [--compare [PROGRAM]] [--json]`."""
    from engines.decoder.checkup import Question

    program = find_program(arguments.compare) if arguments.compare is not None else None
    store = open_store()
    with store.lease(store.get(arguments.model)) as model, Waiting("loading the model"):
        adapter = next(iter(model.adapters), ())
        asked = Question(model.files, adapter, greedy=TOKENS if program and not adapter else 0)
        answer = examine(asked)
        found = [Check(**asdict(row)) for row in answer.rows]
        if program is not None and adapter:
            found.append(
                Check("greedy", "warn", "not compared: the model has an adapter", "compare its base")
            )
        elif program is not None and answer.greedy is not None:
            try:
                found += compared(program, model.files, answer.greedy)
            except CommandError as error:  # what was found without it is worth telling
                found.append(Check("greedy", "warn", f"not compared: {error}", error.hint))
    if arguments.json:
        rows = [asdict(row) for row in found]
        print(json.dumps({"model": model.name.display(), "checks": rows}, ensure_ascii=False, indent=2))
    else:
        for row in found:
            print(line(row, colours(sys.stdout)))
    return FAILED if any(row.state == "fail" for row in found) else OK


def examine(question: Question) -> Answer:
    """What the process found. Raises CommandError when it died, with its last words."""
    from engines.decoder.checkup import Answer

    done = subprocess.run(
        CHECKUP_COMMAND,
        input=msgspec.json.encode(question),
        env=runner_environment(device_variables()),
        capture_output=True,
    )
    if done.returncode != 0:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
        hint = "it may need more memory than there is free" if done.returncode < 0 else None
        raise CommandError(f"the check ended with code {done.returncode}: {last}", hint)
    return msgspec.json.decode(done.stdout, type=Answer)


def device_variables() -> dict[str, str]:
    """Where JAX is to compute, as the server would choose."""
    wanted = Settings.read(os.environ).device
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpu = wanted != "cpu" and has_cuda_build() and bool(find_gpus(visible))
    return {"JAX_PLATFORMS": "cuda" if gpu else "cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

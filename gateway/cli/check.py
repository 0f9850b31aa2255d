"""The command check: loads a model in a process of its own and prints what it found, one line each.

Opens the store itself, so it works without a server and beside one. Exit code 1 when something fails;
warnings are 0. Knows neither tensors nor JAX: `engines.decoder.checkup` does. Called by main.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from engines.process import runner_environment
from gateway.cli.checks import Check
from gateway.cli.doctor import line
from gateway.cli.errors import FAILED, OK, CommandError
from gateway.cli.output import colours
from gateway.cli.progress import Waiting
from gateway.cli.store import open_store
from gateway.memory import find_gpus, has_cuda_build
from gateway.settings import Settings
from modelfiles.files import ModelFile

COMMAND = (sys.executable, "-P", "-m", "engines.decoder.checkup")


def check(arguments: argparse.Namespace) -> int:
    """`gemmule check MODEL [--json]`."""
    store = open_store()
    with store.lease(store.get(arguments.model)) as model, Waiting("loading the model"):
        found = examine(model.files)
    if arguments.json:
        rows = [asdict(row) for row in found]
        print(json.dumps({"model": model.name.display(), "checks": rows}, ensure_ascii=False, indent=2))
    else:
        for row in found:
            print(line(row, colours(sys.stdout)))
    return FAILED if any(row.state == "fail" for row in found) else OK


def examine(files: Sequence[ModelFile]) -> list[Check]:
    """What the process found. Raises CommandError when it died, with its last words."""
    done = subprocess.run(
        COMMAND,
        input=json.dumps({"files": [asdict(file) for file in files]}),
        env=runner_environment(device_variables()),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        hint = "it may need more memory than there is free" if done.returncode < 0 else None
        raise CommandError(f"the check ended with code {done.returncode}: {last}", hint)
    return [Check(**row) for row in json.loads(done.stdout)["rows"]]


def device_variables() -> dict[str, str]:
    """Where JAX is to compute, as the server would choose."""
    wanted = Settings.read(os.environ).device
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpu = wanted != "cpu" and has_cuda_build() and bool(find_gpus(visible))
    return {"JAX_PLATFORMS": "cuda" if gpu else "cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

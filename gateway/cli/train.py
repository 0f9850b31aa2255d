"""The command train: makes an image classifier from folders of images and creates a model of it.

Training runs in a process of its own (`engines.classifier`), which loads JAX; the result goes through the
server like any model. Called by main.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from engines.process import runner_environment
from gateway.cli.connect import connect
from gateway.cli.create import create_body
from gateway.cli.errors import OK, CommandError
from gateway.cli.progress import Board, follow
from gateway.client import Client

COMMAND = (sys.executable, "-P", "-m", "engines.classifier")


def train(arguments: argparse.Namespace) -> int:
    """`gemmule train MODEL --images FOLDER [--epochs N] [--side N] [--seed N] [--output FOLDER]`."""
    if arguments.epochs < 1:
        raise CommandError(f"--epochs must be 1 or more, not {arguments.epochs}")
    client = None if arguments.output else connect(check=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.output or scratch)
        _train(arguments, folder)
        if client is not None:
            _create(client, arguments.model, folder)
        else:
            (folder / "Modelfile").write_text("FROM .\n")
            print(f"wrote {folder}; gemmule create {arguments.model} -f {folder / 'Modelfile'} installs it")
    return OK


def _train(arguments: argparse.Namespace, folder: Path) -> None:
    """Runs the training and prints a line for each epoch. Raises CommandError with its own words."""
    options = {"images": arguments.images, "output": folder, "epochs": arguments.epochs}
    options |= {"side": arguments.side, "seed": arguments.seed}
    command = [*COMMAND, *(f"--{name}={value}" for name, value in options.items())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=runner_environment())
    assert process.stdout is not None
    error = ""
    try:
        for line in process.stdout:
            told = json.loads(line)
            error = told.get("error", "")
            if not error:
                print(_line(told), flush=True)
    finally:
        process.terminate()
        process.stdout.close()
        code = process.wait()
    if error or code:
        raise CommandError(error or f"the training ended with code {code}")


def _line(told: dict[str, Any]) -> str:
    return (
        f"epoch {told['epoch']}/{told['epochs']}  loss {told['loss']:.3f}  "
        f"held-out images right {told['accuracy']:.1%}  {told['seconds']:.0f} s"
    )


def _create(client: Client, model: str, folder: Path) -> None:
    with Board() as board:
        body = create_body(client, b"FROM .\n", folder, board)
        body |= {"model": model, "name": model, "stream": True}
        follow(client.stream("/api/create", body), board)

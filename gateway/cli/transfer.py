"""The commands pull and push: one streamed request each, shown as bars. Called by main and by run."""

from __future__ import annotations

import argparse

from gateway.cli.connect import connect
from gateway.cli.errors import OK
from gateway.cli.progress import Board, follow
from gateway.client import Client


def pull(arguments: argparse.Namespace) -> int:
    """`gemmule pull MODEL`."""
    fetch(connect(check=True), arguments.model, arguments.insecure)
    return OK


def fetch(client: Client, model: str, insecure: bool) -> None:
    """Pulls a model with progress on stderr."""
    body = {"model": model, "name": model, "insecure": insecure, "stream": True}
    with Board() as board:
        follow(client.stream("/api/pull", body), board)


def push(arguments: argparse.Namespace) -> int:
    """`gemmule push MODEL`."""
    model = arguments.model
    body = {"model": model, "name": model, "insecure": arguments.insecure, "stream": True}
    with Board() as board:
        follow(connect(check=True).stream("/api/push", body), board)
    print(f"pushed '{model}'")
    return OK

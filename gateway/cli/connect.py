"""Finds the server the commands talk to: its address, a key for it, and a word when it is an Ollama."""

from __future__ import annotations

import os
from collections.abc import Mapping

from gateway.cli.errors import USAGE, CommandError
from gateway.cli.output import warn
from gateway.client import Client
from gateway.settings import DEFAULT_PORT, parse_host

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
SCHEMES = ("http://", "https://", "unix://")


def server_url(environment: Mapping[str, str]) -> str:
    """The URL that the environment means; a bare `host:port` is http, a wildcard address is this machine."""
    name = next((name for name in ("GEMMULE_HOST", "OLLAMA_HOST") if environment.get(name, "").strip()), "")
    text = environment.get(name, f"127.0.0.1:{DEFAULT_PORT}").strip().strip("\"'")
    if text.startswith("unix://"):
        return text
    try:
        host, port = parse_host(text)
    except ValueError as error:
        raise CommandError(f"{name}: {error}", code=USAGE) from None
    host = WILDCARDS.get(host, host)
    scheme = "https" if text.startswith("https://") else "http"
    path = text.split("://", 1)[-1].partition("/")[2].rstrip("/")
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{scheme}://{address}" + (f"/{path}" if path else "")


def connect(check: bool = False) -> Client:
    """A client of the configured server; with `check`, says so once when it is an Ollama.

    Raises ServerUnreachable with `check` when nothing answers.
    """
    client = Client(server_url(os.environ), os.environ.get("GEMMULE_API_KEY") or None)
    if check and client.server_version() is None:
        warn(f"note: the server at {client.url} is an Ollama, not gemmule; its models and its rules apply")
    return client

"""The command serve: hands over to the server, which reads its own settings. Called by main."""

from __future__ import annotations

import argparse


def serve(arguments: argparse.Namespace) -> int:
    """`gemmule serve`: returns when the server ends."""
    from gateway.server import main

    return main()

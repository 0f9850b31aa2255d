"""The command doctor: runs every check and prints one line each, with a fix below what needs one.

Exit code 1 when something fails; warnings are 0. Called by main.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import gateway
from gateway.cli import checks
from gateway.cli.checks import Check
from gateway.cli.connect import connect
from gateway.cli.errors import FAILED, OK
from gateway.cli.output import colours
from gateway.settings import Settings, SettingsError

NATIVE_FOLDER = Path(gateway.__file__).parent.parent / "engines" / "decoder" / "native"
COLOURS = {"ok": "32", "warn": "33", "fail": "31"}


def doctor(arguments: argparse.Namespace) -> int:
    """`gemmule doctor [--json]`."""
    found = []
    for check in examine():
        found.append(check)
        if not arguments.json:
            print(line(check, colours(sys.stdout)), flush=True)
    if arguments.json:
        print(json.dumps({"checks": [asdict(check) for check in found]}, ensure_ascii=False, indent=2))
    return FAILED if any(check.state == "fail" for check in found) else OK


def line(check: Check, coloured: bool) -> str:
    """`ok    python     3.11.7 at ...`, and the fix indented below."""
    state = f"{check.state:<5}"
    if coloured:
        state = f"\033[{COLOURS[check.state]}m{state}\033[0m"
    text = f"{state} {check.name:<9} {check.detail}"
    return f"{text}\n{'':<16}fix: {check.fix}" if check.fix else text


def examine() -> Iterator[Check]:
    """All checks, in the order a person would make them. A check that breaks is itself a finding."""
    yield checks.python_check()
    try:
        settings = Settings.read(os.environ)
    except SettingsError as error:
        yield Check("settings", "fail", str(error), "correct or unset the variable")
        return
    yield Check("settings", "ok", _overridden())
    for name, probe in _probes(settings):
        try:
            yield probe()
        except Exception as error:
            yield Check(name, "warn", f"could not be looked at: {type(error).__name__}: {error}")


def _probes(settings: Settings) -> list[tuple[str, Callable[[], Check]]]:
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    from gateway.memory import find_gpus, has_cuda_build

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [
        ("device", lambda: checks.device_check(find_gpus(visible), has_cuda_build(), settings.device)),
        ("jax", lambda: checks.jax_check(has_cuda_build())),
        ("kernels", lambda: checks.kernels_check(NATIVE_FOLDER, compiler)),
        ("port", lambda: checks.port_check(connect(), settings)),
        ("disk", lambda: checks.disk_check(settings.models)),
        ("memory", _memory),
        ("store", lambda: checks.store_check(settings.models, settings.extra_stores)),
        ("proxy", lambda: checks.proxy_check(os.environ)),
    ]


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    return checks.memory_check(memory.available, memory.total)


def _overridden() -> str:
    """Which variables are in force; values stay private."""
    names = sorted(name for name in os.environ if name.startswith(("GEMMULE_", "OLLAMA_")))
    return f"from {', '.join(names)}" if names else "all defaults"

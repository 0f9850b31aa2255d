"""The commands pull and push: one streamed request each, shown as bars. Called by main and by run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any

from gateway.cli.connect import connect
from gateway.cli.errors import OK
from gateway.cli.output import human_bytes
from gateway.cli.progress import Board, Waiting, follow
from gateway.client import Client


def pull(arguments: argparse.Namespace) -> int:
    """`gemmule pull MODEL [--dry-run] [--warm]`."""
    client, model = connect(check=True), arguments.model
    if arguments.dry_run:
        body = {"model": model, "name": model, "insecure": arguments.insecure, "dry_run": True}
        plans = [
            line["plan"] for line in client.stream("/api/pull", body | {"stream": True}) if "plan" in line
        ]
        print("".join(plan_text(plan, model) for plan in plans) or f"'{model}' comes with gemmule\n", end="")
        return OK
    fetch(client, model, arguments.insecure)
    if arguments.warm:
        print(f"loaded '{model}' in {warm(client, model):.1f} s; what was compiled is kept for later starts")
    return OK


def fetch(client: Client, model: str, insecure: bool) -> None:
    """Pulls a model; what it takes, and the progress, on stderr."""
    body = {"model": model, "name": model, "insecure": insecure, "stream": True}
    with Board() as board:
        follow(_with_plan(client.stream("/api/pull", body), model, board, sys.stderr), board)


def _with_plan(
    lines: Iterable[dict[str, Any]], model: str, board: Board, stream: IO[str]
) -> Iterator[dict[str, Any]]:
    """The lines, and the plan among them written out above the bars where there is something to fetch."""
    for line in lines:
        plan = line.get("plan")
        if plan and plan.get("download_bytes"):
            board.clear()
            stream.write(plan_text(plan, model))
            stream.flush()
        yield line


def plan_text(plan: dict[str, Any], model: str) -> str:
    """What a pull takes, one line for each thing that may be short."""
    total, missing = plan.get("total_bytes", 0), plan.get("download_bytes", 0)
    size = human_bytes(missing) + (f" of {human_bytes(total)}" if missing < total else "")
    if total and not missing:
        size = "nothing: it is here"
    if not plan.get("sizes_known", True):
        size = f"at least {size}: the source does not tell all sizes"
    free = human_bytes(plan.get("disk_free_bytes", 0))
    rows = [("download", size), ("disk", f"{free} free, {_verdict(plan.get('fits_disk'))}")]
    rows.append(("memory", _memory(plan)))
    if plan.get("quantizations"):
        rows.append(("quantization", _quantization(plan, model)))
    return "".join(f"{name:<14}{text}\n" for name, text in rows)


def _memory(plan: dict[str, Any]) -> str:
    if obstacle := plan.get("obstacle"):
        return f"cannot be served here: {obstacle}"
    if "memory_bytes" not in plan:
        return "known once it is here"
    needed, budget = human_bytes(plan["memory_bytes"]), human_bytes(plan["memory_budget_bytes"])
    text = f"{needed} of {budget} with a context of {plan.get('context_length')} tokens"
    if plan.get("fits_memory"):
        return f"{text}, fits"
    more = "" if plan.get("quantizations") else "; registries do not list other sizes, its page does"
    return f"{text}, does not fit{more}"


def _quantization(plan: dict[str, Any], model: str) -> str:
    """The one that was chosen, and the largest that fits where that is another."""
    chosen, best = plan.get("quantization") or "as named", plan.get("largest_that_fits")
    if not best and plan.get("fits_memory") is False:
        return f"{chosen}; none is known to fit"
    if not best:
        return f"{chosen} of {', '.join(name for name in plan['quantizations'] if name)}"
    if best == plan.get("quantization"):
        return f"{chosen}, the largest that fits"
    size = human_bytes(plan["quantizations"][best])
    return f"{chosen}; the largest that fits is {best} ({size}): {_with_selector(model, best)}"


def _with_selector(model: str, quantization: str) -> str:
    """The reference that asks for another quantization of the same repository."""
    reference, at, revision = model.partition("@")
    scheme, separator, rest = reference.rpartition("://")
    repository = "/".join(rest.partition(":")[0].split("/")[:3])
    return f"{scheme}{separator}{repository}:{quantization}{at}{revision}"


def _verdict(fits: bool | None) -> str:
    return "fits" if fits else "does not fit"


def warm(client: Client, model: str) -> float:
    """Loads a model, which compiles what it needs and keeps that for later starts; returns the seconds."""
    began = time.monotonic()
    with Waiting(f"loading {model}"):
        client.request("POST", "/api/generate", {"model": model, "stream": False})
    return time.monotonic() - began


def push(arguments: argparse.Namespace) -> int:
    """`gemmule push MODEL`."""
    model = arguments.model
    body = {"model": model, "name": model, "insecure": arguments.insecure, "stream": True}
    with Board() as board:
        follow(connect(check=True).stream("/api/push", body), board)
    print(f"pushed '{model}'")
    return OK

"""The commands that look at models and name them: list, ps, show, cp, rm, stop.

Each is one or two requests and a table. Called by main.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from gateway.cli.connect import connect
from gateway.cli.errors import NOT_FOUND, OK, USAGE, CommandError, explain
from gateway.cli.output import human_bytes, human_time, parse_time, sections, table, warn, width
from gateway.client import Client, ServerRefused

PARTS = ("license", "modelfile", "parameters", "system", "template")
ID_LENGTH = 12
LIST_COLUMNS = 10


def list_models(arguments: argparse.Namespace) -> int:
    """`gemmule list [PREFIX]`."""
    models = _matching(connect(check=True).request("GET", "/api/tags"), arguments.prefix)
    if arguments.json:
        return _print_json({"models": models})
    now = datetime.now(UTC)
    rows = [
        (
            str(model.get("name")),
            str(model.get("digest"))[:ID_LENGTH],
            "-" if model.get("remote_model") else human_bytes(model.get("size", 0)),
            human_time(parse_time(model.get("modified_at")), now, "Never"),
        )
        for model in models
    ]
    print(table(("NAME", "ID", "SIZE", "MODIFIED"), rows), end="")
    return OK


def list_running(arguments: argparse.Namespace) -> int:
    """`gemmule ps [PREFIX]`."""
    models = _matching(connect(check=True).request("GET", "/api/ps"), arguments.prefix)
    if arguments.json:
        return _print_json({"models": models})
    now = datetime.now(UTC)
    rows = [
        (
            str(model.get("name")),
            str(model.get("digest"))[:ID_LENGTH],
            human_bytes(model.get("size", 0)),
            processor(model.get("size", 0), model.get("size_vram", 0)),
            str(model.get("context_length", "")),
            _until(parse_time(model.get("expires_at")), now),
        )
        for model in models
    ]
    print(table(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows), end="")
    return OK


def processor(size: int, on_gpu: int) -> str:
    """Where a model lies: `100% CPU`, `100% GPU`, `48%/52% CPU/GPU`."""
    if on_gpu <= 0:
        return "100% CPU"
    if on_gpu >= size:
        return "100% GPU"
    cpu = round((size - on_gpu) / size * 100)
    return f"{cpu}%/{100 - cpu}% CPU/GPU"


def copy(arguments: argparse.Namespace) -> int:
    """`gemmule cp SOURCE DESTINATION`."""
    body = {"source": arguments.source, "destination": arguments.destination}
    connect(check=True).request("POST", "/api/copy", body)
    print(f"copied '{arguments.source}' to '{arguments.destination}'")
    return OK


def remove(arguments: argparse.Namespace) -> int:
    """`gemmule rm MODEL...`: every model is tried; the first fault decides the exit code."""
    client = connect(check=True)
    code = OK
    for model in arguments.models:
        try:
            _unload(client, model)
            client.request("DELETE", "/api/delete", {"model": model, "name": model})
            print(f"deleted '{model}'")
        except ServerRefused as error:
            fault = explain(error)
            warn(str(fault))
            code = code or fault.code
    return code


def stop(arguments: argparse.Namespace) -> int:
    """`gemmule stop MODEL`."""
    try:
        connect(check=True).request("POST", "/api/generate", {"model": arguments.model, "keep_alive": 0})
    except ServerRefused as error:
        if error.status == 404:
            hint = "`gemmule ps` shows the models that run"
            raise CommandError(f"couldn't find model '{arguments.model}' to stop", hint, NOT_FOUND) from None
        raise
    return OK


def _unload(client: Client, model: str) -> None:
    """A model being removed should not stay loaded; one that is not there is the next step's fault."""
    try:
        client.request("POST", "/api/generate", {"model": model, "keep_alive": 0})
    except ServerRefused as error:
        if error.status not in (400, 404):
            raise


def show(arguments: argparse.Namespace) -> int:
    """`gemmule show MODEL`, whole or one part."""
    chosen = [part for part in PARTS if getattr(arguments, part)]
    if len(chosen) > 1:
        names = ", ".join(f"'--{part}'" for part in PARTS[:-1]) + f", or '--{PARTS[-1]}'"
        raise CommandError(f"only one of {names} can be specified", code=USAGE)
    body = {"model": arguments.model, "name": arguments.model, "verbose": arguments.verbose}
    shown = connect(check=True).request("POST", "/api/show", body)
    if arguments.json:
        return _print_json(shown)
    if chosen:
        print(shown.get(chosen[0], ""))
        return OK
    print(sections(description(shown, arguments.verbose)), end="")
    return OK


Block = tuple[str, Sequence[Sequence[str]]]


def description(shown: dict[str, Any], verbose: bool) -> list[Block]:
    """The blocks of `show`, in Ollama's order and words."""
    blocks: list[Block] = [("Model", _model_rows(shown))]
    if capabilities := shown.get("capabilities"):
        blocks.append(("Capabilities", [(name,) for name in capabilities]))
    if parameters := shown.get("parameters"):
        blocks.append(
            ("Parameters", [line.split(None, 1) for line in parameters.splitlines() if line.strip()])
        )
    info = shown.get("model_info") or {}
    if verbose and info:
        blocks.append(("Metadata", [(name, _value(info[name])) for name in sorted(info)]))
    if verbose and (tensors := shown.get("tensors")):
        rows = [(entry["name"], entry["type"], str(entry["shape"]).replace(",", "")) for entry in tensors]
        blocks.append(("Tensors", rows))
    if system := shown.get("system"):
        blocks.append(("System", _head(system)))
    if license_text := shown.get("license"):
        blocks.append(("License", _head(license_text)))
    return blocks


def _model_rows(shown: dict[str, Any]) -> list[tuple[str, str]]:
    info = shown.get("model_info") or {}
    details = shown.get("details") or {}
    architecture = str(info.get("general.architecture", "") or details.get("family", ""))
    rows = [("architecture", architecture)]
    rows.append(("parameters", str(details.get("parameter_size", ""))))
    for key, label in (("context_length", "context length"), ("embedding_length", "embedding length")):
        value = info.get(f"{architecture}.{key}", details.get(key))
        if value is not None:
            rows.append((label, str(int(value))))
    rows.append(("quantization", str(details.get("quantization_level", ""))))
    if shown.get("requires"):
        rows.append(("requires", str(shown["requires"])))
    return [row for row in rows if row[1]]


def _head(text: str) -> list[tuple[str]]:
    """The first two lines that say something, and dots for the rest."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) <= 2:
        return [(line,) for line in lines]
    return [(line,) for line in [*lines[:2], "..."]]


def _value(value: Any) -> str:
    """A metadata value on one line; of an array, what fits a narrow column, and how much more there is."""
    if isinstance(value, list):
        shown = [str(item) for item in value]
        taken, columns = 0, 1
        for text in shown:
            columns += width(text) + (2 if taken else 0)
            if taken and columns > LIST_COLUMNS:
                break
            taken += 1
        rest = f" ...+{len(shown) - taken} more" if taken < len(shown) else ""
        return f"[{' '.join(shown[:taken])}{rest}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _until(expires: datetime | None, now: datetime) -> str:
    if expires is not None and expires.year > 1 and expires <= now:
        return "Stopping..."
    return human_time(expires, now, "Never")


def _matching(reply: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    wanted = prefix.lower()
    return [
        model for model in reply.get("models") or [] if str(model.get("name", "")).lower().startswith(wanted)
    ]


def _print_json(value: Any) -> int:
    print(json.dumps(value, ensure_ascii=False, indent=2))
    return OK

"""The commands that open the store themselves: fsck, prune, export, import.

They work without a server and beside a running one: the store's own locks keep both apart. Called by main.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from gateway.cli.errors import FAILED, OK, USAGE, CommandError
from gateway.cli.output import human_bytes, warn
from gateway.cli.progress import Board
from gateway.settings import Settings, SettingsError
from registry.errors import RegistryError
from registry.manifests import Problem
from registry.progress import OnProgress, Progress
from registry.store import Store
from registry.transfer import export_model, import_model


def open_store(make: bool = True) -> Store:
    """The store that the environment names, as the server opens it; raises CommandError, also where there is
    none and none is to be made."""
    try:
        settings = Settings.read(os.environ)
    except SettingsError as error:
        raise CommandError(str(error), code=USAGE) from None
    if not make and not (settings.models / "blobs").is_dir():
        raise CommandError(f"there is no store at {settings.models}")
    return Store.open(
        settings.models, [path for path in settings.extra_stores if (path / "manifests").is_dir()]
    )


def fsck(arguments: argparse.Namespace) -> int:
    """`gemmule fsck [--repair] [--fetch]`: code 1 when something is wrong that was not fetched again."""
    store = open_store()
    report = store.fsck(repair=arguments.repair or arguments.fetch)
    for problem in report.problems:
        print(f"{problem.path}: {problem.message}")
    for path in report.quarantined:
        print(f"moved to quarantine: {path}")
    found = "nothing wrong" if not report.problems else f"{_count(len(report.problems), 'problem')} found"
    what = (
        f"{_count(report.models, 'model')}, {_count(report.blobs, 'blob')}, {human_bytes(report.bytes)} read"
    )
    print(f"{what}: {found}")
    if arguments.fetch:
        fetched = asyncio.run(fetch_again(store, report.problems))
        for digest in sorted(fetched):
            print(f"fetched again: {digest}")
        return OK if all(problem.digest in fetched for problem in report.problems) else FAILED
    if report.problems and not arguments.repair:
        print(
            "hint: `gemmule fsck --repair` moves what is damaged aside, `--fetch` gets it again where it "
            "came from a registry or from Hugging Face",
            file=sys.stderr,
        )
    return FAILED if report.problems else OK


async def fetch_again(store: Store, problems: Sequence[Problem]) -> set[str]:
    """Gets what is damaged, and nothing else, from where its models came; returns the digests that came."""
    from modelfiles.describe import describe
    from registry.pull import ClientSettings, Puller

    puller = Puller(store, ClientSettings(environment=dict(os.environ)), describe)
    lost = {problem.digest: problem.models for problem in problems if problem.digest}
    fetched: set[str] = set()
    try:
        for name in dict.fromkeys(name for models in lost.values() for name in models):
            wanted = {digest for digest, models in lost.items() if name in models} - fetched
            try:
                fetched |= await puller.fetch_again(name, wanted) if wanted else set()
            except RegistryError as error:
                warn(f"{name}: {error}")
    finally:
        await puller.close()
    return fetched


def prune(arguments: argparse.Namespace) -> int:
    """`gemmule prune`: removes what no model uses, and partial downloads."""
    report = open_store().prune()
    if report.skipped:
        raise CommandError(f"nothing was removed: {report.skipped}", "`gemmule fsck` shows what is wrong")
    removed = [_count(report.blobs, "blob")]
    if report.leftovers:
        removed.append(_count(report.leftovers, "leftover file"))
    print(f"removed {' and '.join(removed)}, {human_bytes(report.bytes)}")
    return OK


def export(arguments: argparse.Namespace) -> int:
    """`gemmule export MODEL [-o FILE]`: one tar, to a file that appears only when it is complete."""
    store = open_store()
    if arguments.output in (None, "-"):
        if sys.stdout.isatty():
            raise CommandError("refusing to write a model to a terminal", "name a file: -o model.tar", USAGE)
        export_model(store, arguments.model, sys.stdout.buffer)
        return OK
    with Board() as board, _whole_file(Path(arguments.output)) as target:
        export_model(store, arguments.model, target, _shown_on(board))
    return OK


def import_(arguments: argparse.Namespace) -> int:
    """`gemmule import FILE [--name MODEL]`."""
    source = Path(arguments.file)
    if not source.is_file():
        raise CommandError(f"{source}: no such file")
    with Board() as board:
        model = import_model(open_store(), source, arguments.name, _shown_on(board))
    print(f"imported '{model.name}'")
    return OK


def _shown_on(board: Board) -> OnProgress:
    def show(progress: Progress) -> None:
        board.update(progress.status, progress.completed or 0, progress.total or 0)

    return show


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file under another name until it is complete; removed when it never is."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as target:
            yield target
        part.replace(path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    finally:
        part.unlink(missing_ok=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

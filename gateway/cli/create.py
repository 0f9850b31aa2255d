"""The command create: reads a Modelfile here, uploads the files it names, and lets the server make the model.

The Modelfile is parsed on this side, since its paths mean files of this machine. Called by main.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gateway.cli.connect import connect
from gateway.cli.errors import OK, CommandError
from gateway.cli.progress import Board, follow
from gateway.client import Client

if TYPE_CHECKING:
    from modelfiles.modelfile import Modelfile

READ_CHUNK = 1 << 20
DEFAULT_FILE = "Modelfile"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def create(arguments: argparse.Namespace) -> int:
    """`gemmule create MODEL [-f FILE] [-q TYPE]`; without a Modelfile the folder itself is the model."""
    data, folder = read_modelfile(arguments.file)
    client = connect(check=True)
    with Board() as board:
        board.update("gathering model components")
        body = create_body(client, data, folder, board)
        body |= {"model": arguments.model, "name": arguments.model, "stream": True}
        if arguments.quantize:
            body["quantize"] = arguments.quantize
        follow(client.stream("/api/create", body), board)
    return OK


def read_modelfile(given: str | None) -> tuple[bytes, Path]:
    """The bytes and the folder that its relative paths start from. Raises CommandError."""
    path = Path(given or DEFAULT_FILE)
    if given is None and not path.exists():
        return b"FROM .\n", Path.cwd()
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CommandError(f"cannot read {path}: {reason}", "-f names the Modelfile") from None
    return data, path.absolute().parent


def create_body(client: Client, data: bytes, folder: Path, board: Board) -> dict[str, Any]:
    """The body of /api/create that a Modelfile asks for, once its files are uploaded."""
    from modelfiles.modelfile import Modelfile, ModelfileError
    from registry.errors import RegistryError

    try:
        modelfile = Modelfile.parse(data)
        body = _texts(modelfile)
        for base in (modelfile.base, *modelfile.bases):
            weights = _local(base, folder)
            if weights is None:
                body["from"] = base
            else:
                body.setdefault("files", {}).update(_upload(client, weights, board))
        for adapter in modelfile.adapters:
            found = _local(adapter, folder)
            if found is None:
                raise CommandError(f"ADAPTER {adapter}: no such file or folder")
            body.setdefault("adapters", {}).update(_upload(client, found, board))
    except (ModelfileError, RegistryError) as error:
        raise CommandError(str(error)) from None
    return body


def _texts(modelfile: Modelfile) -> dict[str, Any]:
    body: dict[str, Any] = {
        "template": modelfile.template,
        "system": modelfile.system,
        "license": list(modelfile.licenses),
        "parameters": modelfile.typed_parameters(),
        "messages": [{"role": turn.role, "content": turn.text} for turn in modelfile.messages],
        "renderer": modelfile.renderer,
        "parser": modelfile.parser,
        "requires": modelfile.requires,
    }
    return {key: value for key, value in body.items() if value}


def _local(reference: str, folder: Path) -> Path | None:
    """The file or folder a FROM or ADAPTER means; None when it is the name of a model."""
    path = folder / Path(reference).expanduser()
    if path.exists():
        return path
    looks_like_a_path = reference.startswith(("/", "./", "../", "~")) or reference.endswith(".gguf")
    if looks_like_a_path:
        raise CommandError(f"{reference}: no such file or folder", f"paths start from {folder}")
    return None


def _upload(client: Client, path: Path, board: Board) -> dict[str, str]:
    """Uploads what the server lacks; returns digests by file name."""
    digests = {}
    for name, file, cached in model_files(path):
        size = file.stat().st_size
        digest = _hash(file, board)
        digests[name] = digest
        if client.has_blob(digest) or (cached and _link(client, file, digest)):
            continue
        for sent in client.upload_blob(digest, file):
            board.update(f"copying file {digest}", sent, size)
    return digests


def _link(client: Client, file: Path, digest: str) -> bool:
    """Gives a file of a hub's cache a second name in the store of this machine, instead of a second copy.

    Whether that is the server's store too is for the server to say: False where it does not see the file.
    """
    from gateway.cli.store import open_store
    from registry.blobs import parse_digest
    from registry.errors import RegistryError

    if urlsplit(client.url).hostname not in LOOPBACK:
        return False
    with contextlib.suppress(RegistryError, OSError, CommandError):
        store = open_store(make=False)
        if store.writable:
            store.blobs.put_file(file, parse_digest(digest), link=True)
            return client.has_blob(digest)
    return False


def model_files(path: Path) -> Iterable[tuple[str, Path, bool]]:
    """The files of a model by the names they get, a lone file by its own, and whether a hub's client keeps
    them, which replaces files but never changes them."""
    from registry.sources.local import is_llamafile, parts_of_path

    if path.is_file() and is_llamafile(path):
        return [(path.with_suffix(".llamafile").name, path, False)]
    return [(part.name or part.path.name, part.path, part.linkable) for part in parts_of_path(path)]


def _hash(file: Path, board: Board) -> str:
    size, read, state = file.stat().st_size, 0, hashlib.sha256()
    with file.open("rb") as source:
        while chunk := source.read(READ_CHUNK):
            state.update(chunk)
            read += len(chunk)
            board.update(f"hashing {file.name}", read, size)
    return f"sha256:{state.hexdigest()}"

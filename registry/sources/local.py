"""Models as they lie on a disk or were uploaded: which files make up a model, and what each is.

Looks at names and first bytes only. A `Part` is a file that will become one layer. Files that hold code
when loaded (pickles) are refused, and so is a symbolic link that leaves the folder it lies in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from registry.errors import InvalidModelfile, UnsupportedFormat
from registry.manifest import LAYER_LIMIT, safe_relative
from registry.model import TOKENIZER_NAMES

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib"})
_TEXTS = frozenset({".json", ".jinja", ".txt"})
_ORBAX_MARKS = frozenset({"_METADATA", "_CHECKPOINT_METADATA", "checkpoint", "manifest.ocdbt"})
BESIDE = "tokenizer.model"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a model to be: the kind of its layer, its name (None where one file is the whole model)."""

    kind: str
    name: str | None
    path: Path
    linkable: bool = False
    """Whether its owner replaces files instead of changing them (a hub cache): then a hard link will do."""


def first_bytes(path: Path, count: int = 8) -> bytes:
    """The beginning of a regular file; raises UnsupportedFormat for anything else, like a device."""
    if not path.is_file():
        raise UnsupportedFormat(f"{path.name!r} is no regular file")
    with path.open("rb") as file:
        return file.read(count)


def is_llamafile(path: Path) -> bool:
    """Whether the file is an executable (or a zip) with a GGUF in the zip at its end."""
    return path.suffix == ".llamafile" or first_bytes(path).startswith((b"MZqFpD", b"PK\x03\x04"))


def parts_of_path(path: Path, tokenizer: Path | None = None) -> list[Part]:
    """The parts of the model at `path`, a GGUF file or a folder; raises UnsupportedFormat.

    `tokenizer` is where the tokenizer of a folder lies, where not in it.
    """
    if path.is_dir():
        return classify(_with_tokenizer(path, _files_below(path), tokenizer), path.name)
    if first_bytes(path).startswith(b"GGUF"):
        shards = _shards(path)
        return classify({shard.name: shard for shard in shards}, path.name)
    raise _unsupported(path.name)


def _shards(path: Path) -> list[Path]:
    if not _SHARD.search(path.name):
        return [path]
    stem = path.name[: -len("-00001-of-00001.gguf")]
    return sorted(path.parent.glob(f"{stem}-?????-of-{path.name[-10:]}"))


def _files_below(folder: Path) -> dict[str, Path]:
    """Every file below the folder by its relative name; links that leave it are refused."""
    allowed = [folder.resolve()]
    if folder.parent.name == "snapshots":  # a hub cache: its snapshots are links into the blobs beside them
        allowed.append(folder.resolve().parents[1] / "blobs")
    found: dict[str, Path] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place) / name
            target = path.resolve()
            if not any(target.is_relative_to(root) for root in allowed):
                raise InvalidModelfile(
                    f"insecure path: {path.relative_to(folder)} is a link out of its folder"
                )
            found[path.relative_to(folder).as_posix()] = path
            if len(found) > 4 * LAYER_LIMIT:
                raise UnsupportedFormat(f"folder {folder.name!r} holds too many files to be a model")
    return found


def _with_tokenizer(folder: Path, files: dict[str, Path], tokenizer: Path | None) -> dict[str, Path]:
    """Kaggle's archives of Gemma have the tokenizer beside the checkpoint's folder, not in it."""
    if tokenizer is not None:
        others = {name: path for name, path in files.items() if path.name not in TOKENIZER_NAMES}
        return others | {tokenizer.name if tokenizer.name in TOKENIZER_NAMES else BESIDE: tokenizer}
    beside = folder.resolve().parent / BESIDE
    has_one = any(path.name in TOKENIZER_NAMES for path in files.values())
    if has_one or _orbax_tree(list(files)) is None or not beside.is_file() or beside.is_symlink():
        return files
    return files | {BESIDE: beside}


def kinds_of_names(names: Sequence[str], shown: str) -> list[tuple[str, str]]:
    """The kind of layer that each file becomes, told from the names alone; files of no use are left out.

    The first that applies: safetensors, an Orbax tree, GGUF; each with the JSON, templates and tokenizers
    beside it. `shown` names the collection in errors.
    """
    names = [safe_relative(name) for name in names]
    tokenizers = [name for name in names if PurePosixPath(name).name in TOKENIZER_NAMES]
    texts = [name for name in names if PurePosixPath(name).suffix in _TEXTS and name not in tokenizers]
    weights = _safetensors(names)
    tree = _orbax_tree(names)
    if not weights and tree is not None:
        beside = {*tokenizers, *(name for name in texts if "/" not in name)}
        weights = [name for name in names if name.startswith(tree) and name not in beside]
        texts = [name for name in texts if name not in weights]
    if weights:
        chosen = (("model", weights), ("tokenizer", tokenizers), ("json", texts))
        return [(kind, name) for kind, group in chosen for name in group]
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    projectors = [name for name in ggufs if "mmproj" in name.lower()]
    weights = [name for name in ggufs if name not in projectors]
    if not weights:
        raise _unsupported(shown, names)
    if len(weights) > 1 and not all(_SHARD.search(name) for name in weights):
        raise UnsupportedFormat(
            f"{shown!r} holds several GGUF models ({', '.join(weights[:5])}); name one of them"
        )
    return [("model", name) for name in weights] + [("projector", name) for name in projectors]


def classify(files: Mapping[str, Path], shown: str) -> list[Part]:
    """The parts among these files; a lone GGUF is known by its first bytes, whatever its name."""
    if len(files) == 1:
        ((name, path),) = files.items()
        if first_bytes(path).startswith(b"GGUF"):
            return [Part("model", None, path, _is_cached(path))]
        if not name.endswith(".safetensors"):
            raise _unsupported(name)
    kinds = kinds_of_names(list(files), shown)
    for _, name in kinds:
        if name.lower().endswith(".gguf") and not first_bytes(files[name]).startswith(b"GGUF"):
            raise UnsupportedFormat(f"unsupported format: {name!r} is no GGUF file")
    single = sum(kind == "model" for kind, _ in kinds) == 1
    return [
        Part(
            kind,
            None if single and name.lower().endswith(".gguf") else name,
            files[name],
            _is_cached(files[name]),
        )
        for kind, name in kinds
    ]


def _is_cached(path: Path) -> bool:
    """Whether a hub's own client keeps the file: Hugging Face's has links, Kaggle's marks whole versions."""
    if path.is_symlink():
        return True
    return any(
        folder.name.isdecimal() and folder.with_name(f"{folder.name}.complete").exists()
        for folder in path.parents
    )


def _safetensors(names: Sequence[str]) -> list[str]:
    """`model*.safetensors` where there are any, else all; what `consolidated*` repeats is left out."""
    found = [name for name in names if name.endswith(".safetensors")]
    named = [name for name in found if PurePosixPath(name).name.startswith("model")]
    plain = [name for name in found if not PurePosixPath(name).name.startswith("consolidated")]
    return named or plain or found


def _orbax_tree(names: Sequence[str]) -> str | None:
    """The prefix below which an Orbax checkpoint lies: "" for the folder itself, None when there is none."""
    marked = [PurePosixPath(name) for name in names if PurePosixPath(name).name in _ORBAX_MARKS]
    if not marked:
        return None
    shallowest = min(marked, key=lambda path: len(path.parts))
    prefix = shallowest.parent.as_posix()
    return "" if prefix == "." else f"{prefix}/"


def _unsupported(shown: str, names: Iterable[str] = ()) -> UnsupportedFormat:
    pickles = [name for name in [shown, *names] if PurePosixPath(name).suffix.lower() in PICKLES]
    if pickles:
        return UnsupportedFormat(
            f"unsupported format: {pickles[0]!r} can run code when it is loaded; "
            "convert it to safetensors or GGUF"
        )
    return UnsupportedFormat(
        f"unsupported format: {shown!r} holds no GGUF, no safetensors and no Orbax checkpoint"
    )

"""What the JSON files beside a tokenizer say of its special tokens: one reader for three files.

tokenizer_config.json names BOS, EOS and the chat template; generation_config.json and config.json list the
ids that end a turn. Missing files are fine; malformed ones are errors that name the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelfiles.files import ModelFile
from modelfiles.tokenizer_base import TokenizerError

__all__ = ["SpecialTokens", "file_named", "read_json", "read_special_tokens"]

MAX_JSON_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """`add_bos` and `legacy` are None where nothing says so; `end_token_ids` in the order found."""

    bos_token: str | None = None
    eos_token: str | None = None
    add_bos: bool | None = None
    legacy: bool | None = None
    end_token_ids: tuple[int, ...] = ()
    special_texts: tuple[str, ...] = ()


def read_special_tokens(files: Sequence[ModelFile]) -> SpecialTokens:
    """Gather from the files of one model. Raises `TokenizerError` naming a malformed file."""
    config = read_json(file_named(files, "tokenizer_config.json"))
    added = config.get("added_tokens_decoder")
    texts = (
        [_text(entry) for entry in added.values() if entry_is_special(entry)]
        if isinstance(added, dict)
        else []
    )
    ends: list[int] = []
    for name in ("generation_config.json", "config.json"):
        ends += _ids(read_json(file_named(files, name)).get("eos_token_id"))
    return SpecialTokens(
        bos_token=_text(config.get("bos_token")),
        eos_token=_text(config.get("eos_token")),
        add_bos=_flag(config.get("add_bos_token")),
        legacy=_flag(config.get("legacy")),
        end_token_ids=tuple(dict.fromkeys(ends)),
        special_texts=tuple(text for text in texts if text),
    )


def file_named(files: Sequence[ModelFile], name: str) -> ModelFile | None:
    """The file of that base name, the one nearest to the top folder."""
    found = [file for file in files if file.name.rpartition("/")[2] == name]
    return min(found, key=lambda file: file.name.count("/"), default=None)


def read_json(file: ModelFile | None) -> dict[str, Any]:
    """The object in a JSON file; empty for None. Raises `TokenizerError` for anything but a JSON object."""
    if file is None:
        return {}
    if file.size > MAX_JSON_BYTES:
        raise TokenizerError(f"{file.name} has {file.size} bytes; the limit is {MAX_JSON_BYTES}")
    try:
        value = json.loads(Path(file.path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file.name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{file.name} must hold a JSON object, not {type(value).__name__}")
    return value


def entry_is_special(entry: Any) -> bool:
    """Whether an added token's entry calls it special."""
    return isinstance(entry, dict) and entry.get("special") is True


def _text(value: Any) -> str | None:
    """A token given as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if type(each) is int and each >= 0]

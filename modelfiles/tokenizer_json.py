"""Tokenizers from a Hugging Face `tokenizer.json`, run by the `tokenizers` library.

Every special or structural token is closed to plain text before the library sees the file; control tokens
are put in by `SpanTokenizer`. Called by `load_tokenizer`, which hands in what tokenizer_config.json says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from modelfiles.tokenizer_base import (
    MAX_VOCABULARY,
    SpanTokenizer,
    TokenizerError,
    TokenTable,
    control_ids,
    end_ids,
)
from modelfiles.tokenizer_bpe import byte_level_bytes
from modelfiles.tokenizer_special import SpecialTokens

__all__ = ["JsonEncoder", "from_json"]

SPACE: Final = "▁"
_ReadPiece = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class _Document:
    """The parts of a tokenizer.json that matter here. `added`: every added token's entry, by id."""

    whole: dict[str, Any]
    texts: dict[str, int]
    added: dict[int, dict[str, Any]]


def from_json(data: bytes, special: SpecialTokens) -> SpanTokenizer:
    """The tokenizer a tokenizer.json describes. Raises `TokenizerError` for what the library refuses."""
    document = _parse(data)
    table = _table(document, special)
    closed = _closed(document, table.control)
    source = None if _differs(closed, document.whole) else data
    return SpanTokenizer(table, lambda: JsonEncoder(closed, source))


class JsonEncoder:
    """Encodes plain text with the library; where a space is put before the first word only, keeps to that."""

    def __init__(self, document: dict[str, Any], source: bytes | None = None) -> None:
        """`source` is the text of the document where that is at hand: it saves writing 30 MB of JSON anew."""
        self._tokenizer = _load(document, source)
        self._without_prefix = _without_first_prefix(document)

    @cached_property
    def _continuing(self) -> Any:
        """The same tokenizer without a space before its first word, where the file asks for `first` only."""
        return self._tokenizer if self._without_prefix is None else _load(self._without_prefix)

    def encode(self, text: str, first: bool) -> list[int]:
        """Ids of a stretch of plain text."""
        tokenizer = self._tokenizer if first else self._continuing
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _without_first_prefix(document: dict[str, Any]) -> dict[str, Any] | None:
    """The document changed to put no space before the first word; None where it does not do so only there."""
    cut = document.get("pre_tokenizer") or {}
    steps = cut.get("pretokenizers", [cut])
    if not any(step.get("prepend_scheme") == "first" for step in steps):
        return None
    changed = [step | {"prepend_scheme": "never"} if "prepend_scheme" in step else step for step in steps]
    cut = cut | {"pretokenizers": changed} if "pretokenizers" in cut else changed[0]
    return document | {"pre_tokenizer": cut}


def _parse(data: bytes) -> _Document:
    try:
        whole = json.loads(data)
        model = whole["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, list):  # Unigram: [piece, score] in the order of ids
            texts = {str(entry[0]): index for index, entry in enumerate(vocabulary)}
        else:
            texts = {str(text): int(index) for text, index in vocabulary.items()}
        added = {int(entry["id"]): dict(entry) for entry in whole.get("added_tokens") or ()}
        texts |= {str(entry["content"]): index for index, entry in added.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise TokenizerError(f"tokenizer.json is malformed: {error!r}") from error
    if not texts or min(texts.values()) < 0 or max(texts.values()) >= MAX_VOCABULARY:
        raise TokenizerError(f"tokenizer.json must number its tokens from 0 to at most {MAX_VOCABULARY - 1}")
    return _Document(whole, texts, added)


def _load(document: dict[str, Any], source: bytes | None = None) -> Any:
    import tokenizers

    try:
        data = source if source is not None else json.dumps(document, ensure_ascii=False).encode()
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:
        raise TokenizerError(f"the tokenizers library refuses tokenizer.json: {error}") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _closed(document: _Document, control: frozenset[int]) -> dict[str, Any]:
    """The document with its control tokens marked special: the library then reads them as plain text."""
    added = [
        entry | {"special": True} if index in control else entry | {"special": False}
        for index, entry in document.added.items()
    ]
    return document.whole | {"added_tokens": added, "model": _numbered(document)}


def _differs(closed: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    return closed["model"] is not whole["model"] or closed["added_tokens"] != whole.get("added_tokens")


def _numbered(document: _Document) -> dict[str, Any]:
    """The model, its vocabulary holding the added tokens that the library would number in its own way."""
    model: dict[str, Any] = document.whole["model"]
    vocabulary = model["vocab"]
    if not isinstance(vocabulary, dict):
        return model
    missing = {entry["content"]: index for index, entry in sorted(document.added.items())}
    missing = {text: index for text, index in missing.items() if text not in vocabulary}
    as_numbered_by_the_library = range(len(vocabulary), len(vocabulary) + len(missing))
    if list(missing.values()) == list(as_numbered_by_the_library):
        return model
    return model | {"vocab": vocabulary | missing}


def _table(document: _Document, special: SpecialTokens) -> TokenTable:
    texts, added = document.texts, document.added
    declared = [index for index, entry in added.items() if entry.get("special")]
    control = control_ids({str(entry["content"]): index for index, entry in added.items()}, declared)
    bos = texts.get(special.bos_token) if special.bos_token else _bos_of_template(document)
    eos = texts.get(special.eos_token) if special.eos_token else None
    ends = end_ids(texts, control, [eos, *special.end_token_ids])
    control |= frozenset(ends) & frozenset(texts.values())
    add_bos = special.add_bos
    return TokenTable(
        token_bytes=_all_bytes(document, control),
        control=control,
        names={text: index for text, index in texts.items() if index in control},
        bos_token_id=bos,
        eos_token_id=eos,
        end_token_ids=ends,
        add_bos=bos is not None and (_bos_of_template(document) == bos if add_bos is None else add_bos),
        strip_leading_space=_strips_space(document.whole.get("decoder")),
        unknown_token_id=_unknown(document),
        strips={
            index: (bool(entry.get("lstrip")), bool(entry.get("rstrip")))
            for index, entry in added.items()
            if entry.get("lstrip") or entry.get("rstrip")
        },
    )


def _unknown(document: _Document) -> int | None:
    model = document.whole["model"]
    name = model.get("unk_token")
    if isinstance(name, str):
        return document.texts.get(name)
    index = model.get("unk_id")  # of Unigram
    return index if type(index) is int else None


def _bos_of_template(document: _Document) -> int | None:
    """The token that the file's post-processor puts before a text, if it does."""
    processor = document.whole.get("post_processor")
    for step in _steps(processor, "processors"):
        single = step.get("single") if step.get("type") == "TemplateProcessing" else None
        if (
            isinstance(single, list)
            and single
            and isinstance(single[0], dict)
            and "SpecialToken" in single[0]
        ):
            return document.texts.get(str(single[0]["SpecialToken"].get("id")))
    return None


def _steps(part: Any, key: str) -> list[Mapping[str, Any]]:
    """A component of the pipeline as a list, whether it is a `Sequence` or alone."""
    if not isinstance(part, dict):
        return []
    inner = part.get(key, [part])
    return [step for step in inner if isinstance(step, dict)] if isinstance(inner, list) else []


def _strips_space(decoder: Any) -> bool:
    steps = _steps(decoder, "decoders")
    stripping = any(step.get("type") == "Strip" and step.get("start") for step in steps)
    return stripping or any(
        step.get("type") == "Metaspace"
        and step.get("prepend_scheme", "always") != "never"
        and step.get("add_prefix_space", True)
        for step in steps
    )


def _all_bytes(document: _Document, hidden: frozenset[int]) -> tuple[bytes, ...]:
    read = _piece_reader(document.whole)
    result = [b""] * (max(document.texts.values()) + 1)
    for text, index in document.texts.items():
        result[index] = (
            text.encode("utf-8", "replace") if index in document.added or index in hidden else read(text)
        )
    return tuple(result)


def _piece_reader(whole: Mapping[str, Any]) -> _ReadPiece:
    """How a token's text becomes bytes, by the file's decoder."""
    kinds = {step.get("type") for step in _steps(whole.get("decoder"), "decoders")}
    if "ByteLevel" in kinds:
        return byte_level_bytes
    if "WordPiece" in kinds:
        return lambda text: (text[2:] if text.startswith("##") else " " + text).encode()
    if "BPEDecoder" in kinds:
        return lambda text: text.replace("</w>", " ").encode()
    return _metaspace_bytes


def _metaspace_bytes(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return bytes([int(text[3:5], 16)])
        except ValueError:
            pass
    return text.replace(SPACE, " ").encode("utf-8", "replace")

"""Loads a model's tokenizer from whatever its files hold: tokenizer.json, tokenizer.model or a GGUF.

Runs in a sandbox worker, since the files are strangers'. Does not encode itself; the kinds live in the
`tokenizer_*` modules beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from modelfiles.files import ModelFile
from modelfiles.gguf import GgufError, GgufFile, split_name
from modelfiles.tokenizer_base import (
    SpanTokenizer,
    Tokenizer,
    TokenizerError,
    TokenTable,
    control_ids,
    end_ids,
)
from modelfiles.tokenizer_gguf import from_metadata
from modelfiles.tokenizer_json import from_json
from modelfiles.tokenizer_special import SpecialTokens, file_named, read_special_tokens
from modelfiles.tokenizer_spm import (
    CONTROL,
    SentencePieceEncoder,
    SentencePieceModel,
    close_to_text,
    piece_bytes,
)
from modelfiles.tokenizer_tiktoken import from_ranks, is_ranks
from modelfiles.vocabulary import Vocabulary

__all__ = ["Tokenizer", "TokenizerError", "load_tokenizer", "load_vocabulary"]

MAX_TOKENIZER_BYTES: Final = 256 << 20


def load_tokenizer(files: Sequence[ModelFile]) -> Tokenizer:
    """The tokenizer of a model, from the first of tokenizer.json, tokenizer.model and GGUF metadata there is.

    Raises `TokenizerError` when none is there or it is broken, `OSError` when a file cannot be read.
    """
    return _open(files).prepare()


def load_vocabulary(files: Sequence[ModelFile]) -> Vocabulary:
    """The table of tokens alone: half the time of `load_tokenizer`, and no library reads the files."""
    return _open(files).vocabulary()


def _open(files: Sequence[ModelFile]) -> SpanTokenizer:
    special = read_special_tokens(files)
    if (file := file_named(files, "tokenizer.json")) is not None:
        return from_json(_read(file), special)
    if (file := file_named(files, "tokenizer.model")) is not None:
        data = _read(file)
        return from_ranks(data, special) if is_ranks(data) else from_sentencepiece(data, special)
    for file in sorted(files, key=lambda each: ("mmproj" in each.name, each.name)):
        if file.role == "weights" and _is_gguf(file) and (split_name(file.name) or ("", 1, 1))[1] == 1:
            return _from_gguf(file)
    raise TokenizerError(
        "these files hold no tokenizer: expected tokenizer.json, tokenizer.model or a GGUF, got "
        + (", ".join(sorted(file.name for file in files)[:8]) or "nothing")
    )


def from_sentencepiece(data: bytes, special: SpecialTokens) -> SpanTokenizer:
    """The tokenizer of a serialized SentencePiece model."""
    model = SentencePieceModel.parse(data)
    texts = {piece.text: index for index, piece in enumerate(model.pieces)}
    declared = [index for index, piece in enumerate(model.pieces) if piece.kind == CONTROL]
    declared += [texts[text] for text in special.special_texts if text in texts]
    control = control_ids(texts, (each for each in declared if each != model.unknown_id))
    bos = texts.get(special.bos_token or "", model.bos_id if 0 <= model.bos_id < len(texts) else None)
    eos = texts.get(special.eos_token or "", model.eos_id if 0 <= model.eos_id < len(texts) else None)
    ends = end_ids(texts, control, [eos, *(each for each in special.end_token_ids if each < len(texts))])
    control |= frozenset(ends)
    table = TokenTable(
        token_bytes=tuple(
            piece.text.encode() if index in control else piece_bytes(piece)
            for index, piece in enumerate(model.pieces)
        ),
        control=control,
        names={model.pieces[index].text: index for index in sorted(control)},
        bos_token_id=bos,
        eos_token_id=eos,
        end_token_ids=ends,
        add_bos=bos is not None and special.add_bos is not False,
        strip_leading_space=model.add_dummy_prefix,
        unknown_token_id=model.unknown_id,
    )
    closed = SentencePieceModel(
        pieces=close_to_text(model.pieces, control),
        algorithm=model.algorithm,
        byte_fallback=model.byte_fallback,
        add_dummy_prefix=model.add_dummy_prefix,
        remove_extra_whitespaces=model.remove_extra_whitespaces,
        charsmap=model.charsmap,
        unknown_id=model.unknown_id,
        bos_id=model.bos_id,
        eos_id=model.eos_id,
    )
    return SpanTokenizer(table, lambda: SentencePieceEncoder(closed, special.legacy is not False))


def _from_gguf(file: ModelFile) -> SpanTokenizer:
    try:
        return from_metadata(GgufFile.open(file.path).metadata)
    except GgufError as error:
        raise TokenizerError(f"{file.name}: {error}") from error


def _is_gguf(file: ModelFile) -> bool:
    with Path(file.path).open("rb") as opened:
        return opened.read(4) == b"GGUF"


def _read(file: ModelFile) -> bytes:
    if file.size > MAX_TOKENIZER_BYTES:
        raise TokenizerError(f"{file.name} has {file.size} bytes; the limit is {MAX_TOKENIZER_BYTES}")
    return Path(file.path).read_bytes()

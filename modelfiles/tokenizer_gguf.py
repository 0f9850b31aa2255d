"""Tokenizers from the metadata of a GGUF: the kinds `llama` (SentencePiece), `gpt2` and `gemma4` (merges).

Reads `tokenizer.ggml.*` in one place. Does not encode itself. Called by `load_tokenizer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelfiles.gguf import StringArray
from modelfiles.pretokenizers import PRE_TOKENIZERS
from modelfiles.tokenizer_base import (
    MAX_VOCABULARY,
    PlainEncoder,
    SpanTokenizer,
    TokenizerError,
    TokenTable,
    control_ids,
    end_ids,
)
from modelfiles.tokenizer_bpe import ByteLevelEncoder, MetaspaceEncoder, byte_level_bytes, split_merges
from modelfiles.tokenizer_spm import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    SentencePieceEncoder,
    SentencePieceModel,
    close_to_text,
    piece_bytes,
)

__all__ = ["from_metadata"]

_PREFIX: Final = "tokenizer.ggml."
_PRE_OF_ARCHITECTURE: Final = {"gpt2": "gpt-2", "gptneox": "gpt-neox", "falcon": "falcon", "mpt": "mpt"}
"""What files from before `tokenizer.ggml.pre` meant; other families in them have `default`."""

_END_KEYS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True, slots=True)
class _Ggml:
    """`tokenizer.ggml.*`, checked: as many scores and kinds as tokens, special ids inside the vocabulary."""

    model: str
    pre: str
    texts: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[int, ...]
    merges: StringArray | tuple[str, ...]
    flags: Mapping[str, bool]
    special: Mapping[str, int]

    @property
    def ids(self) -> dict[str, int]:
        """Token text -> id; the last of equal texts counts, as in llama.cpp."""
        return {text: index for index, text in enumerate(self.texts)}

    def of_kind(self, *kinds: int) -> list[int]:
        """Ids of the tokens of these kinds."""
        return [index for index, kind in enumerate(self.kinds) if kind in kinds]


def from_metadata(metadata: Mapping[str, Any]) -> SpanTokenizer:
    """The tokenizer a GGUF describes. Raises `TokenizerError` naming what is missing or unknown."""
    ggml = _read(metadata)
    build = _BUILDERS.get(ggml.model)
    if build is None:
        known = ", ".join(sorted(_BUILDERS))
        raise TokenizerError(f"tokenizer model {ggml.model!r} is not supported; these are: {known}")
    return build(ggml)


def _read(metadata: Mapping[str, Any]) -> _Ggml:
    def value(name: str, default: Any = None) -> Any:
        return metadata.get(_PREFIX + name, default)

    tokens = value("tokens")
    if not isinstance(tokens, StringArray) or not 0 < len(tokens) <= MAX_VOCABULARY:
        raise TokenizerError("the GGUF holds no tokenizer: tokenizer.ggml.tokens is missing or malformed")
    size = len(tokens)
    special = {
        name.removeprefix(_PREFIX): int(number)
        for name, number in metadata.items()
        if name.startswith(_PREFIX) and name.endswith("_token_id") and type(number) is int
    }
    merges = value("merges", ())
    return _Ggml(
        model=str(value("model", "llama")),
        pre=str(value("pre", _PRE_OF_ARCHITECTURE.get(str(metadata.get("general.architecture")), "default"))),
        texts=tuple(tokens),
        scores=_numbers(value("scores"), size, 0.0),
        kinds=_numbers(value("token_type"), size, NORMAL),
        merges=merges if isinstance(merges, StringArray) else (),
        flags={name: bool(value(name)) for name in _FLAGS if value(name) is not None},
        special={name: number for name, number in special.items() if 0 <= number < size},
    )


_FLAGS: Final = ("add_bos_token", "add_space_prefix", "remove_extra_whitespaces")


def _numbers(values: Any, size: int, default: Any) -> tuple[Any, ...]:
    if values is None:
        return (default,) * size
    if not isinstance(values, np.ndarray) or len(values) != size:
        raise TokenizerError("tokenizer.ggml.scores and token_type must have one number per token")
    return tuple(values.tolist())


def _table(
    ggml: _Ggml, to_bytes: Callable[[int], bytes], add_bos: bool, strip_leading_space: bool = False
) -> TokenTable:
    ids = ggml.ids
    control = control_ids(ids, ggml.of_kind(CONTROL))
    bos = ggml.special.get("bos_token_id")
    ends = end_ids(ids, control, [ggml.special.get(name) for name in _END_KEYS])
    hidden = control | frozenset(ends)
    unknown = frozenset(ggml.of_kind(UNKNOWN))
    return TokenTable(
        token_bytes=tuple(
            text.encode() if index in hidden or index in unknown else to_bytes(index)
            for index, text in enumerate(ggml.texts)
        ),
        control=hidden,
        names={ggml.texts[index]: index for index in sorted(hidden)},
        bos_token_id=bos,
        eos_token_id=ggml.special.get("eos_token_id"),
        end_token_ids=ends,
        add_bos=ggml.flags.get("add_bos_token", add_bos) and bos is not None,
        strip_leading_space=strip_leading_space,
        unknown_token_id=_unknown_id(ggml),
    )


def _sentencepiece(ggml: _Ggml) -> SpanTokenizer:
    """Kind `llama`: merges by score. Files with merges and no scores (or Gemma 4's) go by the merges."""
    if ggml.merges and (ggml.pre == "gemma4" or not any(ggml.scores)):
        return _metaspace(ggml)
    prefix = ggml.flags.get("add_space_prefix", True)
    pieces = _pieces(ggml)
    table = _table(ggml, lambda index: piece_bytes(pieces[index]), True, prefix)
    model = SentencePieceModel(
        pieces=close_to_text(pieces, table.control),
        algorithm=BPE,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=ggml.flags.get("remove_extra_whitespaces", False),
        unknown_id=_unknown_id(ggml),
        bos_id=ggml.special.get("bos_token_id", -1),
        eos_id=ggml.special.get("eos_token_id", -1),
    )
    return SpanTokenizer(table, lambda: SentencePieceEncoder(model))


def _pieces(ggml: _Ggml) -> list[Piece]:
    return [
        Piece(text, score, kind if NORMAL <= kind <= BYTE else NORMAL)
        for text, score, kind in zip(ggml.texts, ggml.scores, ggml.kinds, strict=True)
    ]


def _unknown_id(ggml: _Ggml) -> int:
    unknown = ggml.of_kind(UNKNOWN)
    return unknown[0] if unknown else ggml.special.get("unknown_token_id", -1)


def _metaspace(ggml: _Ggml) -> SpanTokenizer:
    """Kind `gemma4`: SentencePiece's spaces and bytes, but merged by rank."""
    gemma = ggml.model == "gemma4" or ggml.pre == "gemma4"
    prefix = ggml.flags.get("add_space_prefix", not gemma)
    pieces = _pieces(ggml)
    table = _table(ggml, lambda index: piece_bytes(pieces[index]), True, prefix)

    def make_encoder() -> PlainEncoder:
        ids = {text: index for text, index in ggml.ids.items() if index not in table.control}
        merges = split_merges(ggml.merges, ids)
        return MetaspaceEncoder(ids, merges, _user_defined(ggml, table), prefix, cut_newlines=gemma)

    return SpanTokenizer(table, make_encoder)


def _byte_level(ggml: _Ggml) -> SpanTokenizer:
    """Kind `gpt2`: words by the pattern that `tokenizer.ggml.pre` names."""
    cut = PRE_TOKENIZERS.get(ggml.pre)
    if cut is None:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise TokenizerError(f"pre-tokenizer {ggml.pre!r} is not known; these are: {known}")
    table = _table(ggml, _byte_level_reader(ggml), cut.add_bos)

    def make_encoder() -> PlainEncoder:
        ids = {text: index for text, index in ggml.ids.items() if index not in table.control}
        return ByteLevelEncoder(ids, split_merges(ggml.merges, ids), cut, _user_defined(ggml, table))

    return SpanTokenizer(table, make_encoder)


def _byte_level_reader(ggml: _Ggml) -> Callable[[int], bytes]:
    literal = frozenset(ggml.of_kind(USER_DEFINED))

    def read(index: int) -> bytes:
        text = ggml.texts[index]
        return text.encode() if index in literal else byte_level_bytes(text)

    return read


def _user_defined(ggml: _Ggml, table: TokenTable) -> Sequence[str]:
    return [ggml.texts[index] for index in ggml.of_kind(USER_DEFINED) if index not in table.control]


_BUILDERS: Final[dict[str, Callable[[_Ggml], SpanTokenizer]]] = {
    "llama": _sentencepiece,
    "gpt2": _byte_level,
    "gemma4": _metaspace,
}

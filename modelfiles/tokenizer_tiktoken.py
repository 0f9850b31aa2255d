"""Tokenizers from a tiktoken rank file (`base64-bytes rank` per line), as Llama 3's original release has.

The file names neither pattern nor special tokens: both follow from the number of ranks, for the few files
of this kind that models ship. Called by `load_tokenizer`.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from modelfiles.pretokenizers import PRE_TOKENIZERS
from modelfiles.tokenizer_base import SpanTokenizer, TokenizerError, TokenTable, control_ids, end_ids
from modelfiles.tokenizer_bpe import ByteLevelEncoder, byte_level_text
from modelfiles.tokenizer_special import SpecialTokens

__all__ = ["from_ranks", "is_ranks"]


@dataclass(frozen=True, slots=True)
class _Kind:
    """`special` gives each special token's distance from the number of ranks."""

    cut: str
    special: dict[str, int]
    bos: str | None


_LLAMA3_NAMED: Final = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
_LLAMA3: Final = _LLAMA3_NAMED + tuple(
    f"<|reserved_special_token_{number}|>" for number in range(2, 256 - len(_LLAMA3_NAMED) + 2)
)

_KINDS: Final[dict[int, _Kind]] = {
    128000: _Kind("dbrx", {text: number for number, text in enumerate(_LLAMA3)}, "<|begin_of_text|>"),
    100256: _Kind(
        "dbrx",
        {
            "<|endoftext|>": 1,
            "<|fim_prefix|>": 2,
            "<|fim_middle|>": 3,
            "<|fim_suffix|>": 4,
            "<|endofprompt|>": 20,
        },
        None,
    ),
    199998: _Kind("gpt-4o", {"<|endoftext|>": 1, "<|endofprompt|>": 20}, None),
}
"""By the number of ranks: Llama 3, cl100k_base, o200k_base."""


def is_ranks(data: bytes) -> bool:
    """Whether a `tokenizer.model` is a rank file and no SentencePiece model."""
    words = data[:256].split(b"\n", 1)[0].split()
    return len(words) == 2 and words[1].isdigit()


def from_ranks(data: bytes, special: SpecialTokens) -> SpanTokenizer:
    """The tokenizer of a rank file. Raises `TokenizerError` for a malformed one or one of unknown size."""
    ranks = _parse(data)
    kind = _KINDS.get(len(ranks))
    if kind is None:
        known = ", ".join(str(size) for size in sorted(_KINDS))
        raise TokenizerError(f"a rank file of {len(ranks)} tokens is not known; known sizes: {known}")
    names = {text: len(ranks) + distance for text, distance in kind.special.items()}
    pieces = ranks + [b""] * (max(names.values()) + 1 - len(ranks))
    for text, index in names.items():
        pieces[index] = text.encode()
    control = control_ids(names, names.values())
    bos = names.get(special.bos_token or kind.bos or "")
    ends = end_ids(names, control, [names.get(special.eos_token or ""), *special.end_token_ids])
    table = TokenTable(
        token_bytes=tuple(pieces),
        control=control,
        names=names,
        bos_token_id=bos,
        eos_token_id=ends[0] if ends else None,
        end_token_ids=ends,
        add_bos=bos is not None and special.add_bos is not False,
    )

    def make_encoder() -> ByteLevelEncoder:
        vocabulary = {byte_level_text(piece): index for index, piece in enumerate(ranks)}
        return ByteLevelEncoder(vocabulary, _merges(vocabulary), PRE_TOKENIZERS[kind.cut])

    return SpanTokenizer(table, make_encoder)


def _parse(data: bytes) -> list[bytes]:
    ranks: list[bytes] = []
    for line in data.splitlines():
        words = line.split()
        try:
            piece = base64.b64decode(words[0], validate=True)
            if len(words) != 2 or int(words[1]) != len(ranks) or not piece:
                raise ValueError("ranks must count up from 0")
        except (ValueError, IndexError, binascii.Error) as error:
            raise TokenizerError(f"line {len(ranks) + 1} of the rank file is malformed: {error}") from error
        ranks.append(piece)
    if len(set(ranks)) != len(ranks):
        raise TokenizerError("the rank file lists a token twice")
    return ranks


def _merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make each token of two others, in the order of the tokens' ranks."""
    merges: list[tuple[str, str]] = []
    for text in vocabulary:
        ways = [
            (vocabulary[text[:cut]], vocabulary[text[cut:]], cut)
            for cut in range(1, len(text))
            if text[:cut] in vocabulary and text[cut:] in vocabulary
        ]
        merges += [(text[:cut], text[cut:]) for _, _, cut in sorted(ways)]
    return merges

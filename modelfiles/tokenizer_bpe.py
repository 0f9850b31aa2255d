"""Byte-pair encoders on the `tokenizers` library: byte-level ones, and SentencePiece-like ones with merges.

Builds the library's objects from token lists and merges; control tokens are left out of the vocabulary that
the merges see, so plain text cannot become one. Does not read files. Used by the GGUF and tiktoken loaders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from modelfiles.pretokenizers import PreTokenizer
from modelfiles.tokenizer_base import TokenizerError

__all__ = ["ByteLevelEncoder", "MetaspaceEncoder", "byte_level_bytes", "split_merges"]

SPACE: Final = "▁"


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: character -> byte."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in visible]
    return {chr(value): value for value in visible} | {chr(256 + n): value for n, value in enumerate(hidden)}


def byte_level_bytes(text: str) -> bytes:
    """The bytes a byte-level token stands for; characters outside GPT-2's alphabet are taken as UTF-8."""
    alphabet = _byte_alphabet()
    return b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode() for c in text)


def byte_level_text(data: bytes) -> str:
    """GPT-2's stand-in text for some bytes."""
    characters = {value: character for character, value in _byte_alphabet().items()}
    return "".join(characters[value] for value in data)


def split_merges(merges: Iterable[str], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges as pairs, those left out that the vocabulary has no tokens for."""
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        border = merge.find(" ", 1)
        left, right = merge[:border], merge[border + 1 :]
        if border > 0 and left in vocabulary and right in vocabulary and left + right in vocabulary:
            pairs.append((left, right))
    return pairs


class ByteLevelEncoder:
    """GPT-2's scheme: words by pattern, bytes as stand-in characters, merges within a word."""

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        cut: PreTokenizer,
        user_defined: Iterable[str] = (),
    ) -> None:
        import tokenizers
        from tokenizers import normalizers, pre_tokenizers

        tokenizer = _build(vocabulary, merges, ignore_merges=cut.whole_words)
        if cut.compose:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in cut.patterns]
            + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        _add_user_defined(tokenizer, user_defined)
        self._tokenizer = tokenizer

    def encode(self, text: str, first: bool) -> list[int]:
        """Ids of a stretch of plain text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class MetaspaceEncoder:
    """SentencePiece's scheme with merges (Gemma 4): spaces as `▁`, no words, bytes as a fallback."""

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        user_defined: Iterable[str] = (),
        prefix: bool = False,
        cut_newlines: bool = False,
    ) -> None:
        import tokenizers
        from tokenizers import normalizers, pre_tokenizers

        tokenizer = _build(vocabulary, merges, byte_fallback=True)
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        runs = [text for text in vocabulary if len(text) > 1 and not text.strip("\n")] if cut_newlines else []
        if cut_newlines:
            tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[^\n]+|\n+"), "isolated")
        if ("\n", "\n") in merges:
            runs = []
        _add_user_defined(tokenizer, [*user_defined, *runs])
        self._tokenizer, self._prefix = tokenizer, SPACE if prefix else ""

    def encode(self, text: str, first: bool) -> list[int]:
        """Ids of a stretch of plain text."""
        ids: list[int] = self._tokenizer.encode(self._prefix + text, add_special_tokens=False).ids
        return ids


def _build(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], **options: Any) -> Any:
    import tokenizers
    from tokenizers import models

    try:
        return tokenizers.Tokenizer(models.BPE(dict(vocabulary), list(merges), **options))
    except Exception as error:
        raise TokenizerError(f"the tokenizers library refuses this vocabulary: {error}") from error


def _add_user_defined(tokenizer: Any, texts: Iterable[str]) -> None:
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in texts if text])

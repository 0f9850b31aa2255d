"""What all tokenizers share: the protocol, the table of tokens, and cutting a prompt at its control tokens.

A kind of tokenizer supplies a `TokenTable` and a `PlainEncoder` that turns plain text into ids and can never
produce a control token; `SpanTokenizer` adds control tokens, BOS and decoding. Knows no file format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Protocol

from modelfiles.families import END_MARKERS, HARMONY_MARKERS, STRUCTURE_MARKERS
from modelfiles.vocabulary import Vocabulary

__all__ = ["PlainEncoder", "SpanTokenizer", "TokenTable", "Tokenizer", "TokenizerError"]

MAX_VOCABULARY: Final = 1 << 21


class TokenizerError(ValueError):
    """The files hold no tokenizer, one of an unknown kind, or a broken one."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    bos_token: str | None
    eos_token: str | None

    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = False) -> list[int]:
        """Ids of `text`; its special strings become control tokens only with `parse_special`."""

    def encode_spans(self, spans: Sequence[tuple[str, bool]], *, add_bos: bool = False) -> list[int]:
        """Ids of one prompt made of (text, trusted) spans: control tokens come from trusted text only."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, control tokens left out, bad UTF-8 as U+FFFD."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for; a control token's name."""

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, bad UTF-8 as U+FFFD."""

    def vocabulary(self) -> Vocabulary:
        """The plain table that other processes need."""


class PlainEncoder(Protocol):
    """Encodes text that holds no control tokens. `first` says that nothing stands before it in the prompt."""

    def encode(self, text: str, first: bool) -> list[int]: ...


@dataclass(frozen=True)
class TokenTable:
    """The tokens of a model. `token_bytes[i]` belongs to id i (control tokens: their name).

    `control`: never shown, and never made from untrusted text. `names`: control strings to ids. `strips`: ids
    that swallow white space (left, right) beside them.
    """

    token_bytes: tuple[bytes, ...]
    control: frozenset[int]
    names: Mapping[str, int]
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    end_token_ids: tuple[int, ...] = ()
    add_bos: bool = False
    strip_leading_space: bool = False
    strips: Mapping[int, tuple[bool, bool]] = field(default_factory=dict)
    unknown_token_id: int | None = None
    """Stands for what the vocabulary cannot spell: the one special token that plain text may give."""

    def name_of(self, token_id: int | None) -> str | None:
        """The string of a special token, or None."""
        return None if token_id is None else self.token_bytes[token_id].decode("utf-8", "replace")


def control_ids(texts: Mapping[str, int], declared: Iterable[int]) -> frozenset[int]:
    """Ids of control tokens: those the file declares, and the families' markers whatever it calls them."""
    return frozenset(declared) | {texts[name] for name in STRUCTURE_MARKERS if name in texts}


def end_ids(
    texts: Mapping[str, int], control: frozenset[int], declared: Iterable[int | None]
) -> tuple[int, ...]:
    """Ids that end a turn: the declared ones first, then the families' end markers that this model has."""
    found = [token_id for token_id in declared if token_id is not None]
    names = END_MARKERS - {"<|end|>"} if all(name in texts for name in HARMONY_MARKERS) else END_MARKERS
    found += [texts[name] for name in sorted(names) if name in texts and texts[name] in control]
    return tuple(dict.fromkeys(found))


class SpanTokenizer:
    """A tokenizer made of a table and an encoder for plain text, which is made when it is first needed.

    Whoever wants the table alone thus never hands a stranger's vocabulary to a library.
    """

    def __init__(self, table: TokenTable, make_encoder: Callable[[], PlainEncoder]) -> None:
        self.table, self._make_encoder = table, make_encoder
        self.bos_token = table.name_of(table.bos_token_id)
        self.eos_token = table.name_of(table.eos_token_id)
        self._never_from_text = table.control - {table.unknown_token_id}

    @cached_property
    def _encoder(self) -> PlainEncoder:
        encoder = self._make_encoder()
        del self._make_encoder  # and what it held: merges, pieces, a mapped file
        return encoder

    def prepare(self) -> SpanTokenizer:
        """Make the encoder now. Raises `TokenizerError` for a vocabulary that the library refuses."""
        self._encoder  # noqa: B018
        return self

    @cached_property
    def _specials(self) -> _SpecialFinder:
        return _SpecialFinder(self.table.names)

    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = False) -> list[int]:
        """See `Tokenizer.encode`. A BOS that the text begins with is not doubled by `add_bos`."""
        return self.encode_spans([(text, parse_special)], add_bos=add_bos)

    def encode_spans(self, spans: Sequence[tuple[str, bool]], *, add_bos: bool = False) -> list[int]:
        """See `Tokenizer.encode_spans`. Plain text is encoded across span borders, as one text."""
        ids: list[int] = []
        pending: list[str] = []
        for text, trusted in spans:
            for piece, token_id in self._specials.split(_well_formed(text)) if trusted else [(text, None)]:
                if token_id is None:
                    pending.append(_well_formed(piece))
                else:
                    self._flush(ids, pending, token_id)
                    ids.append(token_id)
        self._flush(ids, pending, None)
        bos = self.table.bos_token_id
        return [bos, *ids] if add_bos and bos is not None and ids[:1] != [bos] else ids

    def _flush(self, ids: list[int], pending: list[str], following: int | None) -> None:
        """Encode the plain text between two control tokens, less the white space they swallow."""
        text = "".join(pending)
        pending.clear()
        if ids and self.table.strips.get(ids[-1], (False, False))[1]:
            text = text.lstrip()
        if following is not None and self.table.strips.get(following, (False, False))[0]:
            text = text.rstrip()
        if text:
            ids += self._spelled_out(self._encoder.encode(text, not ids))

    def _spelled_out(self, ids: list[int]) -> list[int]:
        """Spell out any special token that an encoder made from plain text after all."""
        if self._never_from_text.isdisjoint(ids):
            return ids
        result: list[int] = []
        for token_id in ids:
            if token_id not in self._never_from_text:
                result.append(token_id)
                continue
            for character in self.token_text(token_id):
                spelled = self._encoder.encode(character, False)
                result += [each for each in spelled if each not in self._never_from_text]
        return result

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`."""
        runs: list[bytearray] = [bytearray()]
        for token_id in ids:
            if token_id in self.table.control:
                runs.append(bytearray())
            elif 0 <= token_id < len(self.table.token_bytes):
                runs[-1] += self.table.token_bytes[token_id]
        text = "".join(run.decode("utf-8", "replace") for run in runs)
        return text[1:] if self.table.strip_leading_space and text.startswith(" ") else text

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`; an id outside the vocabulary stands for nothing."""
        return self.table.token_bytes[token_id] if 0 <= token_id < len(self.table.token_bytes) else b""

    def token_text(self, token_id: int) -> str:
        """See `Tokenizer.token_text`."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def vocabulary(self) -> Vocabulary:
        """See `Tokenizer.vocabulary`."""
        table = self.table
        return Vocabulary(
            token_bytes=table.token_bytes,
            control_token_ids=table.control,
            end_token_ids=table.end_token_ids,
            bos_token_id=table.bos_token_id,
            add_bos=table.add_bos,
            names=dict(table.names),
            strip_leading_space=table.strip_leading_space,
        )


class _SpecialFinder:
    """Finds special strings in a text, the longest where several begin at one place."""

    def __init__(self, names: Mapping[str, int]) -> None:
        self._names = {name: token_id for name, token_id in names.items() if name}
        self._lengths = sorted({len(name) for name in self._names}, reverse=True)
        starts = "".join(sorted({re.escape(name[0]) for name in self._names}))
        self._starts = re.compile(f"[{starts}]") if starts else None

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """(plain text, None) and (special string, id) in turn."""
        plain_from = position = 0
        while self._starts is not None and (found := self._starts.search(text, position)) is not None:
            position = found.start()
            name = self._name_at(text, position)
            if name is None:
                position += 1
                continue
            if plain_from < position:
                yield text[plain_from:position], None
            yield name, self._names[name]
            plain_from = position = position + len(name)
        if plain_from < len(text):
            yield text[plain_from:], None

    def _name_at(self, text: str, position: int) -> str | None:
        for length in self._lengths:
            candidate = text[position : position + length]
            if candidate in self._names:
                return candidate
        return None


def _well_formed(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text

"""Keeps text of users, tools and systems from ever becoming a control token.

Before rendering, `guard` breaks every special-token string inside such text with a noncharacter; after
rendering, `split_rendered` finds the special strings that are left, which only the template can have
written, and takes the noncharacters out again. Knows no template language and no token ids but the
vocabulary's names. Called by `chat` before and by the gateway's sandbox after rendering.

Two noncharacters of Unicode are used: BREAK is put in, ESCAPE precedes a BREAK or ESCAPE that was in the
text before, so that every text survives unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, Protocol

from modelfiles.vocabulary import Vocabulary

BREAK = "\ufdd0"
ESCAPE = "\ufdd1"

_TO_ESCAPE = re.compile(f"[{BREAK}{ESCAPE}]")
_TO_UNGUARD = re.compile(f"{ESCAPE}([{BREAK}{ESCAPE}])|{BREAK}")


class Tokenizer(Protocol):
    """What encoding a prompt needs of a tokenizer."""

    def encode_spans(self, spans: Sequence[tuple[str, bool]], *, add_bos: bool = False) -> list[int]: ...

    def vocabulary(self) -> Vocabulary: ...


class _Matcher:
    """Finds members of a set of strings. Cost per candidate is the number of distinct lengths, not of
    strings: vocabularies with thousands of reserved names stay cheap on hostile text."""

    def __init__(self, strings: frozenset[str]) -> None:
        self.strings = frozenset(string for string in strings if len(string) > 1)
        self.lengths = sorted({len(string) for string in self.strings}, reverse=True)
        self.prefixes = frozenset(string[:n] for string in self.strings for n in range(1, len(string)))
        firsts = sorted({string[0] for string in self.strings})
        self.candidate = re.compile("[" + "".join(map(re.escape, firsts)) + "]") if firsts else None

    def length_at(self, text: str, start: int) -> int:
        """Length of the longest member that begins at `start`, or 0."""
        for length in self.lengths:
            if text[start : start + length] in self.strings:
                return length
        return 0

    def starts(self, text: str) -> list[int]:
        """Where members begin, overlapping ones too."""
        if self.candidate is None:
            return []
        return [m.start() for m in self.candidate.finditer(text) if self.length_at(text, m.start())]

    def open_end(self, text: str) -> int | None:
        """Where a beginning of a member starts that reaches to the end of `text` (without trailing space).

        Text that follows could complete it, after the template trimmed or joined the two.
        """
        stripped = text.rstrip()
        longest = self.lengths[0] if self.lengths else 0
        for start in range(max(0, len(stripped) - longest + 1), len(stripped)):
            if stripped[start:] in self.prefixes:
                return start
        return None


@lru_cache(maxsize=32)
def _matcher(control_strings: frozenset[str]) -> _Matcher:
    return _Matcher(control_strings)


def guard(text: str, control_strings: Collection[str]) -> str:
    """`text` in which no member of `control_strings` can be found, nor completed by what follows it.

    A BREAK is put after the first character of each member (overlapping ones too), and nowhere else, so
    templates that trim, test or replace parts of the text see it as it was. Names of a single character
    are not guarded.
    """
    text = _TO_ESCAPE.sub(lambda match: ESCAPE + match[0], text)
    matcher = _matcher(frozenset(control_strings))
    breaks = matcher.starts(text)
    last = matcher.open_end(text)
    if last is not None:
        breaks.append(last)
    if not breaks:
        return text
    pieces, position = [], 0
    for start in sorted(set(breaks)):
        pieces += [text[position : start + 1], BREAK]
        position = start + 1
    return "".join([*pieces, text[position:]])


def unguard(text: str) -> str:
    """Takes out what `guard` put in."""
    return _TO_UNGUARD.sub(lambda match: match[1] or "", text)


def guard_value(value: Any, control_strings: Collection[str]) -> Any:
    """`guard` for every string in a JSON-like value, keys included."""
    if isinstance(value, str):
        return guard(value, control_strings)
    if isinstance(value, dict):
        return {guard_value(k, control_strings): guard_value(v, control_strings) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [guard_value(item, control_strings) for item in value]
    return value


def split_rendered(rendered: str, control_strings: Collection[str]) -> list[tuple[str, bool]]:
    """The prompt as runs of text (unguarded, False) and control strings (True), longest match first."""
    matcher = _matcher(frozenset(control_strings))
    segments: list[tuple[str, bool]] = []
    position = 0
    for start in matcher.starts(rendered):
        if start < position:
            continue
        if start > position:
            segments.append((unguard(rendered[position:start]), False))
        position = start + matcher.length_at(rendered, start)
        segments.append((rendered[start:position], True))
    if position < len(rendered):
        segments.append((unguard(rendered[position:]), False))
    return [segment for segment in segments if segment[0]]


def control_strings(vocabulary: Vocabulary) -> frozenset[str]:
    """The names that must not be written by users: those of control tokens and of turn ends."""
    special = vocabulary.control_token_ids | set(vocabulary.end_token_ids)
    return frozenset(name for name, token_id in vocabulary.names.items() if token_id in special)


def encode_rendered(tokenizer: Tokenizer, rendered: str) -> tuple[list[int], str]:
    """Token ids of a rendered prompt, and the prompt as people read it.

    Names the template wrote become their ids; everything else is encoded as plain text. The prompt starts
    with exactly one BOS where the vocabulary wants one, with at most one where the template gave it.
    """
    vocabulary = tokenizer.vocabulary()
    token_ids = tokenizer.encode_spans(split_rendered(rendered, control_strings(vocabulary)))
    bos = vocabulary.bos_token_id
    if bos is not None:
        while token_ids[:2] == [bos, bos]:
            del token_ids[0]
        if vocabulary.add_bos and token_ids[:1] != [bos]:
            token_ids.insert(0, bos)
    return token_ids, unguard(rendered)

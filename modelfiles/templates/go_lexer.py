"""Cuts the source of a Go template into items: text, delimiters, words, constants.

Follows Go's text/template: trim markers, comments, raw strings, character constants. The parser in `golang`
is its only caller. A fault is an item of kind `error`, so that faults are reported in source order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

KEYWORDS = frozenset(
    ("block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with")
)
SPACE = " \t\r\n"
_SPACES = frozenset(SPACE)
_AFTER_WORD = frozenset(".,|:)(" + SPACE)
_PAIRS = {"|": "pipe", "=": "assign"}


@dataclass(frozen=True, slots=True)
class Item:
    """`kind` is text, left, right, space, keyword's own name, name, field, variable, dot, number, char,
    string, raw, bool, pipe, declare, assign, open, close, comma, character, eof or error."""

    kind: str
    text: str
    line: int


class _Fault(Exception):
    pass


def _is_word(character: str) -> bool:
    return character == "_" or character.isalpha() or character.isdecimal()


class _Lexer:
    def __init__(self, source: str) -> None:
        self.source = source
        self.position = 0
        self.line = 1
        self.depth = 0

    def items(self) -> Iterator[Item]:
        try:
            while self.position < len(self.source):
                yield from self._text()
                if self.position < len(self.source):
                    yield from self._action()
        except _Fault as fault:
            yield Item("error", str(fault), self.line)
            return
        yield Item("eof", "EOF", self.line)

    def _advance(self, count: int) -> str:
        taken = self.source[self.position : self.position + count]
        self.line += taken.count("\n")
        self.position += len(taken)
        return taken

    def _text(self) -> Iterator[Item]:
        """Text up to the next action, without the space a trim marker takes away."""
        end = self.source.find("{{", self.position)
        if end < 0:
            end = len(self.source)
        line = self.line
        text = self._advance(end - self.position)
        if self.source.startswith("{{-", end) and self.source[end + 3 : end + 4] in _SPACES:
            text = text.rstrip(SPACE)
        if text:
            yield Item("text", text, line)

    def _action(self) -> Iterator[Item]:
        """One action with its delimiters; a comment gives no items."""
        trims = self.source[self.position + 2 : self.position + 3] == "-" and (
            self.source[self.position + 3 : self.position + 4] in _SPACES
        )
        after = self.position + (4 if trims else 2)
        if self.source.startswith("/*", after):
            self._comment(after)
            return
        yield Item("left", self._advance(2), self.line)
        self._advance(2 if trims else 0)
        self.depth = 0
        while True:
            item = self._inside()
            yield item
            if item.kind == "right":
                return

    def _comment(self, start: int) -> None:
        end = self.source.find("*/", start + 2)
        if end < 0:
            raise _Fault("unclosed comment")
        self._advance(end + 2 - self.position)
        closed = self._right_delimiter()
        if not closed:
            raise _Fault("comment ends before closing delimiter")
        self._close(closed)

    def _right_delimiter(self) -> str:
        """The closing delimiter that stands here, with its trim marker, or nothing."""
        position = self.position
        if self.source[position : position + 1] in _SPACES and self.source.startswith("-}}", position + 1):
            return self.source[position : position + 4]
        return "}}" if self.source.startswith("}}", position) else ""

    def _close(self, delimiter: str) -> None:
        self._advance(len(delimiter))
        if len(delimiter) == 4:
            while self.source[self.position : self.position + 1] in _SPACES:
                self._advance(1)

    def _inside(self) -> Item:
        line = self.line
        delimiter = self._right_delimiter()
        if delimiter:
            if self.depth:
                raise _Fault("unclosed left paren")
            self._close(delimiter)
            return Item("right", "}}", line)
        character = self.source[self.position : self.position + 1]
        if not character:
            raise _Fault("unclosed action")
        if character in SPACE:
            return Item("space", self._space(), line)
        if character in _PAIRS:
            return Item(_PAIRS[character], self._advance(1), line)
        if character == ":":
            if not self.source.startswith(":=", self.position):
                raise _Fault("expected :=")
            return Item("declare", self._advance(2), line)
        if character in "\"'`":
            return self._quoted(character, line)
        if character in "$.":
            return self._field_or_variable(character, line)
        if character in "+-" or "0" <= character <= "9":
            return self._number(line)
        if _is_word(character):
            return self._word(line)
        return self._punctuation(character, line)

    def _punctuation(self, character: str, line: int) -> Item:
        if character == "(":
            self.depth += 1
            return Item("open", self._advance(1), line)
        if character == ")":
            self.depth -= 1
            if self.depth < 0:
                raise _Fault("unexpected right paren")
            return Item("close", self._advance(1), line)
        if "!" <= character <= "~":
            return Item("comma" if character == "," else "character", self._advance(1), line)
        raise _Fault(f"unrecognized character in action: {character!r}")

    def _space(self) -> str:
        """A run of space; the last one is left to a closing delimiter with trim marker."""
        end = self.position
        while self.source[end : end + 1] in _SPACES:
            end += 1
        if self.source.startswith("-}}", end) and end - 1 > self.position:
            end -= 1
        return self._advance(end - self.position)

    def _quoted(self, quote: str, line: int) -> Item:
        end = self.position + 1
        while self.source[end : end + 1] != quote:
            character = self.source[end : end + 1]
            if character == "\\" and quote != "`":
                end += 1
                character = self.source[end : end + 1]
            if not character or (character == "\n" and quote != "`"):
                raise _Fault(f"unterminated {_QUOTED[quote][1]}")
            end += 1
        return Item(_QUOTED[quote][0], self._advance(end + 1 - self.position), line)

    def _check_terminator(self) -> None:
        following = self.source[self.position : self.position + 1]
        if following and following not in _AFTER_WORD and not self.source.startswith("}}", self.position):
            raise _Fault(f"bad character {following!r}")

    def _take_word(self) -> str:
        end = self.position
        while end < len(self.source) and _is_word(self.source[end]):
            end += 1
        return self._advance(end - self.position)

    def _field_or_variable(self, sigil: str, line: int) -> Item:
        following = self.source[self.position + 1 : self.position + 2]
        if sigil == "." and "0" <= following <= "9" and following:
            return self._number(line)
        text = self._advance(1) + self._take_word()
        self._check_terminator()
        kind = "variable" if sigil == "$" else ("field" if len(text) > 1 else "dot")
        return Item(kind, text, line)

    def _word(self, line: int) -> Item:
        word = self._take_word()
        self._check_terminator()
        if word in KEYWORDS:
            return Item(word, word, line)
        return Item("bool" if word in ("true", "false") else "name", word, line)

    def _number(self, line: int) -> Item:
        """Digits, letters, dots and signs of an exponent; the parser checks what they mean."""
        end = self.position + 1
        while end < len(self.source):
            character = self.source[end]
            exponent = character in "+-" and self.source[end - 1] in "eEpP" and end - 1 > self.position
            if exponent and self.source[self.position : end].lstrip("+-").lower().startswith("0x"):
                exponent = self.source[end - 1] in "pP"
            if not (character == "." or exponent or _is_word(character)):
                break
            end += 1
        return Item("number", self._advance(end - self.position), line)


_QUOTED = {
    '"': ("string", "quoted string"),
    "`": ("raw", "raw quoted string"),
    "'": ("char", "character constant"),
}


def lex_go(source: str) -> Iterator[Item]:
    """The items of a template, ending with one of kind `eof` or `error`."""
    return _Lexer(source).items()

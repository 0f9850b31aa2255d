"""The values of constants in a Go template: strings, characters and numbers by Go's syntax.

Knows no grammar around them. Faults are `TemplateSyntaxError`s. Used by `golang`.
"""

from __future__ import annotations

import re

from modelfiles.templates.errors import TemplateSyntaxError
from modelfiles.templates.go_nodes import Number

MAX_INT = 2**63 - 1
_ESCAPES = dict(zip("abfnrtv\\'\"", b"\a\b\f\n\r\t\v\\'\"", strict=True))
_ESCAPE = re.compile(
    rb"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))", re.DOTALL
)
_INTEGER = re.compile(
    r"[+-]?(0[xX](_?[0-9a-fA-F])+|0[bB](_?[01])+|0[oO](_?[0-7])+|0(_?[0-7])*|[1-9](_?[0-9])*)"
)
_FLOAT = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?)")
_HEX_FLOAT = re.compile(r"[+-]?0[xX]([0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?[0-9]+")


def unquote(text: str, line: int = 0) -> str:
    """The value of a Go string constant; bytes that are no UTF-8 become lone surrogates."""
    if text.startswith("`"):
        return text[1:-1].replace("\r", "")
    quote = text[0]

    def decode(match: re.Match[bytes]) -> bytes:
        two, four, eight, octal, single = match.groups()
        if two or octal:
            value = int(two, 16) if two else int(octal, 8)
            if value > 255:
                raise TemplateSyntaxError("invalid syntax", line)
            return bytes([value])
        if four or eight:
            value = int(four or eight, 16)
            if value > 0x10FFFF or 0xD800 <= value < 0xE000:
                raise TemplateSyntaxError("invalid syntax", line)
            return chr(value).encode()
        character = single.decode("latin-1")
        if character not in _ESCAPES or (character in "'\"" and character != quote):
            raise TemplateSyntaxError("invalid syntax", line)
        return bytes([_ESCAPES[character]])

    raw = text[1:-1].encode("utf-8", "surrogateescape")
    return _ESCAPE.sub(decode, raw).decode("utf-8", "surrogateescape")


def parse_number(text: str, line: int = 0) -> Number:
    """A numeric constant by Go's rules."""
    plain = text.replace("_", "")
    if _INTEGER.fullmatch(text):
        digits = plain.lstrip("+-")
        octal = len(digits) > 1 and digits[0] == "0" and digits.isdecimal()
        value = int(digits, 8) if octal else int(digits, 0)
        value = -value if text.startswith("-") else value
        if -MAX_INT - 1 <= value <= MAX_INT:
            return Number(text, value, line)
        raise TemplateSyntaxError(f"integer overflow: {text!r}", line)
    if _FLOAT.fullmatch(text) and any(mark in text for mark in ".eE"):
        return Number(text, _finite(float(text), text, line), line)
    if _HEX_FLOAT.fullmatch(text):
        return Number(text, _finite(float.fromhex(text), text, line), line)
    raise TemplateSyntaxError(f"bad number syntax: {text!r}", line)


def _finite(value: float, text: str, line: int) -> float:
    if value in (float("inf"), float("-inf")):
        raise TemplateSyntaxError(f"illegal number syntax: {text!r}", line)
    return value


def parse_character(text: str, line: int = 0) -> Number:
    """A character constant: its code point."""
    value = unquote(text, line)
    if len(value) != 1:
        raise TemplateSyntaxError(f"malformed character constant: {text}", line)
    code = ord(value)
    return Number(text, code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code, line)

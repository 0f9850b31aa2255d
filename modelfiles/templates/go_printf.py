"""Go's `printf`: verbs, flags, widths, argument numbers, and what it prints instead of failing.

Knows values by `go_values`. Width and precision are bounded; a precision for `%x` and `%b` of floats is
refused. Used by `go_functions`. Behaviour: Go's package documentation of fmt.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from modelfiles.templates.errors import TemplateError, TemplateLimitExceeded
from modelfiles.templates.go_values import (
    Byte,
    Invalid,
    JsonList,
    JsonMap,
    Struct,
    TypeList,
    format_float,
    format_value,
    quote,
    sorted_items,
    to_bytes,
    type_name,
)

MAX_WIDTH = 1000


@dataclass(slots=True)
class _Spec:
    """One verb with its flags."""

    verb: str = ""
    plus: bool = False
    minus: bool = False
    sharp: bool = False
    space: bool = False
    zero: bool = False
    named: bool = False
    width: int | None = None
    precision: int | None = None

    def pad(self, text: str, zero_allowed: bool = True) -> str:
        missing = (self.width or 0) - len(text)
        if missing <= 0:
            return text
        if self.minus:
            return text + " " * missing
        return ("0" if self.zero and zero_allowed else " ") * missing + text


def printf(pattern: str, arguments: list[Any]) -> str:
    """fmt.Sprintf."""
    return _Printf(pattern, arguments).run()


class _Printf:
    def __init__(self, pattern: str, arguments: list[Any]) -> None:
        self.pattern = pattern
        self.arguments = arguments
        self.position = 0
        self.argument = 0
        self.reordered = False
        self.good_number = True
        self.out: list[str] = []

    def run(self) -> str:
        while self.position < len(self.pattern):
            percent = self.pattern.find("%", self.position)
            percent = len(self.pattern) if percent < 0 else percent
            self.out.append(self.pattern[self.position : percent])
            self.position = percent + 1
            if percent < len(self.pattern):
                self._verb()
        if not self.reordered and self.argument < len(self.arguments):
            extra = (_described(value) for value in self.arguments[self.argument :])
            self.out.append(f"%!(EXTRA {', '.join(extra)})")
        return "".join(self.out)

    def _verb(self) -> None:
        spec = _Spec()
        self.good_number = True
        self._flags(spec)
        after_index = self._index()
        after_index = self._width(spec, after_index)
        after_index = self._precision(spec, after_index)
        if not after_index:
            self._index()
        if self.position >= len(self.pattern):
            self.out.append("%!(NOVERB)")
            return
        spec.verb = self.pattern[self.position]
        self.position += 1
        if spec.verb == "%":
            self.out.append("%")
        elif not self.good_number:
            self.out.append(f"%!{spec.verb}(BADINDEX)")
        elif self.argument >= len(self.arguments):
            self.out.append(f"%!{spec.verb}(MISSING)")
        else:
            self.out.append(format_verb(spec, self.arguments[self.argument]))
            self.argument += 1

    def _flags(self, spec: _Spec) -> None:
        while self.position < len(self.pattern):
            name = _FLAGS.get(self.pattern[self.position])
            if name is None:
                return
            setattr(spec, name, True)
            self.position += 1

    def _index(self) -> bool:
        """`[n]`: which argument comes next."""
        if self.pattern[self.position : self.position + 1] != "[":
            return False
        self.reordered = True
        end = self.pattern.find("]", self.position)
        if end < 0:
            self.good_number = False
            self.position += 1
            return False
        digits = self.pattern[self.position + 1 : end]
        self.position = end + 1
        number = int(digits) if re.fullmatch(r"[0-9]{1,7}", digits) else 0
        if 1 <= number <= len(self.arguments):
            self.argument = number - 1
            return True
        self.good_number = False
        return bool(digits.isdecimal())

    def _width(self, spec: _Spec, after_index: bool) -> bool:
        if self.pattern[self.position : self.position + 1] == "*":
            self.position += 1
            spec.width = self._star("%!(BADWIDTH)")
            if spec.width is not None and spec.width < 0:
                spec.width, spec.minus, spec.zero = -spec.width, True, False
            return False
        spec.width = self._digits()
        if after_index and spec.width is not None:
            self.good_number = False
        return after_index

    def _precision(self, spec: _Spec, after_index: bool) -> bool:
        if self.pattern[self.position : self.position + 1] != "." or self.position + 1 >= len(self.pattern):
            return after_index
        self.position += 1
        if after_index:
            self.good_number = False
        after_index = self._index()
        if self.pattern[self.position : self.position + 1] == "*":
            self.position += 1
            precision = self._star("%!(BADPREC)", negative=False)
            spec.precision = precision
            return False
        spec.precision = self._digits() or 0
        return after_index

    def _star(self, complaint: str, negative: bool = True) -> int | None:
        """A width or precision from the arguments."""
        value = self.arguments[self.argument] if self.argument < len(self.arguments) else None
        self.argument += self.argument < len(self.arguments)
        if isinstance(value, bool) or not isinstance(value, int) or (value < 0 and not negative):
            self.out.append(complaint)
            return None
        return _bounded(value)

    def _digits(self) -> int | None:
        match = _DIGITS.match(self.pattern, self.position)
        if match is None:
            return None
        self.position = match.end()
        return _bounded(int(match[0][:9]))


_DIGITS = re.compile("[0-9]+")
_FLAGS = {"#": "sharp", "0": "zero", "+": "plus", "-": "minus", " ": "space"}


def _bounded(number: int) -> int:
    if abs(number) > MAX_WIDTH:
        raise TemplateLimitExceeded(f"printf width or precision is above {MAX_WIDTH}")
    return number


def _described(value: Any) -> str:
    return "<nil>" if _is_nil(value) else f"{type_name(value)}={format_verb(_Spec('v'), value)}"


def _is_nil(value: Any) -> bool:
    return value is None or isinstance(value, Invalid)


def _bad_verb(spec: _Spec, value: Any) -> str:
    if _is_nil(value):
        return f"%!{spec.verb}(<nil>)"
    shown = _format_plain(dataclasses.replace(spec, verb="v"), value)
    return f"%!{spec.verb}({type_name(value)}={shown})"


def format_verb(spec: _Spec, value: Any) -> str:
    """One argument printed by one verb."""
    if spec.verb == "T":
        return spec.pad(type_name(value))
    if _is_nil(value):
        return spec.pad("<nil>") if spec.verb == "v" else _bad_verb(spec, value)
    if spec.verb == "v":
        if spec.sharp:
            return _go_syntax(spec, value)
        spec = dataclasses.replace(spec, plus=False, named=spec.plus)
    return _format_plain(spec, value)


def _format_plain(spec: _Spec, value: Any) -> str:
    """As the verb says, by the kind of value; `v` has no meaning of its own left."""
    if isinstance(value, bool):
        return spec.pad(str(value).lower()) if spec.verb in "tv" else _bad_verb(spec, value)
    if isinstance(value, int):
        return _format_int(spec, value)
    if isinstance(value, float):
        return _format_float(spec, value)
    if isinstance(value, JsonMap | JsonList | TypeList) and spec.verb in "vsxXq":
        return _format_string(spec, format_value(value))
    if isinstance(value, str):
        return _format_string(spec, value)
    return _format_collection(spec, value)


def _format_collection(spec: _Spec, value: Any) -> str:
    """Brackets around the elements, each printed by the verb."""

    def element(item: Any) -> str:
        return "<nil>" if item is None else format_verb(spec, item)

    if isinstance(value, dict):
        entries = (f"{element(key)}:{element(item)}" for key, item in sorted_items(value))
        return f"map[{' '.join(entries)}]"
    if isinstance(value, Struct):
        fields = (f"{name}:{element(v)}" if spec.named else element(v) for name, v in value.fields.items())
        return "{" + " ".join(fields) + "}"
    return "[" + " ".join(element(item) for item in value) + "]"


def _format_string(spec: _Spec, text: str) -> str:
    if spec.verb not in "vsxXq":
        return _bad_verb(spec, text)
    if spec.precision is not None and spec.verb not in "xX":
        text = text[: spec.precision]
    if spec.verb in "xX":
        data = to_bytes(text)[: spec.precision] if spec.precision is not None else to_bytes(text)
        hexadecimal = data.hex(" ") if spec.space else data.hex()
        if spec.sharp and data:
            hexadecimal = " ".join("0x" + part for part in hexadecimal.split())
        return spec.pad(hexadecimal.upper() if spec.verb == "X" else hexadecimal)
    if spec.verb == "q":
        if spec.sharp and "`" not in text and all(c == "\t" or (c >= " " and c != "\x7f") for c in text):
            return spec.pad(f"`{text}`")
        return spec.pad(quote(text))
    return spec.pad(text)


_BASES = {"d": "d", "v": "d", "b": "b", "o": "o", "O": "o", "x": "x", "X": "X"}
_PREFIXES = {"b": "0b", "o": "0", "O": "0o", "x": "0x", "X": "0X"}


def _format_int(spec: _Spec, value: int) -> str:
    if spec.verb in ("c", "q", "U"):
        return _format_rune(spec, value)
    if spec.verb not in _BASES:
        return _bad_verb(spec, value)
    digits = format(abs(int(value)), _BASES[spec.verb])
    sign = "-" if value < 0 else ("+" if spec.plus else (" " if spec.space else ""))
    if spec.precision is not None:
        digits = "" if spec.precision == 0 and value == 0 else digits.rjust(spec.precision, "0")
        if not digits:
            return " " * (spec.width or 0)
    elif spec.zero and not spec.minus and spec.width is not None:
        digits = digits.rjust(spec.width - len(sign), "0")
    if spec.verb == "O" or (spec.sharp and spec.verb in _PREFIXES):
        prefix = _PREFIXES[spec.verb]
        digits = digits if prefix == "0" and digits.startswith("0") else prefix + digits
    return spec.pad(sign + digits, zero_allowed=False)


def _format_rune(spec: _Spec, value: int) -> str:
    valid = 0 <= value <= 0x10FFFF and not 0xD800 <= value < 0xE000
    character = chr(value) if valid else "\ufffd"
    if spec.verb == "c":
        return spec.pad(character)
    if spec.verb == "q":
        return spec.pad(quote(character, "'"))
    return spec.pad(f"U+{value:04X}" + (f" '{character}'" if spec.sharp else ""), zero_allowed=False)


def _format_float(spec: _Spec, value: float) -> str:
    if spec.verb not in "vgGfFeExXb":
        return _bad_verb(spec, value)
    finite = value - value == 0
    text = _float_digits(spec, value) if finite else format_float(value)
    sign, number = (text[0], text[1:]) if text[0] in "+-" else ("+", text)
    infinite_plus = not finite and text[0] == "+"
    shown = sign if sign == "-" or spec.plus or infinite_plus else (" " if spec.space else "")
    if spec.zero and not spec.minus and finite and shown and (spec.width or 0) > len(shown + number):
        return shown + number.rjust((spec.width or 0) - len(shown), "0")
    return spec.pad(shown + number, zero_allowed=finite)


def _float_digits(spec: _Spec, value: float) -> str:
    verb = "g" if spec.verb == "v" else spec.verb
    if verb in "xXb":
        if spec.precision is not None:
            raise TemplateError(f"printf does not support %.{spec.precision}{verb} of a float")
        text = _hexadecimal(value) if verb in "xX" else _binary(value)
    elif verb in "gG" and spec.precision is None:
        text = _with_point(format_float(value)) if spec.sharp else format_float(value)
    else:
        text = format(
            value, f"{'#' if spec.sharp else ''}.{6 if spec.precision is None else spec.precision}{verb}"
        )
    return text.upper() if verb in "GX" else text


def _with_point(text: str) -> str:
    """`%#g`: always a point, at least six digits."""
    mantissa, e, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = len((whole.lstrip("-") + fraction).lstrip("0")) + (whole.lstrip("-") == "0" and not fraction)
    return f"{whole}.{fraction}{'0' * (6 - digits)}{e}{exponent}"


def _hexadecimal(value: float) -> str:
    mantissa, _, exponent = value.hex().partition("p")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}p{exponent[0]}{int(exponent[1:]):02d}"


def _binary(value: float) -> str:
    mantissa, exponent = math.frexp(value)
    return f"{int(mantissa * 2**53)}p{exponent - 53:+d}" if value else "0p-1074"


def _go_syntax(spec: _Spec, value: Any) -> str:
    """`%#v`: the value as Go source."""
    if value is None:
        return "interface {}(nil)"
    if isinstance(value, str):
        return spec.pad(quote(value))
    if isinstance(value, Byte):
        return f"0x{int(value):x}"
    if isinstance(value, dict):
        entries = (f"{_go_syntax(spec, k)}:{_go_syntax(spec, v)}" for k, v in sorted_items(value))
        return f"{type_name(value)}{{{', '.join(entries)}}}"
    if isinstance(value, list):
        return f"{type_name(value)}{{{', '.join(_go_syntax(spec, item) for item in value)}}}"
    return spec.pad(format_value(value))

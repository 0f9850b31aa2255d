"""Go's values as templates see them, and their formatting: fmt's verbs, JSON, and the escaping functions.

Python's str, bool, int, float, list and dict stand for Go's string, bool, int, float64, []any and
map[string]any; None is a nil interface. Bytes of a string that are no UTF-8 are lone surrogates. Used by the
other Go modules.
Formats: Go's package documentation of fmt, strconv, encoding/json and text/template.
"""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelfiles.templates.errors import TemplateLimitExceeded


class Byte(int):
    """A uint8: what indexing a string gives."""


class Invalid:
    """No value at all: an unset variable or the result of a missing key."""


INVALID = Invalid()


@dataclass(frozen=True, slots=True)
class Struct:
    """A Go struct: named fields in order. `json_names` are their names in JSON; fields that are not there
    are left out, as are empty ones named in `omit_empty`."""

    fields: Mapping[str, Any]
    json_names: Mapping[str, str]
    omit_empty: frozenset[str] = frozenset()


class JsonList(list[Any]):
    """A slice that prints as JSON."""


class JsonMap(dict[str, Any]):
    """A map that prints as JSON."""


class TypeList(list[str]):
    """The type of a schema property: prints as its one name, or as a list of several."""


def type_name(value: Any) -> str:
    """Go's name of a value's type, as in its error messages."""
    if value is None or isinstance(value, Invalid):
        return "<nil>"
    for kind, name in _TYPE_NAMES:
        if isinstance(value, kind):
            return name
    return type(value).__name__


_TYPE_NAMES: tuple[tuple[type, str], ...] = (
    (bool, "bool"),
    (Byte, "uint8"),
    (int, "int"),
    (float, "float64"),
    (str, "string"),
    (JsonMap, "template.templateArgs"),
    (dict, "map[string]interface {}"),
    (JsonList, "template.templateTools"),
    (TypeList, "api.PropertyType"),
    (list, "[]interface {}"),
    (Struct, "struct"),
)


def to_bytes(text: str) -> bytes:
    """A Go string's bytes."""
    return text.encode("utf-8", "surrogateescape")


def from_bytes(data: bytes) -> str:
    """A Go string from its bytes."""
    return data.decode("utf-8", "surrogateescape")


def sorted_items(value: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """A map's entries in the order Go prints and ranges over them."""
    return sorted(value.items(), key=lambda item: to_bytes(item[0]) if isinstance(item[0], str) else item[0])


def format_float(value: float) -> str:
    """The shortest decimal that reads back as `value`, with an exponent below -4 and from 6 on."""
    if math.isnan(value) or math.isinf(value):
        return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
    sign, digits, point = shortest_digits(value)
    return sign + _place_point(digits, point, range(-4, 6))


def shortest_digits(value: float) -> tuple[str, str, int]:
    """Sign, decimal digits and how many of them stand before the point; for finite values."""
    mantissa, _, exponent = repr(value).partition("e")
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = whole + fraction
    leading = len(digits) - len(digits.lstrip("0"))
    point = len(whole) + int(exponent or 0) - leading
    digits = digits.strip("0")
    return (sign, digits, point) if digits else (sign, "0", 1)


def _place_point(digits: str, point: int, plain: range) -> str:
    """Digits with the point after `point` of them, with an exponent when that is not in `plain`."""
    exponent = point - 1
    if exponent not in plain:
        mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
        return f"{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    if point <= 0:
        return "0." + "0" * -point + digits
    if point >= len(digits):
        return digits + "0" * (point - len(digits))
    return digits[:point] + "." + digits[point:]


def format_value(value: Any, depth: int = 0) -> str:
    """What `%v` and plain output print."""
    if depth > 100:
        raise TemplateLimitExceeded("a value is nested more than 100 deep")
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, Invalid):
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return format_float(value)
    if isinstance(value, JsonMap | JsonList):
        return to_json(value)
    if isinstance(value, TypeList) and len(value) < 2:
        return "".join(value)
    if isinstance(value, dict):
        inner = " ".join(f"{format_value(k)}:{format_value(v, depth + 1)}" for k, v in sorted_items(value))
        return f"map[{inner}]"
    if isinstance(value, Struct):
        return "{" + " ".join(format_value(item, depth + 1) for item in value.fields.values()) + "}"
    if isinstance(value, list):
        return "[" + " ".join(format_value(item, depth + 1) for item in value) + "]"
    raise TypeError(f"no Go value: {type(value).__name__}")


_JSON_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    **{character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"},
}


def json_string(text: str) -> str:
    """A JSON string as encoding/json writes it, with `<`, `>` and `&` escaped."""
    pieces = []
    for character in text:
        if character in _JSON_ESCAPES:
            pieces.append(_JSON_ESCAPES[character])
        elif character < " ":
            pieces.append(f"\\u{ord(character):04x}")
        else:
            pieces.append("\\ufffd" if "\ud800" <= character <= "\udfff" else character)
    return '"' + "".join(pieces) + '"'


def to_json(value: Any, depth: int = 0) -> str:
    """encoding/json's compact form: maps sorted by key, structs in the order of their fields."""
    if depth > 100:
        raise TemplateLimitExceeded("a value is nested more than 100 deep")
    if value is None or isinstance(value, Invalid):
        return "null"
    if isinstance(value, str):
        return json_string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return _json_float(value)
    if isinstance(value, TypeList) and len(value) == 1:
        return json_string(value[0])
    if isinstance(value, dict):
        entries = sorted_items(value)
        return "{" + ",".join(f"{json_string(k)}:{to_json(v, depth + 1)}" for k, v in entries) + "}"
    if isinstance(value, Struct):
        return "{" + ",".join(_json_fields(value, depth + 1)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(to_json(item, depth + 1) for item in value) + "]"
    raise TypeError(f"no Go value: {type(value).__name__}")


def _json_fields(value: Struct, depth: int) -> list[str]:
    """Empty in `omit_empty` means nil, false, 0 and empty texts and collections."""
    return [
        f"{json_string(name)}:{to_json(value.fields[field], depth)}"
        for field, name in value.json_names.items()
        if not (field in value.omit_empty and not value.fields[field])
    ]


def _json_float(value: float) -> str:
    """Raises ValueError for what JSON cannot say."""
    if math.isnan(value) or math.isinf(value):
        raise ValueError("unsupported value")
    sign, digits, point = shortest_digits(value)
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        return sign + _place_point(digits, point, range(-7, 22))
    mantissa, _, exponent = _place_point(digits, point, range(0)).partition("e")
    return f"{sign}{mantissa}e{exponent[0]}{int(exponent[1:]):02d}".replace("e-0", "e-")


_QUOTE_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
}


def quote(text: str, mark: str = '"') -> str:
    """strconv.Quote (and QuoteRune for a single character and `'`)."""
    return mark + "".join(_quoted(character, mark) for character in text) + mark


def _quoted(character: str, mark: str) -> str:
    code = ord(character)
    if character == mark:
        return "\\" + mark
    if character in _QUOTE_ESCAPES:
        return _QUOTE_ESCAPES[character]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable():
        return character
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_HTML = str.maketrans({"\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;"})


def escape_html(text: str) -> str:
    """The `html` function."""
    return text.translate(_HTML)


_JS = {"\\": "\\\\", "'": "\\'", '"': '\\"'} | {c: f"\\u{ord(c):04X}" for c in "<>&="}


def escape_js(text: str) -> str:
    """The `js` function."""
    return "".join(_escape_js(character) for character in text)


def _escape_js(character: str) -> str:
    if character in _JS:
        return _JS[character]
    if character < " ":
        return f"\\u{ord(character):04X}"
    if "\ud800" <= character <= "\udfff":
        return character
    if character < "\x80" or character.isprintable():
        return character
    return f"\\u{ord(character):04X}"


def escape_url(text: str) -> str:
    """The `urlquery` function."""
    return urllib.parse.quote_plus(to_bytes(text), safe="-_.~")

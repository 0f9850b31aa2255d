"""The PARAMETER names of a Modelfile, which are also the `options` of a request: types, defaults, scope.

One table; from it come the readers of Modelfile text and of JSON, and the text that `show` prints. Does not
know what a parameter does. Facts: Ollama's `api.Options` and `DefaultOptions`.

    ParameterError
    └── UnknownParameter
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

__all__ = [
    "DEFAULTS",
    "PARAMETERS",
    "Parameter",
    "ParameterError",
    "UnknownParameter",
    "check_option",
    "merge_parameters",
    "parse_parameter",
    "render_parameters",
]

ParameterKind = Literal["integer", "float32", "boolean", "array"]
Value = int | float | bool | tuple[str, ...]


class ParameterError(ValueError):
    """A parameter has a value of the wrong type; the message names it and the type it must have."""


class UnknownParameter(ParameterError):
    """There is no parameter of that name."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row: a `load` parameter is fixed when a model is loaded, a `request` one may differ each time.

    `default` None leaves the choice to the loader. Deprecated ones are read and have no effect.
    """

    name: str
    kind: ParameterKind
    default: Value | None
    scope: Literal["load", "request"] = "request"
    deprecated: bool = False


_ROWS: Final = (
    Parameter("num_ctx", "integer", 0, "load"),
    Parameter("num_batch", "integer", 512, "load"),
    Parameter("num_gpu", "integer", -1, "load"),
    Parameter("main_gpu", "integer", None, "load"),
    Parameter("use_mmap", "boolean", None, "load"),
    Parameter("num_thread", "integer", 0, "load"),
    Parameter("draft_num_predict", "integer", 4, "load"),
    Parameter("num_keep", "integer", 4),
    Parameter("seed", "integer", -1),
    Parameter("num_predict", "integer", -1),
    Parameter("top_k", "integer", 40),
    Parameter("top_p", "float32", 0.9),
    Parameter("min_p", "float32", 0.0),
    Parameter("typical_p", "float32", 1.0),
    Parameter("repeat_last_n", "integer", 64),
    Parameter("temperature", "float32", 0.8),
    Parameter("repeat_penalty", "float32", 1.0),
    Parameter("presence_penalty", "float32", 0.0),
    Parameter("frequency_penalty", "float32", 0.0),
    Parameter("stop", "array", ()),
    Parameter("penalize_newline", "boolean", None, deprecated=True),
    Parameter("low_vram", "boolean", None, "load", deprecated=True),
    Parameter("f16_kv", "boolean", None, "load", deprecated=True),
    Parameter("logits_all", "boolean", None, "load", deprecated=True),
    Parameter("vocab_only", "boolean", None, "load", deprecated=True),
    Parameter("use_mlock", "boolean", None, "load", deprecated=True),
    Parameter("mirostat", "integer", None, deprecated=True),
    Parameter("mirostat_tau", "float32", None, deprecated=True),
    Parameter("mirostat_eta", "float32", None, deprecated=True),
)

PARAMETERS: Final[dict[str, Parameter]] = {row.name: row for row in _ROWS}
DEFAULTS: Final[dict[str, Value]] = {row.name: row.default for row in _ROWS if row.default is not None}

_INT64: Final = range(-(1 << 63), 1 << 63)
_FLOAT32_MAX: Final = 3.4028234663852886e38
_TRUE: Final = ("1", "t", "T", "TRUE", "true", "True")
_FALSE: Final = ("0", "f", "F", "FALSE", "false", "False")


def parse_parameter(name: str, text: str) -> Value | None:
    """The value a PARAMETER line gives: its text in the parameter's type; None for a deprecated parameter.

    A `stop` line gives a tuple of one string; `merge_parameters` joins them. Raises `UnknownParameter`, and
    `ParameterError` with Ollama's words for a text that is not of the type.
    """
    parameter = _find(name)
    return None if parameter.deprecated else _READERS[parameter.kind](text)


def check_option(name: str, value: Any) -> Value | None:
    """The value of a JSON option, checked and in its type; None for null and for a deprecated option.

    A whole number may be written 4096.0. Raises `UnknownParameter` and `ParameterError` naming the option,
    the type wanted and what came.
    """
    parameter = _find(name)
    if value is None or parameter.deprecated:
        return None
    checked = _CHECKS[parameter.kind](value)
    if checked is None:
        raise ParameterError(f'option "{name}" must be of type {parameter.kind}, not {_described(value)}')
    return checked


def merge_parameters(lines: Sequence[tuple[str, str]]) -> dict[str, Value]:
    """All PARAMETER lines of a Modelfile as one mapping: `stop` lines add up, else the last line wins."""
    merged: dict[str, Value] = {}
    for name, text in lines:
        value = parse_parameter(name, text)
        if value is None:
            continue
        before = merged.get(name)
        merged[name] = before + value if isinstance(before, tuple) and isinstance(value, tuple) else value
    return merged


def render_parameters(parameters: Mapping[str, Any]) -> str:
    """The text of `show --parameters`: a line each, the name in 30 columns, strings quoted as in Go."""
    lines: list[str] = []
    for name, value in parameters.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        lines += [f"{name:<30} {_go_syntax(item)}" for item in items]
    return "\n".join(lines)


def _find(name: str) -> Parameter:
    parameter = PARAMETERS.get(name)
    if parameter is None:
        raise UnknownParameter(f"unknown parameter '{name}'")
    return parameter


def _read_integer(text: str) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,20}", text) and int(text) in _INT64:
        return int(text)
    raise ParameterError(f"invalid int value [{text}]")


def _read_float(text: str) -> float:
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", text):
        value = float(text)
        if abs(value) <= _FLOAT32_MAX:
            return value
    raise ParameterError(f"invalid float value [{text}]")


def _read_boolean(text: str) -> bool:
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ParameterError(f"invalid bool value [{text}]")


def _read_array(text: str) -> tuple[str, ...]:
    return (text,)


_READERS: Final[dict[ParameterKind, Callable[[str], Value]]] = {
    "integer": _read_integer,
    "float32": _read_float,
    "boolean": _read_boolean,
    "array": _read_array,
}


def _check_integer(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and value in _INT64 else None


def _check_float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= _FLOAT32_MAX else None  # not so for NaN


def _check_boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _check_array(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        return None
    return tuple(value)


_CHECKS: Final[dict[ParameterKind, Callable[[Any], Value | None]]] = {
    "integer": _check_integer,
    "float32": _check_float,
    "boolean": _check_boolean,
    "array": _check_array,
}

_JSON_NAMES: Final = {str: "string", bool: "boolean", dict: "object", list: "array", tuple: "array"}


def _described(value: Any) -> str:
    """A JSON value in an error: its type, and itself where it is short."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"the number {value}"
    if isinstance(value, (list, tuple)):
        return "an array with other items than strings"
    return _JSON_NAMES.get(type(value), type(value).__name__)


def _go_syntax(value: Any) -> str:
    """A value as Go's `%#v` prints what its JSON decoder makes of it: every number is a float64 there."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return _go_float(float(value))
    return _go_quoted(str(value))


def _go_float(value: float) -> str:
    """Shortest digits, with an exponent from a million up and below 0.0001."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    shortest = next(text for digits in range(17) if float(text := f"{value:.{digits}e}") == value)
    mantissa, _, exponent = shortest.partition("e")
    power = int(exponent)
    if -4 <= power < 6:
        return repr(value).removesuffix(".0")
    return f"{mantissa}e{'-' if power < 0 else '+'}{abs(power):02d}"


_ESCAPES: Final = {
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
    "\\": r"\\",
    '"': r"\"",
}


def _go_quoted(text: str) -> str:
    return '"' + "".join(_go_character(character) for character in text) + '"'


def _go_character(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if character == " " or character.isprintable():
        return character
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
